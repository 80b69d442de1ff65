"""Receive, promote, reject and roll back policy versions, and restore them when a vLLM server starts.

`thumbwise.versions.states` has the states and which may follow which. `thumbwise.versions.loading` loads and probes. A
version takes traffic only after every server that answers people has loaded it and answered its probe. Then the pointer
moves, by one compare-and-set. With a share of people, the version is a canary first, and `review` promotes it or takes
it back. Promotions and restores give way to a rollback (`thumbwise.versions.precedence`). Left out: shares that grow by
themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from thumbwise.base_model.weights import base_modules
from thumbwise.errors import Conflict, ThumbwiseError
from thumbwise.faults import fault_point
from thumbwise.logs import event
from thumbwise.names import BASE
from thumbwise.versions import artifacts
from thumbwise.versions.canary import Reviewer
from thumbwise.versions.loading import Loading
from thumbwise.versions.precedence import RollbacksFirst, RolledBack
from thumbwise.versions.record import Pointer, Versions
from thumbwise.versions.states import TRAFFIC, State

if TYPE_CHECKING:
    from thumbwise.base_model.prepare import PreparedModel
    from thumbwise.engine.client import EngineClient
    from thumbwise.engine.external import Pool
    from thumbwise.engine.probes import Probe
    from thumbwise.home import Home
    from thumbwise.metrics import Metrics
    from thumbwise.plugin_host.manager import PluginManager
    from thumbwise.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


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
        self.loading = Loading(home, settings.engine.probe_tolerance, metrics)
        self.warning = ""  # shown on the pages while another version than the recorded one answers
        self._missing: str | None = None  # the version before the stable one, where it could not be loaded
        self._pointer = RollbacksFirst()
        self._reviewer = Reviewer(versions.store, settings.canary)

    async def _change(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Change the record, in one of the store's threads."""
        return await self.versions.store.run(work, *args, **kwargs)

    def connect(self, model: PreparedModel, engine: EngineClient | Pool) -> None:
        """Name the base model, and the engine that versions are loaded into."""
        self.model, self.loading.engine = model, engine

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
        self.versions.lineage.check(run_id)
        artifacts.write(self.home.policies, version, files)
        self.versions.stage(manifest, run_id)

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
        """Load and probe `version`, then make it stable if `expect_stable` still is. Returns the probe.

        With a `share` of people above 0, it becomes their canary instead. The base is never a canary: it is stable at
        once. Raises Conflict if the pointer moved, or if somebody rolls back meanwhile. If `seen` is given, any move of
        the pointer since then is a conflict. Raises ThumbwiseError (422) if the probe fails: the version is then
        rejected, and stable continues to answer. A rejected version that was stable once can be tried again, because a
        failed restore is seldom the version's own fault.
        """
        async with self._pointer.change():
            if seen is not None and self.versions.pointer() != seen:
                raise Conflict(f"{version} was canary until the pointer moved: look at `thumbwise policies list`.")
            record = self.versions.get(version)
            if record.state == State.STABLE or (
                record.state == State.CANARY and share == self.versions.pointer().share
            ):
                return None
            if record.state == State.REJECTED and not self.versions.was_stable(version):
                raise Conflict(f"{version} was rejected ({record.reason}) and cannot be promoted.")
            if self.versions.stable() != expect_stable:
                raise Conflict(f"{expect_stable} is no longer stable: look at `thumbwise policies list`.")
            try:
                probe = None if version == BASE else await self._load_and_probe(version)
                self._pointer.give_way()
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

    async def _load_and_probe(self, version: str) -> Probe:
        """Load, then probe a version on every server that answers people, and record each state that it reaches.

        If the version itself is at fault (422), it is rejected, also if it is the canary. Returns the probe that is
        furthest from the trainer.
        """
        servers, loading = self.loading.servers(), self.loading
        try:
            await self._pointer.interruptible(servers.on_each(lambda server: loading.load(version, server)))
            fault_point("adapter_loaded")
            if self.versions.get(version).state == State.STAGED:  # one that got further keeps its state until the probe
                await self._change(self.versions.set_state, version, State.LOADED)
            probes = await self._pointer.interruptible(servers.on_each(lambda server: loading.probe(version, server)))
            fault_point("adapter_probed")
        except ThumbwiseError as error:
            if error.status == 422:
                await self._change(self.versions.withdraw_canary, version, str(error), "probe")
                await self.reject(version, str(error))
            raise
        loading.note_probed(version)
        await self._change(self.versions.set_state, version, State.PROBED)
        return max(probes, key=lambda probe: probe.to_trainer)

    async def reject(self, version: str, reason: str) -> None:
        """Mark a version that takes no traffic as rejected, with the reason kept."""
        if (state := self.versions.get(version).state) in TRAFFIC:
            raise Conflict(f"{version} is {state}: roll back first (`thumbwise policies rollback`).")
        await self._change(self.versions.set_state, version, State.REJECTED, reason)
        self.metrics.rejections.inc()
        event(log, "reject", f"{version} is rejected ({reason})", version=version, reason=reason)

    async def review(self) -> None:
        """Take back what people find worse: a canary, or a version that has just become stable.

        A canary becomes stable if no test is against it, and enough people met and judged it or it is old enough.
        """
        pointer = self.versions.pointer()
        if pointer.canary is None:
            await self._review_swap(pointer)
            return
        found = await asyncio.to_thread(self._reviewer.canary, pointer)  # off the lock
        if found.against:
            async with self._pointer.change():
                if self.versions.pointer() == pointer:
                    await self._withdraw(pointer.canary, pointer.stable, found.against, "review")
        elif found.ready:
            await self.promote(pointer.canary, pointer.stable, found.ready, seen=pointer, actor="review")

    async def _review_swap(self, pointer: Pointer) -> None:
        """Roll back a stable version that people find worse than the one before it; the base is never taken back."""
        before = self.versions.before(pointer.stable)
        if pointer.swapped_at is None or pointer.stable == BASE or before is None or not self.settings.canary.rollback:
            return
        against = await asyncio.to_thread(self._reviewer.swap, pointer.stable, before, pointer.swapped_at)
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
        """Take the canary back. If there is none, go back to the version that was stable before.

        Returns (old, new). Raises Conflict if `expect` is given and is not what would be taken back: two operators who
        see the same bad version must not go back two versions. It waits for no promotion: one under way is dropped.
        """
        async with self._pointer.rollback():
            stable = self.versions.stable()
            old, new = await self._roll_back(reason, expect, actor)
            if new != stable:
                with suppress(RolledBack):
                    await self._pointer.interruptible(self._load_again(new), in_rollback=True)
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
        new = await self._version_before(old)
        await self._change(self.versions.move_pointer, "rollback", new, old, reason, actor)
        self.warning = ""
        self.metrics.rollbacks.inc()
        event(log, "rollback", f"rolled back from {old} to {new} ({reason})", version=new, old=old, reason=reason)
        self.plugins.notify("on_rollback", old=old, new=new, reason=reason)
        return old, new

    async def _load_again(self, stable: str) -> None:
        """After a rollback: load the version that answers on servers that have forgotten it, and the one before it."""
        try:
            if self.loading.engine is not None:
                await self.loading.engine.on_each(lambda server: self.loading.load(stable, server))
        except ThumbwiseError as error:  # the servers answered its probe, and it answers people already
            log.warning("%s could not be loaded again after the rollback: %s", stable, error)
        await self._load_other(self.versions.before(stable), self.loading.everywhere)

    async def _version_before(self, old: str) -> str:
        """The version to go back to from `old`; one that fails its probe is rejected and skipped.

        Nobody waits if every server has answered a probe of that version since it started.
        """
        while (new := self.versions.before(old)) is not None:
            try:
                await self.loading.everywhere(new)
            except ThumbwiseError as error:
                if error.status != 422:
                    raise
                await self.reject(new, str(error))
            else:
                return new
        raise Conflict(f"{old} is the first version: there is nothing to roll back to.")

    async def _load_other(self, version: str | None, load: Callable[[str], Awaitable[None]]) -> None:
        """Load the version before the stable one, for comparisons; if that fails, comparisons do without it."""
        self._missing = None
        try:
            if version is not None:
                await load(version)
        except ThumbwiseError as error:
            self._missing = version
            log.warning("%s could not be loaded, so comparisons do without it: %s", version, error)

    def live(self) -> list[str]:
        """Versions that may be shown to people: stable, and the canary; without a canary, the one before stable."""
        pointer = self.versions.pointer()
        other = pointer.canary or self.versions.before(pointer.stable)
        return [pointer.stable] if other in (None, self._missing) else [pointer.stable, str(other)]

    def loaded(self) -> set[str]:
        """Versions that every server has: a request can name them."""
        pointer = self.versions.pointer()
        before = self.versions.before(pointer.stable)
        return {BASE, *self.live()} | ({before} if before and before != self._missing else set())

    async def restore(self, engine: EngineClient) -> None:
        """Load and probe stable, the canary and the version before stable on a server that has just started.

        If stable fails, the pointer goes back until a version does not fail, with a warning on the pages: people get
        answers, but never silently from another version than the recorded one. A canary that fails is taken back. If
        other servers answer, this server is at fault: EngineFailed. A rollback goes first, and then this begins again.
        """
        while True:
            async with self._pointer.change():  # a version published meanwhile would be missing here
                with suppress(RolledBack):
                    await self._restore(engine)
                    return

    async def _restore(self, engine: EngineClient) -> None:
        while (stable := self.versions.stable()) != BASE:
            if (error := await self._pointer.interruptible(self.loading.fault_of(stable, engine))) is None:
                break
            to = self.versions.before(stable) or BASE
            reason = f"could not be restored: {error}"
            await self._change(self.versions.move_pointer, "rollback", to, stable, reason, "start")
            await self._change(self.versions.set_state, stable, State.REJECTED, reason)
            self.warning = f"{stable} {reason} {to} answers instead; `policies promote` tries it again."
            log.warning(self.warning)
        if (canary := self.versions.pointer().canary) is not None:
            error = await self._pointer.interruptible(self.loading.fault_of(canary, engine))
            if error is not None:
                await self._withdraw(canary, stable, f"could not be restored: {error}", "start")
        before = self.versions.before(stable)
        load = self._load_other(before, lambda version: self.loading.load_and_probe(version, engine))
        await self._pointer.interruptible(load)
        self.loading.only_probed(self.live())
