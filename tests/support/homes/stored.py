"""What tests put into a store: replies, comparisons and votes on them."""

from __future__ import annotations

from fakes import asker

from thumbwise.contracts import Message
from thumbwise.feedback.records import FeedbackRequest
from thumbwise.feedback.store import Store

ASK: list[Message] = [{"role": "user", "content": "Why is the sky blue?"}]
SAMPLING = {"temperature": 0.7, "max_tokens": 48}


def reply(store: Store, user: str = "local", text: str = "Because.", state: str = "done") -> str:
    message_id = store.start_reply(asker(user), ASK, "policy-0000", SAMPLING)
    store.finish_reply(message_id, state, text=text, finish_reason="stop", prompt_ids=[1, 2], response_ids=[3, 4])
    return message_id


def comparison(store: Store, user: str = "local", texts: tuple[str, ...] = ("one", "two")) -> tuple[str, list[str]]:
    comparison_id, drafts = store.start_comparison(asker(user), ASK, ["policy-0000"] * len(texts), SAMPLING, "api")
    for draft, text in zip(drafts, texts, strict=True):
        store.finish_reply(draft, "done", text=text, finish_reason="length", prompt_ids=[1], response_ids=[5])
    return comparison_id, drafts


def thumb(message_id: str, value: str = "up") -> FeedbackRequest:
    return FeedbackRequest(kind="thumb", message_id=message_id, value=value)


def pair(comparison_id: str, choice: str = "left") -> FeedbackRequest:
    return FeedbackRequest(kind="pair", comparison_id=comparison_id, value={"choice": choice})
