"""Adapters that are damaged, foreign or malicious, handed over through the job's own client to a live assistant.

Each is refused with one sentence; it is never stable, nothing of it is left, and the version that was stable
goes on answering. The same hands, with nothing spoiled, make the version that is stable here.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from canned_engine import stub
from crash_tools import Trained, one_sentence, served, tiny_home, trained
from live_server import Live, serving, wait_ready
from safetensors.numpy import load, save
from tiny_engine import TinyEngine
from tiny_model import make_tiny_adapter

from thumbwise.engine.client import EngineClient
from thumbwise.engine.external import ExternalEngine
from thumbwise.engine.probes import distance
from thumbwise.errors import EngineFailed, ThumbwiseError
from thumbwise.names import CONFIG, MANIFEST, WEIGHTS
from thumbwise.training.run.candidate import Candidate
from thumbwise.training.run.client import OpsClient, Run

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_engine: TinyEngine) -> Iterator[Live]:
    home = tiny_home(tmp_path_factory.mktemp("refused") / "home", tiny_model)
    with serving(home, lambda: ExternalEngine(f"unix:{tiny_engine.uds}")) as live:
        wait_ready(live)
        yield live


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, one_thread: None) -> Trained:
    return trained(tiny_model, make_tiny_adapter(tiny_model, tmp_path_factory.mktemp("adapter") / "a", seed=31))


@dataclass
class Desk:
    """Where candidates are handed over, in a run that is open; `stable` is a real adapter."""

    live: Live
    adapter: Trained
    ops: OpsClient
    run: Run
    stable: str
    uds: Path

    @property
    def folders(self) -> list[str]:
        return sorted(path.name for path in self.live.assistant.home.policies.iterdir())

    def state(self, version: str) -> str | None:
        return next((row.state for row in self.live.assistant.versions.all() if row.version == version), None)

    def refusal(self, call: Callable[..., None], *arguments: Any, status: int = 422) -> str:
        """The sentence with which a call is refused; the stable version answers after it as before."""
        with pytest.raises(ThumbwiseError) as refused:
            call(*arguments)
        assert refused.value.status == status, refused.value
        assert self.live.assistant.versions.stable() == self.stable
        body = {"messages": [{"role": "user", "content": "Still there?"}], "max_tokens": 4}
        answer = httpx.post(f"{self.live.url}/v1/chat/completions", json=body, timeout=60).json()
        assert answer["thumbwise"]["policy_version"] == self.stable
        assert self.live.assistant.status().ready
        asyncio.run(self._stable_is_itself())
        return one_sentence(str(refused.value))

    async def _stable_is_itself(self) -> None:
        engine = EngineClient(uds=self.uds)
        for probe in self.adapter.probes:
            answer = await engine.next_token_logprobs(self.stable, probe["context_ids"], top=len(probe["top_ids"]))
            assert distance(dict(zip(probe["top_ids"], probe["top_logprobs"], strict=True)), answer) < 0.01
        await engine.aclose()

    def promote(self, candidate: Candidate) -> None:
        self.ops.promote(self.run, candidate.version, self.stable)


@pytest.fixture(scope="module")
def stable(live: Live, adapter: Trained) -> None:
    """The control: the same adapter, unspoiled, becomes stable."""
    with OpsClient(live.url, live.assistant.token) as ops:
        run = ops.begin()
        candidate = adapter.candidate(run)
        ops.publish(run, candidate.version, candidate.files)
        ops.promote(run, candidate.version, run.stable)
        ops.finish(run, "promoted", "")


@pytest.fixture
def desk(live: Live, stable: None, adapter: Trained, tiny_engine: TinyEngine) -> Iterator[Desk]:
    with OpsClient(live.url, live.assistant.token) as ops:
        run = ops.begin()
        yield Desk(live, adapter, ops, run, run.stable, tiny_engine.uds)
        ops.finish(run, "rejected", "")


# --- refused as they are handed over ----------------------------------------------------------------------

Spoil = Callable[[Trained, Run], Candidate]


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    spoiled = bytearray(data)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


def on_the_way(name: str, change: Callable[[bytes], bytes]) -> Spoil:
    """A file that changes after it was hashed."""

    def spoil(adapter: Trained, run: Run) -> Candidate:
        whole = adapter.candidate(run)
        return replace(whole, files=whole.files | {name: change(whole.files[name])})

    return spoil


def before(change: Callable[[bytes], bytes]) -> Spoil:
    """Weights that were already spoiled when they were hashed and named."""

    def spoil(adapter: Trained, run: Run) -> Candidate:
        return Trained(adapter.files | {WEIGHTS: change(adapter.files[WEIGHTS])}, adapter.probes).candidate(run)

    return spoil


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Spoil:
    return before(lambda data: save(change(load(data))))


def another_base(adapter: Trained, run: Run) -> Candidate:
    return adapter.candidate(run, base_digest="0" * 64)


def no_number(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    next(iter(found.values()))[0, 0] = np.nan
    return found


def with_its_highest_bit_flipped(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Finite, and near the largest number that there is: vLLM would make NaN of it."""
    next(iter(found.values())).view(np.uint32)[0, 0] |= 1 << 30
    return found


