"""A stub in the place of vLLM, supervised as vLLM is: it answers one token to everything, and starts at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from thumbwise.engine.supervisor import Engine

# Answers one token to everything, with a child of its own, once the file beside the socket is there.
STUB = """
import http.server, json, os, signal, socketserver, subprocess, sys, time
where = sys.argv[1]
child = subprocess.Popen(["sleep", "1000"])
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stub is up", flush=True)
while where.startswith("/") and not os.path.exists(os.path.dirname(where) + "/go"): time.sleep(0.02)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        while where.startswith("/") and os.path.exists(os.path.dirname(where) + "/compute"): pass
        self.rfile.read(int(self.headers.get("content-length", 0)))
        logprobs = {"top_logprobs": [{"token_id:1": -0.1}]}
        answer = {"model": "policy-0000", "choices": [{"index": 0, "logprobs": logprobs}],
                  "data": [{"id": "policy-0000", "root": "/model"}]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST
    def log_message(self, *arguments): pass
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer if where.isdigit() else socketserver.UnixStreamServer):
    allow_reuse_address = daemon_threads = True
Server(("127.0.0.1", int(where)) if where.isdigit() else where, Answer).serve_forever()
"""


class StubEngine(Engine):
    """An Engine whose child is the stub, and whose pauses are short."""

    pause, probe_every, grace, look_every, retry = 0.05, 0.3, 0.5, 0.05, 0.1
    extra: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [sys.executable, "-c", STUB, str(self.uds), *self.extra]


def children(pid: int) -> list[int]:
    """Return every process below `pid`, nearest first."""
    found: list[int] = []
    for parent in (queue := [pid]):
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            queue += (below := [int(word) for word in task.read_text().split()])
            found += below
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.02)


def named(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
