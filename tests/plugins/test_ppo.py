"""PPO on a two-layer random model: log-probabilities, gradients, and a reward that must rise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_policy import PROMPTS, SMALL, TEMPERATURE, disturb, low_ids, make_context, sampled

from thumbwise.contracts import RunContext, Sample, Scores
from thumbwise.plugins.ppo import PPO, Rollout
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.backbone.batches import make_batch
from thumbwise.training.evaluation.metrics import GLOSSARY, glossary_table
from thumbwise.training.policy.losses import explained_variance
from thumbwise.training.policy.stepping import imitate, minibatches, missing_end, sample_rollouts, shaped_scores
from thumbwise.training.policy.value import ValueFunction
from thumbwise.training.run.candidate import adapter_files
from thumbwise.versions import artifacts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def context(model: Path, tmp_path: Path) -> RunContext:
    return make_context(model, tmp_path)


# --- rollouts and the trainer -------------------------------------------------------------------------


def test_rollouts_log_probabilities_are_the_trainers_at_the_same_temperature(context: RunContext) -> None:
    disturb(context.backbone)
    samples = sampled(context, adapter="policy")
    batch = context.backbone.batch(samples)
    trainer = context.backbone.logprobs(batch, "policy", TEMPERATURE).detach()
    other = context.backbone.logprobs(batch, "policy", 1.0).detach()
    for row, sample in enumerate(samples):
        given = torch.tensor(sample.rollout_logprobs)
        torch.testing.assert_close(trainer[row, : len(given)], given, atol=1e-4, rtol=0)
        assert (other[row, : len(given)] - given).abs().max() > 0.01
        with context.backbone.using("policy"):
            logits = context.backbone.base(input_ids=torch.tensor([sample.prompt_ids])).logits.detach()[0, -1]
        expected = torch.log_softmax(logits / TEMPERATURE, -1)[sample.response_ids[0]]
        torch.testing.assert_close(trainer[row, 0], expected)


# --- the backbone and its adapters ----------------------------------------------------------------------


def test_a_fresh_policy_is_exactly_the_reference(context: RunContext) -> None:
    batch = context.backbone.batch(sampled(context))
    policy = context.backbone.logprobs(batch, "policy", TEMPERATURE).detach()
    reference = context.backbone.logprobs(batch, None, TEMPERATURE).detach()
    assert torch.equal(policy, reference)


def test_merging_for_generation_leaves_the_base_as_it_was(context: RunContext) -> None:
    backbone = context.backbone
    before = backbone.base_sha256()
    found = []
    for adapter in (None, "policy", None):
        disturb(backbone)
        with backbone.sampling(adapter) as model:
            found.append([p.clone() for p in model.parameters()])
    assert any(not torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
    assert backbone.base_sha256() == before


def test_in_bfloat16_the_sampling_policy_is_the_trained_one_even_where_it_is_young(model: Path) -> None:
    """Most weights change by less than bfloat16 can tell apart; merged into them, a tenth of this KL is lost."""
    backbone = Backbone(model, TrainSettings(dtype="bfloat16"))
    prompts = [backbone.chat.prompt_ids(prompt.messages) for prompt in PROMPTS]
    draws = random.Random(0)
    samples = [
        Sample((), "", tuple(prompts[n % 5]), tuple(draws.randrange(5, 500) for _ in range(24)), "length", "x")
        for n in range(8)
    ]
    weights = backbone.parameters("policy")
    optimizer = torch.optim.AdamW(weights.values(), lr=5e-5, weight_decay=0.0)
    for _ in range(8):
        optimizer.zero_grad()
        imitate(backbone, samples, [slice(0, 8)], TEMPERATURE)
        optimizer.step()
    trained = float(backbone.compared(backbone.batch(samples), "policy", TEMPERATURE).kl.sum())
    both = [sampling_logprobs(backbone, adapter, samples) for adapter in ("policy", None)]
    sampling = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(*both, strict=True))
    assert trained > 0.01 * len(samples)
    assert sampling == pytest.approx(trained, rel=0.05)


def sampling_logprobs(backbone: Backbone, adapter: str | None, samples: Sequence[Sample]) -> list[torch.Tensor]:
    """Log-probabilities [T, V] of the model that samples at each reply's tokens, by plain forward passes of each."""
    found = []
    with backbone.sampling(adapter) as model, torch.no_grad():
        for sample in samples:
            logits = model(input_ids=torch.tensor([[*sample.prompt_ids, *sample.response_ids]])).logits[0]
            found.append(torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1].float() / TEMPERATURE, -1))
    return found


