"""What becomes of a canary and of a new stable version by what people do: who counts, how much, and until when."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import asker
from policy_world import PEOPLE, PROMPT, World, canary, counted, make_world, pair, people_of, thumb, turn

from thumbwise.feedback.records import NEW_BROWSER, PROGRAMS
from thumbwise.names import BASE
from thumbwise.serving.assistant import Assistant
from thumbwise.settings.canary import CanarySettings
from thumbwise.versions.canary import AGAIN, LAST, PAIRS, THUMBS, TURNS, Reviewer

FEW = {"turns": 30, "people": 5, "judgements": 4, "each": 20, "max_age": "1d"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, canary=FEW)


async def test_nobody_pushes_a_canary_through_with_many_names(world: World) -> None:
    version = await canary(world)
    on = people_of(world, version)
    for n in range(209):
        message = turn(world, person := next(on), version, person=PROGRAMS)
        thumb(world, person, message, "up", f"{n}", PROGRAMS)
    for _ in range(40):
        pair(world, NEW_BROWSER, (version, BASE), "left")
    await world.policies.review()
    assert world.versions.pointer().canary == version
    assert counted(world).replies.test.all.turns == FEW["each"]


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("by", ["thumbs", "pairs"])
async def test_one_client_alone_cannot_sabotage_a_canary_whatever_names_it_gives(
    world: World, by: str, others: bool
) -> None:
    version = await canary(world)
    on, off = people_of(world, version), people_of(world, BASE)
    for _ in range(30):
        if others:
            turn(world, next(on), version)
        for of, people in ((version, on), (BASE, off)):
            message = turn(world, person := next(people), of, person=PROGRAMS)
            if by == "thumbs":
                thumb(world, person, message, "down" if of == version else "up", message, PROGRAMS)
        if by == "pairs":
            pair(world, PROGRAMS, (version, BASE), "right")
    stream = {"thumbs": counted(world).thumbs, "pairs": counted(world).blind.stream}[by]
    assert stream.test.p < 0.001  # the evidence is there, and all of it is one client's
    await world.policies.review()
    assert world.versions.pointer().canary == version
    alone = CanarySettings(people=1)  # a home of one person: theirs is the last word
    assert counted(world, alone).review(0).against


async def test_at_its_greatest_age_a_canary_that_few_people_met_becomes_stable_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await canary(world)
    turn(world, next(people_of(world, version)), version)
    for _ in range(20):
        pair(world, "browser:a", (version, BASE), "right")
    await world.policies.review()
    assert world.versions.pointer().canary == version
    monkeypatch.setattr("thumbwise.versions.canary.now_ns", lambda: time.time_ns() + 25 * 3600 * 10**9)
    await world.policies.review()
    assert world.versions.stable() == version
    assert world.versions.log()[0]["reason"] == (
        "at its greatest age, 1d, no worse than stable (turns: 1, judgements: 20, people: 2), though one person alone "
        "judges it worse"
    )


async def test_a_clock_that_is_set_back_loses_no_turn_and_no_row_is_read_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = turn(world, PEOPLE[0], BASE)
    version = await canary(world)
    on, off = people_of(world, version), people_of(world, BASE)
    reviewer = Reviewer(world.versions.store, CanarySettings())
    monkeypatch.setattr("thumbwise.feedback.store.now_ns", lambda: time.time_ns() - 3600 * 10**9)
    thumb(world, PEOPLE[0], before, "down")
    streams = world.versions.store.start_reply(asker(person := next(on)), PROMPT, version, {})
    for n in range(6):
        turn(world, next(on), version, "failed" if n == 2 else "done")
        turn(world, next(off), BASE)
        reviewer.canary(world.versions.pointer())
    world.versions.store.finish_reply(streams, "failed", text="", finish_reason=None)
    thumb(world, person, turn(world, person, version), "down")
    read = []
    reviewer.store.reading = _spied(reviewer.store.reading, read)  # type: ignore[method-assign]
    reviewer.canary(world.versions.pointer())
    assert len(read) == 3  # what was streaming, the turn after it, and the thumb
    found, anew = reviewer._rollout, counted(world)
    assert found is not None
    for one, other in ((found.replies, anew.replies), (found.thumbs, anew.thumbs)):
        assert sorted(one.outcomes) == sorted(other.outcomes)
    assert (found.replies.test.all.turns, found.replies.test.all.bad, found.thumbs.test.all.bad) == (8, 2, 1)


def _spied(reading: Any, rows: list[Any]) -> Any:
    """`store.reading`, keeping what is read but for the marks."""

    @contextmanager
    def spied() -> Iterator[Any]:
        with reading() as db:
            query = db.query

            def kept(sql: str, *given: Any) -> Any:
                found = list(query(sql, *given))
                if sql != LAST:
                    rows.extend(found)
                return found

            db.query = kept
            yield db

    return spied


def test_no_look_at_a_canary_reads_a_big_table_through(world: World) -> None:
    given = {TURNS: [1], AGAIN: ["[1]"], THUMBS: [1, 1], PAIRS: [1], LAST: []}
    for sql, params in given.items():
        for row in world.versions.store.rows(f"EXPLAIN QUERY PLAN {sql}", params):
            assert not re.match(r"SCAN (?!json_each|CONSTANT)", row["detail"]), (sql, row["detail"])


# --- after it became stable -------------------------------------------------------------------------------


async def swapped(world: World, number: int = 1) -> str:
    version = world.receive(number)
    await world.policies.promote(version, world.versions.stable(), "passed its gates")
    return version


async def test_a_version_that_people_find_worse_than_the_one_before_is_rolled_back_with_its_reason(
    world: World,
) -> None:
    first = await swapped(world)
    for n in range(40):  # of the swap before, and of one version alone: no word on the next one
        pair(world, f"browser:{n}", (first, BASE), "left")
    second = await swapped(world, 2)
    for n in range(40):
        pair(world, f"browser:{n}", (second, second), "right")
        pair(world, f"browser:{n}", (second, BASE), "right")
    await world.policies.review()
    assert world.versions.stable() == second
    for n in range(25):
        pair(world, f"browser:{n}", (first, second), "left")
        pair(world, f"browser:{n}", (second, first), "tie")
        await world.policies.review()
        if world.versions.stable() != second:
            break
    assert world.versions.stable() == first
    last = world.versions.log()[0]
    assert (last["action"], last["old"], last["new"]) == ("rollback", second, first)
    assert f"{first} was preferred in" in last["reason"]
    for n in range(40):  # what is back is not judged by those comparisons, nor taken back itself
        pair(world, f"browser:{n}", (first, BASE), "right")
    await world.policies.review()
    assert world.versions.stable() == first


@pytest.mark.parametrize(
    ("settings", "person"), [({}, "browser:a"), ({"rollback": False}, "browser:{}"), ({}, PROGRAMS)]
)
async def test_one_person_alone_rolls_nothing_back_and_the_operator_may_turn_it_off(
    tmp_path: Path, settings: dict[str, Any], person: str
) -> None:
    world = make_world(tmp_path, canary=settings)
    version = await swapped(world)
    for n in range(40):
        pair(world, person.format(n), (version, BASE), "right")
    await world.policies.review()
    assert world.versions.stable() == version


async def test_the_base_that_an_operator_went_back_to_stays(world: World) -> None:
    version = await swapped(world)
    await world.policies.promote(BASE, version, "by hand")
    for n in range(40):
        pair(world, f"browser:{n}", (BASE, version), "right")
    await world.policies.review()
    assert world.versions.stable() == BASE


async def test_that_is_so_without_any_setting_and_the_server_looks_by_itself(
    tmp_path: Path, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path)
    first, second = await swapped(world), await swapped(world, 2)
    for n in range(25):
        pair(world, f"browser:{n}", (first, second), "left")
    monkeypatch.setattr("thumbwise.serving.assistant.REVIEW_SECONDS", 0.01)
    assistant.policies = world.policies
    looking = assistant.spawn(assistant._review())
    async with asyncio.timeout(60):
        while world.versions.stable() == second:
            await asyncio.sleep(0.01)
    assert world.versions.stable() == first
    assert not looking.done()
