"""vLLM's C++ kernels for CPU in the place of PyTorch's calls: the same numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

EPSILON = 1e-5


@pytest.fixture(scope="module")
def kernels() -> Any:
    from vllm.platforms import current_platform

    from thumbwise.cpu_adapters import kernels

    current_platform.import_kernels()
    return kernels


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return wide / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.float()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_they_compute_what_the_layers_are_defined_as(
    kernels: Any, dtype: torch.dtype, within: float, rows: int
) -> None:
    x, residual = draw(rows, 64, seed=1, dtype=dtype), draw(rows, 64, seed=2, dtype=dtype)
    weight = 1 + draw(64, seed=3, dtype=dtype) / 8

    def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
        torch.testing.assert_close(found.float(), wanted, rtol=0, atol=within)

    near(kernels.rms_norm(x, weight, EPSILON), normed(x, weight))
    left, right = x.float().chunk(2, 1)
    near(kernels.silu_and_mul(None, x), torch.nn.functional.silu(left) * right)
    total = x.float() + residual.float()
    found, kept = kernels.fused_add_rms_norm(x.clone(), residual.clone(), weight, EPSILON)
    near(found, normed(total, weight))
    near(kept, total)


def test_what_the_kernels_cannot_take_is_left_to_pytorch(kernels: Any) -> None:
    x, weight = draw(4, 8), draw(8)
    assert kernels.fits(x, weight, EPSILON)
    assert not kernels.fits(x, None, EPSILON)
    assert not kernels.fits(x, weight.double(), EPSILON)
    assert not kernels.fits(x, weight, EPSILON, 4)
    assert not kernels.fits(draw(8, 4).t(), draw(8), EPSILON)
    assert not kernels.fits_sum(x, draw(8, 4).t(), weight, EPSILON)


@pytest.mark.parametrize("adapters", [True, False])
def test_they_are_on_where_there_are_adapters_and_else_vllm_decides(kernels: Any, adapters: bool) -> None:
    class Platform:
        @classmethod
        def get_default_ir_op_priority(cls, config: Any) -> str:
            return "vLLM's own"

        @classmethod
        def check_and_update_config(cls, config: Any) -> None:
            config.checked = True

    kernels.prefer_kernels(Platform)
    ops = ["none", "+gelu"]
    config = SimpleNamespace(
        lora_config=object() if adapters else None, compilation_config=SimpleNamespace(custom_ops=ops)
    )
    Platform.check_and_update_config(config)
    priority: Any = Platform.get_default_ir_op_priority(config)
    assert config.checked
    if adapters:
        assert ops == ["all", "+gelu"]
        assert priority.rms_norm == priority.fused_add_rms_norm == [kernels.NAME, "native"]
    else:
        assert ops == ["none", "+gelu"]
        assert priority == "vLLM's own"


def test_vllms_platform_for_cpu_takes_them_once(kernels: Any) -> None:
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.platforms import current_platform

    kernels.take_compiled_kernels(type(current_platform))
    kernels.take_compiled_kernels(type(current_platform))
    priority = current_platform.get_default_ir_op_priority(SimpleNamespace(lora_config=object()))
    assert priority.rms_norm == [kernels.NAME, "native"]
    assert SiluAndMul.forward_cpu is kernels.silu_and_mul
