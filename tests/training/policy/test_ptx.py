"""PPO-ptx: its gradient beside PPO's, its texts, and the operator's file."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import make_tiny_model
from toy_policy import SMALL, disturb, low_ids, make_context
from training_world import FakeAssistant, make_snapshot, train

from thumbwise import faults
from thumbwise.contracts import RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import sha256
from thumbwise.plugins.ppo import PPO
from thumbwise.settings.training import TrainSettings
from thumbwise.training.policy import ptx
from thumbwise.training.policy.ptx import KEPT, WINDOW, Pretraining, keep_file

pytestmark = pytest.mark.usefixtures("one_thread")
PTX = SMALL.model_copy(update={"ptx": 0.5, "ptx_batch": 6, "micro_batch": 4})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ptx") / "model")


@pytest.fixture
def context(model: Path, tmp_path: Path) -> RunContext:
    context = make_context(model, tmp_path, PTX)
    disturb(context.backbone)
    return context


def gradients(context: RunContext) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in context.backbone.parameters("policy").items() if p.grad is not None}


def backward(context: RunContext, texts: list, temperature: float) -> None:
    """The gradient of -log policy, mean over tokens, all texts in one batch."""
    logp = context.backbone.logprobs(context.backbone.batch(texts), "policy", temperature)
    (-logp.sum() / sum(len(text.response_ids) for text in texts)).backward()


def test_the_gradient_is_ppos_plus_gamma_times_the_pretraining_one(context: RunContext) -> None:
    pretraining, weights = Pretraining(context), context.backbone.parameters("policy")
    texts = pretraining.draw(random.Random(0))
    backward(context, texts, 1.0)
    ptx = gradients(context)
    context.backbone.peft.zero_grad(set_to_none=True)
    backward(context, list(reversed(texts[:3])), 0.7)
    ppo = gradients(context)
    found = pretraining.add_gradient(weights, texts)
    sizes = [torch.stack([g.norm() for g in side.values()]).norm() for side in (ppo, ptx)]
    assert found["ptx_gamma"] == pytest.approx(float(0.5 * sizes[0] / sizes[1]), rel=1e-5)
    for name, grad in gradients(context).items():
        torch.testing.assert_close(grad, ppo[name] + found["ptx_gamma"] * ptx[name], atol=1e-6, rtol=1e-5)


def test_a_share_of_0_leaves_every_gradient_as_it_was_bit_for_bit(context: RunContext) -> None:
    pretraining = Pretraining(context)
    pretraining.share = 0.0
    backward(context, pretraining.texts[:3], 0.7)
    before = gradients(context)
    assert pretraining.add_gradient(context.backbone.parameters("policy"), pretraining.texts[:6])["ptx_gamma"] == 0
    after = gradients(context)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_iteration_makes_one_optimizer_step_a_minibatch_with_and_without_the_term(
    model: Path, tmp_path: Path
) -> None:
    states = []
    for share in (0.0, 0.5):
        context = make_context(model, tmp_path, PTX.model_copy(update={"ptx": share, "minibatches": 2}))
        algorithm = PPO(context, low_ids)
        metrics = algorithm.step(0)
        assert ("ptx_loss" in metrics) == (share > 0)
        states.append(algorithm.state_dict())
        steps = [state["step"] for state in states[-1]["policy_optimizer"]["state"].values()]
        assert {int(step) for step in steps} == {2}
    assert any(not torch.equal(states[0]["policy"][name], states[1]["policy"][name]) for name in states[0]["policy"])


def test_of_a_long_file_pieces_from_all_of_it_are_read(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptx, "MOST", 4000)
    monkeypatch.setattr(ptx, "SLICES", 4)
    path = tmp_path / "long.txt"
    path.write_text("1 " * 5000 + "2 " * 5000)
    tokenizer = context.backbone.tokenizer
    texts = [tokenizer.decode(text.response_ids) for text in ptx.windows(path, tokenizer)]
    said = "".join(texts)
    assert 1500 < len(said) <= 5000
    assert said.count("1") == pytest.approx(said.count("2"), rel=0.5)


def test_the_norms_are_running_means_and_part_of_the_state(context: RunContext) -> None:
    pretraining, weights = Pretraining(context), context.backbone.parameters("policy")
    norms = []
    for _ in range(2):
        context.backbone.peft.zero_grad(set_to_none=True)
        backward(context, pretraining.texts[:3], 0.7)
        norms.append(float(torch.stack([g.norm() for g in gradients(context).values()]).norm()))
        pretraining.add_gradient(weights, pretraining.texts[:6])
        with torch.no_grad():
            for weight in weights.values():
                weight *= 0.5
    assert pretraining.norms[0] == pytest.approx(0.9 * norms[0] + 0.1 * norms[1], rel=1e-5)
    other = Pretraining(context)
    other.load_state_dict(pretraining.state_dict())
    assert other.norms == pretraining.norms
    assert [text.response_ids for text in other.texts] == [text.response_ids for text in pretraining.texts]


def test_at_the_reference_the_terms_mean_gradient_is_nothing_beside_one_texts(model: Path, tmp_path: Path) -> None:
    context = make_context(model, tmp_path, PTX)  # the policy is the reference
    texts = Pretraining(context).texts

    def norm(chosen: list) -> float:
        context.backbone.peft.zero_grad(set_to_none=True)
        backward(context, chosen, 1.0)
        return float(torch.stack([g.norm() for g in gradients(context).values()]).norm())

    assert norm(texts) < 0.4 * sum(norm(texts[n : n + 1]) for n in range(8)) / 8


def test_half_of_the_texts_come_from_the_operators_file(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(" ".join(f"Chapter {n} was about bread, boats and the weather." for n in range(200)))
    train = PTX.model_copy(update={"ptx_file": str(source)})
    digest = keep_file(train, tmp_path)
    source.write_text("Changed after the run began.")
    assert keep_file(train, tmp_path) == digest != ""
    pretraining = Pretraining(replace(make_context(model, tmp_path, train), folder=tmp_path))
    texts = pretraining.draw(random.Random(0))
    assert [text.policy_version for text in texts] == ["text"] * 3 + ["policy-0000"] * 3
    assert {len(text.prompt_ids) + len(text.response_ids) for text in texts[:3]} == {WINDOW}
    tokenizer = make_context(model, tmp_path, train).backbone.tokenizer
    whole = tokenizer((tmp_path / KEPT).read_text(), add_special_tokens=False)["input_ids"]
    assert [*pretraining.own[1].prompt_ids, *pretraining.own[1].response_ids] == whole[WINDOW : 2 * WINDOW]


def test_a_file_that_is_missing_not_text_or_too_short_is_one_sentence(model: Path, tmp_path: Path) -> None:
    def use(train: TrainSettings) -> None:
        keep_file(train, tmp_path)
        Pretraining(replace(make_context(model, tmp_path, train), folder=tmp_path))

    def refused(data: bytes | None) -> str:
        source = tmp_path / "file.txt"
        source.unlink(missing_ok=True)
        (tmp_path / KEPT).unlink(missing_ok=True)
        if data is not None:
            source.write_bytes(data)
        train = PTX.model_copy(update={"ptx_file": str(source)})
        with pytest.raises(ThumbwiseError) as found:
            use(train)
        return str(found.value)

    assert "cannot be read" in refused(None)
    assert "cannot be read" in refused(b"\xff\xfe\x00")
    assert f"has 3 tokens; --ptx needs at least {WINDOW}." in refused(b"Too short")


def test_a_run_keeps_the_file_and_its_digest_and_goes_on_with_it(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "book.txt"
    source.write_text(" ".join(f"Chapter {n} was about bread, boats and the weather." for n in range(200)))
    assistant = FakeAssistant(make_snapshot(40))
    faults._passed.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(faults.VARIABLE, "iteration=full")
        assert train(tmp_path, model, assistant, ptx=0.3, ptx_file=str(source)).outcome == "failed"
    digest = sha256(source.read_bytes())
    source.unlink()
    result = train(tmp_path, model, assistant, resume=True)
    assert result.outcome in ("promoted", "rejected"), result.reason
    (run,) = (tmp_path / "home" / "runs").iterdir()
    (manifest,) = run.glob("policy-*/manifest.json")
    assert json.loads(manifest.read_text())["config"]["ptx_file"] == digest
