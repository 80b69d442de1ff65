"""Tiny random models laid out as eight families are, each with a chat template that has its family's traps.

Two layers and a hidden size of 64. Templates are ours, as short as they can be with the same traps: a date, an argument
for thinking, thinking taken out of what came before, a turn end other than the end token, no system role, texts as
lists of parts only. `make(FAMILIES["phi"], folder)` writes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_model import make_tokenizer

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN25 = """{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN3 = """{%- for m in messages %}
{%- set said = m['content'].split('</think>')[-1].lstrip('\n') if m['role'] == 'assistant' else m['content'] %}
{%- if m['role'] == 'assistant' and loop.last %}{% set said = '<think>\n\n</think>\n\n' + said %}{% endif %}
{{- '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}
{%- for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI = """{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

MISTRAL = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}
{%- endfor %}"""

GRANITE = """{% for m in messages %}
{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

SMOLLM3 = """{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{{- '<|im_start|>system\nToday Date: ' + strftime_now('%d %B %Y') }}
{{- '\nReasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '<|im_end|>\n' }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '<|im_start|>user\n' + m['content'] + '<|im_end|>\n' }}
{%- else %}{% generation %}
{{- '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') + m['content'] + '<|im_end|>\n' }}
{%- endgeneration %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' + ('' if enable_thinking else '<think>\n\n</think>\n') }}
{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """A model's kind as transformers calls it, its template, and the tokens that end a turn and a text."""

    kind: str
    template: str
    special: tuple[str, ...]
    turn_end: str
    eos: str
    bos: str | None = None
    plain: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
NO_THINKING = {"enable_thinking": False}
FAMILIES = {
    "llama_3_2": Family(
        "llama", LLAMA, ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"), "<|eot_id|>", "<|eot_id|>",
        "<|begin_of_text|>",
        config={"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    ),
    "qwen_2_5": Family("qwen2", QWEN25, IM, "<|im_end|>", "<|im_end|>"),
    "qwen_3": Family(
        "qwen3", QWEN3, IM, "<|im_end|>", "<|im_end|>", plain=("<think>", "</think>"), arguments=NO_THINKING
    ),
    "gemma_3": Family(
        "gemma3_text", GEMMA, ("<start_of_turn>",), "<end_of_turn>", "<eos>", "<bos>",
        config={"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
                "query_pre_attn_scalar": 32},
    ),
    "phi": Family("phi3", PHI, ("<|user|>", "<|assistant|>", "<|system|>"), "<|end|>", "<|endoftext|>"),
    "mistral": Family("mistral", MISTRAL, ("[INST]", "[/INST]"), "</s>", "</s>", "<s>", config={"sliding_window": 64}),
    "granite": Family(
        "granite", GRANITE, ("<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>", "<|end_of_text|>",
        config={"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
                "attention_multiplier": 0.03},
    ),
    "smollm3": Family(
        "smollm3", SMOLLM3, IM, "<|im_end|>", "<|im_end|>", plain=("<think>", "</think>"),
        config={"no_rope_layers": [1, 0]}, arguments=NO_THINKING,
    ),
}  # fmt: skip


def make(family: Family, folder: Path) -> Path:
    """Write a model of `family` with its tokenizer and return `folder`; weights are wide, as the tiny model's are."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    special = [*family.special, family.turn_end, family.eos, *([family.bos] if family.bos else [])]
    tokenizer = make_tokenizer(special, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos)
    tokenizer.add_tokens(list(family.plain))
    tokenizer.chat_template = family.template
    ends = sorted(tokenizer.convert_tokens_to_ids([family.turn_end, family.eos]))
    own = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        family.kind, vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=4096,
        initializer_range=0.15, tie_word_embeddings=True, **own, **family.config,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    model.generation_config = GenerationConfig(**own)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
