"""Several vLLM servers behind one assistant: who answers, who is taken out, and when one may come back."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngineClient
from policy_world import OF_BASE, TRAINER, World, make_world

from thumbwise.base_model.prepare import PreparedModel
from thumbwise.engine import external, taken_out
from thumbwise.engine.client import Sampling
from thumbwise.engine.external import Replicas
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.names import BASE
from thumbwise.settings import Settings

SAMPLING = Sampling(temperature=1.0, max_tokens=8)
ASK = [{"role": "user", "content": "Who answers?"}]


class Servers:
    """Replicas whose clients are fakes, all in order until a test says otherwise."""

    def __init__(self, number: int) -> None:
        self.engine = Replicas([f"unix:/{n}" for n in range(number)])
        self.clients = [FakeEngineClient() for _ in range(number)]
        for member, client in zip(self.engine.members, self.clients, strict=True):
            member.client = client  # type: ignore[assignment]
            member.state = "ready"
        self.pool = self.engine.client

    @property
    def out(self) -> list[int]:
        return [n for n, member in enumerate(self.engine.members) if member.state != "ready"]

    async def reply(self) -> str:
        return "".join([chunk.text async for chunk in self.pool.chat(BASE, ASK, SAMPLING)])  # type: ignore[arg-type]

    async def each(self, **errors: Exception) -> list[Any]:
        """Work that goes well but on the servers named (`s1=error`)."""

        async def work(client: Any) -> int:
            number = self.clients.index(client)
            if (error := errors.get(f"s{number}")) is not None:
                raise error
            return number

        return await self.pool.on_each(work)


async def test_a_reply_goes_to_the_server_with_the_fewest_open_ones() -> None:
    servers = Servers(3)
    gate = asyncio.Event()
    for client in servers.clients:
        client.gate = gate
    replies = [asyncio.create_task(servers.reply()) for _ in range(9)]
    while sum(client.open_streams for client in servers.clients) < 9:
        await asyncio.sleep(0)
    assert [client.open_streams for client in servers.clients] == [3, 3, 3]
    gate.set()
    assert set(await asyncio.gather(*replies)) == {"Hello there friend"}


@pytest.mark.parametrize("failure", [EngineUnavailable("gone"), EngineFailed("the model does not exist")])
async def test_a_server_without_a_first_token_is_taken_out_and_another_one_answers(failure: ThumbwiseError) -> None:
    servers = Servers(2)
    servers.clients[0].fail_after, servers.clients[0].failure = 0, failure
    assert await servers.reply() == "Hello there friend"
    assert servers.out == [0]
    assert servers.engine.state == "ready"
    assert servers.engine.warning == f"1 of 2 vLLM servers answer. vLLM at unix:/0 was taken out: {failure}"


async def test_a_server_that_answers_others_is_slow_and_not_taken_out() -> None:
    servers = Servers(2)
    servers.clients[0].fail_after, servers.clients[0].failure = 0, EngineFailed("vLLM sent nothing for 180 seconds")
    servers.clients[0].heard = time.monotonic() - taken_out.LIVES + 4
    assert await servers.reply() == "Hello there friend"
    assert servers.out == []


async def test_the_last_server_is_never_taken_out_for_a_reply() -> None:
    servers = Servers(2)
    for client in servers.clients:
        client.fail_after, client.failure = 0, EngineFailed("broken")
    for _ in range(3):
        with pytest.raises(EngineFailed):
            await servers.reply()
    assert len(servers.out) == 1


async def test_a_reply_that_has_begun_is_not_begun_again_elsewhere() -> None:
    servers = Servers(2)
    servers.clients[0].fail_after, servers.clients[0].failure = 2, EngineFailed("broken")
    with pytest.raises(EngineFailed):
        await servers.reply()
    assert servers.clients[1].asked == []


async def test_a_request_that_vllm_refuses_is_nobodys_fault_but_the_askers() -> None:
    servers = Servers(2)
    servers.clients[0].fail_after, servers.clients[0].failure = 0, ThumbwiseError("too long")
    with pytest.raises(ThumbwiseError, match="too long"):
        await servers.reply()
    assert servers.out == []


async def test_a_full_disk_while_a_server_is_looked_at_is_not_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = external.ExternalEngine("unix:/0")
    engine.poll_every, tried = 0.01, []

    async def adapters() -> dict[str, str]:
        tried.append(1)
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        return {BASE: "/"}

    async def ready() -> None: ...

    monkeypatch.setattr(engine.client, "adapters", adapters)
    monkeypatch.setattr(engine, "_get_ready", ready)
    monkeypatch.setattr(engine, "_alive", asyncio.Event().wait)
    await engine.start()
    async with asyncio.timeout(10):
        while engine.state != "ready":
            await asyncio.sleep(0.01)
    await engine.stop()
    assert len(tried) == 2


async def test_without_any_server_everything_says_so() -> None:
    servers = Servers(2)
    for member in servers.engine.members:
        member.take_out("test")
    assert (servers.engine.state, servers.engine.answering, servers.engine.warning) == ("restarting", 0, "")
    with pytest.raises(EngineUnavailable):
        await servers.reply()
    with pytest.raises(EngineUnavailable):
        await servers.each()


WRONG = ThumbwiseError("not as trained", status=422)


@pytest.mark.parametrize(
    ("errors", "out"),
    [
        ({}, []),
        ({"s1": EngineUnavailable("gone")}, [1]),
        ({"s1": WRONG}, [1]),
        ({"s0": EngineUnavailable("gone"), "s2": EngineFailed("broken")}, [0, 2]),
    ],
)
async def test_work_that_goes_well_on_most_is_done_and_the_others_are_out(errors: Any, out: list[int]) -> None:
    servers = Servers(3)
    assert await servers.each(**errors) == [n for n in range(3) if n not in out]
    assert servers.out == out


@pytest.mark.parametrize("other", [WRONG, EngineUnavailable("gone")])
async def test_a_version_that_is_wrong_on_as_many_as_it_is_right_on_is_refused(
    other: ThumbwiseError,
) -> None:
    servers = Servers(3)
    with pytest.raises(ThumbwiseError, match="not as trained"):
        await servers.each(s0=WRONG, s1=other)
    assert servers.out == []


async def test_a_server_that_lags_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "PATIENCE", 0.05)
    servers, cancelled = Servers(2), []

    async def work(client: Any) -> int:
        if client is servers.clients[0]:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(0)
                raise
        return servers.clients.index(client)

    assert await servers.pool.on_each(work) == [1]
    assert (servers.out, cancelled) == ([0], [0])


async def test_a_bug_on_one_server_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        await Servers(2).each(s0=KeyError("bug"))


# --- versions ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> tuple[World, Servers]:
    """Two servers that both know how two versions answer."""
    world, servers = make_world(tmp_path), Servers(2)
    world.policies.connect(PreparedModel(tmp_path / "base", "base", "base"), servers.pool)
    return world, servers


def received(world: World, servers: Servers, number: int) -> str:
    version = world.receive(number)
    for client in servers.clients:
        client.logprobs[version] = TRAINER
    return version


async def test_the_pointer_moves_when_every_server_has_the_version(world: tuple[World, Servers]) -> None:
    record, servers = world
    first, second = received(*world, 1), received(*world, 2)
    await record.policies.promote(first, BASE, "")
    await record.policies.promote(second, first, "")
    assert [set(client.loaded) for client in servers.clients] == [{first, second}] * 2
    servers.clients[1].logprobs[second] = OF_BASE
    third = received(*world, 3)
    servers.clients[1].logprobs[third] = OF_BASE
    with pytest.raises(ThumbwiseError, match="does not answer as it was trained"):
        await record.policies.promote(third, second, "")
    assert (record.versions.stable(), record.versions.get(third).state) == (second, "rejected")
    assert servers.out == []


async def test_a_server_that_cannot_restore_stays_out_and_nothing_is_rolled_back(world: tuple[World, Servers]) -> None:
    record, servers = world
    first = received(*world, 1)
    await record.policies.promote(first, BASE, "")
    servers.engine.members[1].take_out("restarted")
    servers.clients[1].logprobs[first] = OF_BASE
    with pytest.raises(EngineFailed, match="Other servers answer with it"):
        await record.policies.restore(servers.clients[1])  # type: ignore[arg-type]
    assert record.versions.stable() == first
    servers.engine.members[0].take_out("gone too")
    await record.policies.restore(servers.clients[1])  # type: ignore[arg-type]
    assert record.versions.stable() == BASE


async def test_a_server_that_comes_back_waits_for_a_version_that_is_being_published(
    world: tuple[World, Servers], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, servers = world
    first, second = received(*world, 1), received(*world, 2)
    await record.policies.promote(first, BASE, "")
    servers.engine.members[1].take_out("restarted")
    servers.clients[1].loaded.clear()
    probing, go = asyncio.Event(), asyncio.Event()
    asked = servers.clients[0].next_tokens

    async def slow(*args: Any, **kwargs: Any) -> Any:
        probing.set()
        await go.wait()
        return await asked(*args, **kwargs)

    monkeypatch.setattr(servers.clients[0], "next_tokens", slow)
    promoting = asyncio.create_task(record.policies.promote(second, first, ""))
    await probing.wait()
    restoring = asyncio.create_task(record.policies.restore(servers.clients[1]))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert servers.clients[1].loaded == {}
    go.set()
    await asyncio.gather(promoting, restoring)
    assert set(servers.clients[1].loaded) == {first, second}


async def test_a_rollback_reaches_every_server(world: tuple[World, Servers]) -> None:
    record, servers = world
    first, second = received(*world, 1), received(*world, 2)
    await record.policies.promote(first, BASE, "")
    await record.policies.promote(second, first, "")
    servers.clients[0].loaded.clear()
    assert await record.policies.rollback("worse") == (second, first)
    assert first in servers.clients[0].loaded


def test_the_guide_starts_a_server_with_what_ours_is_started_with(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
    (text,) = re.findall(r"^    (VLLM_(?:.*\\\n)+.*)$", guide, re.MULTILINE)
    words = shlex.split(text.replace("\\\n", " "))
    at = words.index("python")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    ours = Engine(tmp_path, Settings().engine, run_dir=tmp_path / "run", log=tmp_path / "log")
    line, environment = ours.command(), ours.environment()
    assert [f"{name}={environment[name]}" for name in (word.partition("=")[0] for word in words[:at])] == words[:at]
    assert line[1:4] == words[at + 1 : at + 4]  # -P -m module
    assert words[at + 4 : at + 6] == ["--model", "/path/to/model"]
    given = words[at + 6 :]
    for flag, after in zip(given, [*given[1:], "--"], strict=True):
        if flag.startswith("--") and flag != "--host":  # ours has a socket
            assert after.startswith("--") or line[line.index(flag) + 1] == after, flag
    assert {flag for flag in line if flag.startswith("--")} - set(given) <= {
        "--uds", "--model", "--dtype", "--max-num-seqs", "--shutdown-timeout", "--uvicorn-log-level",
        "--disable-fastapi-docs", "--disable-uvicorn-access-log", "--lora-target-modules",
    }  # fmt: skip
