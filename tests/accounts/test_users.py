"""What operators do with accounts over HTTP, and that nothing takes the last operator."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from team import URL, Team, team

from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.accounts.users import Account
from thumbwise.errors import Conflict, ThumbwiseError

SECRET = "correct horse"
USERS = "/ops/api/users"


def text_of(link: str) -> str:
    return link.partition("?link=")[2]


async def posted(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(USERS + path, json=body) if body else await client.post(USERS + path)
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_an_operator_makes_people_over_http(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("boss", "operator")) as boss:
        entry = here.assistant.entry
        made = await posted(boss, "", name="Ann", password=SECRET)
        assert (made["name"], made["role"], made["state"], made["link"]) == ("ann", "user", "active", None)
        assert await entry.login("ann", SECRET, "")
        made = await posted(boss, "", name="bob", role="reviewer")
        assert made["link"].startswith(f"{URL}/reset?link=")
        assert await entry.reset(text_of(made["link"]), SECRET, "")
        invited = await posted(boss, "/invitations", role="operator")
        assert invited["link"].startswith(f"{URL}/join?link=")
        assert await entry.join(text_of(invited["link"]), "carl", SECRET, "")
        listed = (await boss.get(USERS)).json()
        assert [(row["name"], row["role"], row["has_password"]) for row in listed] == [
            ("boss", "operator", False), ("ann", "user", True), ("bob", "reviewer", True), ("carl", "operator", True),
        ]  # fmt: skip
        assert "argon2" not in str(listed)


async def test_an_operator_changes_people_over_http(tmp_path: Path) -> None:
    async with (
        team(tmp_path, accounts={"sign_up": "approval"}) as here,
        here.client(here.account("boss", "operator")) as boss,
    ):
        await here.assistant.entry.join("", "ann", SECRET, "")
        assert (await posted(boss, "/ann/approve"))["state"] == "active"
        assert (await posted(boss, "/ann/role", role="reviewer"))["role"] == "reviewer"
        async with here.client(here.assistant.users.get("ann")) as hers:
            assert (await hers.get("/pages/chat")).status_code == 200
            assert (await posted(boss, "/ann/disable"))["state"] == "disabled"
            assert (await posted(boss, "/ann/enable"))["state"] == "active"
            assert (await hers.get("/pages/chat")).status_code == 401  # the old session is gone for good
        link = (await posted(boss, "/ann/reset"))["link"]
        assert await here.assistant.entry.reset(text_of(link), "new password", "")
        boss_id = here.assistant.users.get("boss").id
        audit = (await boss.get("/ops/api/audit", params={"actor": "boss"})).json()
        assert {row["actor"] for row in audit} == {boss_id}
        assert [row["action"] for row in audit] == [
            "link.reset", "user.active", "user.disabled", "user.role", "user.active",
        ]  # fmt: skip
        older = await boss.get("/ops/api/audit", params={"action": "user.", "limit": 1, "before": audit[-1]["seq"]})
        assert [row["action"] for row in older.json()] == ["user.create"]


async def test_nobody_else_may_do_any_of_it(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        here.account("boss", "operator")
        reviewer = here.account("rita", "reviewer")
        calls = [("GET", USERS), ("GET", "/ops/api/audit"), ("POST", USERS), ("POST", f"{USERS}/invitations"),
                 ("DELETE", f"{USERS}/boss")]  # fmt: skip
        calls += [
            ("POST", f"{USERS}/rita/{what}") for what in ("approve", "enable", "disable", "role", "reset", "adopt")
        ]
        for account in (None, reviewer):
            async with here.client(account) as client:
                for method, path in calls:
                    answer = await client.request(method, path, json={"role": "operator", "name": "x"})
                    assert answer.status_code in (401, 403), (method, path)
        assert [each.role for each in here.assistant.users.all()] == ["operator", "reviewer"]


async def test_a_deleted_account_leaves_a_tombstone_and_its_name(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client(here.account("boss", "operator")) as boss:
        ann, users = here.account("ann"), here.assistant.users
        link = here.assistant.links.make("reset", "user", COMMAND_LINE, ann.id)
        with here.assistant.store.write() as db:
            db.table("identities").insert({"issuer": "https://i", "subject": "s", "user_id": ann.id, "created_at": 1})
        forgotten = []
        here.assistant.people.forget = lambda user_id, actor: forgotten.append((user_id, users.get(user_id).state))
        async with here.client(ann) as hers:
            assert (await boss.delete(f"{USERS}/ann")).json() == {"deleted": ann.id}
            assert (await hers.get("/pages/chat")).status_code == 401
        assert forgotten == [(ann.id, "disabled")]  # she could say nothing more meanwhile
        assert (users.find(ann.id), users.named("ann")) == (None, None)
        (row,) = here.assistant.store.rows("SELECT * FROM users WHERE id = ?", [ann.id])
        assert (row["state"], row["name"], row["password"]) == ("deleted", ann.id, None)
        for table in ("sessions", "identities", "links"):
            assert here.assistant.store.rows(f"SELECT 1 FROM {table} WHERE user_id = ?", [ann.id]) == []
        with pytest.raises(ThumbwiseError):
            await here.assistant.entry.reset(link, SECRET, "")
        for path in (f"{USERS}/ann", f"{USERS}/{ann.id}"):
            assert (await boss.delete(path)).status_code == 404
        assert here.account("ann").id != ann.id


def every_way_out(here: Team, boss: Account) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("DELETE", f"{USERS}/boss", {}), ("DELETE", f"{USERS}/{boss.id}", {}), ("POST", f"{USERS}/boss/disable", {}),
        ("POST", f"{USERS}/boss/role", {"json": {"role": "user"}}),
        ("POST", f"{USERS}/boss/role", {"json": {"role": "reviewer"}}),
    ]  # fmt: skip


async def test_nothing_takes_the_last_operator(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        boss = here.account("boss", "operator")
        async with here.client(boss) as client:
            for method, path, more in every_way_out(here, boss):
                answer = await client.request(method, path, **more)
                assert answer.status_code == 409, path
                assert "last operator" in answer.text
            assert (await client.get("/pages/chat")).status_code == 200  # and she is still logged in
        assert here.assistant.users.has_operator()


async def test_two_operators_who_remove_each_other_at_once_leave_one(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        people = here.assistant.people
        pair = [here.account(name, "operator") for name in ("ann", "bob")]
        for account in pair:  # several times: a race that is lost once in a while is lost
            here.assistant.users.set_role(account.id, "operator", COMMAND_LINE)
        refused: list[str] = []

        def remove(who: Account) -> None:
            try:
                people.set_role(who.id, "user", COMMAND_LINE)
            except Conflict as error:
                refused.append(str(error))

        for _ in range(10):
            threads = [threading.Thread(target=remove, args=(account,)) for account in pair]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(account.role == "operator" for account in here.assistant.users.all()) == 1
            for account in pair:
                people.set_role(account.id, "operator", COMMAND_LINE)
        assert len(refused) == 10


async def test_links_of_an_operator_end_with_the_role(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        here.account("boss", "operator")
        ann = here.account("ann", "operator")
        async with here.client(ann) as hers:
            links = [text_of((await posted(hers, "/invitations", role="operator"))["link"]) for _ in range(3)]
        for link, end in zip(links, ("role", "disabled", "deleted"), strict=True):
            if end == "role":
                here.assistant.people.set_role("ann", "user", COMMAND_LINE)
            elif end == "disabled":
                here.assistant.people.disable("ann", COMMAND_LINE)
            else:
                here.assistant.people.delete("ann", COMMAND_LINE)
            with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
                await here.assistant.entry.join(link, "eve", SECRET, "")


async def test_two_setups_at_the_same_instant_make_one_operator(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        users, links = here.assistant.users, here.assistant.links
        link, start = links.make("setup", "operator", COMMAND_LINE), threading.Barrier(4)
        outcomes: list[str] = []

        def make(name: str) -> None:
            start.wait()
            try:
                users.create_operator(name, COMMAND_LINE, also=lambda db, user_id: links.use(db, link, "setup"))
                outcomes.append("made")
            except ThumbwiseError:
                outcomes.append("refused")

        threads = [threading.Thread(target=make, args=(f"boss{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["made", "refused", "refused", "refused"]
        assert len(users.all()) == 1


async def test_two_requests_with_the_setup_link_make_one_operator(tmp_path: Path) -> None:
    async with team(tmp_path) as here, here.client() as first, here.client() as second:
        form = {"link": here.assistant.people.setup_link(), "password": SECRET, "again": SECRET}
        answers = await asyncio.gather(
            first.post("/setup", data=form | {"name": "boss"}), second.post("/setup", data=form | {"name": "thief"})
        )
        assert sorted(answer.status_code in (403, 409) for answer in answers) == [False, True]
        (boss,) = here.assistant.users.all()
        assert boss.role == "operator"
        inside = [(await client.get("/ops/api/users")).status_code for client in (first, second)]
        assert sorted(inside) == [200, 401]


async def test_a_setup_link_is_made_only_while_there_is_no_operator(tmp_path: Path) -> None:
    async with team(tmp_path, public_url="https://chat.example.org/wise") as here:
        people = here.assistant.people
        first, second = people.setup_link(), people.setup_link()
        assert first
        assert second
        with pytest.raises(ThumbwiseError):
            here.assistant.links.find(first, "setup")  # each start voids the older ones
        assert people.address("http://127.0.0.1:1", "setup", "x") == "https://chat.example.org/wise/setup?link=x"
        await here.assistant.entry.setup(second, "boss", SECRET, "")
        assert people.setup_link() is None
    async with team(tmp_path / "other", auth="local") as here:
        assert here.assistant.people.setup_link() is None


async def test_where_a_proxy_logs_people_in_there_are_no_links(tmp_path: Path) -> None:
    async with team(tmp_path, auth="proxy", proxy={"peers": "127.0.0.1"}) as here:
        people = here.assistant.people
        assert people.setup_link() is None
        account, link = people.create("boss", "operator", COMMAND_LINE)
        assert (account.has_password, link) == (False, None)
        for make in (lambda: people.invite("user", COMMAND_LINE), lambda: people.reset("boss", COMMAND_LINE)):
            with pytest.raises(Conflict, match="the proxy logs people in"):
                make()
