"""`thumbwise rehearse`: the whole loop on simulated people, in a folder of its own.

Torch is imported only after the options were checked, so that errors in them come at once.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host.sources import output_to_stderr
from thumbwise.settings import Settings

if TYPE_CHECKING:
    from thumbwise.contracts import Prompt
    from thumbwise.training.rehearsal.steps import Plan

SHARE = click.FloatRange(0, 1)
LEAST_HELD_OUT = 10


@click.command()
@click.option(
    "--judge", default="sentiment", show_default=True, help="Votes in place of people; `plugins list` lists judges."
)
@click.option("--votes", type=click.IntRange(min=1), default=300, show_default=True, help="Votes in each round.")
@click.option(
    "--kind", type=click.Choice(["pair", "thumb", "rank"]), default="pair", show_default=True, help="How people vote."
)
@click.option("--rank-k", type=click.IntRange(3, 9), default=4, show_default=True, help="Drafts in each ranking.")
@click.option("--noise", type=SHARE, default=0.0, show_default=True, help="Probability that a comparison is flipped.")
@click.option("--raters", type=click.IntRange(min=1), default=20, show_default=True, help="How many people vote.")
@click.option(
    "--adversarial", type=SHARE, default=0.0, show_default=True, help="Share of people who vote against the judge."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="Rounds of votes and training."
)
@click.option(
    "--prompts",
    "file",
    type=click.Path(path_type=Path),
    help='What people ask: JSON lines {"prompt", "group"?}. [default: the prompts that ship with Thumbwise]',
)
@click.option(
    "--max-tokens", type=click.IntRange(1, 4096), default=48, show_default=True, help="Longest draft, in tokens."
)
@click.option(
    "--chat-tokens",
    type=click.IntRange(1, 4096),
    help="Longest reply in chat, in tokens. [default: setting chat_max_tokens]",
)
@click.option("--algorithm", default="ppo", show_default=True, help="Policy algorithm; `plugins list` lists them.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the people and of training.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line, the last on stdout.")
def rehearse(file: Path | None, as_json: bool, **options: Any) -> None:
    """Run the whole loop on simulated people: a dry run, and the benchmark.

    This starts an assistant of its own. Simulated people vote through its API as the judge would, the job trains, and
    the new version is swapped in while replies are streaming. Thumbs are on replies in chat. Comparisons and rankings
    are of drafts. The new version is judged on replies of the length that people voted on.

    Your database, versions and runs do not change: everything goes to a folder in `runs/` of the home, with a report.
    If it was cut off, the same command continues where it stopped. Exit status 0 means that no reply was dropped or
    mixed.
    """
    home = Home.find()
    settings = Settings.load(home)  # reports wrong settings before anything starts
    options["chat_tokens"] = options["chat_tokens"] or settings.chat_max_tokens
    from thumbwise.training.data.prompts import check_prompts, read_prompts, rehearsal_prompts

    check_prompts(settings.train)
    prompts = read_prompts(file) if file else rehearsal_prompts()
    from thumbwise.training.rehearsal.report import table, write_report
    from thumbwise.training.rehearsal.steps import Rehearsal
    from thumbwise.training.run.progress import RunProgress

    plan = _plan(prompts, options)
    with RunProgress() as progress:
        rehearsal = Rehearsal(home, plan, progress)
        verb = "continues where it stopped" if rehearsal.resumed else "starts"
        progress.say(f"The rehearsal {verb} in {rehearsal.folder}; your database, versions and runs do not change.")
        try:
            with output_to_stderr():
                result = rehearsal.run()
        except KeyboardInterrupt:
            raise ThumbwiseError("The rehearsal was stopped: the same command continues it.") from None
        path = write_report(result.folder, result.report, plan.wanted)
    click.echo(f"{table(result.report['rounds'])}\n\nThe report is {path}", err=True)
    if result.problem:
        click.echo(result.problem, err=True)
    if as_json:
        click.echo(json.dumps(result.report))
    sys.exit(1 if result.problem else 0)


def _plan(prompts: tuple[Prompt, ...], options: dict[str, Any]) -> Plan:
    """Return the options as a plan: who votes on what, and which prompts are held out."""
    from thumbwise.training.data.prompts import rehearsal_split, seed_prompts
    from thumbwise.training.rehearsal.raters import Voting
    from thumbwise.training.rehearsal.steps import Plan
    from thumbwise.training.rehearsal.win_rates import Wanted

    voters, held_out = rehearsal_split(prompts)
    ours = {prompt.messages[-1]["content"] for prompt in seed_prompts()}  # PPO starts rollouts from these
    held_out = tuple(prompt for prompt in held_out if prompt.messages[-1]["content"] not in ours)[:200]
    if len(held_out) < LEAST_HELD_OUT:
        raise ThumbwiseError(
            f"Only {len(held_out)} prompts can be held out for the judgement, and {LEAST_HELD_OUT} are needed: give "
            "more prompts or more groups, other than those that Thumbwise itself trains on."
        )
    voting = {name: options[name] for name in ("kind", "votes", "noise", "rank_k", "raters", "adversarial", "seed")}
    plan = Plan(
        judge=options["judge"], voting=Voting(**voting), voters=voters, held_out=held_out, rounds=options["rounds"],
        algorithm=options["algorithm"], max_tokens=options["max_tokens"], chat_tokens=options["chat_tokens"],
    )  # fmt: skip
    return replace(plan, wanted=Wanted.at(len(held_out), plan.tokens))
