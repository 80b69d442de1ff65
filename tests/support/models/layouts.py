"""Attention layouts and heads as families of models have them: tiny random models made in a test.

Their tokenizer is the tiny model's. Windows are shorter than the tests' prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_model import make_tiny_model

WINDOW = {"sliding_window": 8}
SLIDING = ["sliding_attention", "full_attention"]
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen 2": ("qwen2", {}),
    "qwen 2, window": ("qwen2", WINDOW | {"use_sliding_window": True, "layer_types": SLIDING}),
    "qwen 3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", WINDOW),
    "phi": ("phi", {}),  # its head has a bias
    "phi 3, window": ("phi3", WINDOW | {"pad_token_id": 0}),
    "gemma 2, window, soft caps": (
        "gemma2",
        WINDOW | {"layer_types": SLIDING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
    "gemma 3, window": ("gemma3_text", WINDOW | {"layer_types": SLIDING}),
    "cohere, scaled": ("cohere", {"logit_scale": 0.25}),
    "cohere 2, window": ("cohere2", WINDOW | {"layer_types": SLIDING, "logit_scale": 0.25}),
    "granite, scaled": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "smollm 3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "smollm 3, window": ("smollm3", WINDOW | {"use_sliding_window": True, "layer_types": SLIDING}),
    "olmo 2": ("olmo2", {}),
    "gpt 2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}),
}


def make_layout(name: str, folder: Path) -> Path:
    """Write a model as LAYOUTS has it and return `folder`; float32, weights wide, a head's bias too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tiny_model(folder)  # for its tokenizer
    kind, changes = LAYOUTS[name]
    config = AutoConfig.for_model(
        kind, **{
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
            "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **changes,
        }
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        head = model.get_output_embeddings()
        if head.bias is not None:
            torch.nn.init.normal_(head.bias)
    model.save_pretrained(folder)
    return folder
