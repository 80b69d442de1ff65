"""Length limits of replies: the same as those of the replies that people judged.

A reward model knows about replies like those that people voted on. So three kinds of replies get limits drawn from the
votes' own: rollouts, the replies on which the reward is scaled, and the gates' replies.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from thumbwise.contracts import Prompt, RunContext


def at_lengths(context: RunContext, prompts: Sequence[Prompt], rng: random.Random) -> list[Prompt]:
    """`prompts`, each with a token limit for its reply, drawn from `context.lengths` (or the run's `max_tokens`)."""
    lengths = context.lengths or (context.max_tokens,)
    return [replace(prompt, max_tokens=rng.choice(lengths)) for prompt in prompts]
