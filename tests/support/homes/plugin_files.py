"""Plugin files to put into a home, and how to load them."""

from __future__ import annotations

from thumbwise.home import Home
from thumbwise.plugin_host.manager import PluginInfo, PluginManager

JUDGES = ("thumbwise.plugins.judges",)

BRIEF = """
from thumbwise import hookimpl

def brief(prompt, responses):
    return [-len(response.split()) for response in responses]

@hookimpl
def register_judges(register):
    register("brief", brief)
"""

EVERY_HOOK = """
from thumbwise import hookimpl
from thumbwise.contracts import Scores

seen = []

@hookimpl
def register_judges(register):
    register("one", lambda prompt, responses: [1.0])

@hookimpl
def register_reward_models(register):
    register("two", lambda context: None)

@hookimpl
def register_policy_algorithms(register):
    register("three", lambda context, reward: None)

@hookimpl
def register_rollout_backends(register):
    register("four", lambda context: None)

@hookimpl
def register_gates(register):
    register("five", lambda evidence: None)

@hookimpl
def select_candidates(conversation, versions, k, rng):
    return [versions[-1]] * k

@hookimpl
def shape_reward(samples, scores, context):
    return Scores(scores.value * context)

@hookimpl
def on_feedback(event):
    seen.append(event)

@hookimpl
def on_promote(old, new, reason):
    seen.append((old, new, reason))

@hookimpl
def on_rollback(old, new, reason):
    seen.append((new, old, reason))
"""


def put(home: Home, name: str, source: str) -> None:
    path = home.plugins / f"{name}.py"
    path.write_text(source)
    path.chmod(0o600)


def load(home: Home) -> PluginManager:
    return PluginManager(home, JUDGES).load(quiet=True)


def info(manager: PluginManager, name: str) -> PluginInfo:
    (found,) = (info for info in manager.list() if info.name == name)
    return found
