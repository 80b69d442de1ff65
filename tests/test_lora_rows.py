"""The patch of vLLM's CPU adapter code, against a float32 reference: no server, no model."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys

import pytest
import torch

from thumbwise import lora_rows

SLOTS, RANK, WIDTH = 4, 8, 24
MIXED = [2, -1, 3, 0, -1, 1, -1]


@pytest.fixture(scope="module")
def ops():
    """vLLM's module as it runs in the engine: patched."""
    from vllm.lora.ops.torch_ops import lora_ops

    lora_rows.register()
    return lora_ops


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7 * sum(shape)))


def reference(inputs: torch.Tensor, weights: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Row by row: inputs @ weights[slot].T, and zero for the base."""
    rows = [
        weights[slot, 0].double() @ row.double() if slot >= 0 else torch.zeros(weights.shape[2]).double()
        for row, slot in zip(inputs, indices, strict=True)
    ]
    return torch.stack(rows).float()


@pytest.mark.parametrize("indices", [MIXED, [-1] * 5, [3] * 5, [0, 1, 2, 3], [-1], [3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_gives_base_rows_nothing_and_adapter_rows_their_own_adapter(ops, indices, dtype):
    slots = torch.tensor(indices)
    x, a = draw(len(indices), WIDTH).to(dtype), draw(SLOTS, 1, RANK, WIDTH).to(dtype)
    b, before = draw(SLOTS, 1, WIDTH, RANK).to(dtype), draw(len(indices), WIDTH, seed=1).to(dtype)
    shrunk = torch.full((len(indices), RANK), 9.0)
    ops.bgmv_shrink(x, a, shrunk, slots, 0.5)
    torch.testing.assert_close(shrunk, 0.5 * reference(x, a, indices), rtol=1e-5, atol=1e-5)
    grown = before.clone()
    ops.bgmv_expand(shrunk, b, grown, slots, True)
    wanted = before.float() + reference(shrunk, b, indices)
    within = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 0.2}
    torch.testing.assert_close(grown.float(), wanted, **within)
    is_base = slots < 0
    assert torch.equal(grown[is_base], before[is_base])


@pytest.mark.parametrize("indices", [MIXED, [-1] * 5, [3, -1]])
def test_decode_slices_touch_their_own_columns_only(ops, indices):
    slots, offset = torch.tensor(indices), 5
    x, b = draw(len(indices), RANK), draw(SLOTS, 1, WIDTH, RANK)
    output = draw(len(indices), WIDTH + 11, seed=1)
    wanted = output.clone()
    wanted[:, offset : offset + WIDTH] += reference(x, b, indices)
    ops.bgmv_expand_slice(x, b, output, slots, offset, WIDTH, True)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


def test_prefill_spreads_a_sequences_slot_over_its_tokens_and_leaves_the_base_alone(ops):
    slots, lengths = torch.tensor([2, -1, 3, -1]), torch.tensor([3, 4, 1, 2])
    indices = torch.repeat_interleave(slots, lengths).tolist()
    tokens = len(indices)
    meta = (torch.zeros(4), lengths, slots, 4, 4, tokens)  # the starts are not used on CPU
    x, a, b = draw(tokens, WIDTH), draw(SLOTS, 1, RANK, WIDTH), draw(SLOTS, 1, WIDTH, RANK)
    shrunk, grown, sliced = torch.zeros(tokens, RANK), draw(tokens, WIDTH), draw(tokens, WIDTH)
    ops.sgmv_shrink(x, a, shrunk, *meta, 2.0)
    torch.testing.assert_close(shrunk, 2 * reference(x, a, indices), rtol=1e-5, atol=1e-5)
    added = reference(shrunk, b, indices)
    ops.sgmv_expand(shrunk, b, grown, *meta, True)
    ops.sgmv_expand_slice(shrunk, b, sliced, *meta, 0, WIDTH, True)
    for output in (grown, sliced):
        torch.testing.assert_close(output, draw(tokens, WIDTH) + added, rtol=1e-5, atol=1e-4)


def test_the_layers_entry_point_gives_base_rows_the_base_result(ops):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(32, 8, "cpu")
    wrapper._token_lora_indices[: len(MIXED)] = torch.tensor(MIXED)
    wrapper.indices_len[0] = len(MIXED)
    x, y = draw(len(MIXED), WIDTH), draw(len(MIXED), 2 * WIDTH, seed=1)
    a = tuple(draw(SLOTS, 1, RANK, WIDTH, seed=s) for s in (1, 2))
    b = tuple(draw(SLOTS, 1, WIDTH, RANK, seed=s) for s in (1, 2))
    wanted = y + torch.cat([reference(reference(x, a[s], MIXED), b[s], MIXED) for s in (0, 1)], dim=1)
    wrapper.add_lora_linear(y, x, a, b, 1.0, (WIDTH, WIDTH))
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)


def test_stock_vllm_gives_base_rows_the_last_slot_so_the_patch_is_still_needed(ops):
    slots, x, a = torch.tensor([-1, 1]), draw(2, WIDTH), draw(SLOTS, 1, RANK, WIDTH)
    stock = torch.zeros(2, RANK)
    ops.bgmv_shrink.__wrapped__(x, a, stock, slots, 1.0)
    torch.testing.assert_close(stock[0], a[-1, 0] @ x[0], rtol=1e-5, atol=1e-5)


def test_registering_twice_patches_once(ops):
    patched = ops.bgmv_shrink
    lora_rows.register()
    assert ops.bgmv_shrink is patched
    assert not hasattr(patched.__wrapped__, "leaves_base_rows")


def test_another_signature_is_left_alone_with_one_warning(ops, monkeypatch, caplog):
    def bgmv_expand(inputs, weights):
        """A later vLLM's."""

    for name in lora_rows._SIGNATURES:
        monkeypatch.setattr(ops, name, getattr(ops, name).__wrapped__)
    monkeypatch.setattr(ops, "bgmv_expand", bgmv_expand)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, "vllm"):
        lora_rows.register()
    assert ops.bgmv_expand is bgmv_expand
    assert [r.getMessage() for r in caplog.records if "bgmv_expand has changed" in r.getMessage()]
    assert len(caplog.records) == 1


def test_the_plugin_is_declared_and_imports_neither_torch_nor_vllm():
    (entry,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="thumbwise_lora_rows")
    assert entry.value == "thumbwise.lora_rows:register"
    code = "import sys, thumbwise.lora_rows; print([m for m in ('torch', 'vllm', 'gradio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
