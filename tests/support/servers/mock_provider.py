"""`oidc-provider-mock`, a real OpenID Connect provider, as a process of its own; people choose there who they are."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx


@contextmanager
def mock_provider(log: Path, *people: dict[str, Any]) -> Iterator[str]:
    """The issuer of a provider that knows these people (`sub` and other claims)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce"]
    for person in people:
        command += ["--user-claims", json.dumps(person)]
    with log.open("w") as to:
        process = subprocess.Popen(command, stdout=to, stderr=to)
    issuer = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{issuer}/jwks", trust_env=False)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield issuer
    finally:
        process.kill()
        process.wait()


async def choose(browser: httpx.AsyncClient, response: httpx.Response, sub: str = "") -> httpx.Response:
    """Choose a person on the provider's page, or deny with an empty `sub`; returns the answer of our callback."""
    there = response.headers["location"]
    async with httpx.AsyncClient(trust_env=False) as provider:
        page = await provider.get(there)
        assert re.search(r"Client ID: <code>thumbwise</code>", page.text)
        answer = await provider.post(there, data={"sub": sub} if sub else {"action": "deny"})
    back = urlsplit(answer.headers["location"])
    return await browser.get(f"{back.path}?{back.query}")
