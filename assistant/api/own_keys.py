"""`/me/keys`: the API keys of the person who is logged in. A key cannot open it: it would make keys that outlive it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from thumbwise.accounts.keys import USUAL
from thumbwise.accounts.principal import Principal, principal_of
from thumbwise.errors import NotFound

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


class NewKey(BaseModel):
    """A key to make. `expires` is in seconds from now."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=64)]
    scopes: Annotated[list[Annotated[str, Field(max_length=16)]], Field(max_length=8)] = list(USUAL)
    expires: float | None = None


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant`."""
    api, keys = APIRouter(prefix="/me/keys"), assistant.keys

    @api.get("")
    async def listing(request: Request) -> list[dict[str, Any]]:
        return [key.as_json() for key in keys.of(_person(request)[0])]

    @api.post("", status_code=201)
    async def create(request: Request, body: NewKey) -> dict[str, str]:
        owner, principal = _person(request)
        made = functools.partial(keys.create, owner=owner, expires=body.expires, actor=principal.actor)
        return {"key": await assistant.store.run(made, body.name, body.scopes)}

    @api.delete("/{key}")
    async def revoke(request: Request, key: str) -> dict[str, str]:
        owner, principal = _person(request)
        await assistant.store.run(keys.revoke, key, owner, principal.actor)
        return {"revoked": key}

    return api


def _person(request: Request) -> tuple[str, Principal]:
    """Return the id of the account that is logged in, and who it is. Raises NotFound where there are no accounts."""
    principal = principal_of(request)
    if principal.account is None:
        raise NotFound("There are no accounts here: `thumbwise keys create` makes keys.")
    return principal.account, principal
