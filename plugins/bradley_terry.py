"""The built-in reward model: a regularised linear head on the frozen model's hidden states.

Features are the response tokens' hidden states at a few layers spread over the lower half of the model,
summed over the response (less their mean) and divided by its length plus `rm_shrink`, each dimension
scaled to deviation 1. The same head so gives a value after every token, which PPO's value function starts
from; without the shrinkage the first tokens' values are several times too large. Averaging layers was as
good as choosing the best one and needs no choice, so the accuracy reported is honest: the L2 strength is
chosen inside each training fold. Ties and "both bad" are dropped. Left out: a LoRA reward model, which
stays near chance with a few hundred votes, and the comments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from thumbwise import hookimpl
from thumbwise.contracts import FitReport, Floats, Labels, Register, RunContext, Sample, Scores, ValueInit
from thumbwise.errors import ThumbwiseError

Array = NDArray[np.float64]

L2_STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class BradleyTerry:
    """Comparisons and thumbs to one score a reply; see the module's docstring."""

    def __init__(self, context: RunContext) -> None:
        train, backbone = context.train, context.backbone
        self.train = train
        self.backbone = backbone
        deepest = round(train.rm_depth * len(backbone.layers))
        spread = np.linspace(0, min(deepest, len(backbone.layers) - 1), train.rm_layers)
        self.layers = tuple(sorted({int(layer) for layer in spread.round()}))
        size = (len(self.layers), backbone.hidden_size)
        self.mean: Floats = np.zeros(size, np.float32)
        self.scale: Floats = np.ones(size, np.float32)
        self.weights: Floats = np.zeros((1 + train.rm_heads, *size), np.float32)  # the head, its bootstraps
        self.offsets: Floats = np.zeros(1 + train.rm_heads, np.float32)
        self.details: dict[str, Any] = {}

    def fit(self, labels: Labels, seed: int) -> FitReport:
        """Fit on every label; the accuracy is from nested cross-validation over `rm_folds` folds by prompt."""
        from thumbwise.training.data import folds
        from thumbwise.training.heads import fit_head

        samples, votes = _votes(labels, self.train.thumb_weight)
        if not votes.is_pair.any() and len(set(votes.good)) < 2:
            raise ThumbwiseError(
                "No vote says which reply is better than another: the reward model needs comparisons with a winner, "
                "or thumbs both up and down."
            )
        features = self._measure(samples)
        # An L2-regularised solution lies in the span of the features, so fit in that smaller space.
        left, sizes, rotation = np.linalg.svd(features, full_matrices=False)
        kept = sizes > 1e-9 * max(sizes[0], 1e-9)
        reduced = left[:, kept] * sizes[kept]
        smoothing, k = self.train.rm_label_smoothing, self.train.rm_folds
        fold = np.array(folds(votes.group, k, seed))
        right: list[float] = []
        for number in range(k):
            train, test = votes.pick(fold != number), votes.pick(fold == number)
            if len(train.left) and len(test.left):
                head = fit_head(reduced, train, self._choose_l2(reduced, train, seed + 1), smoothing)
                right += head.correct(reduced, test).tolist()
        l2 = self._choose_l2(reduced, votes, seed + 1)
        head = fit_head(reduced, votes, l2, smoothing)
        heads = [head]
        rng = np.random.default_rng(seed)
        for _ in range(self.train.rm_heads):
            heads.append(fit_head(reduced, votes.reweighted(_bootstrap(votes.group, rng)), l2, smoothing))
        directions = np.stack([h.direction for h in heads]) @ rotation[kept]
        width = self.scale.size**-0.5  # the features were divided by it
        self.weights = (directions * width).reshape(-1, *self.scale.shape).astype(np.float32)
        self.offsets = np.zeros(len(heads), np.float32)
        accuracy = float(np.mean(right)) if right else 0.5
        self.details = {
            "l2": l2, "position_bias": head.position, "thumb_threshold": head.threshold,
            "layers": list(self.layers), "comparisons": int(votes.is_pair.sum()),
            "thumbs": int((~votes.is_pair).sum()),
        }  # fmt: skip
        return FitReport(accuracy, len(right), dict(self.details))

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Value and deviation (over the bootstrapped heads) of each sample; NaN for an empty response."""
        raw, empty = self._raw(samples)
        raw[:, empty] = np.nan
        return Scores(raw[0], raw[1:].std(0).astype(np.float32))

    def normalise(self, samples: Sequence[Sample]) -> None:
        """Shift and scale so that `samples` score mean 0, deviation 1; every head is centred on its own."""
        raw, empty = self._raw(samples)
        kept = raw[:, ~empty].astype(np.float64)
        if kept.shape[1] == 0:
            return
        deviation = float(kept[0].std())
        gain = 1 / deviation if deviation > 1e-8 else 1.0  # constant scores stay finite
        self.weights = (self.weights * gain).astype(np.float32)
        self.offsets = ((self.offsets - kept.mean(1)) * gain).astype(np.float32)

    def value_init(self) -> ValueInit:
        """The head that gives `score` at the last response token, for the value function to start from."""
        bias = float(self.offsets[0])
        return ValueInit(self.layers, self.weights[0], self.mean, self.scale, bias, self.train.rm_shrink)

    def save(self, folder: Path) -> None:
        """Write reward_model.safetensors and reward_model.json into `folder`."""
        arrays = {"weights": self.weights, "offsets": self.offsets, "mean": self.mean, "scale": self.scale}
        save_file(arrays, folder / "reward_model.safetensors")
        note = {"layers": list(self.layers), "shrink": self.train.rm_shrink, **self.details}
        (folder / "reward_model.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        arrays = load_file(folder / "reward_model.safetensors")
        self.weights, self.offsets = arrays["weights"], arrays["offsets"]
        self.mean, self.scale = arrays["mean"], arrays["scale"]
        self.details = json.loads((folder / "reward_model.json").read_text())
        self.layers = tuple(self.details["layers"])

    def _pooled(self, samples: Sequence[Sample]) -> Floats:
        """(sum of h - mean) / (length + shrink): f32[N, layers, D]."""
        sums, counts = self.backbone.pooled(samples, self.layers)
        return self._shrunk(sums, counts)

    def _shrunk(self, sums: Floats, counts: Floats) -> Floats:
        lengths = counts[:, None, None]
        pooled: Floats = (sums - lengths * self.mean) / np.maximum(lengths + self.train.rm_shrink, 1e-6)
        return pooled

    def _measure(self, samples: Sequence[Sample]) -> Array:
        """Set mean and scale from labelled replies (not from their labels), and return features [N, D]."""
        sums, counts = self.backbone.pooled(samples, self.layers)
        self.mean = (sums.sum(0) / max(float(counts.sum()), 1.0)).astype(np.float32)
        pooled = self._shrunk(sums, counts)
        deviation = pooled.std(0)
        self.scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32)
        scaled: Array = (pooled * self.scale).astype(np.float64).reshape(len(samples), -1)
        scaled *= self.scale.size**-0.5  # so that L2 strengths mean the same at every width
        return scaled

    def _raw(self, samples: Sequence[Sample]) -> tuple[Floats, NDArray[np.bool_]]:
        scaled = self._pooled(samples) * self.scale
        raw = np.einsum("nld,hld->hn", scaled, self.weights, dtype=np.float64) + self.offsets[:, None]
        return raw.astype(np.float32), np.array([not s.response_ids for s in samples], bool)

    def _choose_l2(self, features: Any, votes: Any, seed: int) -> float:
        from thumbwise.training.data import folds
        from thumbwise.training.heads import held_out_loss

        fold = folds(votes.group, self.train.rm_folds, seed)
        smoothing = self.train.rm_label_smoothing
        loss = {l2: held_out_loss(features, votes, fold, l2, smoothing) for l2 in L2_STRENGTHS}
        return min(loss, key=lambda l2: loss[l2])


def _votes(labels: Labels, thumb_weight: float) -> tuple[list[Sample], Any]:
    """Unique replies, and the untied votes on them by row. Thumbs together weigh at most what pairs do.

    A ranking is all of its untied pairs at once (InstructGPT, equation 1). Together they weigh what its drafts can
    say, K - 1 comparisons, however many pairs they make.
    """
    from thumbwise.training.heads import Votes

    rows: dict[Any, int] = {}
    samples: list[Sample] = []

    def row(sample: Sample) -> int:
        key = sample.meta.get("id") or (sample.prompt_ids, sample.response_ids)
        if key not in rows:
            rows[key] = len(samples)
            samples.append(sample)
        return rows[key]

    pairs = [
        (row(c.left), row(c.right), float(c.choice == "left"), float(c.strength), c.group)
        for c in labels.comparisons
        if c.choice in ("left", "right")
    ]
    for ranking in labels.rankings:
        numbers = [row(draft) for draft in ranking.drafts]
        untied = [(a, b) for a, b in combinations(range(len(numbers)), 2) if ranking.tiers[a] != ranking.tiers[b]]
        for a, b in untied:
            won, counts = float(ranking.tiers[a] < ranking.tiers[b]), (len(numbers) - 1) / len(untied)
            pairs.append((numbers[a], numbers[b], won, counts, ranking.group))
    share = thumb_weight
    if labels.thumbs and pairs:
        share = min(thumb_weight, sum(p[3] for p in pairs) / len(labels.thumbs))
    thumbs = [(row(t.sample), -1, float(t.up), share, t.group) for t in labels.thumbs] if share > 0 else []
    found = [*pairs, *thumbs]
    left, right, good, weight, group = zip(*found, strict=True) if found else ((),) * 5
    return samples, Votes(
        np.array(left, np.int64), np.array(right, np.int64), np.array(good), np.array(weight), tuple(group)
    )


def _bootstrap(groups: Sequence[str], rng: np.random.Generator) -> Array:
    """How often each vote counts when its prompts are drawn again with replacement."""
    names = sorted(set(groups))
    drawn = rng.multinomial(len(names), [1 / len(names)] * len(names))
    times = dict(zip(names, drawn.tolist(), strict=True))
    return np.array([float(times[group]) for group in groups])


@hookimpl
def register_reward_models(register: Register) -> None:
    """As `bradley_terry`."""
    register("bradley_terry", BradleyTerry)
