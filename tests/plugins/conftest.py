"""The tiny model, and policy algorithms on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import make_layout
from tiny_model import make_tiny_model
from toy_policy import make_context

from thumbwise.contracts import Reward
from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginManager


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Callable[..., Any]:
    """An algorithm (its class or its name) on a backbone of its own, with the settings SMALL of the test file.

    Keywords change these; `layout` names another model.
    """

    def made(algorithm: Any, reward: Reward, layout: str = "", **changes: Any) -> Any:
        if isinstance(algorithm, str):
            algorithm = PluginManager(Home.find(tmp_path / "home")).load().get("policy_algorithms", algorithm)
        folder = make_layout(layout, tmp_path / "model") if layout else model
        train = request.module.SMALL.model_copy(update=changes)
        return algorithm(make_context(folder, tmp_path, train), reward)

    return made
