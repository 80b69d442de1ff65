"""LoRA adapters in vLLM on CPU: exact for every row of a mixed batch, and at nearly the base model's speed.

`register` is a `vllm.general_plugins` entry point, which vLLM calls in each of its processes. On CPU it names
`thumbwise.cpu_adapters.grouped.GroupedLoRA` as the class that computes adapters, in the place of vLLM's own, keeps vLLM
from opening ports (`groups`), has its layers use its C++ kernels (`kernels`), gives the computation all of a few cores
(`waits`), and lets requests have a seed whatever their length (`seeds`). Read the README beside this file for what vLLM
does and what this does instead. The code was written against the vLLM versions in TESTED; on another one it stays off
with one warning, and the assistant's check of the engine (`thumbwise.versions.mixing`) then finds out whether policies
would mix. Importing this module imports neither torch nor vLLM.
"""

from __future__ import annotations

import logging
from typing import Any

from thumbwise.cpu_adapters.groups import open_no_ports
from thumbwise.cpu_adapters.seeds import rewind_seeds
from thumbwise.cpu_adapters.waits import spare_no_core, wait_asleep

_logger = logging.getLogger("vllm.thumbwise")  # vLLM shows what is logged below its own name

TESTED = ("0.32.0",)
WRAPPER = "thumbwise.cpu_adapters.grouped.GroupedLoRA"


def register() -> None:
    """Take over the adapters of this process's vLLM if it runs on CPU; a second call changes nothing."""
    import vllm
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    _allow_amx()
    version = str(vllm.__version__).partition("+")[0]
    if version not in TESTED:
        _logger.warning(
            "Adapters run on vLLM's own CPU code, which is slow and may mix policies: this vLLM is %s, and "
            "thumbwise's code was tested with %s.", version, ", ".join(TESTED),
        )  # fmt: skip
        return
    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda cls: _wrapper())
    open_no_ports()
    wait_asleep()
    spare_no_core()
    from thumbwise.cpu_adapters.kernels import take_compiled_kernels

    take_compiled_kernels(platform)


def _wrapper() -> str:
    """The class that computes adapters. A worker asks for it, and has loaded by then what `rewind_seeds` changes."""
    rewind_seeds()
    return WRAPPER


def _allow_amx() -> None:
    """Ask Linux for the use of AMX tiles, which vLLM's bfloat16 attention uses without asking.

    oneDNN asks too, but only once a matrix product is large enough for vLLM to leave it to oneDNN; in a
    model of small layers the first token would end the worker with SIGILL. A no-op without AMX.
    """
    import torch

    if ask := getattr(torch.cpu, "_init_amx", None):
        ask()
