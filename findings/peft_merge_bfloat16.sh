#!/usr/bin/env bash
# peft 0.21.2: merging a LoRA adapter into bfloat16 weights drops most of a small update, also with safe_merge=True.
#
# bfloat16 has 8 bits of precision. An update below 1/512 of a weight never changes it, one below 1/256 not always. The
# weights are bfloat16 numbers already, so the rounding does not average out either. PEFT keeps the adapter in float32,
# so training works, and the unmerged adapter is right. merge_and_unload() then loses what was learned, and safe_merge
# looks for NaN alone. The small learning rates of DPO and policy gradients are where it shows: 1e-6 is TRL's default.
# Wanted: a warning that the merge did not keep the update.
# What helps: serve the adapter unmerged, or merge into float32 weights.
#
# Seen, after 50 steps of AdamW at 1e-6 (losses computed in float32):
#   84% of the weights are what they were. Loss 4.2278 before; 4.2211 with the adapter; 4.2251 once merged.
#
# Exits 0 while less than 60% of the gain is kept, 1 once more is. Not part of CI: it downloads about 300 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
	"${pip[@]}" torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"${pip[@]}" peft==0.21.2 transformers==5.19.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import copy
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
)
base = LlamaForCausalLM(config).to(torch.bfloat16)
ids = torch.randint(64, (4, 32))
model = get_peft_model(copy.deepcopy(base), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
for _ in range(50):
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def loss(of: torch.nn.Module) -> float:
    with torch.no_grad():
        return copy.deepcopy(of).float().eval()(ids, labels=ids).loss.item()


before, adapted = loss(base), loss(model)
merged = model.merge_and_unload(safe_merge=True)
after = loss(merged)
changed = {name: weight for name, weight in merged.named_parameters() if "_proj" in name}
same = sum((weight == base.get_parameter(name)).sum().item() for name, weight in changed.items())
share = same / sum(weight.numel() for weight in changed.values())
print(f"{share:.0%} of the weights are what they were")
print(f"loss {before:.4f} before, {adapted:.4f} with the adapter, {after:.4f} once merged")
sys.exit(0 if before - after < 0.6 * (before - adapted) else 1)
PY
