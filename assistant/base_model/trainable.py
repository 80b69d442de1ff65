"""Whether a model can be trained, by its configuration: so that operators hear it at the first start, not weeks later.

The training job checks more, because it has the weights. Left out: what can only be found out by running the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thumbwise.errors import ThumbwiseError

CHOOSE = "choose another one (`--model`)"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
"""Kinds of layers that keep keys and values."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_STATES = (
    "ssm_cfg", "ssm_state_size", "state_size", "mamba_d_state", "d_state", "lru_width", "attention_hidden_size",
    "conv_L_cache",
)  # fmt: skip


def check(folder: Path, config: dict[str, Any]) -> None:
    """Raise ThumbwiseError if the model in `folder` with this `config` can be served but not trained."""
    if why := next(_reasons(config), ""):
        raise ThumbwiseError(f"{folder.name} {why}")


def _reasons(config: dict[str, Any]) -> Iterator[str]:
    """Each reason why it cannot be trained, with what to do."""
    whole = config
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text}
    architectures = [name for name in whole.get("architectures") or () if isinstance(name, str)]
    if config.get("is_encoder_decoder") is True:
        yield f"reads with an encoder and writes with a decoder, which is not trained here: {CHOOSE} that only writes."
    if any(f"{kind}_config" in whole for kind in ("vision", "audio", "thinker")) or any(
        name.endswith("ForConditionalGeneration") for name in architectures
    ):
        yield f"reads pictures or sound beside text, which is not trained here: {CHOOSE} for text alone."
    if not any(name.endswith("ForCausalLM") for name in architectures):
        yield f"is a {', '.join(architectures)[:80]}, and no ...ForCausalLM as transformers calls what chats: {CHOOSE}."
    if whole.get("quantization_config") or whole.get("compression_config"):
        yield "has quantised weights, on which no adapter is trained here: name the same model in bfloat16."
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any(_number(part.get(name)) > 1 for part in parts for name in _EXPERTS):
        yield f"is a mixture of experts, of which adapters would reach a part alone: {CHOOSE} without experts."
    kinds = config.get("layer_types") or config.get("layers_block_type") or ()
    if set(map(str, kinds)) - ATTENTION or any(config.get(name) for name in _STATES):
        yield f"keeps a state instead of keys and values (as Mamba does), which is not trained here: {CHOOSE}."


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0
