"""How long replies may be: as long as those were that people judged.

A reward model knows about replies like those that people voted on. So rollouts, the replies on which the reward is
scaled, and the gates' replies have limits drawn from the votes' own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from thumbwise.contracts import Prompt, RunContext


def at_lengths(context: RunContext, prompts: Sequence[Prompt], rng: random.Random) -> list[Prompt]:
    """`prompts`, each with a limit of its reply's tokens drawn from `context.lengths` (or the run's `max_tokens`)."""
    lengths = context.lengths or (context.max_tokens,)
    return [replace(prompt, max_tokens=rng.choice(lengths)) for prompt in prompts]
