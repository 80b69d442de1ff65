"""`thumbwise train`: one training round against the running assistant.

Torch is imported only once an assistant was found, so that a refusal is immediate.
"""

from __future__ import annotations

import json
import sys

import click

from thumbwise.client import running
from thumbwise.home import Home
from thumbwise.settings import Settings


@click.command()
@click.option("--algorithm", default="ppo", show_default=True, help="Policy algorithm, as `plugins list` names them.")
@click.option("--reward", help="Reward model, as `plugins list` names them. [default: the setting `reward`]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line, the last on stdout.")
def train(algorithm: str, reward: str | None, as_json: bool) -> None:
    """Train on the votes so far, and swap the result in if it passes its gates.

    Needs a running assistant. People go on chatting meanwhile; whatever fails, the stable version goes on
    answering. Exit status 0 means promoted, rejected or too little data, and the last line says which.
    """
    home = Home.find()
    url = running(home)
    settings = Settings.load(home, reward=reward)
    from thumbwise.plugin_manager import PluginManager
    from thumbwise.training.job import run_training
    from thumbwise.training.progress import RunProgress

    plugins = PluginManager(home).load()
    result = run_training(home, settings, url, home.job_token(), algorithm, plugins=plugins, progress=RunProgress())
    if as_json:
        click.echo(json.dumps(result.as_json(), default=str))
    else:
        for report in result.gates:
            click.echo(f"{'passed' if report.passed else 'FAILED'}  {report.name}: {report.detail}", err=True)
        click.echo(f"{result.outcome.replace('_', ' ')}: {result.reason}")
    sys.exit(1 if result.outcome == "failed" else 0)
