#!/usr/bin/env bash
# starlette 1.10.0: with `POST /logout` alone, `GET /logout` reaches an application that is mounted at "/".
#
# A route whose path fits and whose method does not is only a partial match. Starlette answers 405 for it if no later
# route fits. A mount at "/" fits every path, so the mounted application gets the request, and may have a route of the
# same name. Gradio's applications are mounted in this way, and have many routes of their own.
# Wanted: 405 from the application that has the path.
# What helps: a route for every method of a path that must not reach the mounted application.
#
# Seen: POST is answered by "ours", GET by "mounted"; without the mount, GET is 405.
#
# Exits 0 while GET reaches the mounted application, 1 once it does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install starlette==1.10.0 httpx==0.28.1
"$folder/venv/bin/python" - <<'PY'
import asyncio
import sys

import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


async def ours(request):
    return PlainTextResponse("ours")


async def theirs(request):
    return PlainTextResponse("mounted")


async def asked(routes):
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answers = [await client.request(method, "/logout") for method in ("POST", "GET")]
        return [(answer.status_code, answer.text) for answer in answers]


own = Route("/logout", ours, methods=["POST"])
alone = asyncio.run(asked([own]))
mounted = asyncio.run(asked([own, Mount("/", Starlette(routes=[Route("/logout", theirs)]))]))
print("alone:", alone)
print("with a mount:", mounted)
sys.exit(0 if alone[1][0] == 405 and mounted == [(200, "ours"), (200, "mounted")] else 1)
PY
