"""Eight families of models, tiny and random, each through a whole round: what their templates do to it.

Each also through a real vLLM, with the adapter of its round.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, Family, make
from tiny_engine import TINY, TinyEngine
from training_world import FakeAssistant, make_snapshot, train

from thumbwise.base_model import prepare, templates
from thumbwise.contracts import Message
from thumbwise.engine.client import Sampling
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.snapshot import NO_DAY, parse

pytestmark = pytest.mark.usefixtures("one_thread")

ASK = (Message(role="user", content="Tell me a story."),)
OPEN = {"max_kl": 1e3, "max_base_kl": 1e3, "min_length": 0.0, "max_length": 100.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    root = tmp_path_factory.mktemp("families")
    return {name: make(family, root / name) for name, family in FAMILIES.items()}


def opened(folder: Path, family: Family, day: date | None = NO_DAY) -> Backbone:
    return Backbone(folder, TrainSettings(dtype="float32", lora_rank=8), family.arguments, day)


def one_round(tmp_path: Path, folder: Path, family: Family, **changes: Any) -> tuple[FakeAssistant, dict[str, bytes]]:
    """The assistant of a round with corrections, and the files of the version that it was given."""
    assistant = FakeAssistant(make_snapshot(30, corrections=12))
    result = train(
        tmp_path, folder, assistant, OPEN, template=family.arguments, kl_budget=1e3, sft_demonstrations=10,
        sft_epochs=1, sft_learning_rate=1e-2, **{"iterations": 1, **changes},
    )  # fmt: skip
    assert result.outcome == "promoted", result.reason
    assert (tmp_path / "home" / "runs" / "run-1" / "sft.json").exists()
    return assistant, next(iter(assistant.policies.values()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_a_whole_round(tmp_path: Path, folders: dict[str, Path], name: str) -> None:
    """Snapshot, SFT, reward model, PPO, gates and probes."""
    family = FAMILIES[name]
    prepared = prepare.prepare(Home.find(tmp_path / "serving"), str(folders[name]))
    templates.check(prepared.folder, family.arguments)
    assistant, files = one_round(tmp_path, folders[name], family)
    manifest = json.loads(files["manifest.json"])
    assert manifest["config"]["chat_template_kwargs"] == family.arguments
    assert manifest["config"]["day"] == NO_DAY.isoformat()
    assert any(file["version"] in assistant.policies for file in assistant.promoted)
    chat = opened(folders[name], family).chat
    begun = chat.prompt_ids(ASK)
    texts = [chat.tokenizer.decode(probe["context_ids"]) for probe in manifest["probes"]]
    before = chat.tokenizer.decode(begun).partition("Tell me a story.")[0]
    assert all(text.startswith(before) for text in texts)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_correction_ends_as_its_template_ends_a_reply(folders: dict[str, Path], name: str) -> None:
    family, said = FAMILIES[name], "The capital of France is Paris."
    tokenizer, chat = template_of(folders[name], family)
    ids = chat.reply_ids(ASK, said)
    assert tokenizer.decode(ids).strip() == said + family.turn_end
    assert ids[-1] in chat.stop_ids
    turns = [templates.with_text(m["role"], m["content"], chat._format) for m in ASK]
    turns.append(templates.with_text("assistant", said, chat._format))
    whole = tokenizer.apply_chat_template(turns, return_dict=False, **chat._given)
    both = [*chat.prompt_ids(ASK), *ids]
    assert whole[: len(both)] == both  # it is what the template makes of it, and nothing of our own


@pytest.mark.parametrize("name", FAMILIES)
def test_a_control_token_that_somebody_typed_stays_text(folders: dict[str, Path], name: str) -> None:
    family = FAMILIES[name]
    tokenizer, chat = template_of(folders[name], family)
    said = f"It is {family.turn_end} and {family.special[0]} that end it."
    ids = chat.reply_ids(ASK, said)
    assert tokenizer.decode(ids).strip() == said + family.turn_end
    control = set(tokenizer.convert_tokens_to_ids([family.turn_end, *family.special]))
    assert not control & set(ids[:-1])


def template_of(folder: Path, family: Family) -> tuple[Any, Any]:
    backbone = opened(folder, family)
    return backbone.tokenizer, backbone.chat


@pytest.mark.parametrize("name", ["llama_3_2", "smollm3"])
def test_a_template_that_prints_the_date_prints_the_runs(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, days = FAMILIES[name], []
    for day in (date(2026, 1, 2), date(2026, 1, 3)):
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock(day))
        backbone = opened(folders[name], family, date(2025, 12, 31))
        days.append(backbone.chat.prompt_ids(ASK))
        assert "31 Dec" in backbone.tokenizer.decode(days[-1])
    assert days[0] == days[1]
    today = opened(folders[name], family, None)
    assert "03 Jan" in today.tokenizer.decode(today.chat.prompt_ids(ASK))


class Clock:
    """Stands for `datetime.datetime` on one day."""

    def __init__(self, day: date) -> None:
        self.day = day

    def now(self) -> date:
        return self.day


def test_the_day_of_a_run_is_of_what_people_asked_last() -> None:
    """So it is the same however often, and whenever, a round is made of one snapshot."""
    line = {"type": "prompt", "user": "u", "group": "g", "prompt": [{"role": "user", "content": "Hi"}]}
    days = ["2026-03-02", "2026-04-01", "2026-03-30"]
    data = "".join(json.dumps(line | {"day": day}) + "\n" for day in days).encode()
    assert parse(data).day == date(2026, 4, 1)
    assert parse(json.dumps(line).encode()).day == NO_DAY


@pytest.mark.slow
def test_a_round_gone_on_with_after_midnight_ends_with_the_adapter_of_one_that_was_not(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, adapters = FAMILIES["llama_3_2"], []
    for day in (date(2026, 1, 2), date(2026, 1, 3)):
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock(day))
        _, files = one_round(tmp_path / str(day), folders["llama_3_2"], family)
        adapters.append(files["adapter_model.safetensors"])
    assert adapters[0] == adapters[1]


def test_an_argument_of_the_template_decides_whether_a_model_thinks(folders: dict[str, Path]) -> None:
    family = FAMILIES["qwen_3"]
    backbone = opened(folders["qwen_3"], family)
    assert backbone.tokenizer.decode(backbone.chat.prompt_ids(ASK)).endswith("assistant\n<think>\n\n</think>\n\n")
    thinking = Backbone(folders["qwen_3"], TrainSettings(dtype="float32", lora_rank=8))
    assert thinking.tokenizer.decode(thinking.chat.prompt_ids(ASK)).endswith("assistant\n")


def test_blank_corrections_of_older_homes_are_none() -> None:
    line = {"type": "demonstration", "id": "d", "user": "u", "group": "g", "prompt": list(ASK)}
    data = "".join(json.dumps(line | {"text": text}) + "\n" for text in ("", " \n", "Paris.")).encode()
    assert [said.text for said in parse(data).demonstrations] == ["Paris."]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}Well?{% endif %}",
        "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('No') }}{% endif %}{{ m['content'] }}"
        "{% endfor %}",
    ],
)
def test_a_reply_that_the_template_does_not_put_after_the_prompt_is_its_text_and_an_end(
    tmp_path: Path, template: str
) -> None:
    folder = make(FAMILIES["qwen_2_5"], tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    backbone = opened(folder, FAMILIES["qwen_2_5"])
    assert backbone.tokenizer.decode(backbone.chat.reply_ids(ASK, "Paris.")) == "Paris.<|im_end|>"


def test_a_tokenizer_without_an_end_token_ends_replies_as_the_model_does(tmp_path: Path) -> None:
    family = FAMILIES["phi"]
    folder = make(family, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    templates.check(folder, {})
    backbone = opened(folder, family)
    assert backbone.tokenizer.eos_token_id is None
    assert backbone.chat.reply_ids(ASK, "Paris.")[-1] == min(backbone.stop_ids)


# --- the same through vLLM ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, folders: dict[str, Path], loop: asyncio.AbstractEventLoop
) -> Iterator[Callable[[str], AbstractContextManager[TinyEngine]]]:
    """A vLLM of a family, by name. The next family's starts meanwhile: a start is mostly imports, in one thread."""
    same = [item for item in request.session.items if item.path == request.path and item.get_closest_marker("engine")]
    names = [item.callspec.params["name"] for item in same if isinstance(item, pytest.Function)]
    ahead: dict[str, TinyEngine] = {}

    def start(name: str) -> TinyEngine:
        run = folders[name].parent / "runs" / name
        template = FAMILIES[name].arguments
        tiny = TinyEngine(Engine(folders[name], TINY, run_dir=run, log=run / "vllm.log", template=template), loop)
        tiny.engine.grace = 0  # it is killed at the end: no reply is open then
        tiny.run(tiny.engine.start())
        return tiny

    @contextmanager
    def serving(name: str) -> Iterator[TinyEngine]:
        tiny = ahead.pop(name, None) or start(name)
        try:
            for following in names[names.index(name) + 1 :][:1]:
                ahead[following] = start(following)
            yield tiny
        finally:
            tiny.run(tiny.engine.stop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield serving
    for tiny in ahead.values():
        tiny.run(tiny.engine.stop())


@pytest.mark.engine
@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_renders_stops_and_computes_as_the_job_does(
    tmp_path: Path, folders: dict[str, Path], served: Callable[[str], AbstractContextManager[TinyEngine]], name: str
) -> None:
    family, folder = FAMILIES[name], folders[name]
    with served(name) as tiny:
        _, files = one_round(tmp_path, folder, family)
        adapter = tmp_path / "policy-0001"
        adapter.mkdir()
        for file, data in files.items():
            (adapter / file).write_bytes(data)
        tiny.run(tiny.engine.wait_ready(500))
        tiny.run(spoken(tiny.engine, adapter, json.loads(files["manifest.json"])["probes"], folder, family))


def nearly_uniform(seed: int) -> Sampling:
    """So that some of 24 replies end, whatever the round has taught: about one token in 500 is the stop token."""
    return Sampling(2.0, 256, seed=seed)


async def spoken(engine: Engine, adapter: Path, probes: list[dict[str, Any]], folder: Path, family: Family) -> None:
    """Check what vLLM does with conversations, and with the adapter's probes."""
    backbone, name, client = opened(folder, family, None), adapter.name, engine.client
    await client.load_adapter(name, adapter)
    second = (*ASK, Message(role="assistant", content="It was kind."), Message(role="user", content=" Is that all? "))

    async def said(seed: int) -> str | None:
        ask = second if seed % 2 else ASK
        chunks = [chunk async for chunk in client.chat(name, ask, nearly_uniform(seed))]
        assert list(chunks[0].prompt_ids or ()) == backbone.chat.prompt_ids(ask)
        ids = [token for chunk in chunks for token in chunk.response_ids]
        assert not backbone.stop_ids & set(ids[:-1])
        assert (ids[-1] in backbone.stop_ids) == (chunks[-1].finish_reason == "stop")
        return chunks[-1].finish_reason

    reasons = await asyncio.gather(*map(said, range(24)))
    assert "stop" in reasons
    for probe in probes:
        found = await client.next_token_logprobs(name, probe["context_ids"])
        wanted = dict(zip(probe["top_ids"], probe["top_logprobs"], strict=True))
        assert max(abs(found[token] - wanted[token]) for token in wanted if token in found) < 0.01
        assert len(found.keys() & wanted.keys()) >= 18
