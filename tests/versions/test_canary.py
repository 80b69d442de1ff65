"""A canary: who gets it, what it is judged by, how it ends; and that the test keeps its level at every look."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fakes import asker
from policy_world import OF_BASE, PEOPLE, PROMPT, World, canary, counted, make_world, pair, people_of, thumb, turn

from thumbwise import names
from thumbwise.chat.admission import Admission
from thumbwise.chat.turns import Conversations
from thumbwise.engine.client import Sampling
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.feedback.records import LOCAL_USER, REFUSED
from thumbwise.names import BASE
from thumbwise.versions.record import Pointer

FEW = {"turns": 30, "people": 5, "judgements": 4, "each": 20, "max_age": "1d"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, canary=FEW)


def talks(world: World) -> Conversations:
    settings, metrics = world.policies.settings, world.policies.metrics
    return Conversations(
        world.versions.store, world.policies, settings, metrics, Admission(settings, metrics),
        lambda: world.engine,  # type: ignore[arg-type,return-value]
    )  # fmt: skip


# --- who gets it ------------------------------------------------------------------------------------------


def test_a_person_keeps_their_version_and_the_share_is_met_anew_in_every_rollout() -> None:
    first, second = (Pointer("s", "c", 0.25, rollout, 0) for rollout in ("a", "b"))
    people = [str(n) for n in range(4000)]
    drawn = [[pointer.version_for(person) == "c" for person in people] for pointer in (first, second)]
    assert drawn[0] == [first.version_for(person) == "c" for person in people]
    for row in drawn:
        assert np.mean(row) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    both = np.mean([a and b for a, b in zip(*drawn, strict=True)])
    assert both == pytest.approx(0.0625, abs=0.02)  # independent
    assert {Pointer("s", None, 0.25, "a", 0).version_for(person) for person in people} == {"s"}


def test_in_the_browser_where_all_have_one_name_conversations_are_drawn() -> None:
    pointer = Pointer("s", "c", 0.25, "a", 0)
    drawn = [pointer.version_for(LOCAL_USER, f"conv-{n}") == "c" for n in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert len({pointer.version_for("ann", f"conv-{n}") for n in range(100)}) == 1


async def test_the_share_of_a_canary_can_be_changed(world: World) -> None:
    version = await canary(world, share=0.25)
    before = world.versions.pointer()
    assert await world.policies.promote(version, BASE, "more people", 0.5) is not None
    assert world.versions.pointer() == replace(before, share=0.5)  # the same people, and more; it is judged on
    assert world.versions.get(version).state == "canary"


async def test_a_share_makes_a_version_canary_and_comparisons_draw_from_it_and_stable(world: World) -> None:
    version = await canary(world, share=0.25)
    assert world.versions.get(version).state == "canary"
    assert world.versions.stable() == BASE
    assert world.policies.live() == [BASE, version]
    assert world.versions.log()[0]["action"] == "canary"
    assert world.versions.stable_since() is None
    assert await world.policies.promote(version, BASE, "again", 0.25) is None  # a job that asks once more
    pointer = world.versions.pointer()
    conversations = talks(world)
    answered = {
        person: (await conversations.begin(asker(person), PROMPT, Sampling(0.7, 8))).version for person in PEOPLE
    }
    assert answered == {person: pointer.version_for(person) for person in PEOPLE}
    assert 0.1 < list(answered.values()).count(version) / len(PEOPLE) < 0.4
    older = world.receive(2)
    with pytest.raises(ThumbwiseError, match=f"{older} is staged and does not answer"):
        await conversations.begin(asker("anybody"), PROMPT, Sampling(0.7, 8), model=older)
    named = await conversations.begin(asker(next(people_of(world, BASE))), PROMPT, Sampling(0.7, 8), model=version)
    assert named.version == version


async def test_the_base_and_a_version_that_answers_wrongly_become_no_canary(world: World) -> None:
    version = world.receive(1)
    world.engine.logprobs[version] = OF_BASE
    with pytest.raises(ThumbwiseError, match="probe"):
        await world.policies.promote(version, BASE, "", 0.25)
    assert world.versions.get(version).state == "rejected"
    good = world.receive(2)
    await world.policies.promote(good, BASE, "")
    await world.policies.promote(BASE, good, "", 0.25)
    assert world.versions.stable() == BASE


# --- what it is judged by ---------------------------------------------------------------------------------


async def test_only_turns_of_assigned_people_outside_comparisons_count(world: World) -> None:
    before = turn(world, PEOPLE[0], BASE)
    version = await canary(world)
    on, off = next(people_of(world, version)), next(people_of(world, BASE))
    message = turn(world, on, version)
    turn(world, on, version, "stopped")  # by its reader: no fault
    turn(world, off, BASE, "failed")
    turn(world, off, version, "failed")  # named its version
    world.versions.store.start_comparison(asker(on), PROMPT, [version, BASE], {}, "api")
    for comparison in world.versions.store.rows("SELECT id FROM replies WHERE comparison_id IS NOT NULL"):
        world.versions.store.finish_reply(comparison["id"], "failed", text="", finish_reason=None)
    thumb(world, on, message, "down")
    thumb(world, on, message, "up", "another key")  # the first one counts, or a change of mind would be looked for
    thumb(world, PEOPLE[0], before, "down")
    found = counted(world)
    counts = [(t.turns, t.bad, t.old_turns, t.old_bad) for t in (found.replies.test.all, found.thumbs.test.all)]
    assert counts == [(1, 0, 1, 1), (1, 1, 0, 0)]
    assert found.review(0).against == ""


# --- how it ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["replies", "thumbs", "pairs"])
async def test_a_canary_that_does_worse_is_taken_back_with_its_reason(world: World, what: str) -> None:
    heard: list[tuple[str, str, str]] = []
    world.policies.plugins.notify = lambda hook, **kw: heard.append((hook, kw["old"], kw["new"]))  # type: ignore[method-assign]
    version = await canary(world)
    for n, (on, off) in enumerate(zip(people_of(world, version), people_of(world, BASE), strict=False)):
        for person, of, bad in ((on, version, True), (off, BASE, False)):
            message = turn(world, person, of, "failed" if bad and what == "replies" else "done")
            if what == "thumbs":
                thumb(world, person, message, "down" if bad else "up")
        if what == "pairs":
            pair(world, f"browser:{n}", (version, BASE), "right")
        await world.policies.review()
        if world.versions.pointer().canary is None:
            break
        assert n < 25
    record = world.versions.get(version)
    assert record.state == "rejected"
    assert {"replies": "failed", "thumbs": "were down", "pairs": "blind comparisons"}[what] in record.reason
    assert ("stable was preferred in" if what == "pairs" else "beside 0 of") in record.reason
    assert world.versions.stable() == BASE
    assert {world.versions.pointer().version_for(person) for person in PEOPLE} == {BASE}
    assert heard == [("on_rollback", version, BASE)]
    with pytest.raises(Conflict, match="rejected"):
        await world.policies.promote(version, BASE, "")


async def test_a_canary_that_is_no_worse_becomes_stable_once_enough_people_met_and_judged_it(world: World) -> None:
    version = await canary(world)
    on, off = people_of(world, version), people_of(world, BASE)
    for n in range(30):
        assert world.versions.stable() == BASE
        liked = turn(world, person := next(on), version, "failed" if n == 7 else "done")
        turn(world, next(off), BASE, "failed" if n == 9 else "done")
        if n in (1, 2):
            thumb(world, person, liked, "up")
        await world.policies.review()
    for choice in ("tie", "left"):
        assert world.versions.stable() == BASE
        pair(world, "browser:a", (version, BASE), choice)
        await world.policies.review()
    assert world.versions.stable() == version
    assert world.versions.pointer().canary is None
    reason = world.versions.log()[0]["reason"]
    assert reason == "no worse than stable (turns: 30, judgements: 4, people: 31)"
    assert await world.policies.rollback("worse after all") == (version, BASE)


async def test_a_canary_is_not_blamed_for_requests_that_vllm_refuses(world: World) -> None:
    version = await canary(world)
    on, off = people_of(world, version), people_of(world, BASE)
    for _ in range(25):
        turn(world, next(on), version, "failed", REFUSED)
        turn(world, next(off), BASE)
    turn(world, next(on), version, "failed", None)
    assert counted(world).replies.test.all.turns == 1


async def test_a_canary_that_another_one_replaced_meanwhile_is_not_made_stable(world: World) -> None:
    first = await canary(world)
    judged = world.versions.pointer()
    second = await canary(world, 2)
    with pytest.raises(Conflict, match="was canary until the pointer moved"):
        await world.policies.promote(first, judged.stable, "no worse", seen=judged)
    assert world.versions.pointer().canary == second


async def test_rollback_takes_the_canary_back_first_and_then_the_stable_version(world: World) -> None:
    first = world.receive(1)
    await world.policies.promote(first, BASE, "")
    second = await canary(world, 2)
    with pytest.raises(Conflict, match="does not answer any more"):
        await world.policies.rollback("rude", expect=first)
    assert await world.policies.rollback("rude", expect=second) == (second, first)
    assert (world.versions.get(second).state, world.versions.get(second).reason) == ("rejected", "rude")
    assert await world.policies.rollback("rude too") == (first, BASE)


async def test_a_newer_canary_takes_the_place_of_one_and_a_promotion_by_hand_ends_it(world: World) -> None:
    first, second = await canary(world, 1), await canary(world, 2)
    assert world.versions.pointer().canary == second
    assert (world.versions.get(first).state, world.versions.get(second).state) == ("retired", "canary")
    with pytest.raises(Conflict, match="is canary"):
        await world.policies.reject(second, "by mistake")
    await world.policies.promote(first, BASE, "by hand")
    assert (world.versions.stable(), world.versions.pointer().canary) == (first, None)
    assert world.versions.get(second).state == "retired"
    third = await canary(world, 3)
    await world.policies.promote(third, first, "by hand")  # before it was judged
    assert (world.versions.stable(), world.versions.get(third).state) == (third, "stable")


async def test_a_canary_is_there_again_after_a_restart_or_taken_back_where_it_cannot_be(world: World) -> None:
    version = await canary(world)
    before = world.versions.pointer()
    world.engine.loaded.clear()
    await world.policies.restore(world.engine)
    assert version in world.engine.loaded
    assert world.versions.pointer() == before
    weights = world.home.policies / version / names.WEIGHTS
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    await world.policies.restore(world.engine)
    assert world.versions.get(version).state == "rejected"
    assert "could not be restored" in world.versions.get(version).reason
    assert world.versions.stable() == BASE


async def test_a_job_that_asks_late_undoes_nothing_that_an_operator_did(http: httpx.AsyncClient, assistant) -> None:
    versions, made = assistant.versions, []
    for number in (1, 2):
        run = versions.runs.begin("s", 60)
        manifest = {"version": f"policy-000{number}-x", "number": number, "parent": BASE, "algorithm": "ppo"}
        manifest |= {"created_at": "2026-01-01", "snapshot_id": "s", "n_labels": 3, "metrics": {}}
        versions.stage(manifest, run.id)
        made.append(manifest["version"])
        versions.start_canary(made[-1], BASE, 0.1, "passed its gates")
        if number == 1:
            versions.runs.end(run.id, run.lease, "promoted", "")
    versions.start_canary(made[1], BASE, 0.3, "more people, by hand")

    async def asks(version: str) -> httpx.Response:
        body = {"expect_stable": BASE, "lease": run.lease}
        headers = {"Authorization": f"Bearer {assistant.token}"}
        return await http.post(f"/ops/api/policies/{version}/promote", json=body, headers=headers)

    assert (await asks(made[1])).json()["state"] == "canary"
    assert (versions.pointer().canary, versions.pointer().share) == (made[1], 0.3)
    refused = await asks(made[0])  # the other took its place
    assert refused.status_code == 409
    assert "promote it by hand" in refused.json()["error"]["message"]
