"""The check that a vLLM keeps policies apart in one batch, on vLLM with our adapter code and with its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tiny_engine import TINY, TinyEngine

from thumbwise.base_model.prepare import prepare
from thumbwise.engine.supervisor import Engine
from thumbwise.errors import EngineFailed
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.settings.engine import EngineSettings
from thumbwise.versions.mixing import CHECKED, check


class Answers:
    """A client whose policies answer by `say(name, together)`: one likely token each."""

    def __init__(self, say: Any) -> None:
        self.say, self.served, self.open = say, {BASE: ""}, 0

    async def adapters(self) -> dict[str, str]:
        return dict(self.served)

    async def load_adapter(self, name: str, path: Path) -> None:
        assert {file.name for file in path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
        self.served[name] = str(path)

    async def unload_adapter(self, name: str) -> None:
        del self.served[name]

    async def next_token_logprobs(self, model: str, context_ids: Any, top: int = 20) -> dict[int, float]:
        self.open += 1
        await asyncio.sleep(0)  # others begin
        likely = self.say(model, self.open > 1)
        self.open -= 1
        return {likely: -0.01, -1: -9.0}


async def test_what_was_loaded_for_the_check_is_gone_after_it_but_for_one_name(tiny_model: Path, tmp_path: Path):
    answers: Any = Answers(lambda name, together: hash(name))
    await check(answers, tiny_model, 4, tmp_path)
    assert set(answers.served) == {BASE, CHECKED}
    answers.say = None  # a second check asks nothing
    await check(answers, tiny_model, 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (lambda name, together: 1 if together and name == BASE else hash(name), "mixes policies"),
        (lambda name, together: 1, "as without one"),
    ],
)
async def test_an_engine_that_mixes_or_ignores_policies_is_refused(
    say: Any, why: str, tiny_model: Path, tmp_path: Path
) -> None:
    answers: Any = Answers(say)
    with pytest.raises(EngineFailed, match=why):
        await check(answers, tiny_model, 4, tmp_path)
    assert set(answers.served) == {BASE}


@pytest.mark.engine
def test_our_adapter_code_passes_it(tiny_engine: TinyEngine, tiny_model: Path, tmp_path: Path) -> None:
    async def asked() -> set[str]:
        if CHECKED in await tiny_engine.engine.client.adapters():  # by an assistant of another test
            await tiny_engine.engine.client.unload_adapter(CHECKED)
        await check(tiny_engine.engine.client, tiny_model, TINY.max_loras, tmp_path)
        return set(await tiny_engine.engine.client.adapters())

    assert CHECKED in tiny_engine.run(asked())


class Stock(Engine):
    """vLLM without our plugin."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"VLLM_PLUGINS": ""}


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(Home.find(tmp_path_factory.mktemp("home")), "default").folder


@pytest.mark.engine
@pytest.mark.parametrize("kind", [Engine, Stock])
async def test_with_the_default_model_our_code_passes_and_vllms_own_does_not(
    kind: type[Engine], default_model: Path, tmp_path: Path
) -> None:
    """One start, about 40 s. Where vLLM's own code passes, it was mended, and the check has nothing left to find."""
    settings = EngineSettings()
    engine = kind(default_model, settings, run_dir=tmp_path / "run", log=tmp_path / "vllm.log")
    engine.tries = 1
    engine.on_ready.append(lambda each: check(each, default_model, settings.max_loras, tmp_path))
    await engine.start()
    try:
        if kind is Engine:
            await engine.wait_ready(300)
        else:
            with pytest.raises(EngineFailed, match="mixes policies"):
                await engine.wait_ready(300)
    finally:
        await engine.stop()
