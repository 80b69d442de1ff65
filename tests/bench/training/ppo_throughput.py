"""Episodes a second and memory: our PPO step (critic included) compared with TRL's RLOO (which has none).

    python tests/bench/training/ppo_throughput.py [--rounds 3] [--quick]

The same model, prompts, reply length, dtype, adapter, batch and number of optimizer steps a batch; the reward is the
reply's length for both. TRL's trainer runs as it comes, with the generation of transformers. Each runs in a process
of its own, by turns; the first batch of each is not counted. Memory is the peak above what the process had before
it loaded the model, less the model's own weights. About fifteen minutes on two cores, 25 in float32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
import numpy as np

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import RunContext, Sample, Scores
from thumbwise.home import Home
from thumbwise.settings import Settings
from thumbwise.system.processor import train_format
from thumbwise.training.data.prompts import seed_prompts

BATCHES = 3
"""Counted batches of a process."""


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Peak:
    """The largest `resident` since it was made, looked at every 20 ms."""

    def __init__(self) -> None:
        self.before = self.peak = resident()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            self.peak = max(self.peak, resident())

    def above(self, weights: float) -> float:
        """Stop, and return the peak in MB above the start and the `weights`."""
        self.over.set()
        self.thread.join()
        return self.peak - self.before - weights


def megabytes(model: Any) -> float:
    """Size of a model's weights without its adapters; tied ones count once."""
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora" not in name) / 1e6


def timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """`function`, whose seconds are added to `spent[name]`."""

    def call(*args: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*args)
        finally:
            spent[name] = spent.get(name, 0.0) + time.monotonic() - start

    return call


def ours(model: Path, settings: Settings, folder: Path) -> dict[str, Any]:
    """Our PPO: episodes a second, peak memory, and the share of its time in each part."""
    from thumbwise.plugins.bradley_terry import BradleyTerry
    from thumbwise.plugins.ppo import PPO
    from thumbwise.training.backbone.backbone import Backbone
    from thumbwise.training.policy.rollouts import InProcess

    peak, train, spent = Peak(), settings.train, dict[str, float]()
    backbone = Backbone(model, train)
    context = RunContext(backbone, train, settings.temperature, settings.max_tokens, (), seed_prompts(), folder)
    rollouts = InProcess(context)
    rollouts.sample = timed(rollouts.sample, spent, "rollout")  # type: ignore[method-assign]
    head = BradleyTerry(context)  # untrained, it has the layers of a trained one
    context = replace(context, rollouts=rollouts, value=head.value_init())

    def length(samples: Sequence[Sample]) -> Scores:
        head.score(samples)  # what a reward model costs, which TRL's reward here does not
        return Scores(np.array([len(sample.response) / 100 for sample in samples], np.float32))

    algorithm = PPO(context, timed(length, spent, "reward"))
    algorithm.step(0)
    spent.clear()
    start = time.monotonic()
    tokens = [algorithm.step(number)["length"] for number in range(1, BATCHES + 1)]
    seconds = time.monotonic() - start
    shares = {name: round(value / seconds, 3) for name, value in spent.items()}
    shares["learning"] = round(1 - sum(shares.values()), 3)
    rate = BATCHES * train.episodes / seconds
    return {
        "episodes_per_second": rate, "memory": peak.above(megabytes(backbone.base)), "shares": shares,
        "length": statistics.mean(tokens),
    }  # fmt: skip


def trl(model: Path, settings: Settings, folder: Path) -> dict[str, Any]:
    """TRL's RLOO with its own generation: episodes a second and peak memory."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from thumbwise.training.policy import trl_parts

    trainer_class, config = trl_parts.load("RLOOTrainer", "RLOOConfig")
    peak, train, ends, lengths = Peak(), settings.train, list[float](), list[float]()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, train_format(train.dtype)))
    weights = megabytes(network)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

    def reward(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.append(statistics.mean(map(len, completion_ids)))
        return [len(completion[0]["content"]) / 100 for completion in completions]

    args = config(
        output_dir=str(folder), per_device_train_batch_size=train.episodes // train.minibatches,
        steps_per_generation=train.minibatches, num_generations=train.replies,
        beta=train.kl_coefficient / settings.max_tokens,
        max_completion_length=settings.max_tokens, temperature=settings.temperature, top_p=1.0, top_k=0,
        learning_rate=train.learning_rate, max_steps=(BATCHES + 1) * train.minibatches, use_cpu=True,
        bf16=train_format(train.dtype) == "bfloat16", gradient_checkpointing=False, report_to=[], save_strategy="no",
        disable_tqdm=True, logging_steps=1000, seed=0,
    )  # fmt: skip
    rows = [{"prompt": [dict(message) for message in prompt.messages]} for prompt in seed_prompts()]
    trainer = trainer_class(
        model=network, args=args, train_dataset=datasets.Dataset.from_list(rows), reward_funcs=reward,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"), callbacks=[Clock()],
        peft_config=LoraConfig(
            r=train.lora_rank, lora_alpha=train.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    trainer.train()
    seconds = ends[-1] - ends[train.minibatches - 1]
    return {
        "episodes_per_second": BATCHES * train.episodes / seconds, "memory": peak.above(weights),
        "length": statistics.mean(lengths[1:]),
    }  # fmt: skip


def one(side: str, quick: bool) -> dict[str, Any]:
    """What the process of `side` measures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = Home.find(folder / "home") if quick else Home.find()
        settings = Settings.load(home)
        if quick:
            from tiny_model import make_tiny_model

            model = make_tiny_model(folder / "tiny")
            small = {"dtype": "float32", "episodes": 8, "minibatches": 2, "lora_rank": 8}
            settings = settings.model_copy(update={"train": settings.train.model_copy(update=small), "max_tokens": 8})
        else:
            model = prepare(home, settings.model).folder
        return {"ours": ours, "trl": trl}[side](model, settings, folder)


def main() -> None:
    """Measure, print one JSON object, and exit 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two-layer model, mechanics only")
    parser.add_argument("--side", choices=["ours", "trl"], help="one process of the two")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(one(args.side, args.quick)))
        return
    kept.report("ppo_throughput", args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides by turns, and the medians of their ratios."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for number in range(1 if args.quick else args.rounds):
        for side in ("ours", "trl") if number % 2 == 0 else ("trl", "ours"):
            command = [sys.executable, __file__, "--side", side, *(["--quick"] if args.quick else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(side, found[side][-1], file=sys.stderr)
    pairs = list(zip(found["ours"], found["trl"], strict=True))
    speed = statistics.median(a["episodes_per_second"] / b["episodes_per_second"] for a, b in pairs)
    memory = statistics.median(a["memory"] / b["memory"] for a, b in pairs)
    bars = [] if args.quick else [
        kept.bar("episodes a second, times TRL's", speed, ">=", 1.0),
        kept.bar("memory, times TRL's", memory, "<=", 1.0),
    ]  # fmt: skip
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 0, "versions": versions}
    figures = {"speed_ratio": round(speed, 3), "memory_ratio": round(memory, 3), **found}
    return {**about, "figures": figures, "bars": bars}


if __name__ == "__main__":
    main()
