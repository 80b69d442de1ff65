"""Nobody has more than a part of what is learned from: votes, corrections and prompts, by person and not by name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from thumbwise.settings.training import TrainSettings
from thumbwise.training.data.prompts import seed_prompts
from thumbwise.training.data.snapshot import PromptSplit, Snapshot, parse, split_prompts
from thumbwise.training.data.votes import Sampling, gather, person_of
from thumbwise.training.job.requirements import set_aside_sentence, too_few_votes
from thumbwise.training.reward.heads import fit_head, observed
from thumbwise.training.reward.reliability import rater_weights

TRAIN = TrainSettings()
pytestmark = pytest.mark.usefixtures("one_thread")


def snapshot(*told: tuple[str, str, str, int]) -> Snapshot:
    """Lines of (kind, name, person, how many), each on a prompt of its own."""
    lines = []
    for kind, user, person, count in told:
        for n in range(count):
            text = f"{kind} {user} {person} {n}"
            line = {"type": kind, "id": text, "user": user, "person": person, "group": text}
            line["prompt"] = [{"role": "user", "content": text}]  # type: ignore[assignment]
            reply = {
                "text": "x", "prompt_ids": [1], "response_ids": [2], "finish_reason": "stop", "sampling": {},
                "policy_version": "policy-0000",
            }  # fmt: skip
            left, right = reply | {"id": f"left {text}"}, reply | {"id": f"right {text}"}
            more: dict[str, Any] = {
                "comparison": {"choice": "left", "strength": 1, "left": left, "right": right},
                "thumb": {"up": n % 2 == 0, "reply": left},
                "ranking": {"drafts": [left, right], "tiers": [0, 1]},
                "demonstration": {"text": "Paris."},
                "prompt": {},
            }[kind]
            lines.append(json.dumps(line | more))
    return parse("".join(line + "\n" for line in lines).encode())


def kept(found: Snapshot) -> dict[str, int]:
    labels = found.labels
    return dict(Counter(person_of(v) for v in (*labels.comparisons, *labels.thumbs, *labels.rankings)))


def browsers(count: int, votes: int) -> list[tuple[str, str, str, int]]:
    return [("comparison", "local", f"browser:{n}", votes) for n in range(count)]


def test_all_names_of_a_client_are_one_person_with_a_quarter_at_most() -> None:
    names = [("comparison", f"name-{n}", "programs", 30) for n in range(40)]
    found = snapshot(*browsers(20, 30), *names).heard(TRAIN)
    assert kept(found) == {f"browser:{n}": 30 for n in range(20)} | {"programs": 200}
    assert found.aside == {"programs": 1000}
    assert found.labels.given["programs"] == 1200
    names_kept = Counter(c.user for c in found.labels.comparisons if c.person == "programs")
    assert set(names_kept.values()) == {5}  # they divide it
    assert gather(found.labels, 0.5)[1].raters == 21
    again = snapshot(*names[::-1], *browsers(20, 30)[::-1]).heard(TRAIN)
    assert {c.id for c in again.labels.comparisons} == {c.id for c in found.labels.comparisons}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"browser:a": 100, "programs": 1200}, {"browser:a": 100, "programs": 100}),  # nor do they outvote one
        ({"browser:a": 5000, "programs": 100}, {"browser:a": 5000, "programs": 100}),
        ({"browser:a": 3, "programs": 1200}, {"browser:a": 3, "programs": 1200}),  # it is nearly the only one
        ({"browser:a": 800, "browser:b": 40, "key:k": 20}, {"browser:a": 800, "browser:b": 40, "key:k": 20}),
        ({"browser:a": 60, "browser:b": 60, "programs": 1200}, {"browser:a": 60, "browser:b": 60, "programs": 60}),
        (
            {"programs": 900} | {f"browser:{n}": 6 for n in range(20)},
            {"programs": 40} | {f"browser:{n}": 6 for n in range(20)},
        ),
        ({"browser:new": 90, "browser:a": 15}, {"browser:new": 90, "browser:a": 15}),  # somebody's first two days
        ({"browser:new": 250, "browser:a": 15}, {"browser:new": 250, "browser:a": 15}),  # a busy first one
        ({"browser:new": 250, "a": 15, "b": 15}, {"browser:new": 100, "a": 15, "b": 15}),  # whose first day?
        (
            {"browser:before": 90, "browser:new": 200, "browser:a": 20},
            {"browser:before": 90, "browser:new": 200, "browser:a": 20},
        ),
        (  # one person on two machines, some of it before the upgrade, some of it by a script: no crowd
            {"browser:a": 400, "browser:b": 20, "browser:new": 20, "browser:before": 20, "programs": 20},
            {"browser:a": 400, "browser:b": 20, "browser:new": 20, "browser:before": 20, "programs": 20},
        ),
        ({"browser:new": 900, "browser:a": 30}, {"browser:new": 100, "browser:a": 30}),
        ({"browser:new": 40, "programs": 900}, {"browser:new": 40, "programs": 40}),
        ({"key:a": 400, "b": 1, "c": 1, "d": 1, "e": 1}, {"key:a": 400, "b": 1, "c": 1, "d": 1, "e": 1}),
        ({"key:a": 400} | dict.fromkeys("bcde", 10), {"key:a": 50} | dict.fromkeys("bcde", 10)),
        (
            {"browser:before": 900, "programs": 90} | dict.fromkeys("bcd", 10),
            {"browser:before": 900, "programs": 50} | dict.fromkeys("bcd", 10),
        ),
        ({"key:a": 900} | dict.fromkeys("bcde", 100), {"key:a": 133} | dict.fromkeys("bcde", 100)),
    ],
)
def test_how_many_votes_are_heard_of_each(told: dict[str, int], expected: dict[str, int]) -> None:
    lines = [("comparison", person, person, count) for person, count in told.items()]
    assert kept(snapshot(*lines).heard(TRAIN)) == expected
    assert kept(snapshot(*lines).heard(TrainSettings(rm_rater_cap=1))) == told


def test_a_client_that_is_a_program_and_a_new_browser_too_has_one_part() -> None:
    twice = [("comparison", "x", "programs", 1200), ("comparison", "local", "browser:new", 600)]
    found = kept(snapshot(*browsers(20, 30), *twice).heard(TRAIN))
    assert (found["programs"], found["browser:new"]) == (133, 66)


def test_thumbs_and_rankings_count_by_what_they_weigh() -> None:
    thumbs = [("thumb", "x", "programs", 300), ("ranking", "x", "programs", 50), ("comparison", "x", "browser:a", 60)]
    labels = snapshot(*thumbs).heard(TRAIN).labels
    assert 59 < len(labels.thumbs) * TRAIN.thumb_weight + len(labels.rankings) <= 60


def test_too_little_says_whose_votes_were_set_aside_and_what_to_do() -> None:
    said = too_few_votes(
        snapshot(("comparison", "x", "programs", 300), *browsers(2, 10)).heard(TRAIN), TRAIN, Sampling(0.7, 48, 512)
    )
    assert "There are 30 votes" in said
    assert "290 of programs" in said
    assert "thumbwise keys create" in said
    assert "train.rm_rater_cap" in said
    assert set_aside_sentence({f"key:{n}": 3 for n in range(7)}).endswith("3 of key:4 and of 2 more.")


@pytest.mark.parametrize(("people", "votes", "names", "each"), [(1, 600, 4, 25), (1, 5000, 5, 30), (1, 1000, 100, 1)])
def test_a_few_names_of_a_client_do_not_outweigh_the_browser(people: int, votes: int, names: int, each: int) -> None:
    """The features and the votes are made up: the votes in the browser are right except a sixth, all others wrong."""
    given = [("comparison", f"name-{n}", "programs", each) for n in range(names)]
    samples, table = gather(snapshot(*browsers(people, votes), *given).heard(TRAIN).labels, 0.5)
    draws = np.random.default_rng(0)
    features, truth = draws.normal(size=(len(samples), 60)), draws.normal(size=60)
    seen = observed(features, table)
    wrong = (draws.random(len(seen)) < 1 / 6) | (table.rater == table.names.index("programs"))
    table.good[:] = ((seen @ truth > 0) != wrong).astype(float)
    weights = rater_weights(seen, table, 0.25, strict=True)
    head = fit_head(features, table.reweighted(weights[table.rater]), 1e-2, 0.1)
    clean = draws.normal(size=(2000, 60))
    assert ((clean @ head.direction > 0) == (clean @ truth > 0)).mean() > 0.7


# --- corrections and prompts --------------------------------------------------------------------------------


def test_fifty_corrections_by_one_client_do_not_begin_sft_where_others_are_about() -> None:
    assert snapshot(("demonstration", "mallory", "programs", 50)).heard(TRAIN).sft(TRAIN)  # nobody else is
    for others in ("comparison", "prompt"):
        found = snapshot(("demonstration", "mallory", "programs", 50), (others, "local", "browser:a", 10)).heard(TRAIN)
        assert not found.sft(TRAIN)
    two = [("demonstration", "m", "programs", 50), ("demonstration", "local", "browser:new", 50)]
    assert not snapshot(*two, ("prompt", "local", "browser:a", 10)).heard(TRAIN).sft(TRAIN)  # they may be the same


@pytest.mark.parametrize(
    "days",
    [
        [("demonstration", "browser:new", 60), ("comparison", "browser:a", 12)],
        [("demonstration", "browser:new", 50), ("demonstration", "browser:a", 20), ("prompt", "browser:new", 200)],
        [("comparison", "browser:new", 150), ("prompt", "browser:new", 150), ("demonstration", "browser:a", 60)],
        [("demonstration", "browser:before", 10), ("demonstration", "browser:a", 60), ("thumb", "browser:new", 20)],
    ],
)
def test_all_that_one_person_said_is_learned_from_though_the_first_day_counts_apart(
    days: list[tuple[str, str, int]],
) -> None:
    given = snapshot(*[(kind, "local", person, count) for kind, person, count in days])
    found = given.heard(TRAIN)
    assert found.demonstrations == given.demonstrations
    assert found.sft(TRAIN)
    assert not found.aside
    split = split_prompts(given.prompts, [], 0.3, 1000, seed=0)
    assert len(split.own) + len(split.held_out) == len(given.prompts)


def test_new_browsers_are_nobody_known_where_they_may_be_another() -> None:
    new = ("demonstration", "local", "browser:new", 60)
    for other in (
        [("comparison", "local", "browser:a", 12), ("comparison", "local", "browser:b", 12)],
        [("comparison", "local", "browser:a", 12), ("comparison", "x", "programs", 12)],
        [("comparison", "local", "browser:a", 12), ("prompt", "local", "browser:new", 700)],
    ):
        assert not snapshot(new, *other).heard(TRAIN).sft(TRAIN)


def test_what_browsers_said_before_they_were_told_apart_stays_whole() -> None:
    told = [("demonstration", "local", "browser:before", 60), ("demonstration", "m", "programs", 90)]
    found = snapshot(*told, ("prompt", "local", "browser:a", 10)).heard(TRAIN)
    assert Counter(d.person for d in found.demonstrations) == {"browser:before": 60, "programs": 60}


def test_of_several_people_nobody_has_more_than_a_quarter_of_the_corrections() -> None:
    told = [("demonstration", f"n{n % 3}", f"key:{n}", 100 if n == 0 else 15) for n in range(5)]
    found = snapshot(*told).heard(TRAIN)
    assert Counter(d.person for d in found.demonstrations) == {f"key:{n}": 20 if n == 0 else 15 for n in range(5)}
    assert found.sft(TRAIN)


def test_of_several_people_nobody_has_more_than_a_quarter_of_the_prompts_that_rollouts_and_gates_ask() -> None:
    def split(*told: tuple[str, str, str, int]) -> PromptSplit:
        return split_prompts(snapshot(*told).prompts, seed_prompts(), 0.3, 48, seed=0)

    found = split(("prompt", "x", "programs", 2000), *[("prompt", "local", f"browser:{n}", 20) for n in range(6)])
    for side in (found.own, [p for p in found.held_out if p.person]):
        assert 0 < sum(p.person == "programs" for p in side) <= len(side) / 4
    assert len(split(("prompt", "x", "programs", 100)).own) == 70
    assert (
        len(split(("prompt", "x", "programs", 100), ("prompt", "local", "browser:a", 9)).own) > 60
    )  # as good as alone
    two = split(("prompt", "x", "programs", 100), ("prompt", "local", "browser:new", 10), ("prompt", "l", "key:k", 30))
    assert sum(p.person != "key:k" for p in two.own) <= sum(p.person == "key:k" for p in two.own)


def test_a_snapshot_of_when_each_name_was_a_person_is_read_so() -> None:
    line = {"type": "demonstration", "id": "1", "user": "ann", "group": "g", "prompt": [], "text": "x"}
    assert parse(json.dumps(line).encode()).demonstrations[0].person == "ann"
