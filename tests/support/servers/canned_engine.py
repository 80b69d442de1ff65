"""A vLLM with canned answers: the same one to every request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from thumbwise.engine.client import Chunk, EngineClient, Sampling
from thumbwise.names import BASE

ASK = [{"role": "user", "content": "Tell me a story about a fox"}]
SAMPLING = Sampling(temperature=0.7, max_tokens=8)


@contextlib.asynccontextmanager
async def stub(
    folder: Path, body: bytes, status: str = "200 OK", kind: str = "text/event-stream", hangs: bool = False
) -> AsyncIterator[tuple[EngineClient, list[bytes]]]:
    """Answer every request with `body`; yields a client and the list of request bodies."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        asked.append(await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        if hangs:
            await reader.read()
            asked.append(b"the client left")
        writer.close()

    uds = folder / "s"
    server = await asyncio.start_unix_server(answer, str(uds))
    client = EngineClient(uds=uds, silence=0.3)
    try:
        yield client, asked
    finally:
        await client.aclose()
        server.close()


def event(text: str = "", reason: str | None = None, model: str = BASE, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason, "token_ids": [5]}
    answer = {"model": model, "choices": [choice | more]}
    return b"data: " + json.dumps(answer, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def read(client: EngineClient, model: str = BASE, sampling: Sampling = SAMPLING) -> list[Chunk]:
    return [chunk async for chunk in client.chat(model, ASK, sampling)]
