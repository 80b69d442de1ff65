"""Login, logout, change of the password, and the page of those who wait for an operator's approval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from thumbwise.account_pages.forms import address_of, go, local_path, page, refused, user_of
from thumbwise.account_pages.joining import RULE
from thumbwise.account_pages.oidc import button, problem
from thumbwise.accounts.principal import Actor, principal_of
from thumbwise.errors import ThumbwiseError

if TYPE_CHECKING:
    from thumbwise.accounts.principal import Principal
    from thumbwise.accounts.users import Account
    from thumbwise.serving.assistant import Assistant

Text = Annotated[str, Form()]
LOOK_SECONDS = 10
"""Between two looks of a waiting page whether its account is approved."""


def add_routes(router: APIRouter, assistant: Assistant) -> None:
    """Add the pages for those who have an account."""
    _add_login(router, assistant)
    _add_pending(router, assistant)
    _add_logout(router, assistant)
    _add_password(router, assistant)


def _waiting(request: Request, assistant: Assistant) -> Account | None:
    """The account that waits for approval, if one is logged in."""
    found = assistant.who.session(request.cookies)
    return found[1] if found and found[1].state == "pending" else None


def _add_login(router: APIRouter, assistant: Assistant) -> None:
    settings = assistant.settings

    def values(next_: str, name: str = "") -> dict[str, Any]:
        return {
            "next": local_path(next_), "name": name, "sign_up": settings.accounts.sign_up != "closed",
            "provider": button(assistant),
            "no_operator": not assistant.users.has_operator(),
        }  # fmt: skip

    @router.get("/login")
    async def form(request: Request, next: str = "/") -> Response:
        if user_of(request) is not None:
            return go(request, local_path(next))
        if _waiting(request, assistant):
            return go(request, f"/pending?{urlencode({'next': local_path(next)})}")
        return page("login", error=problem(request), **values(next))

    @router.post("/login")
    async def login(request: Request, name: Text = "", password: Text = "", next: Text = "/") -> Response:
        before = user_of(request)
        try:
            cookie = await assistant.entry.login(name, password, address_of(request))
        except ThumbwiseError as error:
            field = "password" if error.status in (400, 401, 403) else ""
            return refused("login", error, field, **values(next, name))
        if before is not None and before.session:
            await assistant.entry.logout(before)  # the cookie of this login replaces that one
        return go(request, local_path(next), assistant.who.set_cookie(cookie))


def _add_pending(router: APIRouter, assistant: Assistant) -> None:
    @router.get("/pending")
    async def pending(request: Request, next: str = "/") -> Response:
        if account := _waiting(request, assistant):
            return page("pending", name=account.name, refresh=LOOK_SECONDS)
        return go(request, local_path(next) if user_of(request) else "/login")


def _add_logout(router: APIRouter, assistant: Assistant) -> None:
    @router.get("/logout")
    async def ask(request: Request) -> Response:
        """A link cannot log out: the page asks first."""
        if principal := user_of(request):
            return page("logout", name=principal.name)
        return go(request, "/login")

    @router.post("/logout")
    async def logout(request: Request, everywhere: Text = "") -> Response:
        principal = user_of(request)
        if principal is not None and principal.account:
            await (assistant.entry.logout_everywhere if everywhere else assistant.entry.logout)(principal)
        elif found := assistant.who.session(request.cookies):  # the account waits for approval
            session, actor = found[0], Actor(found[1].id, "session", address_of(request))
            await assistant.store.run(assistant.sessions.end, session.id, actor)
        return go(request, "/login", assistant.who.set_cookie(""))


def _add_password(router: APIRouter, assistant: Assistant) -> None:
    def values(principal: Principal) -> dict[str, Any]:
        return {"name": principal.name, "rule": RULE}

    @router.get("/password")
    async def form(request: Request) -> Response:
        return page("password", **values(principal_of(request)))

    @router.post("/password")
    async def change(request: Request, old: Text = "", password: Text = "", again: Text = "") -> Response:
        principal = principal_of(request)
        try:
            if password != again:
                raise ThumbwiseError("The two differ: type the new password again.", param="again")
            await assistant.entry.change_password(principal, old, password)
        except ThumbwiseError as error:
            return refused("password", error, error.param or "old", **values(principal))
        return go(request, "/me")
