"""The table of a version's states is true: every change of state that is made is in it, and each in it is made."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from policy_world import OF_BASE, TRAINER, World, make_world

from thumbwise.errors import ThumbwiseError
from thumbwise.names import BASE
from thumbwise.versions.states import NEXT, TRAFFIC, State, before

LOG = """
    PRAGMA synchronous = OFF;
    CREATE TEMP TABLE changes (old TEXT, new TEXT);
    CREATE TEMP TRIGGER note AFTER UPDATE OF state ON policies
    BEGIN INSERT INTO changes VALUES (old.state, new.state); END;
"""


def changes(world: World) -> set[tuple[str, str]]:
    return {(row["old"], row["new"]) for row in world.versions.store.rows("SELECT DISTINCT old, new FROM temp.changes")}


async def promote_and_roll_back(world: World, version: str, stable: str) -> None:
    """Promote a version, and roll back as soon as it is probed: the promotion is dropped."""
    loop, kept, tasks = asyncio.get_running_loop(), world.versions.set_state, []

    def roll_back() -> None:
        tasks.append(asyncio.ensure_future(world.policies.rollback("the test")))

    def set_state(name: str, state: State, reason: str = "") -> None:
        kept(name, state, reason)
        if state == State.PROBED:
            loop.call_soon_threadsafe(roll_back)

    world.versions.set_state = set_state  # type: ignore[method-assign]
    try:
        await world.policies.promote(version, stable, "the test")
    finally:
        world.versions.set_state = kept  # type: ignore[method-assign]
        await asyncio.gather(*tasks, return_exceptions=True)


async def step(world: World, rng: random.Random) -> None:
    """Do one of the things that change a version's state, to any version; most are refused."""
    versions = [version.version for version in world.versions.all()]
    version, stable = rng.choice(versions), world.versions.stable()
    match rng.randrange(11):
        case 0 if len(versions) < 6:
            world.receive(len(versions))
        case 1 | 2:
            await world.policies.promote(version, stable, "the test")
        case 3:
            version = rng.choice([world.versions.pointer().canary or version, version])
            await world.policies.promote(version, stable, "the test", share=rng.choice([0.1, 0.2]))
        case 4:
            await world.policies.rollback("the test")
        case 5:
            await world.policies.reject(version, "the test")
        case 6:
            world.versions.set_state(version, rng.choice([State.RETIRED, State.LOADED]))
        case 7:
            world.engine.logprobs[version] = rng.choice([OF_BASE, TRAINER])
        case 8 | 9:
            await promote_and_roll_back(world, version, stable)
        case 10:
            await world.policies.restore(world.engine)  # type: ignore[arg-type]


async def test_every_change_that_is_made_is_in_the_table_and_each_in_it_is_made(tmp_path: Path) -> None:
    table = {(str(old), str(new)) for old, after in NEXT.items() for new in after}
    seen: set[tuple[str, str]] = set()
    for seed in range(12):
        (folder := tmp_path / str(seed)).mkdir()
        world, rng = make_world(folder), random.Random(seed)
        world.versions.store.db.executescript(LOG)
        for _ in range(60):
            with suppress(ThumbwiseError):
                await step(world, rng)
        seen |= changes(world)
        world.versions.store.close()
        if seen >= table:
            break
    assert seen == table


async def test_a_change_that_is_not_in_the_table_changes_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    version = world.receive(1)
    world.versions.set_state(version, State.PROBED)
    assert world.versions.get(version).state == State.STAGED
    world.versions.set_state(BASE, State.REJECTED, "it takes traffic")
    assert world.versions.get(BASE).state == State.STABLE


def test_a_version_takes_no_traffic_before_it_was_probed_and_the_pointer_alone_gives_it() -> None:
    first = {old for old in State if NEXT[old] & TRAFFIC}
    assert first == {State.PROBED, State.CANARY, State.RETIRED, State.REJECTED}  # the last two: probed once
    assert not TRAFFIC & set(before(State.REJECTED))
    assert before(State.PROBED) == [State.LOADED, State.PROBED, State.RETIRED, State.REJECTED]
