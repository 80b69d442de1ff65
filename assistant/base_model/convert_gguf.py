"""Convert one GGUF file into bfloat16 safetensors, with tokenizer and chat template.

Run by `thumbwise.base_model.prepare` as a process of its own (`python -m thumbwise.base_model.convert_gguf GGUF OUT`),
so that the assistant itself never needs the memory of torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(gguf: Path, out: Path) -> None:
    """Write config, weights (bfloat16), tokenizer and chat template of `gguf` into the folder `out`.

    Raises ValueError if the file has no chat template, or the converted model writes nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain numbers now
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} carries no chat template")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    said = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    if not tokenizer.decode(said, skip_special_tokens=True).strip():
        raise ValueError(f"{gguf.name} says nothing after conversion")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
