"""Pages that make an account or set a new password: by the setup link, an invitation, sign-up, or a reset link."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from thumbwise.account_pages.forms import address_of, go, page, refused, user_of
from thumbwise.account_pages.oidc import button
from thumbwise.accounts.passwords import SHORTEST, checked
from thumbwise.accounts.users import normalized
from thumbwise.errors import ThumbwiseError

if TYPE_CHECKING:
    from thumbwise.accounts.links import Kind
    from thumbwise.serving.assistant import Assistant

Text = Annotated[str, Form()]
RULE = f"At least {SHORTEST} characters. Several words are easier to remember than symbols."
_WORDS: dict[Kind, dict[str, str]] = {
    "setup": {
        "title": "Set up this assistant", "button": "Make the account", "action": "setup",
        "lead": "This account is the operator: it invites people, and decides what the assistant runs.",
    },
    "invite": {
        "title": "Make an account", "button": "Make the account", "action": "join",
        "lead": "Your chats and votes belong to this account. Other users cannot read them.",
    },
    "reset": {
        "title": "Set a new password", "button": "Set it", "action": "reset",
        "lead": "This logs you out on all devices.",
    },
}  # fmt: skip
_WAITS = "An operator must approve the account before you can chat."


class Joining:
    """The three pages. They have one form, because they differ in few words."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant

    async def show(self, request: Request, kind: Kind, link: str) -> Response:
        """Return the form, or why this link opens none."""
        if kind == "setup" and self.assistant.users.has_operator():
            said = "There is an operator already: log in, or ask for an invitation."
            return page("account", 409, form=False, error=said, **_WORDS[kind])
        closed = self.assistant.settings.accounts.sign_up == "closed"
        name = ""
        try:
            if link or kind != "invite" or closed:
                name = await self._link(request, kind, link)
        except ThumbwiseError as error:
            return refused("account", error, form=False, **_WORDS[kind])
        return page("account", **self._values(kind, link, name))

    async def _link(self, request: Request, kind: Kind, link: str) -> str:
        """Return the name of the account whose password a link resets; empty for the other kinds."""
        if not link and kind == "invite":
            raise ThumbwiseError("Accounts are made by invitation: ask an operator for a link.", status=403)
        found = await self.assistant.entry.link(link, kind, address_of(request))
        return self.assistant.users.get(found.user_id).name if found.user_id else ""

    def _values(self, kind: Kind, link: str, name: str = "") -> dict[str, Any]:
        words = dict(_WORDS[kind])
        if kind == "invite" and not link and self.assistant.settings.accounts.sign_up == "approval":
            words["lead"] = f"{words['lead']} {_WAITS}"
        provider = button(self.assistant) if kind == "invite" else ""
        return {"form": True, "link": link, "name": name, "rule": RULE, "provider": provider, **words}

    async def take(self, request: Request, kind: Kind, link: str, name: str, password: str, again: str) -> Response:
        """Do what the form asks for, and log in; or return the form with its error."""
        entry, address, who = self.assistant.entry, address_of(request), user_of(request)
        field = ""
        try:
            if kind != "reset":
                field = "name"
                normalized(name)
            field = "password"
            checked(password)
            if password != again:
                field = "again"
                raise ThumbwiseError("The two passwords differ: type them again.")
            field = ""
            if kind == "setup":
                cookie = await entry.setup(link, name, password, address)
            elif kind == "invite":
                cookie = await entry.join(link, name, password, address)
            else:
                cookie = await entry.reset(link, password, address)
        except ThumbwiseError as error:
            taken = error.status == 409 and kind == "invite"
            return refused("account", error, "name" if taken else field, **self._values(kind, link, name))
        if who is not None and who.session:
            await entry.logout(who)  # the new cookie replaces this session's
        return go(request, "/", self.assistant.who.set_cookie(cookie))


def add_routes(router: APIRouter, assistant: Assistant) -> None:
    """Add the pages for those who have no account yet, or lost its password."""
    pages = Joining(assistant)
    kinds: dict[str, Kind] = {"/setup": "setup", "/join": "invite", "/reset": "reset"}
    for path, kind in kinds.items():
        _add(router, path, kind, pages)


def _add(router: APIRouter, path: str, kind: Kind, pages: Joining) -> None:
    @router.get(path)
    async def form(request: Request, link: str = "") -> Response:
        return await pages.show(request, kind, link)

    @router.post(path)
    async def take(
        request: Request, link: Text = "", name: Text = "", password: Text = "", again: Text = ""
    ) -> Response:
        return await pages.take(request, kind, link, name, password, again)
