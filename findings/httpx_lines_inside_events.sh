#!/usr/bin/env bash
# httpx 0.28.1: iter_lines() cuts a line of a streamed reply in two where the text holds U+2028, U+2029 or U+0085.
#
# Servers of chat models stream server-sent events: lines of JSON that end in "\n". JSON lets these three characters
# stand unescaped in a string, and many servers write them so (json.dumps with ensure_ascii=False, orjson, pydantic).
# iter_lines() and aiter_lines() split as str.splitlines() does, which takes them for ends of lines. The client then
# has half an event, and json.loads of it fails. It happens only once a model writes such a character.
# Wanted: lines that end in "\n", "\r" or "\r\n" alone, as server-sent events have them.
# What helps: iter_bytes() and a split at b"\n" in the client; a server can write the characters as \u2028.
#
# Seen, for one event of one line:
#   U+2028: 2 lines, the first is no JSON   U+2029 and U+0085: the same   plain text: 1 line, which is JSON
#
# Exits 0 while that is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install httpx==0.28.1
"$folder/venv/bin/python" - <<'PY'
import json
import sys

import httpx


def lines_of(text: str) -> list[str]:
    event = "data: " + json.dumps({"content": text}, ensure_ascii=False) + "\n\n"
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=event.encode())
    client = httpx.Client(transport=httpx.MockTransport(lambda request: answer))
    with client.stream("GET", "http://model/") as response:
        return [line for line in response.iter_lines() if line]


def whole(line: str) -> bool:
    try:
        return bool(json.loads(line.removeprefix("data: ")))
    except ValueError:
        return False


found = {f"U+{code:04X}": lines_of(f"one{chr(code)}two") for code in (0x2028, 0x2029, 0x85)}
plain = lines_of("one two")
for name, lines in {**found, "plain text": plain}.items():
    print(f"{name}: {len(lines)} lines, the first is {'' if whole(lines[0]) else 'no '}JSON")
cut = all(len(lines) == 2 and not whole(lines[0]) for lines in found.values())
sys.exit(0 if cut and len(plain) == 1 and whole(plain[0]) else 1)
PY
