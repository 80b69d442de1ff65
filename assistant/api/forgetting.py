"""`/ops/api/forget`: an operator has something forgotten for somebody, as the command line does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from thumbwise.api.ops import Operator

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


class ForgetBody(BaseModel):
    """Whose words to forget: the name or the id of an account, or the user of rows, such as `local`."""

    model_config = ConfigDict(extra="forbid")
    user: Annotated[str, Field(min_length=1, max_length=200)]


def router(assistant: Assistant) -> APIRouter:
    """Return the route of `assistant`."""
    api = APIRouter(prefix="/ops/api")

    @api.post("/forget")
    async def forget(body: ForgetBody, operator: Operator) -> dict[str, Any]:
        work = assistant.forgetting.forget_named
        return (await asyncio.to_thread(work, body.user, assistant.users, operator.actor)).as_json()

    return api
