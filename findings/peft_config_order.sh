#!/usr/bin/env bash
# peft 0.21.2: the same adapter, saved twice, is not the same files.
#
# LoraConfig keeps target_modules as a set. save_pretrained() writes it as a list in the order of the set. That order
# changes with every process, because Python hashes strings with a random seed. So adapter_config.json has other bytes
# each time, while adapter_model.safetensors stays the same. If you name versions by a hash of their files, compare
# backups, or keep adapters in git, each save looks like a new version.
# Wanted: a sorted list.
# What helps: sort target_modules in the saved file, or hash the weights alone.
#
# Seen: target_modules is ["k_proj", "v_proj", "q_proj", "o_proj"] in one process and ["o_proj", "k_proj", "v_proj",
#   "q_proj"] in another; the weights' files are equal.
#
# Exits 0 while the configurations differ, 1 once they are equal. Not part of CI: it downloads about 300 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
	"${pip[@]}" torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"${pip[@]}" peft==0.21.2 transformers==5.19.0
cat >"$folder/save.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=modules)).save_pretrained(sys.argv[1])
print(json.loads(Path(sys.argv[1], "adapter_config.json").read_text())["target_modules"])
PY
for seed in 1 2 3; do # by default the seed is random
	HF_HUB_OFFLINE=1 PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/save.py" "$folder/$seed"
	cmp "$folder/1/adapter_model.safetensors" "$folder/$seed/adapter_model.safetensors"
done
! cmp -s "$folder/1/adapter_config.json" "$folder/2/adapter_config.json" ||
	! cmp -s "$folder/1/adapter_config.json" "$folder/3/adapter_config.json"
