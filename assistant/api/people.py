"""Operations on accounts, and the audit log: what `thumbwise users` and `thumbwise audit` call, and operators may."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, SecretStr

from thumbwise.accounts.passwords import checked
from thumbwise.accounts.principal import Role, principal_of
from thumbwise.accounts.users import normalized

if TYPE_CHECKING:
    from thumbwise.accounts.links import Kind
    from thumbwise.serving.assistant import Assistant


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UserBody(_Body):
    """An account to make. Without a password the answer has a link by which the person sets one."""

    name: str
    role: Role = "user"
    password: SecretStr | None = None


class RoleBody(_Body):
    """A role to give."""

    role: Role = "user"


def add_routes(api: APIRouter, assistant: Assistant) -> None:
    """Add the routes to those of operators. `user` in a path is a name or an id."""
    _add_making(api, assistant)
    _add_changes(api, assistant)

    @api.get("/audit")
    async def audit(
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        actor: str = "",
        action: str = "",
        before: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> list[dict[str, Any]]:
        find, run = assistant.audit.entries, assistant.store.run
        return await run(find, limit, actor=_id(assistant, actor), action=action, before=before)


def _add_making(api: APIRouter, assistant: Assistant) -> None:
    people, in_thread = assistant.people, assistant.store.run

    @api.get("/users")
    async def listing() -> list[dict[str, Any]]:
        return people.listing()

    @api.post("/users", status_code=201)
    async def create(body: UserBody, request: Request) -> dict[str, Any]:
        hashed = None
        if body.password is not None:
            normalized(body.name)  # before the work of a hash
            hashed = await assistant.entry.passwords.hash(checked(body.password.get_secret_value()))
        actor = principal_of(request).actor
        account, link = await in_thread(people.create, body.name, body.role, actor, hashed)
        return people.shown(account) | {"link": link and _address(assistant, request, "reset", link)}

    @api.post("/users/invitations", status_code=201)
    async def invite(body: RoleBody, request: Request) -> dict[str, str]:
        link = await in_thread(people.invite, body.role, principal_of(request).actor)
        return {"role": body.role, "link": _address(assistant, request, "invite", link)}

    @api.post("/users/{user}/reset", status_code=201)
    async def reset(user: str, request: Request) -> dict[str, str]:
        link = await in_thread(people.reset, user, principal_of(request).actor)
        return {"link": _address(assistant, request, "reset", link)}


def _add_changes(api: APIRouter, assistant: Assistant) -> None:
    people, in_thread = assistant.people, assistant.store.run

    @api.post("/users/{user}/approve")
    @api.post("/users/{user}/enable")
    async def activate(user: str, request: Request) -> dict[str, Any]:
        return people.shown(await in_thread(people.activate, user, principal_of(request).actor))

    @api.post("/users/{user}/disable")
    async def disable(user: str, request: Request) -> dict[str, Any]:
        return people.shown(await in_thread(people.disable, user, principal_of(request).actor))

    @api.post("/users/{user}/role")
    async def role(user: str, body: RoleBody, request: Request) -> dict[str, Any]:
        return people.shown(await in_thread(people.set_role, user, body.role, principal_of(request).actor))

    @api.post("/users/{user}/adopt")
    async def adopt(user: str, request: Request) -> dict[str, int]:
        return await in_thread(people.adopt, user, principal_of(request).actor)

    @api.delete("/users/{user}")
    async def delete(user: str, request: Request) -> dict[str, str]:
        return {"deleted": (await in_thread(people.delete, user, principal_of(request).actor)).id}


def _address(assistant: Assistant, request: Request, kind: Kind, link: str) -> str:
    return assistant.people.address(str(request.base_url), kind, link)


def _id(assistant: Assistant, actor: str) -> str:
    """The id of an account that is named as an actor; other actors are what they are called."""
    account = assistant.users.named(actor) if actor else None
    return account.id if account else actor
