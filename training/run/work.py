"""What the stages of a round share: what the run was given, its folder, and the client of its assistant."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from thumbwise.base_model.prepare import PreparedModel
from thumbwise.home import Home
from thumbwise.names import BASE
from thumbwise.plugin_host.manager import PluginManager
from thumbwise.settings import Settings
from thumbwise.training.data.votes import Sampling
from thumbwise.training.run.client import Lease, OpsClient, Run
from thumbwise.training.run.progress import RunProgress


@dataclass
class Work:
    """One round's state, which every stage gets."""

    home: Home
    settings: Settings
    algorithm: str
    plugins: PluginManager
    client: OpsClient
    given: Run
    lease: Lease
    folder: Path
    progress: RunProgress
    prepare_model: Callable[[Home, str], PreparedModel]
    model_name: str = ""
    new_votes: bool = False

    @property
    def begun_from(self) -> str:
        """The version that the policy starts as a copy of. The KL is to it (before any SFT)."""
        begin = "base" if self.given.begin_at_base else self.settings.train.begin
        return self.given.stable if begin == "stable" else BASE

    @property
    def sampling(self) -> Sampling:
        """How the run samples. By this it tells which votes are on replies like its own."""
        return Sampling(self.given.temperature, self.given.max_tokens, self.settings.train.max_reply_tokens)


def seed_all(seed: int, iteration: int) -> None:
    """Set the global generators, so that a step depends on its number and not on what came before it."""
    number = seed * 100_003 + iteration
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