def test_bfloat16_weights_compute_in_bfloat16_and_losses_in_float32(model: Path) -> None:
    backbone = Backbone(model, TrainSettings(dtype="bfloat16"))
    assert {p.dtype for p in backbone.parameters("policy").values()} == {torch.float32}
    samples = [Sample((), "", (5, 6), (7, 8, 9), "length", "x")]
    batch = make_batch(samples, backbone.pad_id)
    logits: list[torch.Tensor] = []
    backbone.base.get_output_embeddings().register_forward_hook(lambda _head, _input, output: logits.append(output))
    assert backbone.logprobs(batch, "policy", TEMPERATURE).dtype == torch.float32
    assert {given.dtype for given in logits} == {torch.bfloat16}
    assert backbone.hidden(batch, (0, 1))[1].dtype == torch.float32
    value = ValueFunction(backbone, None, 1e-3)
    assert value.features(samples, 4).dtype == torch.float32


def test_there_is_no_dropout_anywhere(context: RunContext) -> None:
    batch = context.backbone.batch(sampled(context))
    context.backbone.peft.train()
    first, second = (context.backbone.logprobs(batch, "policy", TEMPERATURE).detach() for _ in range(2))
    assert torch.equal(first, second)


def test_padding_changes_no_metric(context: RunContext) -> None:
    samples = sampled(context)
    disturb(context.backbone)
    found = []
    for extra in (0, 9):
        batch = make_batch(samples, context.backbone.pad_id, extra=extra)
        both = context.backbone.compared(batch, "policy", TEMPERATURE)
        found.append([float(x.sum()) for x in (both.logp, both.entropy, both.reference, both.kl, batch.mask)])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


# --- the loop -------------------------------------------------------------------------------------------


def test_ppo_raises_a_toy_reward_and_leaves_the_base_alone(context: RunContext) -> None:
    before = context.backbone.base_sha256()
    free = {"pace": 1.0, "episodes": 32, "micro_batch": 32}  # the reward must rise, not meet a KL
    algorithm = PPO(replace(context, train=SMALL.model_copy(update=free)), low_ids)
    rows = [algorithm.step(i) for i in range(10)]
    others = {"best_reward", "sft_loss", "dpo_loss", "dpo_accuracy", "kto_loss", "desirable", "ptx_loss", "ptx_gamma"}
    assert set(GLOSSARY) - set(rows[0]) == others
    assert set(rows[0]) < set(GLOSSARY)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["kl"] == 0.0
    start, end = np.mean([r["reward"] for r in rows[:2]]), np.mean([r["reward"] for r in rows[-2:]])
    assert end > start + 1.0  # 3.5 to 4.3 with five seeds
    assert rows[-1]["kl"] > 0.05
    assert context.backbone.base_sha256() == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_the_first_update_every_ratio_is_one(model: Path, tmp_path: Path, dtype: str) -> None:
    train = SMALL.model_copy(update={"minibatches": 1, "micro_batch": 5, "dtype": dtype})
    context = make_context(model, tmp_path, train)
    disturb(context.backbone)
    metrics = PPO(context, low_ids).step(0)
    assert abs(metrics["ratio_max"] - 1) < 1e-4
    assert metrics["clip_fraction"] == 0


