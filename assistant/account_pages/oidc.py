"""Single sign-on: the way to the OpenID Connect provider and back, and an account's own way to connect to it.

What goes wrong comes back as one sentence on the login page. The address of that page has only the code of the
sentence, so nobody can make a link that shows another text there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from thumbwise.account_pages.forms import address_of, go, local_path, page, user_of
from thumbwise.accounts.identities import SENTENCES, VIA, Invited, refuse_error, refused
from thumbwise.accounts.principal import Actor
from thumbwise.errors import NotFound, ThumbwiseError

if TYPE_CHECKING:
    from sqlite_utils import Database

    from thumbwise.accounts.identities import Identity
    from thumbwise.accounts.oidc import Provider
    from thumbwise.serving.assistant import Assistant

CALLBACK = "/oidc/callback"
LONGEST = 512
"""Characters of an address to go to after the login. It travels in a cookie."""


def problem(request: Request) -> str | None:
    """The sentence to show on a page that a failed login came back to, or None."""
    return SENTENCES.get(request.query_params.get("sso", ""))


def button(assistant: Assistant) -> str:
    """The text of the button that leads to the provider; empty without one."""
    return assistant.settings.oidc.label if assistant.oidc is not None else ""


class SingleSignOn:
    """The routes below /oidc/."""

    def __init__(self, assistant: Assistant, provider: Provider) -> None:
        self.assistant, self.provider = assistant, provider

    async def login(self, request: Request, next: str = "/", link: str = "") -> Response:
        """Send the browser to the provider; `link` is the text of an invitation."""
        next = local_path(next) if len(next) <= LONGEST else "/"
        try:
            if link:
                await self.assistant.entry.link(link, "invite", address_of(request))
            return await self._to_provider(request, next=next, link=link)
        except ThumbwiseError as error:
            return _back(request, "/login", error)

    async def connect(self, request: Request, permission: str = "") -> Response:
        """Ask whether to connect the provider to this account; the link there has a text that only this page knows."""
        principal = user_of(request)
        if principal is None:
            return go(request, f"/login?{urlencode({'next': '/oidc/connect'})}")
        if principal.via != "session":
            raise ThumbwiseError("Connect in a browser in which you are logged in.", status=403)
        if self.provider.permits(permission, principal.session):
            try:
                return await self._to_provider(request, account=principal.account or "", session=principal.session)
            except ThumbwiseError as error:
                return _back(request, "/oidc/connect", error)
        label = self.assistant.settings.oidc.label
        link = urlencode({"go": self.provider.permission(principal.session)})
        return page("connect", error=problem(request), name=principal.name, label=label, link=link)

    async def callback(self, request: Request) -> Response:
        """Take the provider's answer."""
        try:
            refuse_error(request.query_params)
            kept = self.provider.carried(request.cookies, request.query_params.get("state", ""))
            identity = await self.provider.finish(kept, request.query_params)
            next_step = self._connected if "account" in kept else self._logged_in
            answer = await next_step(request, kept, identity)
        except ThumbwiseError as error:
            # The login page shows nothing to people who are logged in: they were about to connect.
            answer = _back(request, "/oidc/connect" if user_of(request) else "/login", error)
        answer.headers.append("Set-Cookie", self.provider.set_cookie("", self._callback(request)))
        return answer

    async def _logged_in(self, request: Request, kept: dict[str, str], identity: Identity) -> Response:
        here, address, before = self.assistant, address_of(request), user_of(request)
        settings, invited = here.settings, None
        if kept["link"] and await here.store.run(here.identities.find, identity.issuer, identity.subject) is None:
            invited = await self._invited(kept["link"])
        sign_up = settings.oidc.sign_up or settings.accounts.sign_up
        account = await here.store.run(here.identities.enter, identity, sign_up, address, invited)
        text = await here.store.run(here.sessions.start, account.id, Actor(account.id, VIA, address))
        if before is not None and before.session:
            await here.entry.logout(before)  # the cookie of this login replaces that one
        return go(request, kept["next"], here.who.set_cookie(text))

    async def _connected(self, request: Request, kept: dict[str, str], identity: Identity) -> Response:
        principal = user_of(request)
        if principal is None or (principal.account, principal.session) != (kept["account"], kept["session"]):
            raise refused("logged_out")
        await self.assistant.store.run(self.assistant.identities.connect, identity, kept["account"], principal.actor)
        return go(request, "/me")

    async def _invited(self, link: str) -> Invited:
        links = self.assistant.links
        found = await self.assistant.store.run(links.find, link, "invite")

        def use(db: Database, user_id: str) -> None:
            links.use(db, link, "invite")

        return Invited(found.role, use)

    async def _to_provider(self, request: Request, **carried: str) -> Response:
        callback = self._callback(request)
        address, text = await self.provider.begin(callback, **carried)
        answer = RedirectResponse(address, 303, headers={"Cache-Control": "no-store"})
        answer.headers.append("Set-Cookie", self.provider.set_cookie(text, callback))
        return answer

    def _callback(self, request: Request) -> str:
        """The address that the provider sends the browser back to; it must be registered there."""
        public = self.assistant.settings.public_url
        return (public or f"{request.url.scheme}://{request.headers['host']}") + CALLBACK


def _back(request: Request, path: str, error: ThumbwiseError) -> Response:
    """Send the browser to a page of ours that shows why the login failed."""
    code = (error.code or "").removeprefix("oidc_")
    if code not in SENTENCES:
        code = {403: "link", 429: "busy"}.get(error.status, "failed")
    return go(request, f"{path}?{urlencode({'sso': code})}")


def add_routes(router: APIRouter, assistant: Assistant) -> None:
    """Add the routes below /oidc/. Without a provider they answer that there is none."""
    if assistant.oidc is not None:
        pages = SingleSignOn(assistant, assistant.oidc)

        @router.get("/oidc/login")
        async def login(request: Request, next: str = "/", link: str = "") -> Response:
            return await pages.login(request, next, link)

        @router.get("/oidc/connect")
        async def connect(request: Request, go: str = "") -> Response:
            return await pages.connect(request, go)

        @router.get(CALLBACK)
        async def callback(request: Request) -> Response:
            return await pages.callback(request)

    @router.get("/oidc/{rest:path}")
    async def nothing(request: Request, rest: str) -> Response:
        """Not for Gradio, which would answer people who are not logged in."""
        if rest:
            raise NotFound("There is no such page of single sign-on here.")
        return go(request, "/")
