"""Dropped and mixed replies are counted by what they contain: by hand, on a live engine, and with a control.

The control swaps weights in place under an unchanged name, as vLLM's `load_inplace` does: replies under way
then go on with other weights, nobody is told, and the monitor must catch it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_engine import TinyEngine
from two_versions import READERS, TOKENS, World, ops, promote, share, two_versions

from thumbwise.training.rehearsal.swap_monitor import Reply, Seen, SwapMonitor, mixed, strangest_span


def test_a_span_is_strange_where_another_version_fits_it_better() -> None:
    assert strangest_span([0.0] * 8, [1.0] * 8, 4) == -1.0
    assert strangest_span([0, 0, 0, 0, 2, 2, 2, 2], [1.0] * 8, 4) == 1.0  # its second half is another's
    assert strangest_span([0, 0, 0, 0, 0, 0, 0, 8], [0.0] * 8, 4) == 2.0
    assert strangest_span([2.0, 2.0], [1.0, 1.0], 8) == 1.0  # shorter than a span


def reply(version: str, logprobs: list[float], **rest: Any) -> Reply:
    ids = list(range(len(logprobs)))
    return Reply(1.0, 1.0, 2.0, version, [], ids, logprobs, **({"finish_reason": "stop"} | rest))


def test_a_reply_is_mixed_only_where_a_live_version_explains_a_span_better() -> None:
    trainer = {"a": [-1.0] * 16, "b": [-3.0] * 16}
    replies = [reply("a", [-1.05] * 16), reply("a", [-1.0] * 8 + [-2.9] * 8), reply("b", [-3.2] * 16)]
    found = mixed(replies, ["a", "b"], lambda rows, version: [trainer[version]] * len(rows))
    assert [(r is replies[1], other, round(by, 3)) for r, other, by in found] == [(True, "b", 1.8)]
    noisy = [reply("a", [-1.5] * 16)]  # far from both, and nearer to its own: not mixed
    assert mixed(noisy, ["a", "b"], lambda rows, version: [trainer[version]] * len(rows)) == []


@pytest.mark.parametrize(
    ("event", "dropped"),
    [
        ({"choices": [{"finish_reason": "stop"}]}, False),
        ({"choices": [{"finish_reason": None}]}, True),
        ({"error": {"message": "vLLM stopped in mid-reply."}}, True),
    ],
)
def test_a_reply_without_a_finish_or_with_an_error_was_dropped(event: dict[str, Any], dropped: bool) -> None:
    one = Reply()
    one.take(event)
    assert one.dropped is dropped


def test_what_was_seen_is_kept_and_where_it_is_lost_nothing_was(tmp_path: Path) -> None:
    seen = Seen([Reply(1.0, 2.0, 3.0, "policy-0000", [], [5], [-0.5])], 2.5, "policy-1")
    seen.save(tmp_path / "streams.json")
    assert Seen.load(tmp_path / "streams.json") == seen
    assert seen.across() == seen.replies
    assert Seen.load(tmp_path / "none.json").across() == []


def test_only_replies_that_were_open_at_the_flip_are_across_it() -> None:
    watch = SwapMonitor("http://nowhere", 8)
    spans = [("a", 1.0, 3.0), ("a", 1.0, 1.9), ("a", 2.1, 3.0), ("b", 1.9, 3.0), ("", 1.0, 3.0)]
    watch.replies = [reply(version, [0.0]) for version, _, _ in spans]
    for one, (_, asked, ended) in zip(watch.replies, spans, strict=True):
        one.asked, one.begun, one.ended = asked, asked, ended
    assert watch.across() == []
    watch.flip, watch.stable = 2.0, "b"
    assert watch.across() == watch.replies[:1]  # the fourth was asked before the flip and begun after it
    assert watch.nearest(1) == watch.replies[:1]


# --- on a live engine -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Iterator[World]:
    folder, url = tmp_path_factory.mktemp("watch"), f"unix:{tiny_engine.uds}"
    with two_versions(folder, tiny_model, tiny_engine, url) as world, tiny_engine.paced():
        yield world


@pytest.mark.engine
@pytest.mark.usefixtures("one_thread")
def test_a_swap_by_name_drops_and_mixes_nothing(world: World) -> None:
    for number in (1, 0, 1, 0, 1):  # on a starved machine a flip may fall between two replies of many readers
        watch = world.watch()
        promote(world, world.versions[number])
        world.finish(watch)
        if number == 1 and len(watch.across()) >= 8:
            break
    else:
        pytest.fail("no swap fell into eight replies")
    assert [reply for reply in watch.replies if reply.dropped] == []
    assert world.mixed(watch) == []
    assert {reply.version for reply in watch.replies} == set(world.versions)
    for version, token in zip(world.versions, TOKENS, strict=True):
        assert all(share(reply, token) > 0.9 for reply in watch.replies if reply.version == version)


@pytest.mark.engine
@pytest.mark.usefixtures("one_thread")
def test_a_canary_answers_its_own_people_and_is_gone_with_the_next_message(world: World) -> None:
    other, stable = world.versions
    assert world.live.assistant.versions.stable() == stable
    watch = world.watch()
    assert promote(world, other, share=0.5)["state"] == "canary"
    while set((told := drawn(world)).values()) != {other, stable}:  # once in 128 times: draw again
        world.live.assistant.versions.start_canary(other, stable, 0.5, "drawn again")
    begun = time.time_ns()
    while set(said := answered(world, begun)) < set(told):
        time.sleep(0.05)
    assert ops(world, "rollback", {"reason": "enough"}) == {"old": other, "new": stable}
    over = time.time_ns()
    while set(answered(world, over)) < set(told):
        time.sleep(0.05)
    watch.stop()
    assert said == {reader: {version} for reader, version in told.items()}
    assert answered(world, over) == {reader: {stable} for reader in told}
    assert [reply for reply in watch.replies if reply.dropped] == []
    assert world.mixed(watch) == []


def drawn(world: World) -> dict[str, str]:
    pointer = world.live.assistant.versions.pointer()
    return {f"reader-{n}": pointer.version_for(f"reader-{n}") for n in range(8)}


def answered(world: World, since: int) -> dict[str, set[str]]:
    """The versions that answered each reader's questions since a time."""
    found: dict[str, set[str]] = {}
    sql = "SELECT user_id, policy_version FROM replies WHERE created_at > ?"
    for row in world.live.assistant.store.rows(sql, [since]):
        found.setdefault(row["user_id"], set()).add(row["policy_version"])
    return found


