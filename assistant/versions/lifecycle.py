"""Publish, load, probe, promote and roll back policy versions.

A version takes traffic only after a probe (`probes.py`). Promotion is one compare-and-set of the pointer, after every
server that answers people has loaded and probed; with a share, the version is a canary first, and `review` decides
what becomes of it. What takes long gives way to a rollback. Left out: shares that grow by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from thumbwise.base_model.weights import base_modules
from thumbwise.engine.probes import Probe, ask
from thumbwise.errors import Conflict, EngineFailed, EngineUnavailable, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.logs import event
from thumbwise.names import BASE
from thumbwise.versions import artifacts
from thumbwise.versions.canary import Judge
from thumbwise.versions.record import Pointer, Versions

if TYPE_CHECKING:
    from pathlib import Path

    from thumbwise.base_model.prepare import PreparedModel
    from thumbwise.engine.client import EngineClient
    from thumbwise.engine.external import Pool
    from thumbwise.home import Home
    from thumbwise.metrics import Metrics
    from thumbwise.plugin_host.manager import PluginManager
    from thumbwise.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class RolledBack(Exception):
    """A rollback came, and did not wait."""


class Policies:
    """Policy versions across the disk, the database and the engine."""

    def __init__(
        self,
        home: Home,
        settings: Settings,
        versions: Versions,
        plugins: PluginManager,
        metrics: Metrics,
    ) -> None:
        self.home = home
        self.settings = settings
        self.versions = versions
        self.plugins = plugins
        self.metrics = metrics
        self.model: PreparedModel | None = None
        self.engine: EngineClient | Pool | None = None
        self.warning = ""  # shown on the pages while something is not as it should be
        self._proved = {BASE}  # versions that were probed since a server was last started
        self._missing: str | None = None  # the version before the stable one, where it could not be loaded
        self._one_at_a_time = asyncio.Lock()
        self._judge = Judge(versions.store, settings.canary)
        self._rollbacks = 0  # that wait for their turn, or have it
        self._interruptible: asyncio.Future[Any] | None = None  # what a rollback does not wait for

    async def _change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Change the record, in a thread of the store's."""
        return await self.versions.store.run(work, *args, **kwargs)

    async def _until_rollback(self, work: Awaitable[T], own: int = 0) -> T:
        """What `work` returns, which may take long; where a rollback comes meanwhile it is dropped: RolledBack.

        `own` is 1 in a rollback, which another one may interrupt.
        """
        future: asyncio.Future[T] = asyncio.ensure_future(work)
        self._interruptible = future
        if self._rollbacks > own:
            future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise RolledBack from None
        finally:
            self._interruptible = None

    def folder(self, version: str) -> Path:
        """Where a version's files are."""
        return self.home.policies / version

    def attach(self, model: PreparedModel, engine: EngineClient | Pool) -> None:
        """Name the base model and the engine that versions are loaded into."""
        self.model, self.engine = model, engine

    def receive(self, version: str, files: dict[str, bytes], lease: str) -> None:
        """Validate and write a candidate's files (state `staged`); blocking, call it in a thread."""
        run_id = self.versions.runs.check_lease(lease)
        if self.model is None:
            raise ThumbwiseError("The base model is not ready yet: publish again in a minute.", status=503)
        try:
            manifest = artifacts.check(
                version,
                files,
                modules=base_modules(self.model.folder),
                base_digest=self.model.digest,
                max_rank=self.settings.engine.max_lora_rank,
            )
        except ThumbwiseError:
            self.metrics.rejections.inc()
            raise
        self.versions.runs.check_name(run_id, version, manifest["number"])
        artifacts.write(self.home.policies, version, files)
        self.versions.stage(manifest, run_id)

    async def load(self, version: str, engine: EngineClient) -> None:
        """Load a version into an engine; loading it once more is success."""
        if version == BASE:
            return
        await asyncio.to_thread(artifacts.verify, self.folder(version))
        await engine.load_adapter(version, self.folder(version))

    async def probe(self, version: str, engine: EngineClient) -> Probe:
        """Ask an engine for a version's log-probabilities; raises ThumbwiseError where they are not its own."""
        manifest = await asyncio.to_thread(artifacts.verify, self.folder(version))
        limit, count = self.settings.engine.probe_tolerance, self.metrics.probes.labels
        result = await ask(engine, version, manifest["probes"])
        count("passed" if result.to_trainer <= limit else "failed").inc()
        result.check(version, limit)
        return result

    async def promote(
        self,
        version: str,
        expect_stable: str,
        reason: str,
        share: float = 0.0,
        *,
        seen: Pointer | None = None,
        actor: str = "operator",
    ) -> Probe | None:
        """Load, probe, then make `version` stable if `expect_stable` still is. Returns the probe.

        With a `share` of people above 0 it becomes their canary instead; the base is none, and stable at once. Raises
        Conflict where the pointer moved (at all, where it was `seen`) or somebody rolls back meanwhile, ThumbwiseError
        (422) where the probe fails; the version is then marked rejected and the stable one goes on answering. A
        rejected one that was stable once may be tried again: what could not be restored is seldom its own fault.
        """
        async with self._one_at_a_time:
            if seen is not None and self.versions.pointer() != seen:
                raise Conflict(f"{version} was canary until the pointer moved: look at `thumbwise policies list`.")
            record = self.versions.get(version)
            if record.state == "stable" or (record.state == "canary" and share == self.versions.pointer().share):
                return None
            if record.state == "rejected" and not self.versions.was_stable(version):
                raise Conflict(f"{version} was rejected ({record.reason}) and cannot be promoted.")
            if self.versions.stable() != expect_stable:
                raise Conflict(f"{expect_stable} is no longer stable: look at `thumbwise policies list`.")
            try:
                probe = None if version == BASE else await self._prove(version)
                if self._rollbacks:
                    raise RolledBack
            except RolledBack:
                raise Conflict(
                    f"{version} was not promoted, because somebody rolled back meanwhile: look at `thumbwise policies "
                    "list`, and promote it again if you want it."
                ) from None
            if share > 0 and version != BASE:
                await self._change(self.versions.start_canary, version, expect_stable, share, reason, actor)
                said = f"{version} is canary for {share:.0%} of people now ({reason})"
                event(log, "canary", said, version=version, stable=expect_stable, share=share, reason=reason)
                return probe
            await self._change(self.versions.move_pointer, "promote", version, expect_stable, reason, actor)
            self.warning = ""
        self.metrics.swaps.inc()
        said = f"{version} is stable now, before it {expect_stable} ({reason})"
        event(log, "promote", said, version=version, old=expect_stable, reason=reason)
        self.plugins.notify("on_promote", old=expect_stable, new=version, reason=reason)
        return probe

    async def _prove(self, version: str) -> Probe:
        """Load and probe a version on every server; one that answers wrongly is rejected, also as a canary.

        Returns the probe that is furthest from the trainer.
        """
        engine = self._engine()
        try:
            await self._until_rollback(engine.on_each(lambda each: self.load(version, each)))
            fault_point("adapter_loaded")
            if self.versions.get(version).state == "staged":  # one that was in use is what it was until it is proved
                await self._change(self.versions.set_state, version, "loaded")
            probes = await self._until_rollback(engine.on_each(lambda each: self.probe(version, each)))
            fault_point("adapter_probed")
        except ThumbwiseError as error:
            if error.status == 422:
                await self._change(self.versions.withdraw_canary, version, str(error), "probe")
                await self.reject(version, str(error))
            raise
        self._proved.add(version)
        await self._change(self.versions.set_state, version, "probed")
        return max(probes, key=lambda probe: probe.to_trainer)

    async def reject(self, version: str, reason: str) -> None:
        """Mark a version that takes no traffic as rejected, with the reason kept."""
        if (state := self.versions.get(version).state) in ("stable", "canary"):
            raise Conflict(f"{version} is {state}: roll back first (`thumbwise policies rollback`).")
        await self._change(self.versions.set_state, version, "rejected", reason)
        self.metrics.rejections.inc()
        event(log, "reject", f"{version} is rejected ({reason})", version=version, reason=reason)

    async def review(self) -> None:
        """Take back what people find worse: a canary, or a version that has just become stable.

        A canary that nothing speaks against becomes stable once enough people met and judged it, or it is old enough.
        """
        pointer = self.versions.pointer()
        if pointer.canary is None:
            await self._review_swap(pointer)
            return
        found = await asyncio.to_thread(self._judge.canary, pointer)  # off the lock
        if found.against:
            async with self._one_at_a_time:
                if self.versions.pointer() == pointer:
                    await self._withdraw(pointer.canary, pointer.stable, found.against, "review")
        elif found.ready:
            await self.promote(pointer.canary, pointer.stable, found.ready, seen=pointer, actor="review")

    async def _review_swap(self, pointer: Pointer) -> None:
        """Roll back a stable version that people find worse than the one before it; the base is none to take back."""
        before = self.versions.before(pointer.stable)
        if pointer.swapped_at is None or pointer.stable == BASE or before is None or not self.settings.canary.rollback:
            return
        against = await asyncio.to_thread(self._judge.swap, pointer.stable, before, pointer.swapped_at)
        if against:
            with suppress(Conflict):  # it moved meanwhile
                await self.rollback(against, expect=pointer.stable, actor="review")

    async def _withdraw(self, canary: str, stable: str, reason: str, actor: str) -> None:
        await self._change(self.versions.withdraw_canary, canary, reason, actor)
        self.metrics.rollbacks.inc()
        said = f"the canary {canary} is taken back, {stable} answers everybody ({reason})"
        event(log, "withdraw", said, level=logging.WARNING, version=canary, stable=stable, reason=reason)
        self.plugins.notify("on_rollback", old=canary, new=stable, reason=reason)

    async def rollback(self, reason: str, expect: str | None = None, actor: str = "operator") -> tuple[str, str]:
        """Take the canary back, or where there is none go back to the version that was stable before.

        Returns (old, new). Raises Conflict where `expect` is given and is not what would be taken back: two operators
        who see the same bad version must not go back two. It waits for no promotion: one under way is dropped.
        """
        self._rollbacks += 1
        try:
            if self._interruptible is not None:
                self._interruptible.cancel()
            async with self._one_at_a_time:
                stable = self.versions.stable()
                old, new = await self._roll_back(reason, expect, actor)
                if new != stable:
                    with suppress(RolledBack):
                        await self._until_rollback(self._load_again(new), own=1)
        finally:
            self._rollbacks -= 1
        return old, new

    async def _roll_back(self, reason: str, expect: str | None, actor: str) -> tuple[str, str]:
        pointer = self.versions.pointer()
        at = pointer.canary or pointer.stable
        if expect not in (None, at):
            raise Conflict(
                f"{expect} does not answer any more ({at} would be taken back): look at `thumbwise policies list`."
            )
        if pointer.canary is not None:
            await self._withdraw(pointer.canary, pointer.stable, reason, actor)
            return pointer.canary, pointer.stable
        old = pointer.stable
        new = await self._proved_before(old)
        await self._change(self.versions.move_pointer, "rollback", new, old, reason, actor)
        self.warning = ""
        self.metrics.rollbacks.inc()
        event(log, "rollback", f"rolled back from {old} to {new} ({reason})", version=new, old=old, reason=reason)
        self.plugins.notify("on_rollback", old=old, new=new, reason=reason)
        return old, new

    async def _load_again(self, stable: str) -> None:
        """After a rollback: load what answers where a server has forgotten it, and the one before that."""
        try:
            if self.engine is not None:
                await self.engine.on_each(lambda each: self.load(stable, each))
        except ThumbwiseError as error:  # it was proved on them, and answers already
            log.warning("%s could not be loaded again after the rollback: %s", stable, error)
        await self._load_other(self.versions.before(stable), self._load_if_there)

    async def _proved_before(self, old: str) -> str:
        """The version to go back to from `old`, loaded; one that answers wrongly is rejected and passed over.

        One that was proved since vLLM was started is kept loaded: no engine is waited for.
        """
        while (new := self.versions.before(old)) is not None:
            try:
                await self._load_if_there(new)
            except ThumbwiseError as error:
                if error.status != 422:
                    raise
                await self.reject(new, str(error))
            else:
                return new
        raise Conflict(f"{old} is the first version: there is nothing to roll back to.")

    async def _load_if_there(self, version: str) -> None:
        """Load a version wherever people are answered, proved; where no engine is yet, `restore` will."""
        if version in self._proved and version != BASE:
            await asyncio.to_thread(artifacts.verify, self.folder(version))
        elif self.engine is not None and version != BASE:
            with suppress(EngineUnavailable):
                await self.engine.on_each(lambda each: self._load_and_prove(version, each))
                self._proved.add(version)

    async def _load_and_prove(self, version: str, engine: EngineClient) -> None:
        await self.load(version, engine)
        if version != BASE:
            await self.probe(version, engine)

    async def _load_other(self, version: str | None, load: Callable[[str], Awaitable[None]]) -> None:
        """Load the version before the stable one, for comparisons; they do without it where that fails."""
        self._missing = None
        try:
            if version is not None:
                await load(version)
        except ThumbwiseError as error:
            self._missing = version
            log.warning("%s could not be loaded, so comparisons do without it: %s", version, error)

    def live(self) -> list[str]:
        """Versions that may be shown to people: the stable one, and the canary or else the one before it."""
        pointer = self.versions.pointer()
        other = pointer.canary or self.versions.before(pointer.stable)
        return [pointer.stable] if other in (None, self._missing) else [pointer.stable, str(other)]

    def loaded(self) -> set[str]:
        """Versions that every server has: they may be named in a request."""
        pointer = self.versions.pointer()
        before = self.versions.before(pointer.stable)
        return {BASE, *self.live()} | ({before} if before and before != self._missing else set())

    async def restore(self, engine: EngineClient) -> None:
        """Bring a fresh engine to the recorded state: load and probe stable, canary, and the one before.

        Where the stable version cannot be restored, the pointer goes back until one can, with a warning on
        the pages: people get answers, and never silently from another version than the one recorded. A canary
        that cannot be restored is taken back. While other servers answer, the fault is this one's: EngineFailed. A
        rollback goes first, and this begins again.
        """
        while True:
            async with self._one_at_a_time:  # a version published meanwhile would be missing here
                with suppress(RolledBack):
                    await self._restore(engine)
                    return

    async def _restore(self, engine: EngineClient) -> None:
        while (stable := self.versions.stable()) != BASE:
            if (error := await self._until_rollback(self._wrong_on(engine, stable))) is None:
                break
            to = self.versions.before(stable) or BASE
            reason = f"could not be restored: {error}"
            await self._change(self.versions.move_pointer, "rollback", to, stable, reason, "start")
            await self._change(self.versions.set_state, stable, "rejected", reason)
            self.warning = f"{stable} {reason} {to} answers instead; `policies promote` tries it again."
            log.warning(self.warning)
        if (canary := self.versions.pointer().canary) is not None:
            error = await self._until_rollback(self._wrong_on(engine, canary))
            if error is not None:
                await self._withdraw(canary, stable, f"could not be restored: {error}", "start")
        before = self.versions.before(stable)
        await self._until_rollback(self._load_other(before, lambda version: self._load_and_prove(version, engine)))
        self._proved = {BASE, *self.live()}

    async def _wrong_on(self, engine: EngineClient, version: str) -> ThumbwiseError | None:
        """Load and probe a version on a fresh engine; returns what is wrong with the version, if anything is."""
        try:
            await self._load_and_prove(version, engine)
        except ThumbwiseError as error:
            if error.status >= 500:  # the engine's fault, not the version's: it will be restarted
                raise
            if self._engine().others(engine):
                raise EngineFailed(f"{error} Other servers answer with it: look at that one.") from None
            return error
        return None

    def _engine(self) -> EngineClient | Pool:
        if self.engine is None:
            raise ThumbwiseError("The engine is still starting: try again in a minute.", status=503)
        return self.engine
