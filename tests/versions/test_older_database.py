"""A database restored from an older copy, beside newer versions and runs: it trains, publishes, and lists them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine, FakeEngineClient, asker
from live_server import Live, serving, wait_ready
from policy_world import World, candidate, make_world
from training_world import LENIENT, SMALL

from thumbwise.contracts import Message
from thumbwise.feedback.records import FeedbackRequest
from thumbwise.feedback.store import Store
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings
from thumbwise.training.job.job import run_training
from thumbwise.training.run.folders import TrainResult
from thumbwise.versions import found
from thumbwise.versions.record import Versions


class Speaking(FakeEngineClient):
    """Answers a version's probes as its trainer did."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home

    async def next_tokens(self, model: str, contexts: Sequence[Any], top: int = 20) -> list[dict[int, float]]:
        probes = json.loads((self.home.policies / model / "manifest.json").read_text())["probes"]
        said = {tuple(p["context_ids"]): dict(zip(p["top_ids"], p["top_logprobs"], strict=True)) for p in probes}
        return [said[tuple(context)] for context in contexts]


def vote(store: Store, votes: int) -> None:
    """Comparisons of drafts; those with many tokens under 70 win."""
    rng = random.Random(7)
    sampling = {"temperature": 0.7, "max_tokens": 8}
    for n in range(votes):
        prompt: list[Message] = [{"role": "user", "content": f"Say something about number {n // 3}."}]
        who, better = asker(f"u{n % 7}"), rng.choice([0, 1])
        comparison, drafts = store.start_comparison(who, prompt, [BASE, BASE], sampling, "api")
        for place, draft in enumerate(drafts):
            tokens = [rng.randrange(5, 70) if place == better else rng.randrange(70, 300) for _ in range(8)]
            ids: dict[str, Any] = {"prompt_ids": [1, 9, 20, 30], "response_ids": tokens}
            store.finish_reply(draft, "done", text="x", finish_reason="length", **ids)
        choice = {"choice": "left" if better == 0 else "right"}
        store.add_feedback(who, str(n), FeedbackRequest(kind="pair", comparison_id=comparison, value=choice))


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Home:
    home = Home.find(tmp_path / "home")
    home.config.write_text(f'model = "{tiny_model}"\nmax_tokens = 8\nchat_max_tokens = 8\n')
    return home


@contextmanager
def served(home: Home) -> Iterator[Live]:
    with serving(home, lambda: FakeEngine(Speaking(home))) as live:
        wait_ready(live)
        yield live


def one_round(home: Home, live: Live) -> TrainResult:
    settings = Settings.load(home, train=SMALL, gates=LENIENT)
    return run_training(home, settings, live.url, home.job_token(), "ppo", plugins=PluginManager(home).load())


def states(live: Live) -> dict[str, str]:
    return {version.version: version.state for version in live.assistant.versions.all()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_the_same_votes_train_and_publish_once_more_and_what_was_there_can_be_promoted(
    home: Home, tmp_path: Path
) -> None:
    with closing(Store(home.database)) as store:
        vote(store, 30)
        store.backup(tmp_path / "older.db")
    with served(home) as live:
        first = one_round(home, live)
        assert first.outcome == "promoted", first.reason
    for path in home.root.glob("feedback.db*"):
        path.unlink()
    (tmp_path / "older.db").rename(home.database)
    with served(home) as live:
        assert live.assistant.versions.stable() == BASE
        assert states(live) == {BASE: "stable", first.version: "retired"}
        second = one_round(home, live)
        assert second.outcome == "promoted", second.reason
        assert (str(first.version)[:11], str(second.version)[:11]) == ("policy-0001", "policy-0002")
        assert str(first.version)[11:] == str(second.version)[11:]  # the same votes make the same adapter
        operator = {"Authorization": f"Bearer {home.operator_token()}"}
        body = {"expect_stable": second.version}
        where = f"{live.url}/ops/api/policies/{first.version}/promote"
        assert httpx.post(where, json=body, headers=operator, timeout=60).status_code == 200
        assert live.assistant.versions.stable() == first.version


# --- what is taken in ------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def on_disk(world: World, number: int, **facts: Any) -> str:
    """A version's folder that the database knows nothing of."""
    version, files = candidate(number, lambda config, manifest, tensors: manifest.update(facts), seed=1)
    folder = world.home.policies / version
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return version


def taken_in(world: World) -> Versions:
    assert world.policies.model is not None
    manifests = found.unknown(world.home, world.versions, world.policies.model, EngineSettings())
    found.take_in(world.versions, manifests)
    return world.versions


async def test_versions_that_the_database_lacks_are_listed_and_take_no_traffic(world: World) -> None:
    passed = on_disk(world, 3, gates=[{"name": "kl", "passed": True, "detail": "Near enough."}])
    refused = on_disk(world, 4, gates=[{"name": "kl", "passed": False, "detail": "Too far."}])
    odd = [on_disk(world, number, gates=gates) for number, gates in ((1, None), (2, ["?"]))]
    versions = taken_in(taken := world)
    assert [versions.get(version).state for version in odd] == ["retired", "retired"]
    assert (versions.get(passed).state, versions.get(passed).reason) == ("retired", found.FOUND)
    assert (versions.get(refused).state, versions.get(refused).reason) == ("rejected", "Too far.")
    assert versions.stable() == BASE
    assert found.unknown(taken.home, versions, taken.policies.model, EngineSettings()) == []  # type: ignore[arg-type]
    assert versions.runs.begin("s", 60, found.highest(world.home)).number == 5


@pytest.mark.parametrize("what", ["damaged", "of another base model", "of a number that is given", "of a known run"])
async def test_what_cannot_be_taken_in_is_left_alone_and_named(
    world: World, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    if what == "of a number that is given":
        world.receive(1)
    elif what == "of a known run":
        world.versions.runs.begin("s", 60)  # which may be about to hand it over
    version = on_disk(world, 1, base_digest="other" if what == "of another base model" else "base")
    if what == "damaged":
        (world.home.policies / version / "adapter_model.safetensors").write_bytes(b"")
    before = world.versions.all()
    assert taken_in(world).all() == before
    assert f"{version} is on disk, but the database does not know it; it is not used" in caplog.text


async def test_a_runs_number_is_above_those_of_all_runs_on_disk_whatever_wrote_them(world: World) -> None:
    for name, text in (("a", '{"given": {"number": 7}}'), ("b", "[]"), ("c", "{"), ("d", '{"given": {}}')):
        (world.home.runs / name).mkdir()
        (world.home.runs / name / "run.json").write_text(text)
    (world.home.policies / "notes").mkdir()
    assert found.highest(world.home) == 7
