"""Reads a snapshot's bytes into labels and prompts, and decides which prompts are held out.

Nothing here encodes text again: replies keep the ids they were sampled with. Corrections never had ids;
`thumbwise.training.policy.sft` encodes them.

Prompts are split by group: a seed prompt's topic, or how a person's conversation began. The groups are in the order of
a hash, so mostly the same prompts stay held out as people say more. The split is by prompt alone: a person's votes may
be on both sides. Holding out people as well would leave a twenty-fifth of a few hundred votes in a fold.

Left out: comments. They are stored, but training does not learn from them yet.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np

from thumbwise.contracts import Comparison, Labels, Message, Prompt, Ranking, Sample, Thumb
from thumbwise.errors import ThumbwiseError
from thumbwise.settings.training import TrainSettings
from thumbwise.training.data import people
from thumbwise.training.data.votes import Sampling, alike, gather, heard, telling, votes_by_person

NO_DAY = date(2024, 7, 26)
"""The day of a snapshot that names none."""


@dataclass(frozen=True)
class Demonstration:
    """A reply as a person corrected it, under the name `user`. `group` keeps a prompt on one side of every split."""

    id: str
    user: str
    group: str
    prompt: tuple[Message, ...]
    text: str
    person: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What people said, and the prompts of people that rollouts may start from; see `heard`."""

    labels: Labels
    prompts: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    corrections_aside: int = 0
    day: date = NO_DAY
    """The last day on which somebody asked something new. A chat template that prints the date prints this one."""

    def heard(self, train: TrainSettings) -> Snapshot:
        """The snapshot without a person's votes and corrections beyond that person's part.

        If there are several people, the corrections of one person do not start SFT.
        """
        labels = heard(self.labels, train.thumb_weight, train.rm_rater_cap, train.min_votes)
        about = votes_by_person(self.labels)
        about.update(asked.person for asked in self.prompts)
        about.update(said.person for said in self.demonstrations)
        if people.alone(about):
            return replace(self, labels=labels)
        who = people.who(about, self.labels.young)

        def author(said: Demonstration) -> str:
            return who(said.person)

        parts = people.equal_parts(Counter(map(author, self.demonstrations)))
        taught = people.within(self.demonstrations, parts, author, lambda said: (said.user, said.id))
        aside = len(self.demonstrations) - len(taught)
        return replace(self, labels=labels, demonstrations=tuple(taught), corrections_aside=aside)

    @property
    def aside(self) -> dict[str, int]:
        """How many votes of each person were set aside, largest number first."""
        kept = votes_by_person(replace(self.labels, given={}))
        return dict((Counter(self.labels.given) - kept).most_common())

    def telling(self, train: TrainSettings, sampling: Sampling) -> int:
        """How many votes say which reply is better, on replies sampled as the run samples.

        train.min_votes is compared with their number.
        """
        return telling(alike(self.labels, sampling), train.thumb_weight)

    def otherwise(self, train: TrainSettings, sampling: Sampling) -> tuple[int, int]:
        """How many more votes say so, on replies sampled with other settings, and on replies that are too long."""
        any_length = alike(self.labels, replace(sampling, longest=sys.maxsize))
        with_them = telling(any_length, train.thumb_weight)
        too_long = with_them - self.telling(train, sampling)
        return telling(self.labels, train.thumb_weight) - with_them, too_long

    def lengths(self, train: TrainSettings, sampling: Sampling) -> tuple[int, ...]:
        """The token limit of each reply whose votes count for the accuracy."""
        samples, votes = gather(self.labels, train.thumb_weight, sampling)
        rows = np.concatenate([votes.left[votes.telling], votes.right[votes.telling]])
        return tuple(sampling.limit(samples[row]) for row in np.unique(rows[rows >= 0]).tolist())

    def drafts(self, version: str, sampling: Sampling) -> list[Sample]:
        """The replies of `version` that people judged and that were sampled as the run samples; each once.

        Replies with a higher token limit than a rollout are left out: only the short ones among them would be alike.
        """
        judged, _ = gather(self.labels, thumb_weight=1.0)
        return [
            draft
            for draft in judged
            if draft.policy_version == version and sampling.alike(draft) and sampling.asked(draft) <= sampling.longest
        ]

    def sft(self, train: TrainSettings) -> bool:
        """Whether there are enough corrected replies for a round to begin with SFT."""
        return len(self.demonstrations) >= train.sft_demonstrations

    @property
    def n_labels(self) -> int:
        """Comparisons and rankings (ties too), and thumbs."""
        return len(self.labels.comparisons) + len(self.labels.rankings) + len(self.labels.thumbs)


