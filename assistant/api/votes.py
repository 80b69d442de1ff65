"""Comparisons and votes: `POST /v1/comparisons` and `POST /v1/feedback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Request

from thumbwise.api.asker import asker_of
from thumbwise.api.models import Drafts, Vote, plain
from thumbwise.chat.admission import unless_disconnected
from thumbwise.errors import ThumbwiseError

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant


def router(assistant: Assistant) -> APIRouter:
    """Return the routes of `assistant`."""
    api = APIRouter()

    @api.post("/v1/comparisons")
    async def comparisons(request: Drafts, http: Request) -> dict[str, Any]:
        asker = asker_of(assistant, http, request.user)
        assistant.consents.require_chats(asker.user)
        opened = await assistant.comparisons.open(
            asker, plain(request.messages), request.k, request.max_tokens, source="api"
        )
        drafts = await unless_disconnected(http, assistant.comparisons.write(opened, asker))
        return {
            "comparison_id": opened.comparison_id,
            "drafts": [{"draft_id": draft, "text": text} for draft, text in drafts],
        }

    @api.post("/v1/feedback", status_code=201)
    async def feedback(
        body: Vote,
        http: Request,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> dict[str, str]:
        asker = asker_of(assistant, http, body.user)
        if idempotency_key is None:
            raise ThumbwiseError("Send an Idempotency-Key header (a fresh UUID per vote), so that a retry is safe.")
        feedback_id = await assistant.store.run(assistant.vote, asker, idempotency_key, body.vote)
        return {"feedback_id": feedback_id}

    return api
