"""Who sends a request to the API: the owner of its key, and the user that the request names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thumbwise.accounts.principal import principal_of
from thumbwise.feedback.records import PROGRAMS, Asker
from thumbwise.serving.auth import user_below, user_of

if TYPE_CHECKING:
    from fastapi import Request

    from thumbwise.serving.assistant import Assistant


def asker_of(assistant: Assistant, request: Request, named: str | None) -> Asker:
    """Return whose rows a request writes: the owner of its key, or a user below it whom the request names.

    Programs without a key may name a user in `local`. Raises 401, and 400 for a wrong name.
    """
    principal = principal_of(request)
    if principal.via != "local":
        return user_below(principal.asker, named)
    user = user_of(named)
    return Asker(user, f"name:{user}" if assistant.settings.names_are_people else PROGRAMS)
