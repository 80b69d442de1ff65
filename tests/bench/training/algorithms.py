"""The policy algorithms on the same snapshot of votes: win rate by the judge, KL, perplexity of prose, time.

    python tests/bench/training/algorithms.py [--judge sentiment] [--votes 300] [--noise 0.16] [--seed 0]
        [--kl 3] [--cases ppo rloo dpo kto] [--set KEY=VALUE ...] [--quick]

The base model answers each prompt of the rehearsal in pairs, a judge votes on them with noise, and each case is one
whole round of the training job on those votes (reward model, policy, gates), against a stand-in for the assistant.
Win rates are over the base on held-out prompts, without noise. Perplexity is on prose that no job saw: paragraphs of
the documentation of installed packages. `ppo+ptx` is `ppo` with `train.ptx` 0.3. About ten minutes a case on two cores
that multiply in bfloat16.

What a policy gains grows with how far it goes, so all are steered to the same KL: `--kl` is train.kl_target in nats for
a draft of full length, and the budget lies a quarter above it. One that is more than a quarter off is no fair row.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.metadata
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
from reward_model import labels, pairs_of
from tiny_model import make_tiny_model
from training_world import SMALL, FakeAssistant, train

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Labels, Prompt, RunContext, Sample
from thumbwise.feedback.records import canonical, sha256
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.settings.gates import GateSettings
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.prompts import rehearsal_prompts, rehearsal_split
from thumbwise.training.evaluation.evaluate import kl_to_reference
from thumbwise.training.evaluation.replies import finish_rate, mean_length, repetition
from thumbwise.training.policy.ptx import WINDOW
from thumbwise.training.policy.rollouts import InProcess
from thumbwise.training.rehearsal.raters import judge_scores
from thumbwise.training.rehearsal.win_rates import by_prompt, win_rate

REPLIES = 4
"""To each held-out prompt."""
PROSE_TOKENS = 20_480
PTX = {"ptx": 0.3}
OFF = 0.25
"""How far a case's KL may be from `--kl`, as a share of it, and how far above it training stops."""


def snapshot_of(votes: Labels) -> bytes:
    """The votes as the assistant exports them."""

    def draft(sample: Sample) -> dict[str, Any]:
        return {
            "id": sha256(repr(sample.response_ids)), "text": sample.response, "prompt_ids": list(sample.prompt_ids),
            "response_ids": list(sample.response_ids), "finish_reason": sample.finish_reason,
            "policy_version": sample.policy_version, "sampling": {},
        }  # fmt: skip

    lines, seen = [], set[str]()
    for vote in votes.comparisons:
        messages = [dict(message) for message in vote.left.prompt]
        common = {"user": vote.user, "group": sha256(canonical(messages)), "prompt": messages}
        sides = {"left": draft(vote.left), "right": draft(vote.right)}
        lines.append({"type": "comparison", "id": vote.id, "choice": vote.choice, "strength": 1, **sides, **common})
        if common["group"] not in seen:
            seen.add(str(common["group"]))
            lines.append({"type": "prompt", **common})
    return "".join(canonical(line) + "\n" for line in lines).encode()


def paragraphs(folder: Path) -> Iterator[str]:
    """English paragraphs of the documentation below `folder`, in a fixed order: of packages' pages and docstrings."""
    for path in sorted([*folder.glob("*.dist-info/METADATA"), *folder.glob("*/*.py"), *folder.glob("*/*/*.py")]):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if path.suffix == ".py":
            try:
                text = "\n\n".join(filter(None, map(ast.get_docstring, _documented(ast.parse(text)))))
            except (SyntaxError, ValueError):
                continue
        else:
            text = text.partition("\n\n")[2]
        for part in text.split("\n\n"):
            whole = len(part.split()) >= 30 and part[0].isupper() and part.rstrip().endswith(".")
            if whole and not set("<|`{=*[>_") & set(part):
                yield " ".join(part.split())


def _documented(tree: ast.Module) -> Iterator[Any]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return (node for node in ast.walk(tree) if isinstance(node, kinds))


