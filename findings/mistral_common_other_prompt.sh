#!/usr/bin/env bash
# transformers 5.19.0: installing mistral-common changes the tokenizer and the prompts of a model folder.
#
# Where a folder has a tekken.json beside tokenizer.json and chat_template.jinja, AutoTokenizer takes the tokenizer of
# mistral-common if that package is installed. The folder's own chat template is then not read, so changes that you made
# to it have no effect. vLLM requires mistral-common: one script renders other prompts in an environment with vLLM than
# in one without. vLLM itself decides by another rule, so a trainer and a server can differ as well.
# Wanted: a choice that does not depend on what else is installed, or a warning that the template is left aside.
# What helps: AutoTokenizer.from_pretrained(folder, mistral_format=False); for vLLM --tokenizer-mode hf.
#
# Seen, for one folder and one message:
#   without mistral-common: TokenizersBackend, "<s><user>Hello."
#   with mistral-common 1.13.1: MistralCommonBackend, "<s>[INST]Hello.[/INST]"
#   with it and mistral_format=False: TokenizersBackend, "<s><user>Hello."
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" transformers==5.19.0 jinja2==3.1.6
cat >"$folder/make.py" <<'PY'
import base64
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path(sys.argv[1])
folder.mkdir()
special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
special += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
special += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
size = 256 + len(special)
tekken = {
    "config": {
        "pattern": r"\p{L}+|\p{N}|\s+|.", "num_vocab_tokens": 256, "default_vocab_size": size,
        "default_num_special_tokens": len(special), "version": "v7",
    },
    "vocab": [
        {"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode(), "token_str": None} for n in range(256)
    ],
    "special_tokens": [{"rank": n, "token_str": text, "is_control": True} for n, text in enumerate(special)],
}
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
plain = Tokenizer(models.BPE({text: n for n, text in enumerate([*special, *letters])}, []))
plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
plain.add_special_tokens(special)
plain.save(str(folder / "tokenizer.json"))
names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
(folder / "tekken.json").write_text(json.dumps(tekken))
(folder / "tokenizer_config.json").write_text(json.dumps(names))
(folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": size}))
(folder / "chat_template.jinja").write_text(
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
)
PY
cat >"$folder/show.py" <<'PY'
import sys

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **({"mistral_format": False} if sys.argv[2:] else {}))
text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello."}], tokenize=False)
print(type(tokenizer).__name__, text)
PY
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 TRANSFORMERS_VERBOSITY=error
python=$folder/venv/bin/python
"$python" "$folder/make.py" "$folder/model"
without=$("$python" "$folder/show.py" "$folder/model")
"${pip[@]}" mistral-common==1.13.1
with=$("$python" "$folder/show.py" "$folder/model")
told=$("$python" "$folder/show.py" "$folder/model" hf)
printf '%s\n' "without: $without" "with mistral-common: $with" "and mistral_format=False: $told"
[[ $without == *"<user>Hello."* && $with == *"[INST]Hello.[/INST]"* && $told == "$without" ]]
