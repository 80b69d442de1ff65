"""Policy versions: what is refused, what a probe proves, and how the pointer moves and goes back."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngineClient, asker
from policy_world import OF_BASE, SHAPES, TRAINER, Change, World, candidate, make_world, spoil

from thumbwise import names
from thumbwise.base_model.prepare import PreparedModel
from thumbwise.base_model.weights import base_modules
from thumbwise.contracts import Message
from thumbwise.engine.probes import distance
from thumbwise.errors import Conflict, EngineFailed, EngineUnavailable, NotFound, ThumbwiseError
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.serving import assistant as app
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings
from thumbwise.versions import artifacts


def check(version: str, files: dict[str, bytes]) -> dict[str, Any]:
    return artifacts.check(version, files, modules=SHAPES, base_digest="base", max_rank=8)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_module_shapes_are_read_from_the_headers(world: World) -> None:
    assert world.policies.model is not None
    assert base_modules(world.policies.model.folder) == SHAPES


def test_a_good_candidate_passes(tmp_path: Path) -> None:
    version, files = candidate()
    assert check(version, files)["version"] == version
    folder = artifacts.write(tmp_path, version, files)
    assert artifacts.verify(folder)["number"] == 1
    assert artifacts.write(tmp_path, version, files) == folder
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}


def _nan(config: Any, manifest: Any, tensors: dict[str, np.ndarray]) -> None:
    next(iter(tensors.values()))[0, 0] = np.nan


def _foreign_keys(config: Any, manifest: Any, tensors: dict[str, np.ndarray]) -> None:
    for key in list(tensors):
        tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)


def _half(config: Any, manifest: Any, tensors: dict[str, np.ndarray]) -> None:
    tensors.pop(next(key for key in tensors if "lora_B" in key))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil("config", "r", 64), "rank"),
        (spoil("config", "use_dora", True), "plain LoRA"),
        (spoil("config", "modules_to_save", ["lm_head"]), "plain LoRA"),
        (spoil("config", "bias", "all"), "bias"),
        (spoil("config", "target_modules", ["lm_head"]), "lm_head"),
        (spoil("manifest", "base_digest", "another"), "another base model"),
        (spoil("manifest", "probes", []), "no probes"),
        (spoil("manifest", "version", "policy-0002-000000000000"), "another version"),
        (_nan, "not finite"),
        (_foreign_keys, "matches nothing"),
        (_half, "one of their two"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(change: Change, says: str) -> None:
    with pytest.raises(ThumbwiseError, match=says) as refused:
        check(*candidate(change=change))
    assert refused.value.status == 422


def test_damaged_bytes_and_extra_files_are_refused() -> None:
    version, files = candidate()
    for spoiled in (
        files | {names.WEIGHTS: files[names.WEIGHTS][:-1] + b"\0"},
        files | {names.WEIGHTS: files[names.WEIGHTS][:40]},
        files | {"evil.py": b"print()"},
        files | {names.MANIFEST: b"{" * 100_000},
    ):
        with pytest.raises(ThumbwiseError, match="refused"):
            check(version, spoiled)
    with pytest.raises(ThumbwiseError, match="not a version name"):
        check("../../etc", files)


def test_a_version_without_its_manifest_is_not_complete_and_is_written_afresh(tmp_path: Path) -> None:
    version, files = candidate()
    folder = artifacts.write(tmp_path, version, files)
    (folder / names.MANIFEST).unlink()
    with pytest.raises(ThumbwiseError, match="not complete"):
        artifacts.verify(folder)
    assert artifacts.verify(artifacts.write(tmp_path, version, files))["version"] == version


def test_a_changed_file_or_a_link_is_noticed(tmp_path: Path) -> None:
    version, files = candidate()
    weights = artifacts.write(tmp_path, version, files) / names.WEIGHTS
    weights.chmod(0o600)
    weights.write_bytes(b"other")
    with pytest.raises(ThumbwiseError, match="changed"):
        artifacts.verify(weights.parent)
    weights.unlink()
    weights.symlink_to("/dev/null")
    with pytest.raises(ThumbwiseError, match="plain file"):
        artifacts.verify(weights.parent)


def test_the_distance_is_zero_to_itself_and_counts_what_was_left_out() -> None:
    assert distance(TRAINER, TRAINER) == 0
    left_out = 0.3 * abs(TRAINER[2] - TRAINER[1])
    assert distance(TRAINER, {1: TRAINER[1]}) == pytest.approx(left_out)
    assert distance(TRAINER, {1: TRAINER[1] + 0.1, 2: TRAINER[2] - 0.1}) == pytest.approx(0.1)


async def test_a_version_is_loaded_probed_and_promoted_and_the_plugins_hear_of_it(world: World) -> None:
    heard: list[tuple[str, str]] = []
    world.policies.plugins.notify = lambda hook, **kw: heard.append((hook, kw["new"]))  # type: ignore[method-assign]
    version = world.receive(1)
    assert world.versions.get(version).state == "staged"
    probe = await world.policies.promote(version, BASE, "passed its gates")
    assert probe is not None
    assert probe.to_trainer < 1e-9 < probe.to_base
    assert world.engine.loaded == {version: world.home.policies / version}
    assert world.versions.stable() == version
    assert world.versions.get(BASE).state == "retired"
    assert world.policies.live() == [version, BASE]
    assert heard == [("on_promote", version)]
    assert await world.policies.promote(version, BASE, "again") is None


@pytest.mark.parametrize("answers", [OF_BASE, {1: math.log(0.5), 2: math.log(0.5)}, {7: 0.0}])
async def test_a_version_that_does_not_answer_as_trained_is_rejected_and_stable_stays(
    world: World, answers: dict[int, float]
) -> None:
    version = world.receive(1)
    world.engine.logprobs[version] = answers
    with pytest.raises(ThumbwiseError, match="probe"):
        await world.policies.promote(version, BASE, "")
    assert world.versions.stable() == BASE
    assert world.versions.get(version).state == "rejected"
    with pytest.raises(Conflict, match="rejected"):
        await world.policies.promote(version, BASE, "")


async def test_a_promotion_that_expects_another_stable_version_is_refused(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    with pytest.raises(Conflict, match="no longer stable"):
        await world.policies.promote(second, BASE, "")
    assert world.versions.stable() == first


async def test_rollback_walks_back_to_the_base_and_no_further(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    await world.policies.promote(second, first, "")
    assert await world.policies.rollback("worse", expect=second) == (second, first)
    with pytest.raises(Conflict, match=f"{first} would be taken back"):
        await world.policies.rollback("worse", expect=second)  # two people saw the same
    assert await world.policies.rollback("worse") == (first, BASE)
    with pytest.raises(Conflict, match="nothing to roll back"):
        await world.policies.rollback("worse")
    assert [row["action"] for row in world.versions.log()] == ["rollback", "rollback", "promote", "promote"]


async def test_after_a_restart_a_rollback_loads_the_version_that_comparisons_then_draw_from(world: World) -> None:
    first, second, third = (world.receive(n) for n in (1, 2, 3))
    for old, new in ((BASE, first), (first, second), (second, third)):
        await world.policies.promote(new, old, "")
    world.engine.loaded.clear()
    await world.policies.restore(world.engine)
    assert set(world.engine.loaded) == {second, third}
    await world.policies.rollback("worse")
    assert world.policies.live() == [second, first]
    assert first in world.engine.loaded


class Refusing(FakeEngineClient):
    """Loads nothing; `error` says why."""

    error: ThumbwiseError = EngineFailed("It could not be loaded: no.", status=422)

    async def load_adapter(self, name: str, path: Path) -> None:
        raise self.error


async def test_comparisons_do_without_a_version_that_cannot_be_loaded_again(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    await world.policies.promote(second, first, "")
    (world.policies.loading.folder(first) / names.WEIGHTS).unlink()
    await world.policies.restore(world.engine)
    assert world.policies.live() == [second]


async def test_a_stable_version_that_vllm_will_not_load_gives_way_to_the_one_before(world: World) -> None:
    version = world.receive(1)
    await world.policies.promote(version, BASE, "")
    await world.policies.restore(Refusing())  # type: ignore[arg-type]
    assert world.versions.stable() == BASE
    assert world.versions.get(version).state == "rejected"
    assert "could not be loaded" in world.policies.warning


async def test_while_vllm_is_gone_the_pointer_can_be_moved_back(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    await world.policies.promote(second, first, "")
    gone = Refusing()
    gone.error = EngineUnavailable("vLLM is not answering.")
    world.policies.loading.engine = gone  # type: ignore[assignment]
    assert await world.policies.rollback("worse") == (second, first)


async def test_a_rolled_back_version_can_be_promoted_again(world: World) -> None:
    first = world.receive(1)
    await world.policies.promote(first, BASE, "")
    await world.policies.rollback("by mistake")
    await world.policies.promote(first, BASE, "after all")
    assert world.versions.stable() == first


async def test_a_restarted_engine_gets_stable_and_the_one_before_back(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    await world.policies.promote(second, first, "")
    world.engine.loaded.clear()
    await world.policies.restore(world.engine)
    assert set(world.engine.loaded) == {first, second}
    assert world.policies.warning == ""


async def test_a_stable_version_that_cannot_be_restored_gives_way_visibly(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "")
    await world.policies.promote(second, first, "")
    weights = world.home.policies / second / names.WEIGHTS
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    await world.policies.restore(world.engine)
    assert world.versions.stable() == first
    assert world.versions.get(second).state == "rejected"
    assert first in world.policies.warning


def test_two_jobs_never_run_and_a_stale_lease_publishes_nothing(world: World) -> None:
    run = world.versions.runs.begin("s", 60)
    with pytest.raises(Conflict, match="under way"):
        world.versions.runs.begin("s", 60)
    world.versions.runs.renew(run.id, run.lease, -1)  # as if its heartbeats had stopped
    later = world.versions.runs.begin("s", 60)
    assert later.number == run.number + 1
    version, files = candidate(run.number)
    with pytest.raises(Conflict, match="lease"):
        world.policies.receive(version, files, run.lease)
    with pytest.raises(Conflict, match="lease"):
        world.versions.runs.renew(run.id, later.lease, 60)
    world.versions.runs.end(later.id, later.lease, "too_little_data", "3 votes")
    assert world.versions.runs.begin("s", 60).number == later.number + 1


def test_the_lease_is_renewed_by_heartbeats(world: World) -> None:
    run = world.versions.runs.begin("s", 0.3)
    world.versions.runs.renew(run.id, run.lease, 60)
    time.sleep(0.35)
    with pytest.raises(Conflict, match="under way"):
        world.versions.runs.begin("s", 60)


def test_the_record_of_a_version_has_the_fields_that_others_read(world: World) -> None:
    version = world.receive(1)
    record = world.versions.get(version).as_json()
    assert record["metrics"] == {"kl": 1.5}
    needed = {"version", "parent", "state", "algorithm", "created_at", "data_sha256", "n_labels", "metrics"}
    assert needed <= set(record)
    with pytest.raises(NotFound):
        world.versions.get("policy-9999-000000000000")


def test_the_base_is_there_from_the_start(world: World) -> None:
    assert world.versions.stable() == BASE
    assert world.versions.all()[0].algorithm == "base"


# --- which base model it is -------------------------------------------------------------------------------


def test_a_home_keeps_its_base_model_once_there_are_replies(world: World) -> None:
    bind, store = world.versions.bind, world.versions.store
    bind("a", "first")
    bind("b", "second")  # nothing is lost by it
    store.start_reply(asker("ann"), [Message(role="user", content="Hello?")], BASE, {})
    bind("b", "second")
    with pytest.raises(Conflict, match=r"base model second, which is not third: start with the one it was"):
        bind("c", "third")
    with pytest.raises(Conflict, match="second, which now has other files"):
        bind("c", "second")


def test_or_versions(world: World) -> None:
    world.versions.bind("a", "first")
    world.receive(1)
    with pytest.raises(Conflict, match="THUMBWISE_HOME"):
        world.versions.bind("b", "second")


async def test_an_assistant_with_another_base_model_starts_no_engine_and_says_why(tmp_path: Path, monkeypatch) -> None:
    home = Home.find(tmp_path)
    assistant = Assistant(home, Settings.load(home))
    assistant.versions.bind("a", "first")
    assistant.store.start_reply(asker("ann"), [Message(role="user", content="Hello?")], BASE, {})
    monkeypatch.setattr(app, "prepare", lambda *args: PreparedModel(tmp_path, "b", "second"))
    await assistant._start_engine()
    assert "first, which is not second" in assistant.status().detail
    assert (assistant.engine, assistant.model) == (None, None)
    await assistant.stop()


async def test_a_rejected_version_is_neither_shown_nor_gone_back_to(world: World) -> None:
    first, second = world.receive(1), world.receive(2)
    await world.policies.promote(first, BASE, "test")
    await world.policies.promote(second, first, "test")
    world.engine.logprobs[first] = OF_BASE  # vLLM answers as the base under its name
    with pytest.raises(ThumbwiseError, match="does not answer as it was trained"):
        await world.policies.promote(first, second, "by hand")
    assert world.policies.live() == [second, BASE]
    assert await world.policies.rollback("by hand") == (second, BASE)
    assert world.versions.get(first).state == "rejected"


async def test_a_rollback_probes_only_what_was_not_since_vllm_was_started(world: World, monkeypatch) -> None:
    versions = [world.receive(number) for number in (1, 2, 3, 4)]
    for before, version in zip([BASE, *versions], versions, strict=False):
        await world.policies.promote(version, before, "test")
    asked: list[str] = []
    probe = world.policies.loading.probe

    async def noted(version: str, engine: Any) -> Any:
        asked.append(version)
        return await probe(version, engine)

    monkeypatch.setattr(world.policies.loading, "probe", noted)
    await world.policies.rollback("a probe beside open streams would take a second")
    assert asked == []
    await world.policies.restore(world.engine)
    assert asked == [versions[2], versions[1]]
    world.engine.logprobs[versions[0]] = OF_BASE
    assert await world.policies.rollback("test") == (versions[2], versions[1])
    assert asked[2:] == [versions[0]]
    assert world.policies.live() == [versions[1]]
