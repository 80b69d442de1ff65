"""One training run from register to result: the lease, the lock, resuming, and the sentence for every failure.

The job talks to the assistant over HTTP only and never opens its database. All its files are in `runs/<run_id>/` of the
home. Whatever goes wrong ends the run as failed with one sentence, and leaves the stable version alone. The traceback
goes to `error.log` there.

A run that was killed, stopped, or met a full disk is resumed by `resume`, and ends with the same adapter.
`thumbwise.training.job.round` says what a round consists of.

Left out: several runs at once.
"""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx

from thumbwise.base_model.prepare import PreparedModel, prepare
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import disk_is_full, fault_point, out_of_memory
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.data.prompts import check_prompts
from thumbwise.training.job.initial_policy import STABLE
from thumbwise.training.job.requirements import AUTO, check_rank
from thumbwise.training.job.round import Round
from thumbwise.training.run.client import Lease, OpsClient
from thumbwise.training.run.folders import RESULT, Record, TrainResult, read_record, unfinished, working, write_json
from thumbwise.training.run.progress import RunProgress

RESUME = "`thumbwise train --resume` goes on where it stopped."
Preparer = Callable[[Home, str], PreparedModel]


def run_training(
    home: Home,
    settings: Settings,
    url: str,
    token: str,
    algorithm: str = AUTO,
    *,
    resume: bool = False,
    new_votes: bool = False,
    plugins: PluginManager | None = None,
    progress: RunProgress | None = None,
    transport: httpx.BaseTransport | None = None,
    prepare_model: Preparer = prepare,
) -> TrainResult:
    """Run one round against the assistant at `url`, or resume the last one, and return how it ended.

    With `new_votes` the round ends as too little data if nobody has voted since the last round that finished. A resumed
    run keeps what it began with.

    Raises ThumbwiseError only if the run could not begin: another run holds the lease, there is no such algorithm or
    reward model, the assistant does not answer, or there is nothing to resume. Later failures are results with the
    outcome "failed".
    """
    start = time.monotonic()
    plugins = plugins or PluginManager(home).load()
    with OpsClient(url, token, transport) as client, progress or RunProgress(quiet=True) as shown:
        ended = None
        if resume:
            folder = unfinished(home)
            record = read_record(folder)
            _check(plugins, record.settings(settings), record.algorithm)
            record, ended = _resume(folder, record, client)
        else:
            _check(plugins, settings, algorithm)
            check_prompts(settings.train)
            folder, record = _begin(home, client, algorithm, settings, new_votes)
        with working(folder):
            if ended is not None:  # it was killed after it had told the assistant, before it wrote the result
                write_json(folder / RESULT, ended.as_json())
                tidy(folder)
                return ended
            with Lease(client, record.given) as lease:
                job = Round(
                    home, record.settings(settings), record.algorithm, plugins, client, record.given, lease, folder,
                    shown, prepare_model, new_votes=record.new_votes,
                )  # fmt: skip
                result = _guarded(job, folder)
                result.seconds = round(time.monotonic() - start, 1)
                fault_point("handed_over")
                _finish(client, record, lease, result)
            fault_point("finished")
            with suppress(OSError):  # a full disk: the run can be resumed without it
                write_json(folder / RESULT, result.as_json())
            if result.outcome != "failed":
                tidy(folder)
    return result


def tidy(folder: Path) -> None:
    """Remove what a finished run kept for resuming. With a schedule that would be gigabytes in a month."""
    for name in ("checkpoints", STABLE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _check(plugins: PluginManager, settings: Settings, algorithm: str) -> None:
    plugins.check_training(settings.reward, algorithm, settings.train.rollouts)
    check_rank(settings)


def _begin(home: Home, client: OpsClient, algorithm: str, settings: Settings, new_votes: bool) -> tuple[Path, Record]:
    record = Record.begun(client.begin(), algorithm, settings, new_votes)
    folder = home.runs / record.given.run_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    record.save(folder)
    fault_point("registered")
    return folder, record


def _resume(folder: Path, record: Record, client: OpsClient) -> tuple[Record, TrainResult | None]:
    """The run with a fresh lease, and its result if the assistant has it already."""
    with working(folder):
        answer = client.resume(record.given)
        if answer["outcome"] is not None:
            ended = TrainResult(answer["outcome"], answer["reason"], folder.name, answer["version"])
            return record, ended
        record = replace(record, given=replace(record.given, lease=answer["lease"]))
        record.save(folder)
    return record, None


def _guarded(job: Round, folder: Path) -> TrainResult:
    """Run the round; every failure becomes a result with one sentence."""
    run_id = folder.name
    try:
        return job.run()
    except KeyboardInterrupt:
        return TrainResult("failed", f"The run was stopped by hand: {RESUME}", run_id)
    except Exception as error:
        with suppress(OSError):
            (folder / "error.log").write_text(traceback.format_exc())
        if disk_is_full(error):
            return TrainResult("failed", f"The disk is full. Make room, then {RESUME}", run_id)
        if out_of_memory(error):
            return TrainResult("failed", f"There is not enough memory. Close other programs, then {RESUME}", run_id)
        if isinstance(error, ThumbwiseError):
            return TrainResult("failed", str(error), run_id)
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return TrainResult("failed", f"Training failed ({what}); the details are in {folder / 'error.log'}.", run_id)


def _finish(client: OpsClient, record: Record, lease: Lease, result: TrainResult) -> None:
    """Tell the assistant. If it no longer accepts the result, the result still stands."""
    if not lease.lost:
        try:
            client.finish(record.given, result.outcome, result.reason)
        except ThumbwiseError as error:
            result.reason += f" (The assistant was not told: {error})"