def under_swaps_in_place(world: World) -> SwapMonitor:
    """Replies during which vLLM loaded the first version's weights and its own, by turns, under the stable name.

    Only replies that began before the first such load go to and fro: vLLM lets later ones load their weights anew at
    each step, always the same ones.
    """
    stable = world.live.assistant.versions.stable()
    paths = [str(world.live.assistant.policies.loading.folder(name)) for name in (world.versions[0], stable)]
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(world.engine.uds)), base_url="http://x") as vllm:

        def load(path: str, **how: bool) -> None:
            body = {"lora_name": stable, "lora_path": path, **how}
            assert vllm.post("/v1/load_lora_adapter", json=body, timeout=60).status_code == 200

        assert vllm.post("/v1/unload_lora_adapter", json={"lora_name": stable}, timeout=60).status_code == 200
        load(paths[1])
        watch = world.watch()
        while len(watch.replies) < READERS:
            for path in paths:
                load(path, load_inplace=True)
                time.sleep(0.3)
        watch.stop()
    return watch


@pytest.mark.engine
@pytest.mark.usefixtures("one_thread")
def test_a_swap_in_place_is_caught(world: World) -> None:
    stable, other = world.live.assistant.versions.stable(), world.versions[0]
    assert stable == world.versions[1]
    for _ in range(5):  # a vLLM that is starved sends a whole reply at once: then nothing was mixed
        watch = under_swaps_in_place(world)
        if sum(min(share(reply, token) for token in TOKENS) > 0.05 for reply in watch.replies) >= 8:
            break
    else:
        pytest.fail("no swap fell into a reply")
    assert watch.flip is None
    found = world.mixed(watch)
    assert len(found) >= 8
    assert {(reply.version, like) for reply, like, _ in found} == {(stable, other)}
    assert all(by > 1.0 for _, _, by in found)
    assert [reply for reply in watch.replies if reply.dropped] == []  # status 200 and a finish: only the tokens tell
