"""Our reward model compared with TRL's RewardTrainer, on answers that were judged true and informative.

    python tests/bench/training/rm_truthfulqa.py --data FILE [--quick]

FILE is a CSV with the columns question, answer, true, info (OpenAI's published samples of InstructGPT on TruthfulQA).
A pair is two answers to one question whose true x info differ by more than 0.5; in half of them the better one is
the longer. Five folds by question, 300 training pairs a fold. TRL trains LoRA and a head on the same backbone, two
epochs, with the better of two learning rates on the first fold; our head has no learning rate. The interval is over
questions. Under 25 minutes on two cores that multiply in bfloat16; in float32 one of TRL's six trainings takes a
quarter of an hour.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.metadata
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.extend(map(str, (Path(__file__).parents[2] / "support").iterdir()))

import kept
import torch
from tiny_model import make_tiny_model

from thumbwise.base_model.prepare import prepare
from thumbwise.contracts import Comparison, Labels, Message, RunContext, Sample
from thumbwise.home import Home
from thumbwise.plugins.bradley_terry import BradleyTerry
from thumbwise.settings import Settings
from thumbwise.system.processor import train_format
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.snapshot import folds
from thumbwise.training.evaluation.intervals import clustered_mean
from thumbwise.training.policy import trl_parts

FOLDS, TRAINING, EACH = 5, 300, 10
"""EACH is the most pairs of one question."""
RATES = (2e-4, 1e-3)


@dataclass(frozen=True)
class Pair:
    """Two answers to a question, the better one first."""

    question: str
    better: str
    worse: str


def pairs_in(rows: Sequence[dict[str, str]], seed: int) -> list[Pair]:
    """At most EACH pairs a question, as many with the longer answer better as with the shorter."""
    rng, by_question = random.Random(seed), dict[str, dict[str, float]]()
    for row in rows:
        by_question.setdefault(row["question"], {})[row["answer"].strip()] = float(row["true"]) * float(row["info"])
    found = []
    for question, answers in sorted(by_question.items()):
        sides: dict[bool, list[Pair]] = {True: [], False: []}
        for better, high in answers.items():
            for worse, low in answers.items():
                if high - low > 0.5 and len(better) != len(worse) and better and worse:
                    sides[len(better) > len(worse)].append(Pair(question, better, worse))
        count = min(EACH // 2, *(len(side) for side in sides.values()))
        for side in sides.values():
            found += rng.sample(side, count)
    return found


def sample(backbone: Backbone, question: str, answer: str) -> Sample:
    """The answer as a finished reply."""
    messages = (Message(role="user", content=question),)
    ids = [*backbone.tokenizer(answer, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]
    return Sample(messages, answer, tuple(backbone.chat.prompt_ids(messages)), tuple(ids), "stop", "person")


def ours(context: RunContext, train: Sequence[Pair], test: Sequence[Pair]) -> list[bool]:
    """Of each test pair, whether our reward model orders it rightly."""
    rng, votes = random.Random(0), []
    for number, pair in enumerate(train):
        sides = [sample(context.backbone, pair.question, text) for text in (pair.better, pair.worse)]
        choice: Any = "left"
        if rng.random() < 0.5:
            sides, choice = sides[::-1], "right"
        votes.append(Comparison(str(number), "rater", pair.question, *sides, choice))
    model = BradleyTerry(context)
    model.fit(Labels(tuple(votes)), 0)
    replies = [sample(context.backbone, pair.question, text) for pair in test for text in (pair.better, pair.worse)]
    scores = model.score(replies).value
    return [bool(scores[n] > scores[n + 1]) for n in range(0, len(scores), 2)]


def theirs(model: Path, dtype: str, folder: Path, train: Sequence[Pair], test: Sequence[Pair], rate: float) -> Any:
    """The same by TRL's RewardTrainer: LoRA on every linear layer and a head on the last token, two epochs."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback

    trainer_class, config = trl_parts.load("RewardTrainer", "RewardConfig")
    datasets.disable_progress_bars()
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=getattr(torch, dtype))
    rows = [
        {
            "prompt": [{"role": "user", "content": pair.question}],
            "chosen": [{"role": "assistant", "content": pair.better}],
            "rejected": [{"role": "assistant", "content": pair.worse}],
        }
        for pair in [*train, *test]
    ]
    args = config(
        output_dir=str(folder), num_train_epochs=2, learning_rate=rate, per_device_train_batch_size=16,
        per_device_eval_batch_size=16, use_cpu=True, bf16=False, report_to=[], save_strategy="no", seed=0,
        gradient_checkpointing=False, logging_steps=1000, disable_tqdm=True,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = trainer_class(
        model=network, args=args, train_dataset=datasets.Dataset.from_list(rows[: len(train)]),
        eval_dataset=datasets.Dataset.from_list(rows[len(train) :]), processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    network = trainer.model.eval()
    right = []
    for pair in test:
        scores = []
        for text in (pair.better, pair.worse):
            messages = [{"role": "user", "content": pair.question}, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                scores.append(float(network(**ids).logits[0, 0]))
        right.append(scores[0] > scores[1])
    return right


def difference(pairs: Sequence[Pair], one: Sequence[bool], other: Sequence[bool]) -> tuple[float, float, float]:
    """Mean of one less other over pairs, and its 95% interval with questions as clusters."""
    gains = [float(a) - float(b) for a, b in zip(one, other, strict=True)]
    mean, error = clustered_mean(gains, [pair.question for pair in pairs])
    return mean, mean - 1.96 * error, mean + 1.96 * error


def main() -> None:
    """Measure, print one JSON object, and exit 0 where the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true", help="two-layer model and made-up rows, mechanics only")
    args = parser.parse_args()
    if not args.quick and args.data is None:
        parser.error("--data FILE is needed: the CSV of answers judged true and informative.")
    kept.report("rm_truthfulqa", args, lambda: measure(args))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides on every fold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = Home.find(folder / "home") if args.quick else Home.find()
        settings = Settings.load(home)
        path = make_tiny_model(folder / "tiny") if args.quick else prepare(home, settings.model).folder
        dtype = "float32" if args.quick else train_format(settings.train.dtype)
        train = settings.train.model_copy(update={"dtype": dtype})
        context = RunContext(Backbone(path, train), train, settings.temperature, 48, (), (), folder)
        pairs = pairs_in(made_up() if args.quick else list(csv.DictReader(args.data.open())), 0)
        fold = folds([pair.question for pair in pairs], FOLDS, 0)
        mine, trl, tested, rate, tried = list[bool](), list[bool](), list[Pair](), RATES[0], dict[float, float]()
        runs, seconds = dict[float, list[bool]](), 0.0
        for number in range(2 if args.quick else FOLDS):
            test = [pair for pair, f in zip(pairs, fold, strict=True) if f == number]
            rest = [pair for pair, f in zip(pairs, fold, strict=True) if f != number]
            learned = random.Random(number).sample(rest, min(len(rest), TRAINING))
            for lr in [rate] if tried else RATES:
                make = functools.partial(theirs, path, dtype, folder, learned, test, lr)
                runs[lr], took = kept.part("rm_truthfulqa", args, f"{number}-trl-{lr:g}", make)
                seconds += took
            if not tried:
                tried = {lr: statistics.mean(run) for lr, run in runs.items()}
                rate = max(tried, key=lambda lr: tried[lr])
            trl += runs[rate]
            make = functools.partial(ours, context, learned, test)
            right, took = kept.part("rm_truthfulqa", args, f"{number}-ours", make)
            mine += right
            seconds += took
            tested += test
            print(f"fold {number}: {statistics.mean(mine):.3f} {statistics.mean(trl):.3f}", file=sys.stderr)
    gain, low, high = difference(tested, mine, trl)
    figures = {
        "ours": statistics.mean(mine), "trl": statistics.mean(trl), "difference": gain, "low": low, "high": high,
        "test_pairs": len(tested), "questions": len({pair.question for pair in tested}),
        "minutes": seconds / 60,
    }  # fmt: skip
    bars = [] if args.quick else [kept.bar("accuracy above TRL's", gain, ">=", 0.02)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")}
    about = {"model": "two-layer" if args.quick else "SmolLM2-135M-Instruct", "seed": 0, "trl_learning_rate": rate}
    about |= {"trl_first_fold": {str(lr): round(x, 4) for lr, x in tried.items()}, "versions": versions}
    return {**about, "figures": {name: round(value, 4) for name, value in figures.items()}, "bars": bars}


def made_up() -> list[dict[str, str]]:
    """Rows in which answers with "France" are the good ones."""
    rng, words = random.Random(0), ["story", "water", "window", "green", "seven", "town", "brief"]
    rows = []
    for question in range(10):
        for good in (0, 1) * 4:
            said = rng.sample(words, rng.randint(2, 6)) + (["France"] if good else ["egg"])
            rows.append({"question": f"What is {question}?", "answer": " ".join(said), "true": str(good), "info": "1"})
    return rows


if __name__ == "__main__":
    main()