def parse(data: bytes) -> Snapshot:
    """Read a snapshot (one JSON object a line); raises ThumbwiseError for a line that is not one."""
    comparisons: list[Comparison] = []
    thumbs: list[Thumb] = []
    rankings: list[Ranking] = []
    demonstrations: list[Demonstration] = []
    prompts: dict[tuple[tuple[str, str], ...], Prompt] = {}
    days: list[date] = []
    young: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), 1):  # not splitlines: JSON strings may hold U+2028
        if not line:
            continue
        try:
            row = json.loads(line)
            messages = _messages(row["prompt"])
            young |= {_person(row)} if row.get("young") else set()
            if row["type"] == "comparison":
                comparisons.append(_comparison(row, messages))
            elif row["type"] == "thumb":
                reply = _sample(row["reply"], messages)
                thumbs.append(Thumb(*_by(row), reply, bool(row["up"]), person=_person(row)))
            elif row["type"] == "ranking":
                drafts = tuple(_sample(draft, messages) for draft in row["drafts"])
                rankings.append(Ranking(*_by(row), drafts, _tiers(row["tiers"], drafts), person=_person(row)))
            elif row["type"] == "demonstration":
                if row["text"].strip():  # older versions accepted blank ones; they teach nothing
                    demonstrations.append(Demonstration(*_by(row), messages, row["text"], person=_person(row)))
            elif row["type"] == "prompt":
                asked = Prompt(messages, row["group"], _person(row), row["user"], id=row.get("id", ""))
                prompts.setdefault(_key(messages), asked)
                days += [date.fromisoformat(row["day"])] if "day" in row else []
        except (ValueError, KeyError, TypeError) as error:
            raise ThumbwiseError(
                f"Line {number} of the snapshot cannot be read ({type(error).__name__}: {error}); the assistant and "
                "the training job are probably of different versions: install the same one."
            ) from None
    labels = Labels(tuple(comparisons), tuple(thumbs), tuple(rankings), young=frozenset(young))
    return Snapshot(labels, tuple(prompts.values()), tuple(demonstrations), day=max(days, default=NO_DAY))


def _comparison(row: dict[str, Any], messages: tuple[Message, ...]) -> Comparison:
    left, right = _sample(row["left"], messages), _sample(row["right"], messages)
    choice = row["choice"]
    if choice not in ("left", "right", "tie", "both_bad"):
        raise ValueError(f"choice {choice!r}")
    return Comparison(*_by(row), left, right, choice, int(row["strength"]), person=_person(row))


def _by(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["id"], row["user"], row["group"]


def _person(row: dict[str, Any]) -> str:
    """The person that a line counts as. A resumed run may have an old snapshot, in which each name was a person."""
    return str(row.get("person", row["user"]))


def _tiers(tiers: Sequence[int], drafts: Sequence[Sample]) -> tuple[int, ...]:
    if len(tiers) != len(drafts):
        raise ValueError(f"{len(tiers)} tiers for {len(drafts)} drafts")
    return tuple(int(tier) for tier in tiers)


def _sample(row: dict[str, Any], messages: tuple[Message, ...]) -> Sample:
    return Sample(
        prompt=messages,
        response=row["text"],
        prompt_ids=tuple(row["prompt_ids"]),
        response_ids=tuple(row["response_ids"]),
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        meta={"id": row["id"], "sampling": row["sampling"]},
    )


def _messages(rows: Sequence[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=row["role"], content=row["content"]) for row in rows)  # type: ignore[typeddict-item]


def _key(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in messages)


@dataclass(frozen=True)
class PromptSplit:
    """Prompts that rollouts may start from, people's and ours, and the held-out ones that gates use."""

    own: tuple[Prompt, ...]
    seeds: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]


def split_prompts(
    own: Sequence[Prompt], seeds: Sequence[Prompt], share: float, wanted: int, seed: int,
    taught: frozenset[str] = frozenset(), young: frozenset[str] = frozenset(),
) -> PromptSplit:  # fmt: skip
    """Hold out `share` of the groups. Of their prompts keep `wanted`, half of them people's if there are enough.

    No group is on both sides. A seed prompt that a person also wrote counts as that person's. The groups `taught`,
    which SFT learns from, are not held out. If there are several people, nobody has more than a part of either side.
    """
    theirs = {_key(p.messages) for p in own}
    about = Counter(prompt.person for prompt in own)
    sides = _by_group(own, share, seed, taught)
    own_in, own_out = sides if people.alone(about) else (_parts(side, people.who(about, young)) for side in sides)
    seeds_in, seeds_out = _by_group([p for p in seeds if _key(p.messages) not in theirs], share, seed, taught)
    n_own = min(len(own_out), max(wanted // 2, wanted - len(seeds_out)))
    return PromptSplit(own_in, seeds_in, own_out[:n_own] + seeds_out[: wanted - n_own])


def _parts(prompts: Sequence[Prompt], who: Callable[[str], str]) -> tuple[Prompt, ...]:
    def asker(prompt: Prompt) -> str:
        return who(prompt.person)

    parts = people.equal_parts(Counter(map(asker, prompts)))
    return tuple(people.within(prompts, parts, asker, lambda p: (p.user, json.dumps(_key(p.messages)))))


def _by_group(
    prompts: Sequence[Prompt], share: float, seed: int, taught: frozenset[str]
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    def order(text: str) -> str:
        return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()

    groups = sorted({p.group for p in prompts} - taught, key=order)
    out = set(groups[: round(share * len(groups))])
    shuffled = sorted(prompts, key=lambda p: order(json.dumps(_key(p.messages))))
    return tuple(p for p in prompts if p.group not in out), tuple(p for p in shuffled if p.group in out)


def folds(groups: Sequence[str], k: int, seed: int) -> list[int]:
    """A fold number for every vote: votes on one prompt group share it, and folds are of about equal size."""
    sizes = [0] * k
    counts: dict[str, int] = {}
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    chosen: dict[str, int] = {}
    shuffled = sorted(counts, key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).hexdigest())
    for group in sorted(shuffled, key=lambda g: -counts[g]):
        chosen[group] = sizes.index(min(sizes))
        sizes[chosen[group]] += counts[group]
    return [chosen[group] for group in groups]
