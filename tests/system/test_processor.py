"""The number format that "auto" means on this processor."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from thumbwise.cli import doctor
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.settings.engine import EngineSettings
from thumbwise.system import processor

FAST = {
    "server of 2017": "processor : 0\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl\n",
    "server of 2023": "processor : 0\nflags\t\t: fpu avx2 avx512bw amx_bf16 amx_tile\n",
    "Arm server": "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n",
    "unknown": "processor\t: 0\n",
}
SLOW = {
    "laptop": "processor : 0\nflags\t\t: fpu avx avx2 fma avx_vnni\nbugs\t\t: bf16\n",
    "Arm board": "processor\t: 0\nFeatures\t: fp asimd crc32\n",
}


@pytest.mark.parametrize(("name", "fast"), [*((name, True) for name in FAST), *((name, False) for name in SLOW)])
def test_the_processors_flags_say_whether_bfloat16_is_fast(tmp_path: Path, name: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text((FAST | SLOW)[name])
    assert processor.fast_bfloat16(tmp_path / "cpuinfo") is fast


def test_a_system_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    assert processor.fast_bfloat16(tmp_path / "none")


def test_torch_agrees_about_this_machine() -> None:
    torch = pytest.importorskip("torch")
    assert processor.fast_bfloat16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_float32_in_training_and_serving_where_bfloat16_is_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fast: bool
) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(processor, "installed_version", lambda name: "0.32.0")
    assert processor.train_format("auto") == ("bfloat16" if fast else "float32")
    command = Engine(tmp_path, EngineSettings(), run_dir=tmp_path, log=tmp_path / "log").command()
    assert command[command.index("--dtype") + 1] == ("auto" if fast else "float32")


def test_what_is_set_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: False)
    assert processor.train_format("bfloat16") == "bfloat16"
    assert processor.engine_format("bfloat16") == "bfloat16"


def test_a_gpu_server_keeps_the_models_format(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(processor, "fast_bfloat16", lambda: False)
    monkeypatch.setattr(importlib.metadata, "version", none)
    assert processor.engine_format("auto") == "auto"


def test_doctor_names_the_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = Home.find(tmp_path)
    for fast, word in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(doctor, "fast_bfloat16", lambda fast=fast: fast)
        found = doctor.check_processor(home)
        assert (found.status, found.detail.split(":")[0]) == ("ok", word)
