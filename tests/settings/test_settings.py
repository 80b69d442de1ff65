"""Settings: one declaration each, four sources in order, and nothing unknown gets through."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from thumbwise.cli.doctor import settings_rows
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings import Settings, describe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in [name for name in os.environ if name.startswith("THUMBWISE_")]:
        monkeypatch.delenv(name)
    return Home.find(tmp_path)


def test_the_command_line_wins_over_environment_over_file_over_defaults(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (Settings.load(home).port, Settings.load(home).max_tokens) == (7860, 48)
    home.config.write_text('port = 1\nmax_tokens = 10\nmodel = "from-file"\n')
    assert Settings.load(home).port == 1
    monkeypatch.setenv("THUMBWISE_PORT", "2")
    monkeypatch.setenv("THUMBWISE_MODEL", "from-env")
    assert Settings.load(home).port == 2
    loaded = Settings.load(home, port=3, model=None)
    assert (loaded.port, loaded.model, loaded.max_tokens) == (3, "from-env", 10)


def test_one_key_of_a_group_can_be_set_in_each_place(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config.write_text("[engine]\nmax_loras = 2\n")
    monkeypatch.setenv("THUMBWISE_ENGINE__KV_CACHE_GB", "3")
    engine = Settings.load(home).engine
    assert (engine.max_loras, engine.kv_cache_gb, engine.max_num_seqs) == (2, 3, 64)


@pytest.mark.parametrize(
    ("text", "name"),
    [("prot = 8000\n", "prot"), ("[engine]\nmax_lora = 2\n", "engine.max_lora"), ("[engin]\nx = 1\n", "engin")],
)
def test_an_unknown_key_in_the_file_is_named(home: Home, text: str, name: str) -> None:
    home.config.write_text(text)
    with pytest.raises(ThumbwiseError, match=rf"Wrong settings: {name}: .*config\.toml"):
        Settings.load(home)


@pytest.mark.parametrize("name", ["THUMBWISE_PROT", "THUMBWISE_ENGINE__MAX_LORA"])
def test_an_unknown_environment_variable_is_named(home: Home, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ThumbwiseError, match=f"{name}: no such setting. docs/settings.md"):
        Settings.load(home)


def test_an_unknown_key_on_the_command_line_is_named(home: Home) -> None:
    with pytest.raises(ThumbwiseError, match="Wrong settings: prot:"):
        Settings.load(home, prot=1)


@pytest.mark.parametrize(("key", "value"), [("port", "many"), ("port", 70000), ("temperature", 0), ("max_tokens", 0)])
def test_a_wrong_value_is_named_in_one_sentence(home: Home, key: str, value: object) -> None:
    with pytest.raises(ThumbwiseError, match=f"Wrong settings: {key}: ") as caught:
        Settings.load(home, **{key: value})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_toml_is_named(home: Home) -> None:
    home.config.write_text("port: 8000\n")
    with pytest.raises(ThumbwiseError, match=r"config\.toml cannot be read: "):
        Settings.load(home)


def test_a_file_with_the_mark_of_windows_editors_is_read(home: Home) -> None:
    home.config.write_text("port = 8000\n", encoding="utf-8-sig")
    assert Settings.load(home).port == 8000


def test_a_file_in_another_encoding_is_told_as_that(home: Home) -> None:
    home.config.write_text("port = 8000\n", encoding="utf-16")
    with pytest.raises(ThumbwiseError, match=r"config\.toml is not in UTF-8: save it as UTF-8\."):
        Settings.load(home)


def test_a_group_that_is_no_json_is_told_as_that(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_ENGINE", "{max_loras: 4}")
    with pytest.raises(ThumbwiseError, match="THUMBWISE_ENGINE in the environment is not JSON"):
        Settings.load(home)
    monkeypatch.setenv("THUMBWISE_ENGINE", "4")
    with pytest.raises(ThumbwiseError, match="engine: input should be a group of settings"):
        Settings.load(home)


def test_settings_cannot_be_changed_after_they_are_read(home: Home) -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load(home).port = 1


def test_every_setting_has_a_default_and_a_help() -> None:
    rows = describe()
    assert len({name for name, _, _ in rows}) == len(rows) > 10
    assert [name for name, default, text in rows if len(text) < 10 or "Undefined" in str(default)] == []


def test_every_setting_can_be_set_in_the_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, default, _ in describe():
        text = str(default).lower() if isinstance(default, bool) else str(default)
        monkeypatch.setenv("THUMBWISE_" + name.replace(".", "__").upper(), text)
    home.config.write_text("port = 1\n")  # the environment wins, so that every value must come from there
    assert Settings.load(home).model_dump() == Settings.model_construct().model_dump()


def test_what_other_servers_ask_for_is_shown_nowhere(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_ENGINE_API_KEY", "hush-hush")
    settings = Settings.load(home)
    assert settings.engine_api_key.get_secret_value() == "hush-hush"
    shown = json.dumps(settings_rows(settings)) + repr(settings) + settings.model_dump_json()
    assert "hush" not in shown
    (row,) = [row for row in settings_rows(settings) if row["name"] == "engine_api_key"]
    assert (row["value"], row["default"]) == ("(set)", "")
    assert "hush" not in "".join(
        Engine(Path(), settings.engine, run_dir=home.root, log=home.root).environment().values()
    )
