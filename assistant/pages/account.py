"""Who looks at a page: the menu at its top, and whether the login still holds.

All people get the same page. What names a person comes with an answer to its script.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import Request

from thumbwise.accounts.principal import principal_of
from thumbwise.errors import ThumbwiseError
from thumbwise.pages.markup import escape

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

LOGIN_NEEDED = "login_needed"
"""The code by which the scripts see that the login has ended; the guard sends it too."""


def same_person(request: Request) -> None:
    """Refuse a request of a page that somebody else opened in the same browser. It names the account that it shows."""
    named = request.headers.get("x-thumbwise-account") or request.query_params.get("account")
    if named and named != principal_of(request).account:
        raise ThumbwiseError("Somebody else is logged in in this browser now.", status=401, code=LOGIN_NEEDED)


def shown(request: Request) -> dict[str, Any]:
    """Return what a page gets of who looks at it: nothing in `local`, where there is no login."""
    principal = principal_of(request)
    if principal.account is None:
        return {}
    name, first = escape(principal.name), escape(principal.name[:1])
    role = "" if principal.role == "user" else f"<span>{principal.role.capitalize()}</span>"
    out = '<form method="post" action="logout"><button>Log out</button></form>' if principal.session else ""
    return {
        "account": {
            "id": principal.account,
            "menu": (
                f'<details class="tw-menu"><summary aria-label="Account of {name}"><i aria-hidden="true">{first}</i>'
                f'<span class="tw-who">{name}</span></summary><div class="tw-menu-list">'
                f'<p dir="auto"><b>{name}</b>{role}</p><a href="me">My data</a>{out}</div></details>'
            ),
        }
    }


def login_holds(assistant: Assistant, request: Request) -> Callable[[], bool]:
    """Return a check whether who opened a page may still see it. It does not count as a use of the session."""
    principal, cookies = principal_of(request), request.cookies
    if principal.account is None:
        return lambda: True
    id_ = principal.account

    def holds() -> bool:
        account = assistant.users.find(id_)
        if account is None or account.state != "active":
            return False
        found = assistant.who.session(cookies)
        return not principal.session or (found is not None and found[0].id == principal.session)

    return holds
