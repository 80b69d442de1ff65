"""An assistant with a vLLM of its own, from outside: one port, and what a killed vLLM leaves people with."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from crash_tools import Server, events, one_sentence, rows, said, served, tiny_home, trained
from live_server import probes_passed
from stub_engine import children, named
from tiny_engine import paced
from tiny_model import make_token_adapter

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


class Reader(threading.Thread):
    """Follows one streamed reply to its end, whatever that is."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.seen: list[dict[str, Any]] = []

    def run(self) -> None:
        body = {"messages": [{"role": "user", "content": "Which reply is cut?"}], "max_tokens": 3000, "stream": True}
        with httpx.stream("POST", f"{self.server.url}/v1/chat/completions", json=body, timeout=120) as stream:
            for event in events(stream.iter_lines()):
                self.seen.append(event)


def check_cut(readers: Sequence[Reader], version: str) -> None:
    """Every reply is of `version`, was cut, and ends with one sentence."""
    for reader in readers:
        assert one_sentence(reader.seen[-1]["error"]["message"])
        assert {event["model"] for event in reader.seen[:-1]} == {version}


def below(server: Server, name: str) -> int:
    """The process of the server's own vLLM that is called `name`."""
    assert server.process is not None
    return next(pid for pid in children(server.process.pid) if name in named(pid))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    """A server with a vLLM of its own, which takes most of a minute to start."""
    server = Server(tiny_home(tmp_path_factory.mktemp("own") / "home", tiny_model))
    server.again()
    yield server
    server.kill()


ADMINISTRATIVE = (
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/v1/completions", "/v1/responses",
    "/v1/embeddings", "/v1/messages", "/invocations", "/pooling", "/score", "/rerank", "/tokenize", "/detokenize",
    "/inference/v1/generate",
    "/pause", "/resume", "/is_paused", "/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/update_weights",
    "/init_weight_transfer_engine", "/reset_prefix_cache", "/reset_mm_cache", "/abort_requests", "/scale_elastic_ep",
    "/server_info", "/start_profile", "/stop_profile", "/load", "/version", "/ping", "/tokenizer_info", "/shutdown",
)  # fmt: skip


def test_from_outside_there_is_one_port_and_nothing_of_vllms_behind_it(own: Server) -> None:
    assert own.process is not None
    tree = [psutil.Process(own.process.pid), *psutil.Process(own.process.pid).children(recursive=True)]
    assert any("VLLM" in " ".join(process.cmdline()) for process in tree)
    listening = [
        (process.name(), link.laddr)
        for process in tree
        for link in process.net_connections("inet")
        if link.status == psutil.CONN_LISTEN or (link.type == socket.SOCK_DGRAM and not link.raddr)
    ]
    assert [f"http://{place.ip}:{place.port}" for _, place in listening] == [own.url], listening
    engine = next(process.cmdline() for process in tree if "--uds" in process.cmdline())
    uds = Path(engine[engine.index("--uds") + 1])
    before = served(uds)
    for path in ADMINISTRATIVE:
        for method in ("GET", "POST", "DELETE"):
            answer = httpx.request(method, f"{own.url}{path}", timeout=30, json={} if method == "POST" else None)
            assert answer.status_code in (404, 405), (method, path, answer.status_code)
    assert "vllm" not in httpx.get(f"{own.url}/metrics").text
    assert {card["owned_by"] for card in httpx.get(f"{own.url}/v1/models").json()["data"]} == {"thumbwise"}
    assert served(uds) == before


def test_vllm_killed_in_mid_reply_is_a_clear_error_and_comes_back_with_its_adapters(
    tmp_path: Path, tiny_model: Path, own: Server
) -> None:
    """One restart of a vLLM, about 45 s."""
    adapter, server = trained(tiny_model, make_token_adapter(tiny_model, tmp_path / "adapter", token=77)), own
    try:
        with server.run("promoted") as (ops, run):
            candidate = adapter.candidate(run)
            ops.publish(run, candidate.version, candidate.files)
            ops.promote(run, candidate.version, run.stable)
        whole, proved = server.ask("Which reply is whole?").json(), probes_passed(server.url)

        readers = [Reader(server) for _ in range(4)]
        with paced(below(server, "VLLM::EngineCore")):
            for reader in readers:
                reader.start()
            while not all(len(reader.seen) > 3 for reader in readers):
                assert all(reader.is_alive() for reader in readers), [reader.seen for reader in readers]
                time.sleep(0.01)
            os.kill(below(server, "VLLM::Worker"), signal.SIGKILL)  # the innermost of its processes
            waiting = server.wait(503)
        for reader in readers:
            reader.join(timeout=120)
        check_cut(readers, candidate.version)
        assert one_sentence(waiting["detail"])
        refused = server.ask()
        assert refused.status_code == 503
        assert said(refused)

        server.wait(200)
        cut = [reader.seen[0]["id"] for reader in readers]
        found = rows(server.home, "SELECT id, error, text FROM replies WHERE state = 'failed'")
        assert {name for name, _, _ in found} == set(cut)
        assert all(one_sentence(error) and text for _, error, text in found)
        exported = server.snapshot()
        assert "Which reply is whole?" in exported
        assert "Which reply is cut?" not in exported
        judged = server.vote("on a cut reply", {"kind": "thumb", "message_id": cut[0], "value": "up"})
        assert judged.status_code == 409

        again = server.ask("Which reply is whole?", model=candidate.version).json()
        assert (server.ask().json()["model"], again["model"]) == (candidate.version, candidate.version)
        assert again["choices"][0]["message"] == whole["choices"][0]["message"]  # one token, over and over
        assert probes_passed(server.url) == proved + 1
    finally:
        server.kill()
