"""A fresh vLLM and the recorded versions: what it cannot apply gives way, and may be tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from policy_world import OF_BASE, World, make_world

from thumbwise.errors import Conflict
from thumbwise.names import BASE


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


async def test_a_fresh_engine_that_can_apply_no_version_answers_as_the_base(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "test")
    await world.policies.promote(second, first, "test")
    await world.policies.promote(first, second, "back again, by hand: each was stable before the other")
    world.engine.logprobs[first] = world.engine.logprobs[second] = OF_BASE
    async with asyncio.timeout(10):
        await world.policies.restore(world.engine)
    assert world.versions.stable() == BASE
    assert world.policies.live() == [BASE]


async def test_the_version_before_takes_no_traffic_unproved_after_a_restart_either(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "test")
    await world.policies.promote(second, first, "test")
    world.engine.logprobs[first] = OF_BASE
    await world.policies.restore(world.engine)
    assert world.policies.live() == [second]
    assert await world.policies.rollback("by hand") == (second, BASE)
    assert world.versions.get(first).state == "rejected"


async def test_what_could_not_be_restored_can_be_promoted_again_by_hand(world: World) -> None:
    first = world.receive(1)
    await world.policies.promote(first, BASE, "test")
    right = world.engine.logprobs[first]
    world.engine.logprobs[first] = OF_BASE  # vLLM was started with a wrong setting
    await world.policies.restore(world.engine)
    assert (world.versions.stable(), world.versions.get(first).state) == (BASE, "rejected")
    assert "tries it again" in world.policies.warning
    world.engine.logprobs[first] = right
    await world.policies.restore(world.engine)
    assert await world.policies.promote(first, BASE, "by hand") is not None
    assert world.versions.stable() == first


async def test_what_was_never_stable_stays_rejected(world: World) -> None:
    first = world.receive(1)
    await world.policies.reject(first, "the gates said so")
    with pytest.raises(Conflict, match="the gates said so"):
        await world.policies.promote(first, BASE, "by hand")
