"""Who sends a request to the API: the client of its key, and the user that the request names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Header

from thumbwise.feedback.records import PROGRAMS, Asker
from thumbwise.serving.auth import key_of, user_of

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

Authorization = Annotated[str | None, Header()]


def asker_of(assistant: Assistant, authorization: str | None, scope: str, named: str | None) -> Asker:
    """Return who asks: the client of the key, or the user whom this client names. Raises 401 and 403."""
    if (key := key_of(assistant.keys, authorization, scope)) is not None:
        return Asker(f"{key.name}/{user_of(named)}" if named else key.name, f"key:{key.name}")
    user = user_of(named)
    return Asker(user, f"name:{user}" if assistant.settings.names_are_people else PROGRAMS)
