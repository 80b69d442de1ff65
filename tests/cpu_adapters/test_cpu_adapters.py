"""Adapters on CPU against a float32 reference, row by row: no server, no model."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbwise import cpu_adapters

MIXED = [2, -1, 3, 0, -1, 1, -1]
LARGEST_RANK = 64


@pytest.fixture(scope="module")
def grouped() -> Any:
    from thumbwise.cpu_adapters import grouped

    return grouped


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7 * sum(shape))).to(dtype)


def assert_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, size: float) -> None:
    """Equal within a few roundings of `dtype` at numbers of `size`."""
    within = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype] * max(size, 1.0)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=within)


def wrapper_for(grouped: Any, slots: list[int]) -> Any:
    """A wrapper as vLLM makes it, told once that the rows have these slots."""
    made = grouped.GroupedLoRA(max(len(slots), 1), max(len(slots), 1), "cpu")
    ids = {slot: slot + 1 for slot in slots if slot >= 0}
    rows = tuple(ids.get(slot, 0) for slot in slots)
    mapping = SimpleNamespace(index_mapping=rows, prompt_mapping=rows, is_prefill=True)
    made.update_metadata(mapping, [ids.get(slot) for slot in range(max(slots, default=0) + 1)], 4, 100)
    return made


class Weights:
    """The slots of one layer as vLLM keeps them, each with an adapter of its own rank; the rest of the slot is 0."""

    def __init__(self, widths: tuple[int, ...], inside: int, ranks: list[int], dtype: torch.dtype) -> None:
        shape = (len(ranks), 1, LARGEST_RANK)
        self.a = tuple(torch.zeros(*shape, inside, dtype=dtype) for _ in widths)
        self.b = tuple(torch.zeros(len(ranks), 1, width, LARGEST_RANK, dtype=dtype) for width in widths)
        for slot, rank in enumerate(ranks):
            self.load(slot, rank, seed=slot)

    def load(self, slot: int, rank: int, seed: int) -> None:
        """As a layer of vLLM does: empty the slot, then copy into it."""
        for number, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            a[slot] = 0
            b[slot] = 0
            a[slot, 0, :rank].copy_(draw(rank, a.shape[3], seed=seed + 50 * number, dtype=a.dtype) / a.shape[3] ** 0.5)
            b[slot, 0, :, :rank].copy_(draw(b.shape[2], rank, seed=seed + 99 * number, dtype=b.dtype) / rank**0.5)

    def added(self, x: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """What each row's adapter adds, in float32."""
        rows = []
        for row, slot in zip(x.float(), slots, strict=True):
            parts = [b[slot, 0].float() @ (a[slot, 0].float() @ row) for a, b in zip(self.a, self.b, strict=True)]
            rows.append(torch.cat(parts) * (slot >= 0))
        return torch.stack(rows)


