"""What a round's policy starts from, and the stable version that it is compared with."""

from __future__ import annotations

from dataclasses import asdict

from safetensors.torch import load_file, save

from thumbwise.contracts import RunContext
from thumbwise.faults import fault_point
from thumbwise.home import write_durably
from thumbwise.training.candidate import CONFIG, WEIGHTS
from thumbwise.training.data import Snapshot
from thumbwise.training.models import POLICY, Backbone
from thumbwise.training.runs import read_json, write_json
from thumbwise.training.sft import SFTReport, learn
from thumbwise.training.work import Work, seed_all
from thumbwise.versions import BASE

STABLE = "stable"
SFT, SFT_WEIGHTS = "sft.json", "sft.safetensors"


def demonstrate(work: Work, context: RunContext, snapshot: Snapshot) -> None:
    """SFT, where corrected replies are enough; it leaves the reference, of which the policy starts as a copy."""
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


def fetch_stable(work: Work, backbone: Backbone) -> str | None:
    """The adapter that the stable version is here (None: the base); it is fetched."""
    work.lease.check()
    if work.given.stable == BASE:
        return None
    folder = work.folder / STABLE
    folder.mkdir(exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        write_durably(folder / name, work.client.policy_file(work.given.stable, name))
    backbone.load_adapter(STABLE, folder)
    return STABLE
