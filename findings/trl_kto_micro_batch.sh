#!/usr/bin/env bash
# trl 1.16.0: the loss of KTO depends on per_device_train_batch_size, also where accumulation keeps the batch the same.
#
# KTO compares each reply with a KL to the reference. TRL estimates it from replies that it puts after another prompt of
# the same micro-batch. It takes the mean over that micro-batch, and raises it to 0 if it is negative. With smaller
# micro-batches the pairs are others, and more of the means are raised to 0, so the KL of the whole batch changes. If
# you halve the micro-batch to save memory and double gradient_accumulation_steps, you train on another loss.
# Wanted: one KL for a whole optimizer step.
#
# Seen, for the same eight replies and models, by size of the micro-batch (its KL, and the mean loss of all):
#   8: KL [0.0], loss 0.5411   4: KL [0.0, 0.0], loss 0.5411   2: KL [0.852, 0.612, 0.0, 0.0], loss 0.5567
#
# Exits 0 while 8 and 2 differ, 1 once they agree. Not part of CI: it downloads about 400 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" torch==2.13.0+cpu 2>/dev/null ||
	"${pip[@]}" torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"${pip[@]}" trl==1.16.0 transformers==5.19.0
HF_HUB_OFFLINE=1 HF_HOME="$folder/cache" "$folder/venv/bin/python" - "$folder/output" <<'PY'
import logging
import sys

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer

logging.disable(logging.ERROR)
disable_progress_bars()
words = ["<pad>", "<eos>", "?", *(f"w{n}" for n in range(29))]
plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="?"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="?")
config = LlamaConfig(
    vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
    eos_token_id=1, initializer_range=0.1,
)
rows = [
    {"prompt": f"w{n} w{n + 1}", "completion": f" w{2 * n + 3} w{2 * n + 5} w{n + 9}", "label": n % 4 != 0}
    for n in range(8)
]


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def step(size: int) -> tuple[list[float], float]:
    """The KL of each micro-batch of `size`, and the mean loss over all eight replies."""
    arguments = KTOConfig(
        output_dir=sys.argv[1], per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, beta=0.5,
        use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, gradient_checkpointing=False,
    )
    trainer = KTOTrainer(
        model=model(0), ref_model=model(1), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.model.eval()
    losses = []
    for start in range(0, 8, size):
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(start, start + size)])
        with torch.no_grad():
            losses.append(trainer.compute_loss(trainer.model, batch).item())
    return [round(kl, 3) for kl in trainer._metrics["eval"]["kl"]], sum(losses) / len(losses)


found = {size: step(size) for size in (8, 4, 2)}
for size, (kls, loss) in found.items():
    print(f"micro-batches of {size}: KL {kls}, loss {loss:.4f}")
sys.exit(0 if abs(found[8][1] - found[2][1]) > 0.005 else 1)
PY
