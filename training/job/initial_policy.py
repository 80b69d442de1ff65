"""Where a round's policy starts, and the stable version that it is compared with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save

from thumbwise.contracts import Backbone, RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.home import write_durably
from thumbwise.names import BASE, CONFIG, WEIGHTS
from thumbwise.training.backbone.backbone import POLICY
from thumbwise.training.data.snapshot import Snapshot
from thumbwise.training.policy.sft import SFTReport, learn
from thumbwise.training.run.folders import read_json, write_json
from thumbwise.training.run.work import Work, seed_all

STABLE = "stable"
AT_BASE = (
    "The round began at the base, because stable, or a version that it began from, learned from something that was "
    "forgotten since."
)
SFT, SFT_WEIGHTS = "sft.json", "sft.safetensors"


def run_sft(work: Work, context: RunContext, snapshot: Snapshot) -> None:
    """SFT, if there are enough corrected replies. Its result is the reference; the policy starts as a copy of it."""
    backbone = context.backbone
    if not snapshot.sft(work.settings.train):
        return
    work.progress.stage("sft")
    if (note := read_json(work.folder / SFT)) is None:
        seed_all(work.settings.train.seed, 0)
        report = learn(context, snapshot.demonstrations, work.lease.check)
        write_durably(work.folder / SFT_WEIGHTS, save(backbone.state(POLICY)))
        write_json(work.folder / SFT, asdict(report))
    else:
        report = SFTReport(**note)
        backbone.restore(POLICY, load_file(work.folder / SFT_WEIGHTS))
    work.progress.say(report.line())
    if report.epoch:
        backbone.freeze_reference()
    fault_point("sft")


def fetch_stable(work: Work) -> Path | None:
    """The folder of the stable version's adapter, fetched from the assistant. None: stable is the base.

    Raises ThumbwiseError if the policy is to start as a copy of it, and cannot.
    """
    work.lease.check()
    if work.given.stable == BASE:
        return None
    folder = work.folder / STABLE
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        write_durably(folder / name, work.client.policy_file(work.given.stable, name))
    rank, most = json.loads((folder / CONFIG).read_text())["r"], work.settings.train.lora_rank
    if work.begun_from != BASE and rank > most:
        raise ThumbwiseError(
            f"{work.given.stable}, which the policy is to begin from, has an adapter of rank {rank}, and "
            f"train.lora_rank is {most}: set it to {rank}, or train.begin to base."
        )
    return folder


def start_policy(work: Work, backbone: Backbone, stable: Path | None) -> str | None:
    """Load stable's adapter. If `train.begin` says so, the policy starts as a copy of it, and it is the reference.

    Returns the adapter's name (None: stable is the base).
    """
    if stable is None:
        return None
    backbone.load_adapter(STABLE, stable)
    if work.begun_from != BASE:
        work.progress.say(f"The policy begins as {work.given.stable}, and is kept near it.")
        backbone.begin_as(STABLE)
        backbone.freeze_reference()
    return STABLE
