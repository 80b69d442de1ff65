"""Norms and activation by vLLM's own C++ kernels for CPU, in the place of a handful of PyTorch calls each.

vLLM 0.32 leaves these layers to torch.compile on CPU, and turns that off where there are adapters; what is left is
PyTorch call by call, although its C++ extension for CPU has a kernel for each (only POWER uses them). A call costs
microseconds, 200 of them a step: see the README beside this file for what that is at one stream. Left out: a server
without adapters, which is compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from vllm import ir
from vllm.config.kernel import IrOpPriorityConfig
from vllm.model_executor.layers.activation import SiluAndMul

NAME = "thumbwise_cpu"
"""Of these implementations among vLLM's."""


def fits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Whether the kernel can take these: its norm is over whole contiguous rows, in one number format."""
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def fits_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """The same for the norm of a sum."""
    return fits(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x [..., size] by its root mean square and times weight [size] (Zhang and Sennrich 2019, equation 4)."""
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of x + x_residual, and that sum; both in place."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def silu_and_mul(self: Any, x: Tensor) -> Tensor:
    """silu(a) b of x [..., a and b side by side]."""
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    torch.ops._C.silu_and_mul(out, x.contiguous())
    return out


@cache
def take_compiled_kernels(platform: Any) -> None:
    """Have vLLM's layers use them on `platform`, its class for CPU; a second call changes nothing."""
    platform.import_kernels()
    ir.ops.rms_norm.register_impl(NAME, supports_args=fits, supported=True)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(NAME, supports_args=fits_sum, supported=True, inplace=True)(
        fused_add_rms_norm
    )
    SiluAndMul.forward_cpu = silu_and_mul  # not called by what is compiled
    prefer_kernels(platform)


def prefer_kernels(platform: Any) -> None:
    """Name them first where there are adapters, and leave layers' other kernels (rotary embedding) on there."""
    before, check = platform.get_default_ir_op_priority.__func__, platform.check_and_update_config.__func__

    def get_default_ir_op_priority(cls: Any, config: Any) -> Any:
        if config.lora_config is None:
            return before(cls, config)
        ours = [NAME, "native"]
        return IrOpPriorityConfig.with_default(["native"], rms_norm=ours, fused_add_rms_norm=ours)

    def check_and_update_config(cls: Any, config: Any) -> None:
        check(cls, config)
        if config.lora_config is not None:  # vLLM turns layers' kernels off for a compiler that it then turns off too
            ops = config.compilation_config.custom_ops
            ops[:] = ["all" if op == "none" else op for op in ops]

    platform.get_default_ir_op_priority = classmethod(get_default_ir_op_priority)
    platform.check_and_update_config = classmethod(check_and_update_config)
