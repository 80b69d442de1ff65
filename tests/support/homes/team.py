"""A team for tests: an assistant with accounts, and clients that are logged in as its people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fakes import FakeEngine, FakeEngineClient

from thumbwise.accounts.principal import COMMAND_LINE, Role
from thumbwise.accounts.users import Account
from thumbwise.home import Home
from thumbwise.serving.assistant import Assistant
from thumbwise.settings import Settings
from thumbwise.web import create_app

URL = "http://127.0.0.1:7860"


@dataclass
class Team:
    """One assistant with the scripted engine; `client(account)` is a browser in which somebody is logged in."""

    assistant: Assistant
    transport: httpx.ASGITransport

    def account(self, name: str, role: Role = "user", *, consent: bool = True, **more: Any) -> Account:
        """Make an account, without a password unless `password` is an argon2 hash; with `consent` it allows all."""
        account = self.assistant.users.create(name, role, COMMAND_LINE, **more)
        if consent:
            allowed = {"keep_chats": True, "use_votes": True, "use_text": True}
            self.assistant.consents.give(account.id, **allowed, actor=COMMAND_LINE)
        return account

    def client(self, account: Account | None = None) -> httpx.AsyncClient:
        """A client with a session of this account, or with none."""
        cookies = {}
        if account is not None:
            cookies[self.assistant.who.cookie] = self.assistant.sessions.start(account.id, COMMAND_LINE)
        return httpx.AsyncClient(transport=self.transport, base_url=URL, cookies=cookies)


@asynccontextmanager
async def team(folder: Path, **settings: Any) -> AsyncIterator[Team]:
    """An assistant in the mode `accounts`, unless `settings` say otherwise."""
    home = Home.find(folder)
    assistant = Assistant(home, Settings.load(home, **{"auth": "accounts", **settings}))
    assistant.engine = FakeEngine(FakeEngineClient())  # type: ignore[assignment]
    yield Team(assistant, httpx.ASGITransport(create_app(assistant)))
    await assistant.stop()
