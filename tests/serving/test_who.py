"""Who a request is taken for, and that nobody reads, speaks or votes for somebody else."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from team import team

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import Conflict


async def test_without_a_login_pages_send_to_it_and_calls_are_refused(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as nobody:
        page = await nobody.get("/?c=conv_1", headers={"accept": "text/html"})
        assert page.status_code == 303
        assert page.headers["location"] == "/login?next=%2F%3Fc%3Dconv_1"
        for path in ("/pages/chat", "/pages/compare", "/config", "/gradio_api/info", "/v1/models", "/metrics"):
            answer = await nobody.get(path)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] in ("login_needed", "invalid_api_key")
        assert (await nobody.get("/health/live")).status_code == 200


async def test_two_people_have_chats_of_their_own(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann, bob = here.account("ann"), here.account("bob")
        async with here.client(ann) as hers, here.client(bob) as his:
            asked = (await hers.post("/pages/chat/messages", json={"text": "Is the sea deep?"})).json()
            await asyncio.sleep(0.2)
            assert "Is the sea deep?" in (await hers.get("/pages/chat")).json()["list"]
            assert "Is the sea deep?" not in (await his.get("/pages/chat")).text
            answer = await his.get("/pages/chat", params={"c": asked["conversation"]})
            assert answer.status_code == 404
            unknown = await his.get("/pages/chat", params={"c": "conv_0000"})
            assert answer.json() == unknown.json()


async def test_a_disabled_account_and_an_ended_session_are_nobody_at_once(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        async with here.client(ann) as hers, here.client(ann) as phone:
            assert (await hers.get("/pages/chat")).status_code == 200
            here.assistant.sessions.end_all(ann.id, COMMAND_LINE)
            assert (await phone.get("/pages/chat")).status_code == 401
        async with here.client(ann) as hers:
            here.assistant.users.set_state(ann.id, "disabled", COMMAND_LINE)
            assert (await hers.get("/pages/chat")).status_code == 401


async def test_the_last_operator_stays_one(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        users = here.assistant.users
        boss = users.create_operator("boss", COMMAND_LINE)
        with pytest.raises(Conflict, match="already"):
            users.create_operator("second", COMMAND_LINE)
        for change in (lambda: users.set_role(boss.id, "user", COMMAND_LINE),
                       lambda: users.set_state(boss.id, "disabled", COMMAND_LINE)):  # fmt: skip
            with pytest.raises(Conflict, match="last operator"):
                change()
        assert users.get("boss").role == "operator"
