"""Operations: what the training job, the command line and operators call.

The command line's token is in the home's `operator.token`, the job's in `job.token`. What the job's token opens is in
`thumbwise.serving.auth`.
"""

from __future__ import annotations

import asyncio
import functools
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, File, Header, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from thumbwise import names
from thumbwise.accounts.keys import owner_needed
from thumbwise.accounts.principal import Principal, principal_of
from thumbwise.api import people
from thumbwise.errors import Conflict, NotFound, ThumbwiseError
from thumbwise.feedback.reception import reception
from thumbwise.feedback.snapshot import snapshot_path, take_snapshot
from thumbwise.serving.guard import operator
from thumbwise.versions import artifacts
from thumbwise.versions.found import highest
from thumbwise.versions.lineage import Kind
from thumbwise.versions.runs import LEASE_SECONDS, Outcome

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


MAX_ITEMS = 10_000
"""The most items in one batch of a run's lineage."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LeaseBody(_Body):
    """A heartbeat of a run."""

    lease: str


class FinishBody(_Body):
    """The end of a run."""

    lease: str
    outcome: Outcome
    reason: str = ""


class LineageBody(_Body):
    """A batch of what a run learned from: (id, kind, weight). The last batch has the `total` number of items."""

    lease: str
    items: list[tuple[str, Kind, float]] = Field(max_length=MAX_ITEMS)
    total: int | None = Field(None, ge=0)


class PromoteBody(_Body):
    """A promotion: by the job with its lease, or by an operator without one.

    With `share` the version first answers this share of people, as a canary. By default the job uses the setting
    `canary.share`, and an operator 0.
    """

    expect_stable: str
    lease: str | None = None
    reason: str = ""
    share: float | None = Field(None, ge=0, le=0.5)


class RejectBody(_Body):
    """A candidate that failed its gates."""

    lease: str
    reason: str


class BackupBody(_Body):
    """Where to write a copy of the database: a path on this machine that does not exist yet."""

    path: str = Field(max_length=4096)


class KeyBody(_Body):
    """An API key to make."""

    name: str
    scopes: list[str]
    user: str | None = None
    """The owner's name or id; None in `local`."""
    expires: float | None = None
    """Seconds from now."""


class RollbackBody(_Body):
    """A rollback by an operator. If it would not take back the version `expect`, it is refused."""

    reason: str = "by hand"
    expect: str | None = None


def _operator(request: Request) -> Principal:
    return operator(principal_of(request))


