"""The page "My data" at `/me`: what is stored of a person, what it was used for, and how to change or delete it.

Every form is sent to `/me` and names in `do` what to do. The person is always that of the request: an id that a form
sends is looked up among their own rows. In `local` the page shows the chats and votes of this machine's browsers.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from thumbwise.account_pages import consent
from thumbwise.account_pages.exported import download
from thumbwise.account_pages.forms import go, page
from thumbwise.account_pages.learned import others, uses
from thumbwise.account_pages.mydata import chat_rows, key_rows, session_rows, vote_rows, when
from thumbwise.account_pages.oidc import button
from thumbwise.accounts.principal import Principal, principal_of
from thumbwise.errors import NotFound, ThumbwiseError
from thumbwise.feedback import mine
from thumbwise.feedback.records import Asker, FeedbackRequest, new_id

if TYPE_CHECKING:
    from thumbwise.serving.assistant import Assistant

PAGE = 20
"""Chats and votes on one page."""
Text = Annotated[str, Form(max_length=256)]
Before = Annotated[int, Query(ge=0, le=mine.LAST)]
_SAID = {
    "consent": "Saved. It holds from now on.",
    "thumb": "Saved.",
    "vote": "The vote is deleted.",
    "chat": "The chat is deleted, with the votes on it.",
    "everything": "All your chats and votes are deleted.",
    "revoke": "The key is revoked: the next request with it is refused.",
}
"""What the page says after a form; the address names the form."""


class MyData:
    """Shows the page, and does what its forms ask for."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant, self.store = assistant, assistant.store

    async def show(self, principal: Principal, chats: int, votes: int, status: int = 200, **more: Any) -> Response:
        """Return the page; the lists begin after the rows that `chats` and `votes` name."""
        values = await self.store.run(self._values, principal, chats, votes)
        return page("me", status, **values | {"said": "", "new_key": "", "error": None} | more)

    def _values(self, principal: Principal, chats: int, votes: int) -> dict[str, Any]:
        user, assistant = principal.asker.user, self.assistant
        learned = uses(assistant, user)
        account = assistant.users.find(principal.account) if principal.account else None
        found_chats = mine.chats(self.store, user, chats, PAGE + 1)
        found_votes = mine.votes(self.store, user, votes, PAGE + 1)
        return {
            "account": account, "since": when(account.created_at)[:10] if account else "",
            "counts": mine.counts(self.store, user), "uses": [str(use) for use in learned],
            "others": others(assistant, user, learned),
            "chats": chat_rows(found_chats[:PAGE]),
            "votes": vote_rows(assistant, found_votes[:PAGE], account is not None),
            "more_chats": found_chats[PAGE - 1].asked_at if len(found_chats) > PAGE else 0,
            "more_votes": found_votes[PAGE - 1].seq if len(found_votes) > PAGE else 0,
            "first": chats == votes == mine.LAST, "at_chats": chats, "at_votes": votes,
            "switches": consent.switches(assistant, account.id) if account else [],
            "keys": key_rows(assistant.keys.of(account.id)) if account else [],
            "sessions": session_rows(assistant.sessions.of(account.id), principal.session) if account else [],
            "operator": principal.may("operator"), "via": principal.via,
            "provider": button(assistant) if account else "",
            "password": account is not None and account.has_password and assistant.settings.auth == "accounts",
        }  # fmt: skip

    async def ask(self, principal: Principal, what: str, id_: str, error: ThumbwiseError | None = None) -> Response:
        """Return the page that asks whether to delete something. Raises NotFound for a chat of somebody else."""
        title = ""
        if what == "chat":
            title = await self.store.run(mine.title, self.store, principal.asker.user, id_)
        elif principal.account is None:
            raise NotFound("There are no accounts here: `thumbwise feedback forget local` deletes everything.")
        status = error.status if error else 200
        return page("delete", status, what=what, id=id_, title=title, name=principal.name, error=error and str(error))

    # -- what the forms do -----------------------------------------------------------------------------

    async def thumb(self, principal: Principal, vote_id: str, value: str) -> None:
        """Change a thumb, or take it back."""
        found = await self.store.run(mine.vote, self.store, principal.asker.user, vote_id)
        request = FeedbackRequest(kind="thumb", message_id=found.message_id, value=value)
        asker = Asker(found.user_id, principal.asker.person, principal.asker.young, page=True)
        await self.store.run(self.assistant.vote, asker, new_id("page"), request)

    async def delete_vote(self, principal: Principal, vote_id: str) -> None:
        """Delete a vote, or withdraw one on a comparison."""
        found = await self.store.run(mine.vote, self.store, principal.asker.user, vote_id)
        await self.assistant.forgetting.vote(found.id, found.user_id)

    async def delete_chat(self, principal: Principal, chat_id: str) -> None:
        """Delete a chat with its replies and the votes on them."""
        await self.store.run(mine.title, self.store, principal.asker.user, chat_id)
        await self.assistant.forgetting.conversation(chat_id, principal.asker.user)

    async def delete_everything(self, principal: Principal, name: str) -> None:
        """Delete all chats and votes."""
        self._sure(principal, name)
        await self.assistant.forgetting.person(principal.account or "", principal.actor)

    async def delete_account(self, principal: Principal, name: str) -> None:
        """Delete all chats and votes, and then the account. Raises Conflict for the last operator."""
        self._sure(principal, name)
        await asyncio.to_thread(self.assistant.people.delete, principal.account or "", principal.actor)

    @staticmethod
    def _sure(principal: Principal, name: str) -> None:
        if name.strip().casefold() != principal.name.casefold():
            raise ThumbwiseError(f"This is not your name: type {principal.name} to delete it.")

    async def make_key(self, principal: Principal, name: str, scopes: list[str], days: int) -> str:
        """Make an API key and return its text."""
        make = functools.partial(
            self.assistant.keys.create, name.strip(), scopes, owner=principal.account,
            expires=days * 86400.0 if days else None, actor=principal.actor,
        )  # fmt: skip
        return await self.store.run(make)