def scaled(alpha: str) -> Spoil:
    """A configuration that multiplies the adapter by what Python's JSON reads and no adapter has."""

    def spoil(adapter: Trained, run: Run) -> Candidate:
        config = adapter.files[CONFIG].replace(b'"lora_alpha": 8', f'"lora_alpha": {alpha}'.encode())
        assert config != adapter.files[CONFIG]
        return Trained(adapter.files | {CONFIG: config}, adapter.probes).candidate(run)

    return spoil


def of_layers_that_are_not_there(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.replace("layers.1.", "layers.7."): value for key, value in found.items()}


def without_the_prefix(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix("base_model.model."): value for key, value in found.items()}


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.mark, "w"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(on_the_way(WEIGHTS, lambda data: flipped(data, 8 * 40_000)), "damaged on the way", id="flipped"),
        pytest.param(on_the_way(WEIGHTS, lambda data: data[: len(data) // 2]), "damaged on the way", id="cut"),
        pytest.param(on_the_way(CONFIG, lambda data: flipped(data, 100)), "damaged on the way", id="config flipped"),
        pytest.param(on_the_way(MANIFEST, lambda data: data[:-40]), "not JSON", id="manifest cut"),
        pytest.param(before(lambda data: data[: len(data) // 2]), "not readable safetensors", id="cut and hashed"),
        pytest.param(before(lambda data: data[:5]), "not readable safetensors", id="cut in its header"),
        pytest.param(tensors(no_number), "not finite", id="NaN"),
        pytest.param(tensors(with_its_highest_bit_flipped), "more than training makes", id="flipped and hashed"),
        pytest.param(scaled("Infinity"), "lora_alpha inf", id="endless scale"),
        pytest.param(scaled("1e300"), "lora_alpha 1e", id="huge scale"),
        pytest.param(another_base, "another base model", id="another base"),
        pytest.param(tensors(of_layers_that_are_not_there), "matches nothing", id="other layers"),
        pytest.param(tensors(without_the_prefix), "matches nothing", id="other names"),
    ],
)
def test_a_spoiled_adapter_is_refused_and_nothing_of_it_is_kept(
    desk: Desk, adapter: Trained, spoil: Spoil, says: str
) -> None:
    kept = desk.folders
    candidate = spoil(adapter, desk.run)
    assert says in desk.refusal(desk.ops.publish, desk.run, candidate.version, candidate.files)
    assert desk.folders == kept
    assert desk.state(candidate.version) is None
    assert candidate.version not in served(desk.uds)


def test_a_rank_over_the_engines_is_refused(desk: Desk, tiny_model: Path, tmp_path: Path) -> None:
    kept = desk.folders
    folder = make_tiny_adapter(tiny_model, tmp_path / "adapter", seed=32, rank=16)
    candidate = trained(tiny_model, folder, rank=16).candidate(desk.run)
    assert "rank 16 is outside 1 to 8" in desk.refusal(desk.ops.publish, desk.run, candidate.version, candidate.files)
    assert (desk.folders, desk.state(candidate.version)) == (kept, None)


def test_a_run_hands_over_one_version_and_under_its_own_number(desk: Desk, adapter: Trained) -> None:
    candidate = adapter.candidate(desk.run)
    desk.ops.publish(desk.run, candidate.version, candidate.files)
    kept = desk.folders
    renamed = adapter.candidate(replace(desk.run, number=desk.run.number + 1))
    second = tensors(lambda found: {key: value / 2 for key, value in found.items()})(adapter, desk.run)
    for other in (renamed, second):
        refused = desk.refusal(desk.ops.publish, desk.run, other.version, other.files, status=409)
        assert "not the one version of this run" in refused
        assert (desk.folders, desk.state(other.version)) == (kept, None)


def test_a_pickle_is_refused_and_never_opened(desk: Desk, adapter: Trained, tmp_path: Path) -> None:
    import torch

    kept = desk.folders
    mark = tmp_path / "it ran"
    saved = io.BytesIO()
    torch.save({"base_model.model.weight": Bomb(str(mark))}, saved)
    for data in (saved.getvalue(), pickle.dumps(Bomb(str(mark)))):
        candidate = before(lambda _, data=data: data)(adapter, desk.run)
        assert "not readable safetensors" in desk.refusal(
            desk.ops.publish, desk.run, candidate.version, candidate.files
        )
        assert (desk.folders, desk.state(candidate.version)) == (kept, None)
    assert not mark.exists()
    pickle.Unpickler(io.BytesIO(pickle.dumps(Bomb(str(mark))))).load().close()  # noqa: S301 - it would have
    assert mark.exists()


# --- refused as they are promoted ------------------------------------------------------------------------


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def link(path: Path) -> None:
    """The same bytes, behind a link that may be turned to others."""
    path.rename(path.parents[2] / f"moved {path.name}")
    path.symlink_to(path.parents[2] / f"moved {path.name}")


def without_its_files(path: Path) -> None:
    """A manifest that is JSON and says less than it must."""
    overwrite(path, path.read_bytes().replace(b'"files"', b'"filer"'))


def with_odd_probes(path: Path) -> None:
    overwrite(path, path.read_bytes().replace(b'"top_ids"', b'"top_idz"'))


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        (WEIGHTS, lambda path: overwrite(path, flipped(path.read_bytes(), 8 * 40_000)), "changed after it was written"),
        (WEIGHTS, lambda path: os.truncate(path, 40_000), "changed after it was written"),
        (WEIGHTS, link, "not a plain file"),
        (WEIGHTS, Path.unlink, "missing"),
        (CONFIG, lambda path: overwrite(path, flipped(path.read_bytes(), 100)), "changed after it was written"),
        (CONFIG, link, "not a plain file"),
        (MANIFEST, link, "not a plain file"),
        (MANIFEST, lambda path: os.truncate(path, 300), "not JSON"),
        (MANIFEST, without_its_files, "files"),
        (MANIFEST, with_odd_probes, "probe"),
    ],
)
def test_a_version_that_changes_on_the_disk_after_it_was_published_is_refused_at_its_promotion(
    desk: Desk, adapter: Trained, name: str, spoil: Callable[[Path], None], says: str
) -> None:
    candidate = adapter.candidate(desk.run)
    desk.ops.publish(desk.run, candidate.version, candidate.files)
    spoil(desk.live.assistant.policies.loading.folder(candidate.version) / name)
    assert says in desk.refusal(desk.promote, candidate)
    assert desk.state(candidate.version) == "rejected"
    assert candidate.version not in served(desk.uds)


def test_an_adapter_that_changes_nothing_is_refused_by_its_probe(desk: Desk, tiny_model: Path, tmp_path: Path) -> None:
    folder = make_tiny_adapter(tiny_model, tmp_path / "adapter", seed=33, scale=0)
    candidate = trained(tiny_model, folder).candidate(desk.run)
    desk.ops.publish(desk.run, candidate.version, candidate.files)
    assert "answers like the base model" in desk.refusal(desk.promote, candidate)
    assert desk.state(candidate.version) == "rejected"


def test_a_weight_that_was_spoiled_before_it_was_hashed_is_found_by_the_probe(desk: Desk, adapter: Trained) -> None:
    def spoil(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        key = next(key for key in sorted(found) if "layers.1.mlp.down_proj.lora_B" in key)
        return found | {key: np.full_like(found[key], 900.0)}

    candidate = tensors(spoil)(adapter, desk.run)
    desk.ops.publish(desk.run, candidate.version, candidate.files)
    assert "does not answer as it was trained" in desk.refusal(desk.promote, candidate)
    assert desk.state(candidate.version) == "rejected"


def test_a_probe_that_cannot_be_asked_is_the_versions_fault(desk: Desk, adapter: Trained) -> None:
    beyond = [adapter.probes[0] | {"context_ids": [1, 10**6]}]
    candidate = adapter.candidate(desk.run, probes=beyond)
    desk.ops.publish(desk.run, candidate.version, candidate.files)
    assert "a probe that cannot be asked" in desk.refusal(desk.promote, candidate)
    assert desk.state(candidate.version) == "rejected"


async def test_a_version_whose_log_probabilities_are_no_numbers_is_at_fault_itself(tmp_path: Path) -> None:
    """In vLLM's own words: such a version never reaches a vLLM here, because it would spoil what others say."""
    said = {"error": {"message": "Out of range float values are not JSON compliant", "code": 400}}
    async with stub(tmp_path, json.dumps(said).encode(), "400 Bad Request", "application/json") as (engine, _):
        with pytest.raises(EngineFailed, match="that are not numbers") as refused:
            await engine.next_token_logprobs("policy-0009", [1])
    assert refused.value.status == 422