def prose(tokenizer: Any) -> list[Sample]:
    """PROSE_TOKENS tokens in windows; the first token of each is its context."""
    ids: list[int] = []
    for part in dict.fromkeys(paragraphs(Path(torch.__file__).parents[1])):
        ids += tokenizer(part + "\n\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= PROSE_TOKENS:
            break
    starts = range(0, min(len(ids), PROSE_TOKENS) - WINDOW + 1, WINDOW)
    return [Sample((), "", (ids[s],), tuple(ids[s + 1 : s + WINDOW]), "length", "text") for s in starts]


def perplexity(backbone: Backbone, texts: Sequence[Sample], adapter: str | None) -> float:
    """Of `adapter` on `texts` at temperature 1."""
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            batch = backbone.batch(texts[start : start + 16])
            total -= float(backbone.logprobs(batch, adapter, 1.0).sum())
            count += float(batch.mask.sum())
    return math.exp(total / count)


class Contest:
    """One snapshot, one set of held-out prompts, and what each case makes of them."""

    def __init__(self, args: argparse.Namespace, home: Home, folder: Path) -> None:
        self.args, self.folder = args, folder
        settings = Settings.load(home)
        self.judge = PluginManager(home).load().get("judges", args.judge)
        self.model = make_tiny_model(folder / "tiny") if args.quick else prepare(home, settings.model).folder
        target = args.kl / settings.max_tokens
        steered = {"kl_target": target, "kl_budget": (1 + OFF) * target}
        changes: dict[str, Any] = {"seed": args.seed, **steered, **(SMALL if args.quick else {}), **given(args.set)}
        voted, held_out = rehearsal_split(rehearsal_prompts())
        self.held_out = held_out[:8] if args.quick else held_out
        train = settings.train.model_copy(update=changes)
        self.backbone = Backbone(self.model, train)
        context = RunContext(self.backbone, train, settings.temperature, settings.max_tokens, (), (), folder)
        self.context = replace(context, rollouts=InProcess(context))
        self.prose = prose(self.backbone.tokenizer)

        def votes() -> str:
            pairs = pairs_of(self.context, voted, args.votes, self._scorer)
            return snapshot_of(labels(pairs, args.seed, args.noise, 0.0)).decode()

        def start() -> tuple[list[list[float]], float]:
            return self._scores(self._sample(None)), perplexity(self.backbone, self.prose, None)

        self.snapshot = kept.part("algorithms", args, "votes", votes)[0].encode()
        self.digest = sha256(self.snapshot)[:8]
        (self.start, self.base_perplexity), _ = kept.part("algorithms", args, "start", start)

    def run(self, case: str) -> dict[str, Any]:
        """One round with the algorithm of `case`, and its candidate's figures."""
        algorithm, _, ptx = case.partition("+")
        assistant, started = FakeAssistant(self.snapshot, max_tokens=self.context.max_tokens), time.monotonic()
        changes = {**self.context.train.model_dump(), **(PTX if ptx else {})}
        gates = None if self.args.quick else GateSettings().model_dump()
        result = train(self.folder / case, self.model, assistant, gates, algorithm=algorithm, **changes)
        minutes = (time.monotonic() - started) / 60
        if result.outcome not in ("promoted", "rejected"):
            raise SystemExit(f"{case}: {result.reason}")
        run = self.folder / case / "home" / "runs" / result.run_id
        assert result.version is not None
        self.backbone.load_adapter(case, run / result.version)
        replies = self._sample(case)
        rate = win_rate(self._scores(replies), self.start)
        kl = kl_to_reference(self.context, replies, case)
        kl_token = kl / mean_length(replies)
        found = {
            "win_rate": rate.rate, "win_rate_low": rate.low, "win_rate_high": rate.high, "n_eval": rate.n,
            "kl": kl, "kl_token": kl_token, "kl_target_share": kl_token / self.context.train.kl_target,
            "length": mean_length(replies), "minutes": minutes,
            "perplexity_rise": perplexity(self.backbone, self.prose, case) / self.base_perplexity - 1,
            "finish_rate": finish_rate(replies), "repetition": repetition(replies),
            "iterations": len((run / "metrics.jsonl").read_text().splitlines()),
        }  # fmt: skip
        self.backbone.peft.delete_adapter(case)
        replies_said = [sample.response for sample in replies[::REPLIES]][:20]
        figures = {name: round(value, 4) for name, value in found.items()}
        return {**figures, "outcome": result.outcome, "replies": replies_said}

    def _sample(self, adapter: str | None) -> list[Sample]:
        assert self.context.rollouts is not None
        asked = [prompt for prompt in self.held_out for _ in range(REPLIES)]
        return self.context.rollouts.sample(asked, adapter, self.args.seed * 10 + 8)

    def _scorer(self, prompt: Prompt, replies: Sequence[str]) -> list[float]:
        return judge_scores(self.args.judge, self.judge, prompt, replies)

    def _scores(self, samples: Sequence[Sample]) -> list[list[float]]:
        rows = by_prompt([REPLIES] * len(self.held_out), [sample.response for sample in samples])
        return [self._scorer(prompt, row) for prompt, row in zip(self.held_out, rows, strict=True)]


def given(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE of `--set` as settings of `train`."""
    return {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def main() -> None:
    """Run every case, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--judge", default="sentiment")
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", default=["ppo", "rloo", "dpo", "kto"])
    parser.add_argument("--kl", type=float, default=3.0, help="nats for a draft of full length that all are steered to")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of train for every case")
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    args = parser.parse_args()
    if args.quick:
        args.judge, args.votes = "concise", 60
    kept.report("algorithms", args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every case's figures."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.find(Path(folder) / "home") if args.quick else Home.find()
        contest = Contest(args, home, Path(folder))
        cases = {}
        for case in args.cases:
            part = f"{case}-{contest.digest}"  # another machine continues it only if its votes are the same
            cases[case], _ = kept.part("algorithms", args, part, functools.partial(contest.run, case))
            print(case, cases[case], file=sys.stderr)
    rise = cases.get("ppo+ptx", {}).get("perplexity_rise")
    bars = [] if args.quick or rise is None else [kept.bar("rise of prose's perplexity with ptx", rise, "<=", 0.02)]
    if not args.quick:
        off = {name: abs(found["kl_target_share"] - 1) for name, found in cases.items()}
        bars += [kept.bar(f"KL of {name}, share off its target", share, "<=", OFF) for name, share in off.items()]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "judge": args.judge}
    about |= {"votes": args.votes, "noise": args.noise, "seed": args.seed, "kl": args.kl, "set": args.set}
    return {**about, "versions": versions, "cases": cases, "bars": bars}


if __name__ == "__main__":
    main()