def test_the_gradient_does_not_depend_on_the_micro_batches(context: RunContext) -> None:
    disturb(context.backbone)
    samples = [replace(s, response_ids=s.response_ids[: 2 + n]) for n, s in enumerate(sampled(context, 8))]
    gradients = []
    for size in (8, 4, 1):
        changes = {"micro_batch": size, "minibatches": 1}
        algorithm = PPO(replace(context, train=context.train.model_copy(update=changes)), low_ids)
        rollout, _ = algorithm._evaluate([replace(s, rollout_logprobs=None) for s in samples])
        algorithm.optimizer.step = lambda: None
        algorithm.value.optimizer.step = lambda: None
        algorithm.train = algorithm.train.model_copy(update={"max_grad_norm": 1e9})
        (minibatch,) = minibatches(8, algorithm.train)
        assert len(minibatch) == 8 // size
        algorithm._policy_step(rollout, minibatch, random.Random(0))
        gradients.append(torch.cat([p.grad.flatten() for p in algorithm.policy.values() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[0], atol=1e-6, rtol=1e-4)


def test_a_reply_without_a_score_or_without_tokens_takes_no_part(context: RunContext) -> None:
    samples = sampled(context, 6)
    samples[1] = replace(samples[1], response_ids=(), rollout_logprobs=())

    def shy(given: Sequence[Sample]) -> Scores:
        value = low_ids(given).value
        value[0] = np.nan
        return Scores(value)

    algorithm = PPO(context, shy)
    rollout, metrics = algorithm._evaluate(samples)
    assert metrics["abstained"] == 1
    assert rollout.mask[0].sum() == rollout.mask[1].sum() == 0
    assert isinstance(rollout, Rollout)
    assert torch.isfinite(rollout.advantages).all()
    assert rollout.advantages[0].abs().sum() == 0
    results = algorithm._policy_step(rollout, [slice(0, 6)], random.Random(0)) | algorithm._value_step(
        rollout, [slice(0, 6)]
    )
    assert all(math.isfinite(value) for value in results.values())


def test_a_missing_end_costs_its_penalty_at_the_last_token(context: RunContext) -> None:
    samples = [replace(s, finish_reason="length" if n == 0 else "stop") for n, s in enumerate(sampled(context, 2))]
    found = []
    for penalty in (0.0, 1.5):
        train = context.train.model_copy(update={"missing_eos_penalty": penalty})
        found.append(PPO(replace(context, train=train), low_ids)._evaluate(samples))
    (without, logged_without), (with_it, logged_with) = found
    lost = without.returns - with_it.returns
    at_the_end = [float(row[len(s.response_ids) - 1]) for row, s in zip(lost, samples, strict=True)]
    assert at_the_end == pytest.approx([1.5, 0.0], abs=1e-5)
    assert logged_with["reward"] == logged_without["reward"]  # what is steered would hide what the policy learns


def test_a_missing_end_costs_more_where_fewer_replies_end_than_the_references_and_less_where_more_do(
    context: RunContext,
) -> None:
    samples = [replace(s, finish_reason="stop" if n == 0 else "length") for n, s in enumerate(sampled(context, 4))]
    train = context.train.model_copy(update={"missing_eos_penalty": 0.75})
    for usual, penalty in {0.25: 0.75, 0.35: 1.35, 0.2: 0.45, 0.0: 0.0, None: 0.75}.items():
        algorithm = PPO(replace(context, train=train, finish_rate=usual), low_ids)
        assert algorithm._evaluate(samples)[1]["end_penalty"] == pytest.approx(penalty)
    left_out = context.train.model_copy(update={"missing_eos_penalty": 0.0})
    assert missing_end(replace(context, train=left_out, finish_rate=1.0)).of(0.0) == 0.0


def test_a_missing_end_costs_more_with_every_batch_that_lacks_ends_and_a_checkpoint_keeps_it(
    context: RunContext,
) -> None:
    train = context.train.model_copy(update={"missing_eos_penalty": 0.75})
    algorithm = PPO(replace(context, train=train, finish_rate=0.5), low_ids)
    rates = [algorithm.step(iteration)["finish_rate"] for iteration in range(2)]
    assert min(rates) < 0.5
    assert algorithm.ends.value == pytest.approx(0.75 + sum(3.0 * (0.5 - rate) for rate in rates))
    resumed = PPO(replace(context, train=train, finish_rate=0.5), low_ids)
    resumed.load_state_dict(algorithm.state_dict())
    assert resumed.ends.value == algorithm.ends.value


def test_explained_variance_is_of_what_is_to_come_not_of_the_values_themselves(context: RunContext) -> None:
    """A value function that says anything smooth would explain returns that are mostly its own values."""
    algorithm, samples = PPO(context, low_ids), sampled(context, 16)
    algorithm.gae_lambda = 0.8  # as where the reward model offers values
    with torch.no_grad():
        algorithm.value.weight += torch.randn(algorithm.value.weight.shape, generator=torch.Generator().manual_seed(0))
    rollout, metrics = algorithm._evaluate(samples)
    values, mask = rollout.old_values, rollout.mask
    # All that is to come, for a policy that is the reference:
    score, penalty, _ = shaped_scores(low_ids, samples, context.train.reward_clip, algorithm.ends)
    expected = explained_variance(values, (score - penalty)[:, None].expand_as(values), mask)
    assert metrics["explained_variance"] == pytest.approx(expected, abs=1e-3)
    assert abs(explained_variance(values, rollout.returns, mask) - expected) > 0.05


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped(model: Path, tmp_path: Path) -> None:
    whole = PPO(make_context(model, tmp_path), low_ids)
    straight = [whole.step(i)["reward"] for i in range(4)]
    first = PPO(make_context(model, tmp_path), low_ids)
    begun = [first.step(i)["reward"] for i in range(2)]
    second = PPO(make_context(model, tmp_path), low_ids)
    second.load_state_dict(first.state_dict())
    assert begun + [second.step(i)["reward"] for i in (2, 3)] == straight
    for one, other in zip(whole.policy.values(), second.policy.values(), strict=True):
        assert torch.equal(one, other)
    assert whole.pace == second.pace


def test_a_tokens_loss_weighs_what_the_policy_has_for_it_beside_what_sampled_it_and_at_most_two(
    model: Path, tmp_path: Path
) -> None:
    """Where the sampler had 2/3 of the policy's probability for each token, each counts 1.5 times; with a third, 2."""

    def gradient(less: float | None) -> tuple[torch.Tensor, float]:
        settings = SMALL.model_copy(update={"minibatches": 1, "max_grad_norm": 1e9})
        algorithm = PPO(make_context(model, tmp_path, settings), low_ids)
        samples, rng = sample_rollouts(algorithm.context, 0, 12)
        told = [
            None if less is None else tuple(logp - math.log(less) for logp in s.rollout_logprobs or ()) for s in samples
        ]
        samples = [replace(s, rollout_logprobs=logps) for s, logps in zip(samples, told, strict=True)]
        rollout, metrics = algorithm._evaluate(samples)
        algorithm.optimizer.step = lambda: None
        algorithm._policy_step(rollout, [slice(0, 12)], rng)
        return torch.cat([p.grad.flatten() for p in algorithm.policy.values() if p.grad is not None]), metrics[
            "rollout_kl"
        ]

    plain, known = gradient(None)
    assert known == 0.0
    for less, weight in ((1.0, 1.0), (1.5, 1.5), (3.0, 2.0), (0.5, 0.5)):
        weighed, kl = gradient(less)
        torch.testing.assert_close(weighed, weight * plain, atol=1e-6, rtol=1e-3)
        assert kl == pytest.approx(less - 1 - math.log(less), abs=1e-4)


# --- what is handed over --------------------------------------------------------------------------------


def test_the_exported_adapter_is_plain_lora_that_peft_loads_back_unchanged(context: RunContext, tmp_path: Path) -> None:
    disturb(context.backbone)
    files = adapter_files(context.backbone, "tiny")
    assert files == adapter_files(context.backbone, "tiny")
    config = json.loads(files["adapter_config.json"])
    assert config["r"] == 8
    assert config["modules_to_save"] is None
    assert config["use_dora"] is False
    assert config["bias"] == "none"
    assert not any("lm_head" in name or "embed" in name for name in config["target_modules"])
    assert config["target_modules"] == sorted(config["target_modules"])  # of a set, in another order in each process
    assert config["base_model_name_or_path"] == "tiny"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    keys = artifacts.load_safetensors(files["adapter_model.safetensors"])
    assert len(keys) == 2 * 7 * 2
    assert all(artifacts.KEY.fullmatch(key) for key in keys)
    context.backbone.load_adapter("again", tmp_path)
    batch = context.backbone.batch(sampled(context))
    own = context.backbone.logprobs(batch, "policy", TEMPERATURE).detach()
    loaded = context.backbone.logprobs(batch, "again", TEMPERATURE).detach()
    assert torch.equal(own, loaded)


def test_the_readme_shows_the_glossary_as_it_is() -> None:
    readme = Path(__file__).parents[2] / "training" / "evaluation" / "README.md"
    assert glossary_table() in readme.read_text()
