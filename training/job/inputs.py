"""The first stages of a round: the snapshot, then the model, the prompts of rollouts, and the gates' questions."""

from __future__ import annotations

from collections.abc import Sequence

from thumbwise.contracts import Prompt, RunContext
from thumbwise.errors import ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.feedback.records import sha256
from thumbwise.home import write_durably
from thumbwise.training.backbone.backbone import Backbone
from thumbwise.training.data.prompts import keep_prompts, our_prompts
from thumbwise.training.data.snapshot import Snapshot, parse, split_prompts
from thumbwise.training.evaluation.evaluate import Interview, interview
from thumbwise.training.job.requirements import corrections_aside_sentence, other_votes_sentence, set_aside_sentence
from thumbwise.training.policy.ptx import keep_file
from thumbwise.training.reward.shaping import named_backend
from thumbwise.training.run.folders import SNAPSHOT
from thumbwise.training.run.work import Work


def fetch_snapshot(work: Work) -> Snapshot:
    """The votes that the run was given, without those beyond one person's part. They are kept in the run's folder."""
    work.progress.stage("snapshot")
    path = work.folder / SNAPSHOT
    if not path.exists() or sha256(path.read_bytes()) != work.given.snapshot_id:
        write_durably(path, work.client.snapshot(work.given.snapshot_id), mode=0o600)
    fault_point("snapshot")
    snapshot = parse(path.read_bytes()).heard(work.settings.train)
    if snapshot.aside:
        work.progress.say(set_aside_sentence(snapshot.aside))
    if snapshot.corrections_aside:
        work.progress.say(corrections_aside_sentence(snapshot.corrections_aside))
    otherwise = snapshot.otherwise(work.settings.train, work.sampling)
    if any(otherwise):
        work.progress.say(other_votes_sentence(otherwise, work.sampling))
    return snapshot


def open_model(work: Work, snapshot: Snapshot) -> tuple[RunContext, Interview]:
    """The model, the prompts of rollouts, and the questions made from the held-out prompts."""
    train, gates = work.settings.train, work.settings.gates
    keep_file(train, work.folder)
    keep_prompts(train, work.folder)
    work.progress.stage("base model")
    prepared = work.prepare_model(work.home, work.given.model)
    if prepared.digest != work.given.base_digest:
        raise ThumbwiseError(
            f"The base model in {prepared.folder} is not the one that is served: restart the assistant, or "
            "remove the folder so that it is made again."
        )
    work.model_name = prepared.name
    backbone = Backbone(prepared.folder, train, work.settings.chat_template_kwargs, snapshot.day)
    backbone.told = work.progress.part
    most = train.max_prompt_tokens
    own, given = _short(snapshot.prompts, backbone, most), our_prompts(train, work.folder)
    ours = _short(given, backbone, most)
    if left := len(given) - len(ours):
        work.progress.say(f"Prompts from files, left out as over {most} tokens (train.max_prompt_tokens): {left}.")
    taught = frozenset(d.group for d in snapshot.demonstrations if snapshot.sft(train))
    split = split_prompts(own, ours, gates.held_out, gates.prompts, train.seed, taught, snapshot.labels.young)
    if not split.held_out or not (split.own or split.seeds):
        raise ThumbwiseError(
            "There are too few prompts to start rollouts from some and hold others out for the gates: set "
            "train.packaged_prompts, give more with `train --prompts FILE`, or wait until people have asked more."
        )
    context = RunContext(
        backbone=backbone,
        train=train,
        temperature=work.given.temperature,
        max_tokens=work.given.max_tokens,
        prompts=split.own,
        seed_prompts=split.seeds,
        folder=work.folder,
        lengths=snapshot.lengths(train, work.sampling),
    )
    backend = named_backend(train.rollouts, work.plugins.get("rollout_backends", train.rollouts))
    questions = interview(context, backend, split.held_out, gates, work.settings.chat_max_tokens)
    return context.with_rollouts(backend), questions


def _short(prompts: Sequence[Prompt], backbone: Backbone, most: int) -> list[Prompt]:
    """The prompts of at most `most` tokens: rollouts may start from them."""
    return [prompt for prompt in prompts if len(backbone.chat.prompt_ids(prompt.messages)) <= most]
