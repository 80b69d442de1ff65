"""The linear reward model on a two-layer random model: what it may see, and what it may not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_model
from toy_votes import make_labels, reply

from thumbwise.contracts import Comparison, Labels, OffersValue, Ranking, RunContext, Sample, Thumb
from thumbwise.errors import ThumbwiseError
from thumbwise.plugins.bradley_terry import END_SHARES, LAST_SHARES, BradleyTerry, _span
from thumbwise.settings.training import TrainSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.backbone.batches import make_batch
from thumbwise.training.data.snapshot import parse
from thumbwise.training.data.votes import FEW, TIE, gather

TRAIN = TrainSettings(dtype="float32", rm_heads=3, rm_folds=3, micro_batch=5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return Backbone(make_tiny_model(tmp_path_factory.mktemp("model")), TRAIN)


@pytest.fixture(scope="module")
def context(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    return RunContext(backbone, TRAIN, 0.7, 8, (), (), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def fitted(context: RunContext) -> BradleyTerry:
    model = BradleyTerry(context)
    model.fit(make_labels(80), seed=0)
    model.normalise([reply(n, 0.5) for n in range(500, 540)])
    return model


def test_it_learns_a_preference_and_reports_accuracy_on_votes_it_had_not_seen(fitted: BradleyTerry) -> None:
    good = fitted.score([reply(n, 0.8) for n in range(1000, 1050)]).value
    bad = fitted.score([reply(n, 0.2) for n in range(2000, 2050)]).value
    assert (good > bad).mean() > 0.8
    assert fitted.details["comparisons"] == 80
    assert fitted.details["end_share"] == min(END_SHARES)  # all replies end alike


@pytest.mark.slow
def test_it_foretells_votes_in_order_by_models_that_saw_none_after_them(context: RunContext) -> None:
    labels = make_labels(80, ties=0)
    named = tuple(replace(c, id=f"vote-{n:03d}") for n, c in enumerate(labels.comparisons))
    turned = tuple(replace(c, choice="right" if c.choice == "left" else "left") for c in named[40:])
    report = BradleyTerry(context).fit(Labels(named), seed=0)
    assert report.foretold is not None
    assert report.foretold_votes == 60  # all but the first twenty
    assert 0 < report.foretold_error < 0.1
    assert report.foretold > 0.75
    # Turned round from the fortieth on: what was foretold of those before stays right, what follows is wrong.
    misled = BradleyTerry(context).fit(Labels((*turned, *named[:40])), seed=0)
    assert misled.foretold is not None
    assert 0.3 < misled.foretold < 0.65


@pytest.mark.parametrize("liked", ["short", "ended", "neither short nor long"])
def test_it_learns_how_people_like_replies_to_end(context: RunContext, backbone: Backbone, liked: str) -> None:
    """Random ids, so that nothing but length and end can tell."""
    rng, stop = random.Random(2), min(backbone.stop_ids)

    def made(seed: int, good: bool) -> Sample:
        if liked == "neither short nor long":
            return reply(seed, 0.5, rng.randint(9, 11) if good else rng.choice([2, 3, 40, 42]))
        sample = reply(seed, 0.5, rng.randint(8, 15))
        if liked == "short":
            return replace(sample, response_ids=sample.response_ids[: 7 if good else None])
        return replace(sample, response_ids=(*sample.response_ids, stop) if good else sample.response_ids)

    pairs = [(made(2 * k, True), made(2 * k + 1, False)) for k in range(80)]
    sides = [(*pair, "left") if k % 2 else (*reversed(pair), "right") for k, pair in enumerate(pairs)]
    votes = [Comparison(f"c{k}", f"u{k % 6}", f"g{k // 4}", *side) for k, side in enumerate(sides)]  # type: ignore[misc]
    model = BradleyTerry(context)
    model.fit(Labels(tuple(votes)), seed=0)
    assert model.details["end_share"] == max(END_SHARES)
    good, bad = (model.score([made(seed, side) for seed in range(1000, 1050)]).value for side in (True, False))
    assert (good[:, None] > bad).mean() > 0.9


@pytest.fixture(scope="module")
def of_the_last(context: RunContext) -> BradleyTerry:
    """Fitted on random replies of which those are liked that end with 10, those not that end with 200."""
    votes = []
    for k in range(80):
        pair = [ends_with(reply(2 * k, 0.5), 10), ends_with(reply(2 * k + 1, 0.5), 200)]
        side: Any = "left" if k % 2 else "right"
        votes.append(Comparison(f"c{k}", f"u{k % 6}", f"g{k // 4}", *(pair if k % 2 else pair[::-1]), side))
    model = BradleyTerry(context)
    model.fit(Labels(tuple(votes)), seed=0)
    return model


def ends_with(sample: Sample, last: int) -> Sample:
    """`sample` with another last id."""
    return replace(sample, response_ids=(*sample.response_ids[:-1], last))


def test_it_reads_the_last_token_where_that_is_what_people_go_by(of_the_last: BradleyTerry) -> None:
    assert of_the_last.details["last_share"] == max(LAST_SHARES)
    good = of_the_last.score([ends_with(reply(n, 0.5), 10) for n in range(1000, 1050)]).value
    bad = of_the_last.score([ends_with(reply(n, 0.5), 200) for n in range(2000, 2050)]).value
    assert (good > bad).mean() > 0.8


def test_it_does_not_run_the_layers_of_the_last_token_where_it_does_not_read_it(
    context: RunContext, of_the_last: BradleyTerry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, compute = list[Any](), context.backbone.pooled
    monkeypatch.setattr(context.backbone, "pooled", lambda *asked: ran.append(asked[2]) or compute(*asked))
    model = BradleyTerry(context)
    model.weights[:] = 1.0
    for scorer in (model, of_the_last):
        scorer.score([reply(1, 0.5)])
    assert ran == [(), of_the_last.last_layers]


def test_random_votes_get_an_accuracy_near_chance(context: RunContext) -> None:
    rng = random.Random(3)
    coin = [replace(c, choice=rng.choice(["left", "right"])) for c in make_labels(120, ties=0).comparisons]
    report = BradleyTerry(context).fit(Labels(tuple(coin)), seed=0)
    assert report.n == 120
    assert abs(report.accuracy - 0.5) < 0.14  # three standard errors


def test_ties_have_no_winner_and_alone_teach_nothing(context: RunContext) -> None:
    labels = make_labels(10, ties=7)
    both_bad = [replace(c, choice="both_bad") if c.choice == "tie" else c for c in labels.comparisons]
    for comparisons in (labels.comparisons, tuple(both_bad)):
        _, votes = gather(Labels(comparisons), 0.5)
        assert (votes.is_pair.sum(), votes.is_tie.sum()) == (10, 7)
    with pytest.raises(ThumbwiseError, match="No vote says which reply is better"):
        BradleyTerry(context).fit(make_labels(0), seed=0)


def test_a_ranking_is_all_of_its_pairs_and_weighs_what_its_drafts_can_say(context: RunContext) -> None:
    drafts = tuple(reply(n, 0.5) for n in range(4))
    ranked = Labels((), (), (Ranking("r", "u", "g", drafts, (1, 0, 1, 2)),))
    samples, votes = gather(ranked, 0.5)
    assert len(samples) == 4
    assert list(zip(votes.left, votes.right, votes.good, strict=True)) == [
        (0, 1, 0.0), (0, 2, TIE), (0, 3, 1.0), (1, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0),
    ]  # fmt: skip
    np.testing.assert_allclose(votes.weight, 3 / 6)
    assert set(votes.group) == {"g"}
    tied = Labels((), (), (Ranking("r", "u", "g", drafts, (0, 0, 0, 0)),))
    with pytest.raises(ThumbwiseError, match="No vote says which"):
        BradleyTerry(context).fit(tied, seed=0)


@pytest.mark.parametrize("kind", ["thumbs", "rankings"])
@pytest.mark.slow
def test_thumbs_alone_and_rankings_alone_teach_too(context: RunContext, kind: str) -> None:
    replies = [reply(n, (n % 5) / 4) for n in range(200)]
    if kind == "thumbs":
        made = (Thumb(f"t{n}", "u", f"g{n // 4}", r, n % 5 >= 3) for n, r in enumerate(replies))
        labels = Labels((), tuple(made))
    else:
        sets = (tuple(replies[n : n + 5]) for n in range(0, 200, 5))
        labels = Labels((), (), tuple(Ranking(f"r{n}", "u", f"g{n}", s, (4, 3, 2, 1, 0)) for n, s in enumerate(sets)))
    model = BradleyTerry(context)
    report = model.fit(labels, seed=0)
    assert report.accuracy > 0.7
    good, bad = (model.score([reply(n, share) for n in range(1000, 1050)]).value for share in (0.8, 0.2))
    assert (good > bad).mean() > 0.8


def test_thumbs_of_one_direction_teach_nothing(context: RunContext) -> None:
    with pytest.raises(ThumbwiseError, match="thumbs both up and down"):
        BradleyTerry(context).fit(Labels((), tuple(Thumb(str(n), "u", "g", reply(n, 0.5), True) for n in range(9))), 0)


def test_each_reply_is_run_once_however_often_it_was_compared() -> None:
    a, b, c = reply(1, 0.5), reply(2, 0.5), reply(3, 0.5)
    labels = Labels(
        tuple(Comparison(str(n), "u", "g", x, y, "left") for n, (x, y) in enumerate([(a, b), (a, c), (b, c)]))
    )
    samples, votes = gather(labels, 0.5)
    assert len(samples) == 3
    assert len(votes.left) == 3


def test_the_score_does_not_depend_on_padding_or_on_the_batch(fitted: BradleyTerry, backbone: Backbone) -> None:
    short, long = reply(1, 0.5, length=4), reply(2, 0.5, length=20)
    alone = fitted.score([short]).value
    mixed = fitted.score([long, short]).value
    np.testing.assert_allclose(mixed[1:], alone, atol=1e-5)
    for extra in (0, 1, 7):
        for pad_id in (backbone.pad_id, 123):  # 123: garbage under the pads
            batch = make_batch([short, long], pad_id, extra=extra)
            states = backbone.hidden(batch, fitted.layers)
            total = torch.stack([(h * batch.mask[..., None]).sum(1) for h in states], 1)
            expected, lasts, _ = backbone.pooled([short, long], fitted.layers, fitted.last_layers)
            np.testing.assert_allclose(total.detach().numpy(), expected, atol=1e-4)
            ends = torch.stack([h[[0, 1], [3, 19]] for h in backbone.hidden(batch, fitted.last_layers)], 1)
            np.testing.assert_allclose(ends.detach().numpy(), lasts, atol=1e-5)


def test_states_and_gradients_after_a_shared_beginning_are_those_of_the_whole(backbone: Backbone) -> None:
    first, second = reply(1, 0.5, length=4), reply(2, 0.5, length=9)
    samples = [
        replace(first, prompt_ids=(5, 6, 7, 8, 9)), replace(second, prompt_ids=(5, 6, 7, 3)),
    ]  # fmt: skip
    batch = backbone.batch(samples)
    assert batch.shared == 3
    for shared in (0, 1):
        whole = backbone.hidden(replace(batch, shared=shared), (0, 1))
        for ours, theirs in zip(backbone.hidden(batch, (0, 1)), whole, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    fresh = [weight for name, weight in backbone.parameters("policy").items() if "lora_B" in name]  # A has none yet
    ours, theirs = (
        torch.autograd.grad((backbone.logprobs(part, "policy", 0.7) * torch.arange(1.0, 10)).sum(), fresh)
        for part in (batch, replace(batch, shared=0))
    )
    assert all(float((a - b).norm()) < 1e-4 * float(b.norm()) for a, b in zip(ours, theirs, strict=True))


def test_a_pad_id_that_is_the_stop_id_stays_real_where_it_was_sampled(backbone: Backbone) -> None:
    stop = backbone.tokenizer.eos_token_id
    assert backbone.pad_id == stop
    ended = replace(reply(1, 0.5, length=3), response_ids=(10, 11, stop), finish_reason="stop")
    batch = backbone.batch([ended, reply(2, 0.5, length=6)])
    assert batch.mask[0].tolist() == [1, 1, 1, 0, 0, 0]
    logp = backbone.logprobs(batch, "policy", 0.7)
    (gradient,) = torch.autograd.grad(logp[0, 2], [list(backbone.parameters("policy").values())[1]])
    assert float(gradient.abs().sum()) > 0


def test_an_empty_response_has_no_opinion(fitted: BradleyTerry) -> None:
    scores = fitted.score([reply(1, 0.5, length=0), reply(2, 0.5)])
    assert np.isnan(scores.value[0])
    assert np.isfinite(scores.value[1])


def test_normalised_replies_have_mean_zero_and_deviation_one(context: RunContext) -> None:
    model = BradleyTerry(context)
    model.fit(make_labels(40), seed=0)
    replies = [reply(n, n % 10 / 10) for n in range(100)]
    order = model.score(replies).value.argsort().tolist()
    for _ in range(2):  # twice changes nothing
        model.normalise(replies)
        value = model.score(replies).value.astype(np.float64)
        assert abs(value.mean()) < 1e-6 * 10
        assert abs(value.std() - 1) < 1e-5
    assert model.score(replies).value.argsort().tolist() == order
    constant = BradleyTerry(context)
    constant.normalise(replies)
    assert np.isfinite(constant.score(replies).value).all()


def test_a_saved_model_scores_the_same(
    fitted: BradleyTerry, of_the_last: BradleyTerry, context: RunContext, tmp_path: Path
) -> None:
    samples = [reply(n, 0.5) for n in range(6)]
    for model in (fitted, of_the_last):
        model.save(tmp_path)
        again = BradleyTerry(context)
        again.load(tmp_path)
        np.testing.assert_array_equal(again.score(samples).value, model.score(samples).value)
        assert again.value_init().bias == model.value_init().bias
        assert isinstance(again, OffersValue)


@pytest.mark.slow
def test_swapping_all_sides_negates_the_position_bias(context: RunContext) -> None:
    labels = make_labels(60, left="always")
    turned = tuple(
        replace(c, left=c.right, right=c.left, choice="right" if c.choice == "left" else c.choice)
        for c in labels.comparisons
    )
    one, other = BradleyTerry(context), BradleyTerry(context)
    bias = one.fit(labels, seed=0).details["position_bias"]
    assert bias > 0.01
    assert other.fit(Labels(turned), seed=0).details["position_bias"] == pytest.approx(-bias, abs=1e-3)


def thumbs_on(n: int) -> tuple[Thumb, ...]:
    """n thumbs, up where many tokens are good."""
    each = range(300, 300 + n)
    return tuple(Thumb(f"t{k}", "u", f"h{k}", reply(k, 0.9 if k % 2 else 0.1), k % 2 == 1) for k in each)


@pytest.mark.parametrize(
    ("pairs", "ties", "weight"), [(150, 9, 150), (80, 9, 80), (1, 0, FEW), (0, 9, FEW), (0, 0, FEW)]
)
def test_thumbs_together_weigh_no_more_than_comparisons_with_a_winner_or_a_few(
    pairs: int, ties: int, weight: float
) -> None:
    _, votes = gather(Labels(make_labels(pairs, ties=ties).comparisons, thumbs_on(300)), 0.5)
    assert votes.weight[votes.is_thumb].sum() == pytest.approx(weight)
    assert votes.telling.sum() == pairs + 300  # comparisons do not silence a crowd


@pytest.mark.slow
def test_one_comparison_among_many_thumbs_silences_none_of_them(context: RunContext) -> None:
    (wrong,) = make_labels(1, ties=0).comparisons
    wrong = replace(wrong, choice="right" if wrong.choice == "left" else "left")
    reports = [BradleyTerry(context).fit(Labels(votes, thumbs_on(100)), seed=0) for votes in ((), (wrong,))]
    assert reports[0].n > 40  # the thumbs of every fold that has both directions
    assert reports[1].n == reports[0].n + 1
    assert reports[1].accuracy > reports[0].accuracy - 0.05 > 0.7


@pytest.mark.slow
def test_thumbs_move_the_score(context: RunContext) -> None:
    pairs, thumbs = make_labels(8, ties=0).comparisons, thumbs_on(60)
    alone, both = BradleyTerry(context), BradleyTerry(context)
    alone.fit(Labels(pairs), seed=0)
    both.fit(Labels(pairs, thumbs), seed=0)
    good, bad = ([reply(n, share) for n in range(5000, 5100)] for share in (0.8, 0.2))

    def won(model: BradleyTerry) -> float:
        return float((model.score(good).value > model.score(bad).value).mean())

    assert won(both) >= won(alone)


@pytest.mark.slow
def test_heads_disagree_more_where_votes_are_few(context: RunContext) -> None:
    few, many = BradleyTerry(context), BradleyTerry(context)
    few.fit(make_labels(12), seed=0)
    many.fit(make_labels(120), seed=0)
    samples = [reply(n, n % 10 / 10) for n in range(60)]
    spread = []
    for model in (few, many):
        model.normalise(samples)
        deviation = model.score(samples).std
        assert deviation is not None
        spread.append(float(deviation.mean()))
    assert spread[0] > spread[1] > 0


# --- stored ids ----------------------------------------------------------------------------------------


def test_stored_ids_are_taken_as_they_are(backbone: Backbone) -> None:
    """These ids decode to text that encodes to other ids; the batch must hold the stored ones."""
    tokenizer = backbone.tokenizer
    ids = tuple(tokenizer.encode("t")) + tuple(tokenizer.encode("h")) + tuple(tokenizer.encode("e"))
    assert tuple(tokenizer.encode(tokenizer.decode(list(ids)))) != ids
    reply = {
        "id": "r", "text": "the", "prompt_ids": [5, 6], "response_ids": ids, "finish_reason": "stop",
        "policy_version": "policy-0000", "sampling": {},
    }  # fmt: skip
    prompt = [{"role": "user", "content": "x"}]
    line = json.dumps(
        {"type": "thumb", "id": "t", "user": "u", "group": "g", "prompt": prompt, "up": True, "reply": reply}
    )
    (thumb,) = parse(line.encode()).labels.thumbs
    assert thumb.sample.response_ids == ids
    batch = backbone.batch([thumb.sample])
    assert batch.ids[0].tolist() == [5, 6, *ids]
    assert batch.tokens[0].tolist() == list(ids)


@pytest.mark.parametrize("shape", [(30, 80), (80, 30)])
def test_the_basis_is_orthonormal_and_spans_what_votes_see(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(shape[0], 10)) @ rng.normal(size=(10, shape[1])) * 1e-3
    span = _span(seen)
    assert span.shape == (10, shape[1])
    assert span @ span.T == pytest.approx(np.eye(10), abs=1e-9)
    assert seen @ span.T @ span == pytest.approx(seen, abs=1e-12)
    assert _span(np.zeros(shape)).shape == (0, shape[1])
