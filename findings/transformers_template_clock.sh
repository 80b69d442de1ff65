#!/usr/bin/env bash
# transformers 5.19.0: a chat template that prints the date renders other prompts on another day.
#
# apply_chat_template gives templates a function strftime_now, which reads the wall clock, and has no argument for the
# day. Templates that begin with "Today Date:" call it. So a test that was recorded yesterday fails, a training run that
# is resumed after midnight goes on with other prompts, and what was cached for a prompt is of no use the day after.
# Wanted: an argument for the moment, and a sentence in the documentation that prompts may hold it.
# What helps: apply_chat_template(..., strftime_now=moment.strftime). Jinja puts what is passed before its globals.
#
# Seen: arguments for the moment: []. Two calls for one conversation differ, as the template here prints microseconds.
#   With strftime_now passed, both say "Now: 01 Jan 2030, 00:00:00.000000".
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install transformers==5.19.0 jinja2==3.1.6
HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$folder/venv/bin/python" - <<'PY'
import inspect
import sys
from datetime import datetime

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), unk_token="?"
)
tokenizer.chat_template = (
    "Now: {{ strftime_now('%d %b %Y, %H:%M:%S.%f') }}\n"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)
conversation = [{"role": "user", "content": "Hello."}]


def rendered(**more) -> list[str]:
    return [tokenizer.apply_chat_template(conversation, tokenize=False, **more) for _ in range(2)]


parameters = inspect.signature(tokenizer.apply_chat_template).parameters
named = [name for name in parameters if "time" in name or "date" in name]
first, second = rendered()
pinned = rendered(strftime_now=datetime(2030, 1, 1).strftime)
print("arguments for the moment:", named)
print("as it is:", [text.partition("\n")[0] for text in (first, second)])
print("with strftime_now:", [text.partition("\n")[0] for text in pinned])
sys.exit(0 if not named and first != second and pinned[0] == pinned[1] and "01 Jan 2030" in pinned[0] else 1)
PY