def add_routes(router: APIRouter, assistant: Assistant) -> None:
    """Add the page `/me`."""
    data = MyData(assistant)

    @router.get("/me")
    async def show(
        request: Request,
        chats: Before = mine.LAST,
        votes: Before = mine.LAST,
        delete: str = "",
        id: str = "",
        said: str = "",
    ) -> Response:
        principal = _person(request)
        if delete:
            return await data.ask(principal, delete if delete in ("chat", "everything") else "account", id)
        return await data.show(principal, chats, votes, said=_SAID.get(said, ""))

    @router.get("/me/export")
    async def export(request: Request) -> Response:
        principal = _person(request)
        await assistant.store.run(assistant.audit.add, principal.actor, "data.export", principal.account or "local")
        return download(assistant, principal)

    @router.post("/me")
    async def act(
        request: Request, do: Text, id: Text = "", value: Text = "", name: Text = "", days: Annotated[int, Form()] = 0,
        scopes: Annotated[list[str] | None, Form()] = None,
    ) -> Response:  # fmt: skip
        principal = _person(request)
        if do in ("everything", "account", "key", "revoke", "sign-out") and principal.account is None:
            raise NotFound("There are no accounts here.")
        try:
            if do == "key":
                text = await data.make_key(principal, name, scopes or [], days)
                return await data.show(principal, mine.LAST, mine.LAST, new_key=text)
            return await _do(data, request, principal, do, id, value, name)
        except ThumbwiseError as error:
            if do in ("everything", "account") and error.status < 500:
                return await data.ask(principal, do, "", error)
            return await data.show(principal, mine.LAST, mine.LAST, error.status, error=str(error))


async def _do(
    data: MyData, request: Request, principal: Principal, do: str, id_: str, value: str, name: str
) -> Response:
    """Do what a form asks for, and lead to the page that says so."""
    assistant = data.assistant
    if do == "thumb":
        await data.thumb(principal, id_, value)
    elif do == "vote":
        await data.delete_vote(principal, id_)
    elif do == "chat":
        await data.delete_chat(principal, id_)
    elif do == "everything":
        await data.delete_everything(principal, name)
    elif do == "revoke":
        await assistant.store.run(assistant.keys.revoke, id_, principal.account, principal.actor)
    elif do == "sign-out":
        await assistant.entry.logout_everywhere(principal)
        return go(request, "/login", assistant.who.set_cookie(""))
    elif do == "account":
        await data.delete_account(principal, name)
        return go(request, "/login", assistant.who.set_cookie(""))
    else:
        raise ThumbwiseError("This page has no such form: load it again.")
    return go(request, f"/me?said={do}")


def _person(request: Request) -> Principal:
    """Return who asks. Raises NotFound for the token of the home, which is nobody's."""
    principal = principal_of(request)
    if principal.account is None and principal.via != "local":
        raise NotFound("This page shows a person's data: log in to see yours.")
    return principal
