"""The contract of every hook: documented, called with what it declares, and safe to call."""

from __future__ import annotations

import ast
import inspect
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_files import EVERY_HOOK, info, load, put

from thumbwise import hookspecs
from thumbwise.contracts import Sample, Scores
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host import deciding, observers
from thumbwise.plugin_host.manager import PluginManager

README = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
SAMPLE = Sample((), "Hi.", (1,), (2,), "stop", "policy-0000")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path / "home")


def signatures() -> dict[str, str]:
    tree = ast.parse(inspect.getsource(hookspecs))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name: f"{f.name}({ast.unparse(f.args)}) -> {ast.unparse(f.returns)}" for f in found if f.returns}


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    sheet = README.replace("\\|", "|")
    assert [line for line in signatures().values() if f"| `{line}` |" not in sheet] == []


def test_every_hook_is_called_with_what_it_declares(home: Home) -> None:
    put(home, "every", EVERY_HOOK)
    manager = PluginManager(home, ())
    calls: dict[str, dict[str, Any]] = {}
    manager.pluggy.add_hookcall_monitoring(
        lambda name, methods, kwargs: calls.update({name: dict(kwargs)}) if methods else None,
        lambda outcome, name, methods, kwargs: None,
    )
    manager.load()
    manager.notify("on_feedback", event={"kind": "thumb"})
    manager.notify("on_promote", old="a", new="b", reason="passed")
    manager.notify("on_rollback", old="b", new="a", reason="by hand")
    assert manager.observers.drain()
    shaped = manager.shape([SAMPLE], Scores(np.array([2.0], np.float32)), 3)
    chosen = manager.candidates([], ["a", "b"], 2, random.Random(0))

    assert calls.keys() == signatures().keys()
    for name, kwargs in calls.items():
        assert list(kwargs) == list(inspect.signature(getattr(hookspecs, name)).parameters), name
    assert sys.modules["thumbwise_file_every"].seen == [
        {"kind": "thumb"},
        ("a", "b", "passed"),
        ("a", "b", "by hand"),
    ]
    assert shaped.value.tolist() == [6.0]
    assert chosen == ["b", "b"]
    assert info(manager, "every").hooks == tuple(sorted(signatures()))
    assert [list(manager.registry(kind)) for kind in info(manager, "every").provides] == [
        ["one"],
        ["two"],
        ["three"],
        ["four"],
        ["five"],
    ]


def test_an_observer_that_raises_is_logged_and_the_next_one_is_called(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    put(home, "a_sees", EVERY_HOOK.replace("register(", "print("))
    put(home, "b_raises", "from thumbwise import hookimpl\n\n@hookimpl\ndef on_feedback(event):\n    1 / 0\n")
    manager = load(home)
    manager.notify("on_feedback", event={"kind": "pair"})
    assert manager.observers.drain()
    assert "plugin b_raises failed in on_feedback" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert sys.modules["thumbwise_file_a_sees"].seen == [{"kind": "pair"}]


def test_an_observer_that_is_slow_keeps_nobody_waiting_and_hears_all_in_order(home: Home) -> None:
    put(
        home,
        "slow",
        "import threading\nfrom thumbwise import hookimpl\n\ngo, seen = threading.Event(), []\n\n"
        "@hookimpl\ndef on_feedback(event):\n    go.wait()\n    seen.append(event)\n",
    )
    manager = load(home)
    for n in range(3):
        manager.notify("on_feedback", event={"n": n})
    assert not manager.observers.drain(0.01)
    plugin = sys.modules["thumbwise_file_slow"]
    assert plugin.seen == []
    plugin.go.set()
    assert manager.observers.drain()
    assert plugin.seen == [{"n": 0}, {"n": 1}, {"n": 2}]


class NoThreads:
    """`threading` on a machine that can start no thread now."""

    Lock, Event = threading.Lock, threading.Event

    class Thread:
        def __init__(self, **options: object) -> None:
            pass

        def start(self) -> None:
            raise RuntimeError("can't start new thread")


def test_what_no_thread_could_be_started_for_is_told_with_the_next_event(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(home, "every", EVERY_HOOK)
    manager = load(home)
    with monkeypatch.context() as context:
        context.setattr(observers, "threading", NoThreads)
        manager.notify("on_feedback", event={"n": 0})
    manager.notify("on_feedback", event={"n": 1})
    assert manager.observers.drain()
    assert sys.modules["thumbwise_file_every"].seen == [{"n": 0}, {"n": 1}]


async def test_a_question_for_which_no_thread_could_be_started_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = deciding.Deciding()
    with monkeypatch.context() as context:
        context.setattr(deciding, "threading", NoThreads)
        for _ in range(deciding.PLACES):
            with pytest.raises(RuntimeError, match="new thread"):
                await asked.ask(list, 60)
    assert await asked.ask(list, 60) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", r"Plugin wrong failed in select_candidates \(ZeroDivisionError: division by zero\)"),
        ("return ['x', 'a']", r"Plugin wrong chose \['x', 'a'\] to compare, and not 2 of a, b"),
        ("return ['a']", r"Plugin wrong chose \['a'\]"),
        ("return 3", r"Plugin wrong failed in select_candidates \(TypeError"),
    ],
)
def test_a_plugin_that_cannot_choose_is_named(home: Home, body: str, said: str) -> None:
    put(home, "wrong", f"from thumbwise import hookimpl\n\n@hookimpl\ndef select_candidates():\n    {body}\n")
    with pytest.raises(ThumbwiseError, match=said) as caught:
        load(home).candidates([], ["a", "b"], 2, random.Random(0))
    assert caught.value.status == 500


def shaper(body: str) -> str:
    head = "import numpy as np\nfrom thumbwise import hookimpl\nfrom thumbwise.contracts import Scores\n\n@hookimpl\n"
    return f"{head}def shape_reward(samples, scores):\n    {body}\n"


def test_reward_shapers_chain_and_none_leaves_the_scores(home: Home) -> None:
    put(home, "a_doubles", shaper("return Scores(scores.value * 2, scores.std)"))
    put(home, "b_abstains", shaper("return None"))
    put(home, "c_adds", shaper("return Scores(scores.value + 1, scores.std)"))
    scores = Scores(np.array([1.0, np.nan], np.float32), np.array([0.5, 0.5], np.float32))
    shaped = load(home).shape([SAMPLE, SAMPLE], scores, None)
    assert shaped.value[0] == 4.0  # (1 + 1) * 2: the plugin loaded last goes first
    assert np.isnan(shaped.value[1])
    assert shaped.std is scores.std


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return Scores(scores.value[:1])", r"returned values of shape \(1,\)"),
        ("return Scores(scores.value, scores.value[:1])", r"returned deviations of shape \(1,\)"),
        ("return scores.value", "returned ndarray"),
        ("raise KeyError('lexicon')", "failed in shape_reward .KeyError: 'lexicon'"),
    ],
)
def test_a_shaper_that_raises_or_changes_the_length_is_named(home: Home, body: str, what: str) -> None:
    put(home, "bad", shaper(body))
    with pytest.raises(ThumbwiseError, match=f"Plugin bad {what}"):
        load(home).shape([SAMPLE, SAMPLE], Scores(np.zeros(2, np.float32)), None)
