"""`thumbwise train`: one training round against the running assistant.

Torch is imported only after an assistant was found, so that the error without one comes at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from thumbwise.cli.client import running
from thumbwise.home import Home
from thumbwise.plugin_host.sources import output_to_stderr
from thumbwise.printed import visible
from thumbwise.settings import Settings

if TYPE_CHECKING:
    from thumbwise.plugin_host.manager import PluginManager


@click.command()
@click.option(
    "--algorithm", default="auto", show_default=True,
    help="Policy algorithm; `plugins list` lists them. auto is ppo.",
)  # fmt: skip
@click.option("--reward", help="Reward model; `plugins list` lists them. [default: the setting `reward`]")
@click.option(
    "--ptx", type=click.Path(exists=True, dir_okay=False, resolve_path=True), metavar="FILE",
    help="Text that the policy should still predict as well as before (PPO-ptx; needs the setting train.ptx).",
)  # fmt: skip
@click.option(
    "--prompts", type=click.Path(exists=True, dir_okay=False, resolve_path=True), metavar="FILE",
    help='More prompts for rollouts: JSON lines {"prompt", "group"?}. To leave out the prompts that ship with '
    "Thumbwise, set train.packaged_prompts to false.",
)  # fmt: skip
@click.option("--new-votes", is_flag=True, help="Do nothing if nobody has voted since the last finished run.")
@click.option("--resume", is_flag=True, help="Resume the last run, if it was cut off or failed, where it stopped.")
@click.option("--dry-run", is_flag=True, help="Say what a run would do with the votes so far. Trains nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line, the last on stdout.")
def train(
    algorithm: str, reward: str | None, ptx: str | None, prompts: str | None, new_votes: bool, resume: bool,
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train on the votes so far, and swap the result in if it passes its gates.

    Needs a running assistant. People can chat meanwhile. Whatever fails, the stable version keeps answering.
    Exit status 0 means promoted, rejected or too little data. The last line says which. A run that is
    resumed keeps the algorithm, the votes and the settings with which it began.
    """
    if resume and dry_run:
        raise click.UsageError("--resume continues a run and --dry-run starts none: give only one of them.")
    home = Home.find()
    url = running(home)
    files = {name: file for name, file in (("ptx_file", ptx), ("prompts_file", prompts)) if file}
    settings = Settings.load(home, reward=reward, train=files or None)
    if ptx and settings.train.ptx == 0:
        raise click.UsageError("--ptx FILE needs PPO-ptx: set train.ptx, for example THUMBWISE_TRAIN__PTX=0.3.")
    from thumbwise.plugin_host.manager import PluginManager

    plugins = PluginManager(home).load()
    if dry_run:
        _dry_run(home, url, settings, plugins, algorithm, as_json)
        return
    from thumbwise.training.job.job import run_training
    from thumbwise.training.run.progress import RunProgress

    with output_to_stderr():
        result = run_training(
            home, settings, url, home.job_token(), algorithm, resume=resume, new_votes=new_votes, plugins=plugins,
            progress=RunProgress(),
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        for report in result.gates:
            passed = "passed" if report.passed else "FAILED"
            click.echo(visible(f"{passed}  {report.name}: {report.detail}"), err=True)
        click.echo(visible(f"{result.outcome.replace('_', ' ')}: {result.reason}"))
    sys.exit(1 if result.outcome == "failed" else 0)


def _dry_run(home: Home, url: str, settings: Settings, plugins: PluginManager, algorithm: str, as_json: bool) -> None:
    from thumbwise.training.job.dry_run import dry_run

    with output_to_stderr():
        plan = dry_run(home, settings, plugins, url, home.job_token(), algorithm)
    if as_json:
        click.echo(json.dumps(plan.as_json()))
        return
    click.echo(visible(plan.text()), err=True)
    click.echo(f"dry run: {plan.why}")
