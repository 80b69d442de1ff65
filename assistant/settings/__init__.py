"""Every setting, declared once: name, default, help. `config.toml`, the environment and the docs follow from it.

Order of precedence: defaults < config.toml in the home < THUMBWISE_* environment < command line. An
unknown key is an error wherever it comes from. Left out: per-user settings (they belong to accounts).
"""

from __future__ import annotations

import os
import re
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, JsonValue, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from thumbwise import faults
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings.access import AccountSettings, Auth, OidcSettings, ProxySettings, PublicUrl
from thumbwise.settings.canary import CanarySettings
from thumbwise.settings.engine import EngineSettings
from thumbwise.settings.gates import GateSettings
from thumbwise.settings.training import TrainSettings
from thumbwise.settings.values import arguments_of, interval, urls

PREFIX = "THUMBWISE_"
NOT_SETTINGS = {"THUMBWISE_HOME", faults.VARIABLE, faults.DEBUG_LOCKS}


class _Toml(TomlConfigSettingsSource):
    """config.toml; also with a byte order mark, which some editors on Windows write."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return tomllib.loads(file_path.read_text(encoding="utf-8-sig"))


class Settings(BaseSettings):
    """All settings; `Settings.load(home, **command_line)` is the only way they are read."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    auth: Auth = Field(
        "local",
        description="way in: `local` (this machine only, no login), `accounts` (login), `proxy` (a header of a proxy)",
    )
    public_url: PublicUrl = Field(
        "", description="address under which people reach the assistant, such as https://chat.example.org/thumbwise"
    )
    host: str = Field("127.0.0.1", description="address to listen on; loopback only while `auth` is `local`")
    port: int = Field(7860, ge=0, le=65535, description="port of the pages and the API; 0 picks a free one")
    model: str = Field("default", description="base model: `default`, a Hugging Face id or a folder")
    chat_template_kwargs: Annotated[dict[str, JsonValue], AfterValidator(arguments_of)] = Field(
        default_factory=dict,
        description="arguments of the model's chat template, in chat and in training; "
        "{enable_thinking = false} makes Qwen 3 and SmolLM3 answer without thinking first",
    )
    engine_url: Annotated[str, AfterValidator(urls)] = Field(
        "",
        description="vLLM servers that already run, used instead of starting one: http://… or unix:/socket, "
        "separated by commas",
    )
    engine_api_key: SecretStr = Field(
        SecretStr(""), description="API key of those servers (vLLM's --api-key); sent only to them"
    )
    temperature: float = Field(
        0.7, gt=0, le=2, description="sampling temperature of chat, comparisons, rollouts, KL and evaluation"
    )
    max_tokens: int = Field(48, ge=1, description="longest draft in comparisons, rollouts and evaluation, in tokens")
    chat_max_tokens: int = Field(512, ge=1, description="longest chat reply, in tokens")
    local_in_flight: int = Field(
        32,
        ge=1,
        description="open replies that one person may have at once; a person is a browser, a key, or all programs "
        "without a key together",
    )
    names_are_people: bool = Field(
        False, description="count each `user` that a program without a key names as a person; for rehearsals only"
    )
    in_flight: int = Field(128, ge=1, description="open replies that all people together may have at once")
    page_share: float = Field(0.25, ge=0, lt=1, description="share of `in_flight` that is reserved for the pages")
    drain_seconds: float = Field(
        20.0, ge=0, description="seconds that open replies get to end after the assistant was asked to stop"
    )
    plugin_seconds: float = Field(
        5.0, gt=0, description="seconds that a plugin may take to choose the versions of a comparison"
    )
    watchdog_seconds: float = Field(
        120.0,
        ge=0,
        description="seconds that the server's event loop may stand still before the process is ended; 0: never ended",
    )
    train_every: Annotated[str, AfterValidator(interval)] = Field(
        "", description="interval at which `serve` starts a training run, such as 24h; empty: never"
    )
    log_format: Literal["text", "json"] = Field("text", description="format of the server's log: `text` or `json`")
    reward: str = Field("bradley_terry", description="reward model used in training")
    accounts: AccountSettings = Field(default_factory=AccountSettings)
    proxy: ProxySettings = Field(default_factory=ProxySettings)
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    canary: CanarySettings = Field(default_factory=CanarySettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    gates: GateSettings = Field(default_factory=GateSettings)

    @classmethod
    def load(cls, home: Home, **given: Any) -> Settings:
        """Read settings for `home`; `given` are command-line values (None means not given).

        Raises ThumbwiseError that names every wrong or unknown key, and where to correct it.
        """
        _refuse_unknown_environment()
        config = SettingsConfigDict(toml_file=home.config)
        class_ = type("Settings", (cls,), {"__module__": cls.__module__, "model_config": config})
        try:
            loaded: Settings = class_(**{key: value for key, value in given.items() if value is not None})
        except ValidationError as error:
            raise ThumbwiseError(_sentence(error, home.config)) from None
        except SettingsError as error:
            raise ThumbwiseError(_not_json(error)) from None
        except UnicodeDecodeError:
            raise ThumbwiseError(f"{home.config} is not in UTF-8: save it as UTF-8.") from None
        except ValueError as error:  # TOML syntax
            raise ThumbwiseError(f"{home.config} cannot be read: {error}. Correct or remove the line.") from None
        return loaded

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then the home's config.toml."""
        return init_settings, env_settings, _Toml(settings_cls)


def _names(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _names(kind, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, field))
    return rows


def describe() -> list[tuple[str, Any, str]]:
    """Return (dotted name, default, help) of every setting, for docs and `thumbwise doctor`."""
    return [
        (name, field.get_default(call_default_factory=True), field.description or "")
        for name, field in _names(Settings)
    ]


def _refuse_unknown_environment() -> None:
    known = {PREFIX + name.replace(".", "__").upper() for name, _, _ in describe()}
    known |= {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    unknown = sorted(key for key in os.environ if key.startswith(PREFIX) and key not in known)
    if unknown:
        raise ThumbwiseError(f"{', '.join(unknown)}: no such setting. docs/settings.md lists them all.")


def _not_json(error: SettingsError) -> str:
    """A group of settings may be given as JSON in one variable."""
    found = re.search(r'field "(\w+)"', str(error))
    name = PREFIX + (found[1].upper() if found else "*")
    return (
        f"{name} in the environment is not JSON ({error.__cause__}): write a JSON object, "
        "or use one variable for each setting, as docs/settings.md names them."
    )


def _sentence(error: ValidationError, config: Path) -> str:
    told = {"model_type": "input should be a group of settings"}  # pydantic names the class
    errors = [
        ("".join(f".{part}" for part in e["loc"])[1:], told.get(e["type"], e["msg"].lower())) for e in error.errors()
    ]
    parts = [f"{name}: {said}" for name, said in errors]
    return f"Wrong settings: {'; '.join(parts)}. Correct {config}, the THUMBWISE_* environment or the command line."
