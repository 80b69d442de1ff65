#!/usr/bin/env bash
# gradio 6.31.0: an application without any event wakes a thousand times a second.
#
# Blocks that are mounted in a FastAPI application start a queue. It sleeps a millisecond between two looks for events
# that wait, also where the Blocks have no event at all, and a hundredth of a second between two looks for their
# progress. On a small machine that is a noticeable part of a core, all day.
# Wanted: a queue that is woken, or none where there is nothing to queue.
# What helps: Blocks._queue.sleep_when_free and .progress_update_sleep_when_free, in seconds.
#
# Seen, in 3 idle seconds: about 2,500 sleeps of 0.001 s and 280 of 0.01 s.
#
# Exits 0 while there are more than 100 sleeps a second, 1 once there are not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install gradio==6.31.0
GRADIO_ANALYTICS_ENABLED=False HF_HUB_OFFLINE=1 GRADIO_TEMP_DIR="$folder/temp" "$folder/venv/bin/python" - <<'PY'
import asyncio
import sys
from collections import Counter

import gradio as gr
import httpx
import uvicorn
from fastapi import FastAPI

with gr.Blocks() as demo:
    gr.Markdown("No events here.")
server = uvicorn.Server(uvicorn.Config(gr.mount_gradio_app(FastAPI(), demo, path="/"), port=0, log_level="error"))
sleeps: Counter[float] = Counter()
sleep = asyncio.sleep


async def counted(seconds, *more):
    if sys._getframe(1).f_globals["__name__"] == "gradio.queueing":
        sleeps[seconds] += 1
    return await sleep(seconds, *more)


async def main():
    running = asyncio.create_task(server.serve())
    while not server.started:
        await sleep(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient() as client:  # the first page starts the queue
        await client.get(f"http://127.0.0.1:{port}/")
    asyncio.sleep = counted
    await sleep(3)
    server.should_exit = True
    await running


asyncio.run(main())
print("sleeps in 3 idle seconds, by their length:", dict(sleeps))
sys.exit(0 if sleeps.total() > 300 else 1)
PY