Operator = Annotated[Principal, Depends(_operator)]


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant`."""

    api = APIRouter(prefix="/ops/api", dependencies=[Depends(_operator)])
    _add_runs(api, assistant)
    _add_snapshots(api, assistant)
    _add_candidates(api, assistant)
    _add_policies(api, assistant)
    _add_keys(api, assistant)
    people.add_routes(api, assistant)
    _add_backup(api, assistant)
    return api


def _add_runs(api: APIRouter, assistant: Assistant) -> None:
    versions, runs, in_thread = assistant.versions, assistant.versions.runs, assistant.store.run

    @api.post("/runs", status_code=201)
    async def begin() -> dict[str, Any]:
        if assistant.model is None:
            raise ThumbwiseError("The base model is not ready yet: train again in a minute.", status=503)
        await in_thread(runs.refuse_second)  # before the work of a snapshot
        snapshot_id = await _freeze(assistant)
        above = await asyncio.to_thread(highest, assistant.home)
        run = await in_thread(runs.begin, snapshot_id, LEASE_SECONDS, above)
        return {
            "run_id": run.id,
            "number": run.number,
            "lease": run.lease,
            "lease_seconds": LEASE_SECONDS,
            "snapshot_id": snapshot_id,
            "stable": versions.stable(),
            "begin_at_base": await in_thread(versions.must_begin_at_base),
            "model": assistant.settings.model,
            "base_digest": assistant.model.digest,
            "max_tokens": assistant.settings.max_tokens,
            "temperature": assistant.settings.temperature,
        }

    @api.post("/runs/{run_id}/resume")
    async def resume(run_id: str) -> dict[str, Any]:
        return await in_thread(runs.resume, run_id, LEASE_SECONDS)

    @api.post("/runs/{run_id}/heartbeat")
    async def heartbeat(run_id: str, body: LeaseBody) -> dict[str, float]:
        await in_thread(runs.renew, run_id, body.lease, LEASE_SECONDS)
        return {"expires_in": LEASE_SECONDS}

    @api.post("/runs/{run_id}/lineage")
    async def lineage(run_id: str, body: LineageBody) -> dict[str, int]:
        await in_thread(runs.check_lease, body.lease, run_id)
        await in_thread(versions.lineage.record, run_id, body.items, body.total)
        return {"items": len(body.items)}

    @api.post("/runs/{run_id}/finish")
    async def finish(run_id: str, body: FinishBody) -> dict[str, str]:
        await in_thread(runs.end, run_id, body.lease, body.outcome, body.reason)
        return {"outcome": body.outcome}


async def _freeze(assistant: Assistant) -> str:
    settings = assistant.settings
    young = frozenset() if settings.auth == "local" else assistant.users.young(settings.accounts.settle_days)
    return await asyncio.to_thread(take_snapshot, assistant.store, assistant.home.snapshots, young)


def _add_snapshots(api: APIRouter, assistant: Assistant) -> None:
    @api.post("/snapshots", status_code=201)
    async def freeze() -> dict[str, str]:
        return {"snapshot_id": await _freeze(assistant)}

    @api.get("/snapshots/{snapshot_id}")
    async def snapshot(snapshot_id: str) -> Response:
        path = snapshot_path(assistant.home.snapshots, snapshot_id)
        return FileResponse(path, media_type="application/x-ndjson")


def _add_candidates(api: APIRouter, assistant: Assistant) -> None:
    policies, versions, in_thread = assistant.policies, assistant.versions, assistant.store.run

    @api.put("/policies/{version}", status_code=201)
    async def publish(
        version: str,
        adapter_model: Annotated[UploadFile, File()],
        adapter_config: Annotated[UploadFile, File()],
        manifest: Annotated[UploadFile, File()],
        x_thumbwise_lease: Annotated[str, Header()],
    ) -> dict[str, str]:
        files = {
            names.WEIGHTS: await adapter_model.read(artifacts.MAX_BYTES + 1),
            names.CONFIG: await adapter_config.read(artifacts.MAX_JSON + 1),
            names.MANIFEST: await manifest.read(artifacts.MAX_JSON + 1),
        }
        await asyncio.to_thread(policies.receive, version, files, x_thumbwise_lease)
        return {"version": version, "state": versions.get(version).state}

    @api.post("/policies/{version}/promote")
    async def promote(version: str, body: PromoteBody, principal: Operator) -> dict[str, Any]:
        if body.lease is None and principal.is_job:
            raise ThumbwiseError("The job promotes with the lease of its run only: send it.", status=403)
        state, actor = versions.get(version).state, "operator"
        if body.lease is not None:
            actor = await in_thread(versions.runs.check_lease, body.lease)
            if state == "retired" or (state == "rejected" and versions.was_stable(version)):
                # A job that resumes late must not undo later decisions.
                raise Conflict(f"{version} was in use before and was replaced: promote it by hand, if you want it.")
        reason = body.reason or ("passed its gates" if body.lease else "by hand")
        usual = assistant.settings.canary.share if body.lease else 0.0
        share = usual if body.share is None else body.share
        if body.lease and state == "canary":  # a repeated request; an operator may have changed the share since
            share = versions.pointer().share
        probe = await policies.promote(version, body.expect_stable, reason, share, actor=actor)
        state = versions.get(version).state
        return {"version": version, "state": state, "probe": probe.to_trainer if probe else None}

    @api.post("/policies/{version}/reject")
    async def reject(version: str, body: RejectBody) -> dict[str, str]:
        await in_thread(versions.runs.check_lease, body.lease)
        await policies.reject(version, body.reason)
        return {"version": version, "state": "rejected"}


def _add_policies(api: APIRouter, assistant: Assistant) -> None:
    policies, versions = assistant.policies, assistant.versions

    @api.get("/policies")
    async def listing() -> list[dict[str, Any]]:
        return [version.as_json() for version in versions.all()]

    @api.get("/reception")
    async def people() -> list[dict[str, Any]]:
        return [asdict(row) for row in await asyncio.to_thread(reception, assistant.store)]

    @api.post("/rollback")
    async def rollback(body: RollbackBody) -> dict[str, str]:
        old, new = await policies.rollback(body.reason, body.expect)
        return {"old": old, "new": new}

    @api.get("/policies/{version}/files/{name}")
    async def file(version: str, name: str) -> Response:
        if not re.fullmatch(names.VERSION, version) or name not in (
            names.WEIGHTS, names.CONFIG, names.MANIFEST,
        ):  # fmt: skip
            raise NotFound(f"There is no file {name[:80]!r} of {version[:80]!r}.")
        path = policies.loading.folder(version) / name
        if not path.is_file():
            raise Conflict(f"{version} has no {name} on the disk of this machine.")
        return FileResponse(path)


def _add_backup(api: APIRouter, assistant: Assistant) -> None:
    @api.post("/backup", status_code=201)
    async def backup(body: BackupBody, principal: Operator) -> dict[str, str]:
        if principal.via != "token":  # it writes anywhere that the assistant may write
            raise ThumbwiseError("Only the command line makes backups: `thumbwise backup FILE`.", status=403)
        await asyncio.to_thread(assistant.store.backup, Path(body.path))
        return {"path": body.path}


def _add_keys(api: APIRouter, assistant: Assistant) -> None:
    keys = assistant.keys

    @api.post("/keys", status_code=201)
    async def create(body: KeyBody, principal: Operator) -> dict[str, str]:
        owner = assistant.users.get(body.user).id if body.user else None
        if owner is None and not assistant.who.local:
            raise owner_needed()
        made = functools.partial(keys.create, owner=owner, expires=body.expires, actor=principal.actor)
        return {"key": await assistant.store.run(made, body.name, body.scopes)}

    @api.get("/keys")
    async def listing() -> list[dict[str, Any]]:
        return keys.as_json(assistant.users)

    @api.delete("/keys/{name}")
    async def revoke(name: str, principal: Operator, user: str | None = None) -> dict[str, str]:
        owner = assistant.users.get(user).id if user else None
        await assistant.store.run(keys.revoke, name, owner, principal.actor)
        return {"revoked": name}
