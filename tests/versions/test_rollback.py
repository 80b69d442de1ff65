"""A rollback waits for nothing: what loads or probes a version meanwhile is dropped, or begins again after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import FakeEngine, asker
from policy_world import World, make_world

from thumbwise.chat.admission import Admission
from thumbwise.chat.turns import Conversations
from thumbwise.contracts import Message
from thumbwise.engine.client import Sampling
from thumbwise.errors import Conflict, EngineFailed, ThumbwiseError
from thumbwise.names import BASE

ASK: list[Message] = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


class Hanging:
    """Loading what is in `held` hangs until it is cancelled; `came` is set once it does."""

    def __init__(self, world: World, *held: str) -> None:
        self.held, self.came, self.dropped = set(held), asyncio.Event(), 0
        self._load = world.engine.load_adapter
        world.engine.load_adapter = self.load  # type: ignore[method-assign]

    async def load(self, name: str, path: Path) -> None:
        if name in self.held:
            self.came.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.dropped += 1
        await self._load(name, path)


async def promoted(world: World, number: int) -> str:
    version = world.receive(number)
    await world.policies.promote(version, world.versions.stable(), "passed its gates")
    return version


async def test_a_promotion_under_way_is_dropped_by_a_rollback_and_may_be_asked_for_again(world: World) -> None:
    first, second = await promoted(world, 1), world.receive(2)
    hanging = Hanging(world, second)
    promoting = asyncio.create_task(world.policies.promote(second, first, "passed its gates"))
    await hanging.came.wait()
    assert await world.policies.rollback("rude", expect=first) == (first, BASE)
    with pytest.raises(Conflict, match=f"{second} was not promoted, because somebody rolled back meanwhile"):
        await promoting
    assert (world.versions.stable(), world.versions.get(second).state, hanging.dropped) == (BASE, "staged", 1)
    hanging.held.clear()
    assert await world.policies.promote(second, BASE, "by hand") is not None


async def test_a_rollback_to_what_was_proved_waits_for_no_engine_and_a_second_one_not_for_the_first(
    world: World,
) -> None:
    first, second = await promoted(world, 1), await promoted(world, 2)
    hanging = Hanging(world, first, second)
    one = asyncio.create_task(world.policies.rollback("rude", expect=second))
    await hanging.came.wait()  # it makes sure of what answers already
    assert world.versions.stable() == first
    assert await world.policies.rollback("rude too", expect=first) == (first, BASE)
    assert await one == (second, first)


async def test_promotions_that_wait_for_their_turn_do_not_come_before_a_rollback(world: World) -> None:
    first, second, third = await promoted(world, 1), world.receive(2), world.receive(3)
    hanging = Hanging(world, second, third)
    waiting = [asyncio.create_task(world.policies.promote(version, first, "")) for version in (second, third)]
    await hanging.came.wait()
    assert await world.policies.rollback("rude") == (first, BASE)
    assert [type(result) for result in await asyncio.gather(*waiting, return_exceptions=True)] == [Conflict, Conflict]


async def test_a_canary_that_becomes_stable_is_taken_back_instead(world: World) -> None:
    version = world.receive(1)
    await world.policies.promote(version, BASE, "passed its gates", 0.5)
    hanging = Hanging(world, version)
    promoting = asyncio.create_task(world.policies.promote(version, BASE, "no worse", actor="review"))
    await hanging.came.wait()
    assert await world.policies.rollback("rude", expect=version) == (version, BASE)
    with pytest.raises(Conflict, match="rolled back meanwhile"):
        await promoting
    assert (world.versions.get(version).state, world.versions.pointer().canary) == ("rejected", None)


async def test_an_engine_that_is_being_restored_is_restored_to_where_a_rollback_went(world: World) -> None:
    first = await promoted(world, 1)
    second = await promoted(world, 2)
    world.engine.loaded.clear()
    hanging = Hanging(world, second)
    restoring = asyncio.create_task(world.policies.restore(world.engine))
    await hanging.came.wait()
    assert await world.policies.rollback("rude", expect=second) == (second, first)
    await restoring
    assert (world.versions.stable(), sorted(world.engine.loaded)) == (first, [first])


async def test_a_promotion_whose_own_caller_left_is_no_rollback(world: World) -> None:
    version = world.receive(1)
    hanging = Hanging(world, version)
    promoting = asyncio.create_task(world.policies.promote(version, BASE, ""))
    await hanging.came.wait()
    promoting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await promoting
    hanging.held.clear()
    assert await world.policies.promote(version, BASE, "") is not None


async def test_the_log_says_who_moved_the_pointer(world: World) -> None:
    first, second = await promoted(world, 1), world.receive(2)
    await world.policies.promote(second, first, "passed its gates", 0.5, actor="run_01")
    await world.policies.rollback("worse by its thumbs", actor="review")
    moves = [(move["action"], move["actor"]) for move in world.versions.log()]
    assert moves == [("withdraw", "review"), ("canary", "run_01"), ("promote", "operator")]


async def test_a_version_that_could_not_be_loaded_cannot_be_named(world: World) -> None:
    first = await promoted(world, 1)
    second = await promoted(world, 2)
    settings, metrics = world.policies.settings, world.policies.metrics
    talks = Conversations(
        world.versions.store, world.policies, settings, metrics, Admission(settings, metrics),
        lambda: FakeEngine(world.engine).client,  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    ask = Sampling(0.7, 8)
    assert (await talks.begin(asker("ann"), ASK, ask, model=first)).version == first
    whole = world.engine.load_adapter

    async def load(name: str, path: Path) -> None:
        if name == first:
            raise EngineFailed("No memory is left.")
        await whole(name, path)

    world.engine.load_adapter = load  # type: ignore[method-assign]
    await world.policies.restore(world.engine)
    with pytest.raises(ThumbwiseError, match="does not answer") as refused:
        await talks.begin(asker("ann"), ASK, ask, model=first)
    assert refused.value.status == 400
    assert (await talks.begin(asker("ann"), ASK, ask, model=second)).version == second
