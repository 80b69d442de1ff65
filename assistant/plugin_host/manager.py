"""Find, load and isolate plugins; keep what they registered.

Plugins come from three sources, loaded in this order through the same hooks:

1. the built-ins (BUILTINS);
2. Python files in the home's `plugins/`: on, unless others could have written them;
3. entry points of the group `thumbwise`: off until `thumbwise plugins enable`. A package that is only installed is not
   even imported.

A plugin that fails is removed whole, with all that it registered, and listed with the reason. The others keep working.
Left out: reloading in a running process (restart it), and a sandbox (a plugin runs with the operator's rights).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pluggy

from thumbwise import __version__, hookspecs
from thumbwise.contracts import Message, Sample, Scores
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.home import Home
from thumbwise.plugin_host.deciding import Deciding
from thumbwise.plugin_host.observers import Observers
from thumbwise.plugin_host.scores import wrong_with
from thumbwise.plugin_host.sources import enabled, installed, interrupts, output_to_stderr, read_trusted, run_file

logger = logging.getLogger(__name__)

BUILTINS = (
    "thumbwise.plugins.judges",
    "thumbwise.plugins.bradley_terry",
    "thumbwise.plugins.ppo",
    "thumbwise.plugins.best_of_n",
    "thumbwise.plugins.dpo",
    "thumbwise.plugins.kto",
    "thumbwise.plugins.rloo",
    "thumbwise.plugins.gates",
    "thumbwise.plugins.candidates",
)
KINDS = {
    "judges": "judge",
    "reward_models": "reward model",
    "policy_algorithms": "policy algorithm",
    "rollout_backends": "rollout backend",
    "gates": "gate",
}
"""What can be registered: the suffix of the hook `register_<kind>`, and its name in sentences."""

Registry = dict[str, Callable[..., Any]]
Source = Literal["builtin", "file", "entry point"]


@dataclass(frozen=True)
class PluginInfo:
    """One plugin as `thumbwise plugins list` shows it.

    `reason` says why it is not on, and what to do. `version` is the distribution's version, or for a file the start of
    its SHA-256. `provides` maps a kind to the registered names.
    """

    name: str
    source: Source
    status: Literal["on", "off", "failed"]
    reason: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    traceback: str = ""


Infos = list[PluginInfo]  # named here, because `list` is a method below


class PluginManager:
    """The loaded plugins of one home: `PluginManager(home).load()`, once.

    `judges`, `reward_models`, `policy_algorithms`, `rollout_backends` and `gates` map names to what was registered.
    `hook` is pluggy's relay for the decision hooks.
    """

    def __init__(self, home: Home, builtins: Sequence[str] = BUILTINS) -> None:
        self.home = home
        self.builtins = tuple(builtins)
        self.judges: Registry = {}
        self.reward_models: Registry = {}
        self.policy_algorithms: Registry = {}
        self.rollout_backends: Registry = {}
        self.gates: Registry = {}
        self.pluggy = pluggy.PluginManager("thumbwise")
        self.pluggy.add_hookspecs(hookspecs)
        self.hook = self.pluggy.hook
        self._owners: dict[tuple[str, str], str] = {}  # (kind, registered name) -> plugin name
        self._infos: list[PluginInfo] = []
        self.observers = Observers()
        self.deciding = Deciding()

    def get(self, kind: str, name: str) -> Callable[..., Any]:
        """Return what is registered as `name`; `kind` is a key of KINDS. Raises NotFound, with the known names."""
        known = self.registry(kind)
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise NotFound(
                f"There is no {KINDS[kind]} named {name!r} (known: {names}); `thumbwise plugins list` shows "
                "what is loaded and what failed."
            )
        return known[name]

    def check_training(self, reward: str, algorithm: str, rollouts: str) -> None:
        """Raise NotFound if something that a run needs is not registered (`auto` needs only built-ins)."""
        if algorithm != "auto":
            self.get("policy_algorithms", algorithm)
        self.get("reward_models", reward)
        self.get("rollout_backends", rollouts)

    def registry(self, kind: str) -> Registry:
        """Return everything registered of one kind, a key of KINDS, by name."""
        found: Registry = getattr(self, kind)
        return found

    def owners(self, kind: str) -> dict[str, str]:
        """Return which plugin registered each name of one kind, a key of KINDS."""
        return {name: plugin for (of, name), plugin in self._owners.items() if of == kind}

    def list(self) -> Infos:
        """Return every plugin found, in the order of loading."""
        return [*self._infos]

    def load(self, *, quiet: bool = False) -> Self:
        """Load everything, once; failures are listed and, unless `quiet`, logged, never raised."""
        self.load_builtins()
        for path in sorted(self.home.plugins.glob("[!_.]*.py")):
            self._load_file(path)
        self._load_entry_points()
        for info in self._infos:
            if info.status == "failed" and not quiet:
                logger.warning("plugin %s (%s) failed and is off: %s", info.name, info.source, info.reason)
        return self

    def load_builtins(self) -> None:
        """Load the built-in plugins only (`load` does this first)."""
        for module in self.builtins:
            self._add(module.rpartition(".")[2], "builtin", __version__, _importer(module))

    def load_source(self, path: Path, source: bytes) -> PluginInfo:
        """Load one plugin file whose content is `source` (this runs it), and return the result."""
        version = "sha256:" + hashlib.sha256(source).hexdigest()[:12]
        return self._add(path.stem, "file", version, lambda: run_file(path, source))

    def _load_file(self, path: Path) -> None:
        try:
            source = read_trusted(path)
        except (OSError, ThumbwiseError) as error:
            self._infos.append(PluginInfo(path.stem, "file", "failed", _one_line(error)))
        else:
            self.load_source(path, source)

    def notify(self, hook_name: str, **event: Any) -> None:
        """Have `observers` call every implementation of an observer hook, in order; returns at once."""
        self.observers.tell(lambda: self._notify(hook_name, event))

    def _notify(self, hook_name: str, event: dict[str, Any]) -> None:
        """Call each; an exception is logged with the plugin's name."""
        for name, plugin in self._implementers(hook_name):
            try:
                self._call(hook_name, plugin, **event)
            except Exception:
                logger.exception("plugin %s failed in %s; the others continue", name, hook_name)

    async def choose(
        self, conversation: Sequence[Message], live: Sequence[str], k: int, rng: random.Random, seconds: float
    ) -> Sequence[str]:
        """As `candidates`, in a thread; also raises ThumbwiseError (500) if that takes more than `seconds`."""
        asked: list[str] = []
        try:
            return await self.deciding.ask(lambda: self.candidates(conversation, live, k, rng, asked.append), seconds)
        except TimeoutError:  # `asked` is empty if calls that hang have all the places
            names = asked[-1:] or [name for name, _ in self._implementers("select_candidates")]
            raise ThumbwiseError(
                f"Plugin {' or '.join(names)} took more than {seconds:g} seconds in select_candidates (setting "
                "plugin_seconds): repair or remove it.",
                status=500,
            ) from None

    def candidates(
        self,
        conversation: Sequence[Message],
        live: Sequence[str],
        k: int,
        rng: random.Random,
        asking: Callable[[str], None] = lambda name: None,
    ) -> Sequence[str]:
        """The k of the versions `live` to compare: the first answer of `select_candidates` that is not None.

        Raises ThumbwiseError (500) that names the plugin which raised, or which made a choice that is not allowed.
        Blocks as long as the plugins do. `asking` is called with each plugin's name before the plugin is.
        """
        for name, plugin in self._implementers("select_candidates"):
            asking(name)
            try:
                answer = self._call(
                    "select_candidates", plugin, conversation=conversation, versions=live, k=k, rng=rng
                )  # fmt: skip
                chosen = None if answer is None else list(answer)
            except Exception as error:
                logger.exception("plugin %s failed in select_candidates", name)
                said = f"Plugin {name} failed in select_candidates ({_one_line(error)}): repair or remove it."
                raise ThumbwiseError(said, status=500) from error
            if chosen is None:
                continue
            if len(chosen) != k or not set(chosen) <= set(live):
                said = (
                    f"Plugin {name} chose {chosen!r} to compare, and not {k} of {', '.join(live)}: repair or remove it."
                )
                raise ThumbwiseError(said, status=500)
            return chosen
        raise ThumbwiseError("No plugin chooses versions to compare: look at `thumbwise plugins list`.", status=500)

    def shape(self, samples: Sequence[Sample], scores: Scores, context: Any) -> Scores:
        """Pass scores (f32[N] for N samples) through every `shape_reward`; each gets the result of the one before.

        The order is pluggy's: the plugin that was loaded last goes first; `tryfirst` and `trylast` are honoured.
        Raises ThumbwiseError that names the plugin which raised, or which returned another length.
        """
        for name, plugin in self._implementers("shape_reward"):
            try:
                results = self._call("shape_reward", plugin, samples=samples, scores=scores, context=context)
            except Exception as error:
                raise ThumbwiseError(
                    f"Plugin {name} failed in shape_reward ({_one_line(error)}): repair or remove it."
                ) from error
            if results:
                scores = _checked_scores(name, results[-1], len(samples))
        return scores

    def _call(self, hook_name: str, plugin: object, **arguments: Any) -> Any:
        """Call one plugin's implementation through pluggy, so that hook-call monitoring sees it."""
        others = [other for other in self.pluggy.get_plugins() if other is not plugin]
        return self.pluggy.subset_hook_caller(hook_name, others)(**arguments)

    def _implementers(self, hook_name: str) -> Iterator[tuple[str, object]]:
        for impl in reversed(getattr(self.hook, hook_name).get_hookimpls()):
            yield impl.plugin_name, impl.plugin

    def _add(self, name: str, source: Source, version: str, load: Callable[[], object]) -> PluginInfo:
        """Load one plugin, or remove it whole if it fails; in both cases it is listed."""
        with output_to_stderr(), interrupts() as interrupted:
            info = self._loaded(name, source, version, load, interrupted)
        self._infos.append(info)
        return info

    def _loaded(
        self, name: str, source: Source, version: str, load: Callable[[], object], interrupted: Callable[[], bool]
    ) -> PluginInfo:
        try:
            if self.pluggy.has_plugin(name):
                other = next(i for i in self._infos if i.name == name and i.status == "on")
                raise ThumbwiseError(f"a {other.source} plugin is named {name} too: rename this one")
            plugin = load()
            try:
                self.pluggy.register(plugin, name)
                hooks = self._checked_hooks(plugin)
                provides = self._collect(name, plugin)
            except BaseException:
                if self.pluggy.has_plugin(name):
                    self.pluggy.unregister(name=name)
                raise
            return PluginInfo(name, source, "on", "", version, hooks, provides)
        except BaseException as error:
            if interrupted():
                raise
            trace = "" if isinstance(error, ThumbwiseError) else traceback.format_exc()
            return PluginInfo(name, source, "failed", _one_line(error), version, traceback=trace)

    def _checked_hooks(self, plugin: object) -> tuple[str, ...]:
        """Return the names of the hooks that `plugin` implements; a mistyped name, or no hook at all, is an error."""
        names = sorted(caller.name for caller in self.pluggy.get_hookcallers(plugin) or ())
        if not names:
            raise ThumbwiseError("it implements no hook: put @hookimpl before its functions")
        try:
            self.pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            known = [name for name, value in vars(hookspecs).items() if hasattr(value, "thumbwise_spec")]
            wrong = next(name for name in names if name not in known)
            near = difflib.get_close_matches(wrong, known, n=1, cutoff=0)[0]
            raise ThumbwiseError(f"there is no hook {wrong}: did you mean {near}?") from error
        return tuple(names)

    def _collect(self, name: str, plugin: object) -> dict[str, tuple[str, ...]]:
        """Call the plugin's registration hooks; what they register is kept only if all of them succeed."""
        staged: dict[str, Registry] = {}
        for kind in KINDS:
            if any(other is plugin for _, other in self._implementers(f"register_{kind}")):
                staged[kind] = {}
                self._call(f"register_{kind}", plugin, register=self._register(kind, name, staged[kind]))
        for kind, found in staged.items():
            self.registry(kind).update(found)
            self._owners.update({(kind, new): name for new in found})
        return {kind: tuple(found) for kind, found in staged.items()}

    def _register(self, kind: str, plugin: str, staged: Registry) -> Callable[[str, Callable[..., Any]], None]:
        def register(name: str, factory: Callable[..., Any]) -> None:
            if not isinstance(name, str) or not name.isprintable() or not name or " " in name:
                raise ThumbwiseError(f"a {KINDS[kind]}'s name must be a word, not {name!r}")
            if not callable(factory):
                raise ThumbwiseError(f"{KINDS[kind]} {name} must be a function or class, not {factory!r}")
            owner = plugin if name in staged else self._owners.get((kind, name))
            if owner:
                raise ThumbwiseError(
                    f"plugins {owner} and {plugin} both register a {KINDS[kind]} named {name}: rename one"
                )
            staged[name] = factory

        return register

    def _load_entry_points(self) -> None:
        found = installed()
        count = Counter(point.name for point in found)
        names, untrusted = [], ""
        try:
            names = enabled(self.home)
        except ThumbwiseError as error:
            untrusted = str(error)
        for point in found:
            version = point.dist.version if point.dist else ""
            if count[point.name] > 1:
                reason = f"several packages bring a plugin named {point.name}: uninstall all but one"
                self._infos.append(PluginInfo(point.name, "entry point", "failed", reason, version))
            elif point.name in names:
                self._add(point.name, "entry point", version, point.load)
            else:
                reason = untrusted or f"`thumbwise plugins enable {point.name}` turns it on"
                self._infos.append(PluginInfo(point.name, "entry point", "off", reason, version))
        for name in names:
            if name not in count:
                reason = f"it is not installed: install it, or `thumbwise plugins disable {name}`"
                self._infos.append(PluginInfo(name, "entry point", "failed", reason))


def _importer(module: str) -> Callable[[], object]:
    return lambda: importlib.import_module(module)


def _checked_scores(plugin: str, scores: object, n: int) -> Scores:
    if wrong := wrong_with(scores, n):
        raise ThumbwiseError(
            f"Plugin {plugin} returned {wrong} from shape_reward for {n} samples: return Scores with one number for "
            "each, or None."
        )
    assert isinstance(scores, Scores)
    return scores


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ThumbwiseError) else f"{type(error).__name__}: {text}".removesuffix(": ")