@settings(deadline=None, max_examples=150)
@given(
    slots=st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    ranks=st.lists(st.sampled_from([1, 2, 8, 16, 33, 64]), min_size=4, max_size=4),
    widths=st.sampled_from([(24,), (16, 16), (24, 8, 8)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    few=st.sampled_from([0, 128]),  # several adapters slot by slot, or all slots at once
    seed=st.integers(0, 1000),
)
def test_each_row_gets_what_its_own_adapter_adds(
    grouped: Any, slots: list[int], ranks: list[int], widths: tuple[int, ...], dtype: torch.dtype, few: int, seed: int
) -> None:
    weights = Weights(widths, 40, ranks, dtype)
    x, before = draw(len(slots), 40, seed=seed, dtype=dtype), draw(len(slots), sum(widths), seed=seed + 1, dtype=dtype)
    y, wanted = before.clone(), before.float() + weights.added(x, slots)
    with patch.object(grouped, "FEW", few):
        wrapper_for(grouped, slots).add_lora_linear(y, x, weights.a, weights.b, 1.0, widths)
    assert_near(y, wanted, dtype, float(wanted.abs().max()))
    base = torch.tensor(slots) < 0
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("in_step", [False, True])
def test_adapters_that_vllm_loads_later_are_the_ones_that_count(grouped: Any, in_step: bool) -> None:
    weights, x = Weights((24, 8), 40, [8] * 4, torch.float32), draw(7, 40)
    wrapper = wrapper_for(grouped, MIXED)
    for slot, rank in ((2, 64), (3, 1), (0, 8)):
        with torch.inference_mode(in_step):  # vLLM loads between steps, and where it must in a step
            weights.load(slot, rank, seed=10 + slot)
        with torch.inference_mode():
            y = torch.zeros(7, 32)
            wrapper.add_lora_linear(y, x, weights.a, weights.b, 1.0, (24, 8))
            assert_near(y, weights.added(x, MIXED), torch.float32, 3.0)


def test_an_adapter_that_does_not_touch_a_layer_changes_nothing_there(grouped: Any) -> None:
    weights, y = Weights((24,), 40, [8] * 4, torch.float32), torch.ones(7, 24)
    weights.a[0][2] = 0
    wrapper_for(grouped, [2] * 7).add_lora_linear(y, draw(7, 40), weights.a, weights.b, 1.0, (24,))
    assert bool((y == 1).all())


def test_an_adapter_that_is_not_all_numbers_spoils_its_own_rows_only(grouped: Any) -> None:
    weights, x, y = Weights((24,), 40, [8] * 4, torch.float32), draw(7, 40), torch.ones(7, 24)
    wanted = 1 + weights.added(x, MIXED)
    weights.b[0][2] = float("nan")
    wrapper_for(grouped, MIXED).add_lora_linear(y, x, weights.a, weights.b, 1.0, (24,))
    others = torch.tensor(MIXED) != 2
    assert_near(y[others], wanted[others], torch.float32, 3.0)
    assert bool(y[~others].isnan().all())


def test_a_wider_output_keeps_its_other_columns_and_the_scale_counts(grouped: Any) -> None:
    weights, x, y = Weights((24,), 40, [8] * 4, torch.float32), draw(5, 40), torch.ones(5, 30)
    wrapper_for(grouped, [3] * 5).add_lora_linear(y, x, weights.a, weights.b, 0.5, (24,))
    assert_near(y[:, :24], 1 + weights.added(x, [3] * 5) / 2, torch.float32, 3.0)
    assert bool((y[:, 24:] == 1).all())


@pytest.mark.parametrize("slots", [MIXED, [-1] * 3, [3] * 4])
def test_the_other_ways_in_leave_rows_without_an_adapter_alone_too(grouped: Any, slots: list[int]) -> None:
    weights, x, count = Weights((24, 8), 40, [8] * 4, torch.float32), draw(len(slots), 40), len(slots)
    wrapper, wanted = wrapper_for(grouped, slots), weights.added(x, slots)
    shrunk = tuple(torch.full((count, LARGEST_RANK), 9.0) for _ in range(2))
    wrapper.add_shrink(shrunk, x, weights.a, 2.0)
    y = torch.zeros(count, 35)
    wrapper.add_expand(y, shrunk, weights.b, (24, 8), offset_start=3)
    assert_near(y[:, 3:], 2 * wanted, torch.float32, 3.0)
    assert bool((y[:, :3] == 0).all())
    logits = torch.ones(count, 24)
    wrapper.add_lora_logits(logits, x, weights.a[0], weights.b[0], 1.0)
    assert_near(logits, 1 + wanted[:, :24], torch.float32, 3.0)
    embedded = torch.ones(count, 24)
    wrapper.add_lora_embedding(embedded, shrunk[0], weights.b[0])
    assert_near(embedded, 1 + 2 * wanted[:, :24], torch.float32, 3.0)


def test_stock_vllm_gives_base_rows_the_last_slot_so_this_is_needed_for_more_than_speed() -> None:
    from vllm.lora.ops.torch_ops import bgmv_shrink

    x, weights, stock = draw(2, 40), Weights((24,), 40, [8] * 4, torch.float32), torch.zeros(2, LARGEST_RANK)
    bgmv_shrink(x, weights.a[0], stock, torch.tensor([-1, 1]), 1.0)
    torch.testing.assert_close(stock[0], weights.a[0][-1, 0] @ x[0])


# --- the plugin -------------------------------------------------------------------------------------------


def test_vllm_makes_this_wrapper_on_cpu_and_registering_twice_changes_nothing(
    grouped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.punica_wrapper import get_punica_wrapper
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "get_punica_wrapper", current_platform.get_punica_wrapper)
    cpu_adapters.register()
    cpu_adapters.register()
    assert type(get_punica_wrapper(8, 8, device="cpu")) is grouped.GroupedLoRA


def test_on_another_vllm_it_stays_off_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import vllm
    from vllm.platforms import current_platform

    before = current_platform.get_punica_wrapper()
    monkeypatch.setattr(vllm, "__version__", "0.99.0+cpu")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, "vllm"):
        cpu_adapters.register()
    assert current_platform.get_punica_wrapper() == before
    (record,) = caplog.records
    assert "0.99.0" in record.getMessage()
    assert cpu_adapters.TESTED[0] in record.getMessage()


def test_the_plugin_is_declared_and_imports_neither_torch_nor_vllm() -> None:
    (entry,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="thumbwise_cpu_adapters")
    assert entry.value == "thumbwise.cpu_adapters:register"
    code = "import sys, thumbwise.cpu_adapters; print([m for m in ('torch', 'vllm', 'gradio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
