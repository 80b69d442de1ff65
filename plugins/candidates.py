"""Which versions a comparison shows, unless another plugin decides: stable against the canary, or the one before.

Half of the comparisons are two samples of the stable version. They teach the reward model what its replies differ in.
The other half show whether the last swap was an improvement. With one live version, all are samples of it.

Left out: choosing by uncertainty, which needs the reward model in the serving process.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from thumbwise import hookimpl


@hookimpl(trylast=True)
def select_candidates(versions: Sequence[str], k: int, rng: random.Random) -> list[str]:
    """Return k versions; `versions` lists the live ones, stable first."""
    stable, *others = versions
    if not others or rng.random() < 0.5:
        return [stable] * k
    return [stable if i % 2 == 0 else others[0] for i in range(k)]
