#!/usr/bin/env bash
# httpx 0.28.1: NO_PROXY=[::1] makes every client an error, and with it `import gradio`.
#
# In NO_PROXY httpx takes an IPv6 address without brackets. With brackets, as in a URL, httpx.Client() raises
# InvalidURL, also where no proxy is set and no request is made.
# gradio (6.31) makes a client while it is imported, so the import ends in that traceback.
# Wanted: both forms are read, or the entry is left out.
#
# Seen: NO_PROXY=::1 -> made   NO_PROXY=[::1] -> InvalidURL
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install httpx==0.28.1
code='import httpx
try:
    httpx.Client()
    print("made")
except httpx.InvalidURL as error:
    print("InvalidURL", error)'
plain=$(NO_PROXY=::1 no_proxy=::1 "$folder/venv/bin/python" -c "$code")
brackets=$(NO_PROXY='[::1]' no_proxy='[::1]' "$folder/venv/bin/python" -c "$code")
echo "NO_PROXY=::1: $plain; NO_PROXY=[::1]: $brackets"
[[ $plain == made && $brackets == InvalidURL* ]]
