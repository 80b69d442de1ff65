"""The built-in reward model: a regularised linear head on the frozen model's hidden states.

Features of a reply:
- Hidden states of the response tokens, at a few layers spread over the lower half of the model. They are summed over
  the response (minus their mean) and divided by its length plus `rm_shrink`. Each dimension is scaled to deviation 1.
  Without `rm_shrink` the values of the first tokens are several times too large.
- The last token's hidden states at two layers, the second one deeper, if they predict votes better. They say what the
  whole amounts to, for example whether an answer is true.
- How the reply ended: its length, the logarithm of the length (so that there can be a best length), and whether it
  ended by itself. A mean hardly shows these.

Value: the head on running means gives a value after every token. PPO's value function starts from it. What the last
token says and how a reply ends is credited to the last token.

Prior (`Prior`): the L2 strength, and how much the last token and the end may count, are chosen inside each training
fold. Layers are averaged, which was as good as choosing the best one and needs no choice. So the reported accuracy is
honest.

Fit: comparisons, rankings, ties and thumbs go into one head (`thumbwise.training.reward.heads`). Each rater's votes get
a weight by how well the others' votes agree with them (`thumbwise.training.reward.reliability`).

Accuracy: it counts votes on replies sampled as the run samples. These votes also choose how much all other votes weigh
(OTHERS), inside each training fold too.

Left out: a LoRA reward model (started from this head, two epochs over 600 votes took its accuracy from 66.8% to 67.0%,
and 390 s on two cores), and comments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from thumbwise import hookimpl
from thumbwise.contracts import FitReport, Floats, Labels, Register, RunContext, Sample, Scores, ValueInit
from thumbwise.errors import ThumbwiseError
from thumbwise.home import write_durably
from thumbwise.training.data.votes import Array, Sampling, Votes, bootstrap, gather
from thumbwise.training.reward.prequential import Mask, prequential_splits

L2_STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
END_SHARES = (1 / 16, 1 / 2)
LAST_SHARES = (0.0, 1 / 4)
OTHERS = (1.0, 1 / 2, 1 / 4, 0.0)
"""The weights that a vote on replies sampled otherwise may have; a vote on replies sampled as the run samples has 1."""
DOUBTED = 0.25
"""A person whose votes have less weight than this is named."""
ENDS = 3
"""The number of features that say how a reply ended. They are the last ones."""


@dataclass(frozen=True)
class Prior:
    """What we believe of a head before we see the votes.

    Its L2, the end's share of a score's variance, and the last token's share of what hidden states say.
    """

    l2: float
    end_share: float
    last_share: float

    def of(self, features: Array) -> Array:
        """`features` [N, D], scaled so that one L2 fits all. A direction among scaled ones goes back the same way."""
        sizes = [features.shape[1] - ENDS, ENDS]
        scaled: Array = features * np.repeat([(1 - self.end_share) ** 0.5, (self.end_share / ENDS) ** 0.5], sizes)
        return scaled


PRIORS = tuple(Prior(l2, *shares) for *shares, l2 in product(END_SHARES, LAST_SHARES, L2_STRENGTHS))


@dataclass(frozen=True)
class View:
    """Features for one of LAST_SHARES, [N, n + ENDS]: hidden states in the span of what the votes see, and ends.

    An L2-regularised solution lies in that span. `back` [n, D] takes directions in it to features of hidden states.
    """

    features: Array
    back: Array


Views = dict[float, View]


class BradleyTerry:
    """Turns comparisons and thumbs into one score per reply; see the module's docstring."""

    def __init__(self, context: RunContext) -> None:
        train, backbone = context.train, context.backbone
        self.train = train
        self.backbone = backbone
        self.sampling = Sampling(context.temperature, context.max_tokens, train.max_reply_tokens)
        deepest = min(round(train.rm_depth * len(backbone.layers)), len(backbone.layers) - 1)
        spread = np.linspace(deepest, 0, train.rm_layers)  # the deepest layer, if rm_layers is 1
        self.layers = tuple(sorted({int(layer) for layer in spread.round()}))
        size = (len(self.layers), backbone.hidden_size)
        self.mean: Floats = np.zeros(size, np.float32)
        self.scale: Floats = np.ones(size, np.float32)
        self.weights: Floats = np.zeros((1 + train.rm_heads, *size), np.float32)  # the head, its bootstraps
        deeper = max(deepest, min(round(train.rm_last_depth * len(backbone.layers)), len(backbone.layers) - 1))
        self.last_layers = tuple(sorted({deepest, deeper}))
        size = (len(self.last_layers), backbone.hidden_size)
        self.last_mean: Floats = np.zeros(size, np.float32)
        self.last_scale: Floats = np.ones(size, np.float32)
        self.last: Floats = np.zeros((1 + train.rm_heads, *size), np.float32)
        self.ends: Floats = np.zeros((1 + train.rm_heads, ENDS), np.float32)
        self.ends_mean: Floats = np.zeros(ENDS, np.float32)
        self.ends_scale: Floats = np.ones(ENDS, np.float32)
        self.offsets: Floats = np.zeros(1 + train.rm_heads, np.float32)
        self.details: dict[str, Any] = {}

    def fit(self, labels: Labels, seed: int) -> FitReport:
        """Fit on every label. The accuracy is from nested cross-validation over `rm_folds` folds by prompt.

        It counts only votes on replies sampled as the run samples.
        """
        from thumbwise.training.reward.agreement import foretold, report
        from thumbwise.training.reward.heads import fit_head

        samples, votes = gather(labels, self.train.thumb_weight, self.sampling)
        if not votes.is_pair.any() and len(set(votes.good[votes.is_thumb])) < 2:
            raise ThumbwiseError(
                "No vote says which reply is better than another: the reward model needs comparisons with a winner, "
                "or thumbs both up and down."
            )
        views = self._measure(samples, votes)
        given, votes = votes.when, self._settled(views, votes)
        trust = self._trust(views, votes, strict=True)
        fitted = report(self._cross_validate(views, votes, seed), votes, [len(s.response_ids) for s in samples])
        ordered = self._foretell(views, votes, prequential_splits(votes.when, votes.group), "models in order", seed)
        fitted = foretold(ordered, votes, fitted)
        votes = votes.reweighted(trust[votes.rater])
        prior, others = self._choose(views, votes, seed + 1)
        votes = votes.with_others(others)
        weights = dict.fromkeys(given, 0.0)  # votes of young accounts that were set aside have 0
        for id_, weight in zip(votes.when, votes.weight.tolist(), strict=True):  # of a ranking all pairs
            weights[id_] += weight
        view, smoothing = views[prior.last_share], self.train.rm_label_smoothing
        scaled = prior.of(view.features)
        head = fit_head(scaled, votes, prior.l2, smoothing)
        heads = [head]
        rng = np.random.default_rng(seed)
        for number in range(self.train.rm_heads):
            self.backbone.told("heads", number, self.train.rm_heads)
            heads.append(fit_head(scaled, bootstrap(votes, rng), prior.l2, smoothing))
        directions = prior.of(np.stack([h.direction for h in heads]))
        self.ends = directions[:, -ENDS:].astype(np.float32)
        means, lasts = np.split(directions[:, :-ENDS] @ view.back, [self.scale.size], 1)
        self.weights = means.astype(np.float32).reshape(-1, *self.scale.shape)
        self.last = lasts.astype(np.float32).reshape(-1, *self.last_scale.shape)
        self.offsets = np.zeros(len(heads), np.float32)
        self.details = {
            "l2": prior.l2, "end_share": prior.end_share, "last_share": prior.last_share,
            "position_bias": head.position, "thumb_threshold": head.threshold,
            "layers": list(self.layers), "comparisons": int(votes.is_pair.sum()), "ties": int(votes.is_tie.sum()),
            "thumbs": int(votes.is_thumb.sum()), "raters": votes.raters,
            "others": int((~votes.alike).sum()), "others_weigh": others,
            "doubted": {votes.names[n]: int(votes.counts[n]) for n in np.flatnonzero(trust < DOUBTED)},
        }  # fmt: skip
        self.details |= fitted.details
        return replace(fitted, details=dict(self.details), weights=weights)

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Value and deviation (over the bootstrapped heads) of each sample; NaN for an empty response."""
        raw, empty = self._raw(samples)
        raw[:, empty] = np.nan
        return Scores(raw[0], raw[1:].std(0).astype(np.float32))

    def normalise(self, samples: Sequence[Sample]) -> None:
        """Shift and scale so that `samples` score mean 0, deviation 1. Every head is centred separately."""
        raw, empty = self._raw(samples)
        kept = raw[:, ~empty].astype(np.float64)
        if kept.shape[1] == 0:
            return
        deviation = float(kept[0].std())
        gain = 1 / deviation if deviation > 1e-8 else 1.0  # constant scores stay finite
        self.weights = (self.weights * gain).astype(np.float32)
        self.last = (self.last * gain).astype(np.float32)
        self.ends = (self.ends * gain).astype(np.float32)
        self.offsets = ((self.offsets - kept.mean(1)) * gain).astype(np.float32)

    def value_init(self) -> ValueInit:
        """The head on running means of hidden states, for the value function to start from."""
        bias = float(self.offsets[0])
        return ValueInit(self.layers, self.weights[0], self.mean, self.scale, bias, self.train.rm_shrink)

    def save(self, folder: Path) -> None:
        """Write reward_model.safetensors and reward_model.json into `folder`."""
        arrays = {"weights": self.weights, "offsets": self.offsets, "mean": self.mean, "scale": self.scale}
        arrays |= {"last": self.last, "last_mean": self.last_mean, "last_scale": self.last_scale}
        arrays |= {"ends": self.ends, "ends_mean": self.ends_mean, "ends_scale": self.ends_scale}
        write_durably(folder / "reward_model.safetensors", save(arrays))
        note = {"layers": list(self.layers), "last_layers": list(self.last_layers), "shrink": self.train.rm_shrink}
        text = json.dumps(note | self.details, indent=1, sort_keys=True) + "\n"
        write_durably(folder / "reward_model.json", text.encode())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        arrays = load_file(folder / "reward_model.safetensors")
        self.weights, self.offsets = arrays["weights"], arrays["offsets"]
        self.mean, self.scale = arrays["mean"], arrays["scale"]
        self.last, self.last_mean, self.last_scale = arrays["last"], arrays["last_mean"], arrays["last_scale"]
        self.ends, self.ends_mean, self.ends_scale = arrays["ends"], arrays["ends_mean"], arrays["ends_scale"]
        self.details = json.loads((folder / "reward_model.json").read_text())
        self.layers, self.last_layers = tuple(self.details["layers"]), tuple(self.details["last_layers"])

    def _shrunk(self, sums: Floats, counts: Floats) -> Floats:
        """(sum of h - mean) / (length + shrink): f32[N, layers, D]."""
        lengths = counts[:, None, None]
        pooled: Floats = (sums - lengths * self.mean) / np.maximum(lengths + self.train.rm_shrink, 1e-6)
        return pooled

    def _measure(self, samples: Sequence[Sample], votes: Votes) -> Views:
        """Set means and scales from labelled replies, not from labels. Returns features for each of LAST_SHARES.

        Features of hidden states are divided by the root of their number, so that L2 means the same at every width.
        """
        from thumbwise.training.reward.heads import observed

        sums, lasts, counts = self.backbone.pooled(samples, self.layers, self.last_layers)
        self.mean = (sums.sum(0) / max(float(counts.sum()), 1.0)).astype(np.float32)
        pooled = self._shrunk(sums, counts)
        self.scale = _inverse(pooled.std(0))
        self.last_mean, self.last_scale = lasts.mean(0), _inverse(lasts.std(0))
        ends = self._ends(samples)
        self.ends_mean = ends.mean(0)
        self.ends_scale = _inverse(ends.std(0))
        blocks = [pooled * self.scale, (lasts - self.last_mean) * self.last_scale]
        said = np.concatenate([block.reshape(len(samples), -1).astype(np.float64) for block in blocks], 1)
        sizes, views = [self.scale.size, self.last_scale.size], {}
        for share in LAST_SHARES:
            scale = np.repeat([((1 - share) / sizes[0]) ** 0.5, (share / sizes[1]) ** 0.5], sizes)
            span = _span(observed(said * scale, votes))
            reduced = np.concatenate([said * scale @ span.T, self._ends_scaled(samples)], 1)
            views[share] = View(reduced, span * scale)
        return views

    def _ends(self, samples: Sequence[Sample]) -> Floats:
        """Length in tokens, log(1 + length), and whether the reply ended by itself: f32[N, ENDS]."""
        stop, replies = self.backbone.stop_ids, [s.response_ids for s in samples]
        found = [(len(ids), np.log1p(len(ids)), bool(ids) and ids[-1] in stop) for ids in replies]
        return np.array(found, np.float32).reshape(-1, ENDS)

    def _ends_scaled(self, samples: Sequence[Sample]) -> Floats:
        scaled: Floats = (self._ends(samples) - self.ends_mean) * self.ends_scale
        return scaled

    def _raw(self, samples: Sequence[Sample]) -> tuple[Floats, NDArray[np.bool_]]:
        last_layers = self.last_layers if self.last.any() else ()  # unread ones need not be run
        sums, lasts, counts = self.backbone.pooled(samples, self.layers, last_layers)
        means = self._shrunk(sums, counts) * self.scale
        raw = np.einsum("nld,hld->hn", means, self.weights, dtype=np.float64) + self.offsets[:, None]
        if last_layers:
            states = (lasts - self.last_mean) * self.last_scale
            raw += np.einsum("nld,hld->hn", states, self.last, dtype=np.float64)
        raw += self.ends.astype(np.float64) @ self._ends_scaled(samples).T
        return raw.astype(np.float32), np.array([not s.response_ids for s in samples], bool)

    def _cross_validate(self, views: Views, votes: Votes, seed: int) -> Array:
        """What a head that never saw a vote's prompt says of the vote, [n].

        For a comparison that is left minus right, for a thumb the reply's own score, and NaN if the head says nothing.
        Everything else is chosen inside the other folds.
        """
        from thumbwise.training.data.snapshot import folds

        fold = np.array(folds(votes.group, self.train.rm_folds, seed))
        parts = [(fold != number, fold == number) for number in range(self.train.rm_folds)]
        return self._foretell(views, votes, parts, "folds of cross-validation", seed)

    def _foretell(self, views: Views, votes: Votes, parts: Sequence[tuple[Mask, Mask]], what: str, seed: int) -> Array:
        """For each of `parts`: what a head fitted to its first votes says of its second ones, [n]; NaN if nothing."""
        from thumbwise.training.reward.heads import fit_head, observed

        said = np.full(len(votes.left), np.nan)
        for number, (fitted, asked) in enumerate(parts):
            self.backbone.told(what, number, len(parts))
            train, test = votes.pick(fitted), votes.pick(asked)
            if train.telling.any() and len(test.left):
                train = train.reweighted(self._trust(views, train)[train.rater])
                prior, others = self._choose(views, train, seed + 1)
                scaled = prior.of(views[prior.last_share].features)
                head = fit_head(scaled, train.with_others(others), prior.l2, self.train.rm_label_smoothing)
                # Thumbs are compared across parts, whose heads differ in scale by their L2.
                deviation = max(float((scaled @ head.direction).std()), 1e-12)
                said[asked] = observed(scaled, test) @ head.direction / deviation
        return said

    def _trust(self, views: Views, votes: Votes, strict: bool = False) -> Array:
        """A factor for each rater's votes, [raters]. All are 1 if `rm_rater_weights` is off or there are few raters."""
        from thumbwise.training.reward.heads import observed
        from thumbwise.training.reward.reliability import rater_weights

        if not self.train.rm_rater_weights:
            return np.ones(votes.raters)
        return rater_weights(observed(views[0.0].features, votes), votes, self.train.rm_rater_cap, strict)

    def _settled(self, views: Views, votes: Votes) -> Votes:
        """The votes, with those of young accounts that are not borne out as one person's."""
        from thumbwise.training.reward.heads import observed
        from thumbwise.training.reward.settling import settled

        return settled(observed(views[0.0].features, votes), votes, self.train.rm_rater_cap, self.train.min_votes)

    def _choose(self, views: Views, votes: Votes, seed: int) -> tuple[Prior, float]:
        """The prior, and the one of OTHERS, under which the telling held-out votes are likeliest.

        They are chosen in turns, because trying all pairs would take four times as long. First the prior with all
        votes, then the weight of the other votes. If that weight is less than all, the prior is chosen again.
        """
        from thumbwise.training.data.snapshot import folds
        from thumbwise.training.reward.heads import held_out_loss

        fold, smoothing = folds(votes.group, self.train.rm_folds, seed), self.train.rm_label_smoothing

        def loss(prior: Prior, others: float) -> float:
            scaled = prior.of(views[prior.last_share].features)
            return held_out_loss(scaled, votes.with_others(others), fold, prior.l2, smoothing)

        def best(others: float) -> Prior:
            return min(PRIORS, key=lambda prior: loss(prior, others))

        prior = best(1.0)
        if votes.alike.all() or not votes.telling.any():
            return prior, 1.0
        others = min(OTHERS, key=lambda weight: loss(prior, weight))
        return (prior if others == 1.0 else best(others)), others


def _span(seen: Array) -> Array:
    """Orthonormal rows [m, D] that span those of `seen` [n, D], except directions that hardly occur.

    They come from the smaller Gram matrix: a singular value decomposition takes four times as long at 1,200 votes. The
    Gram matrix cannot tell a singular value below a hundred-millionth of the largest one from 0. That does no harm: a
    value below a hundred-thousandth means nothing to any L2.
    """
    wide = len(seen) < seen.shape[1]
    squares, vectors = np.linalg.eigh(seen @ seen.T if wide else seen.T @ seen)
    kept = squares > 1e-10 * max(float(squares[-1]), 1e-18)
    span: Array = (vectors[:, kept] / squares[kept] ** 0.5).T @ seen if wide else vectors[:, kept].T
    return span


def _inverse(deviation: Floats) -> Floats:
    """1 / deviation, and 0 where the deviation is 0."""
    return np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32)


@hookimpl
def register_reward_models(register: Register) -> None:
    """As `bradley_terry`."""
    register("bradley_terry", BradleyTerry)
