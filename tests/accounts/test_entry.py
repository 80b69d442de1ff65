"""The ways into an account and out of it, through the parts that the pages call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from team import Team, team

from thumbwise.accounts.principal import COMMAND_LINE, Principal
from thumbwise.accounts.sessions import DAY
from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import Asker

HERE = "192.0.2.1"
SECRET = "correct horse"


def whose(here: Team, cookie: str) -> str | None:
    """The name of the account that a cookie is a session of."""
    found = here.assistant.sessions.find(cookie)
    return found[1].name if found else None


def principal(here: Team, cookie: str) -> Principal:
    found = here.assistant.sessions.find(cookie)
    assert found is not None
    session, account = found
    return Principal(
        Asker(account.id, account.id), account.role, "session", account=account.id, name=account.name,
        session=session.id, address=HERE,
    )  # fmt: skip


async def person(here: Team, name: str = "ann") -> str:
    """Make an account by an invitation; returns its cookie."""
    link = here.assistant.links.make("invite", "user", COMMAND_LINE)
    return await here.assistant.entry.join(link, name, SECRET, HERE)


def actions(here: Team) -> list[str]:
    return [entry["action"] for entry in here.assistant.audit.entries()]


async def test_a_login_gives_a_session_and_a_logout_ends_it(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        entry = here.assistant.entry
        first = await person(here)
        second = await entry.login(" ANN ", SECRET, HERE)
        assert first != second
        assert whose(here, first) == whose(here, second) == "ann"
        await entry.logout(principal(here, second))
        assert (whose(here, first), whose(here, second)) == ("ann", None)
        await entry.login("ann", SECRET, HERE)
        await entry.logout_everywhere(principal(here, first))
        assert whose(here, first) is None
        assert here.assistant.store.rows("SELECT * FROM sessions") == []


async def test_an_unknown_name_a_wrong_password_and_no_password_answer_alike(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        await person(here)
        here.account("bare")
        checked: list[bool] = []
        entry, check = here.assistant.entry, here.assistant.entry.passwords._verify

        def counting(kept: str | None, text: str) -> bool:
            checked.append(kept is None)
            return check(kept, text)

        entry.passwords._verify = counting  # type: ignore[method-assign]
        said = set()
        for name in ("ann", "bob", "bare", "usr_1", "", "a" * 10_000):
            with pytest.raises(ThumbwiseError) as raised:
                await entry.login(name, "wrong horse", HERE)
            said.add((str(raised.value), raised.value.status))
        assert said == {("The name or the password is wrong: try again.", 401)}
        assert checked == [False, True, True, True, True, True]  # argon2 worked each time


async def test_the_first_operator_is_made_once(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        entry, links = here.assistant.entry, here.assistant.links
        old, link = (links.make("setup", "operator", COMMAND_LINE) for _ in range(2))
        with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
            await entry.setup(old, "boss", SECRET, HERE)
        both = await asyncio.gather(
            *(entry.setup(link, name, SECRET, HERE) for name in ("boss", "thief")), return_exceptions=True
        )
        cookies = [each for each in both if isinstance(each, str)]
        (error,) = (each for each in both if isinstance(each, ThumbwiseError))
        assert len(cookies) == 1
        assert error.status in (403, 409)
        (account,) = here.assistant.users.all()
        assert (account.role, whose(here, cookies[0])) == ("operator", account.name)


async def test_a_failed_setup_leaves_the_link_unused(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        link = here.assistant.links.make("setup", "operator", COMMAND_LINE)
        for name, password in (("boss", "short"), ("a/b", SECRET), ("local", SECRET), ("", SECRET)):
            with pytest.raises(ThumbwiseError):
                await here.assistant.entry.setup(link, name, password, HERE)
        assert whose(here, await here.assistant.entry.setup(link, "boss", SECRET, HERE)) == "boss"


@pytest.mark.parametrize(("sign_up", "state"), [("open", "active"), ("approval", "pending")])
async def test_sign_up_without_an_invitation(tmp_path: Path, sign_up: str, state: str) -> None:
    async with team(tmp_path, accounts={"sign_up": sign_up}) as here:
        cookie = await here.assistant.entry.join("", "ann", SECRET, HERE)
        assert here.assistant.users.get("ann").state == state
        assert here.assistant.users.get("ann").role == "user"
        assert whose(here, cookie) == "ann"
        with pytest.raises(ThumbwiseError, match="already"):
            await here.assistant.entry.join("", "Ann", "another one", HERE)


async def test_without_an_invitation_sign_up_is_closed(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        setup = here.assistant.links.make("setup", "operator", COMMAND_LINE)
        for link in ("", "x", setup):  # the setup link invites nobody
            with pytest.raises(ThumbwiseError) as raised:
                await here.assistant.entry.join(link, "ann", SECRET, HERE)
            assert raised.value.status == 403
        assert here.assistant.users.all() == []


async def test_an_invitation_gives_its_role_to_one_account(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        entry, link = here.assistant.entry, here.assistant.links.make("invite", "reviewer", COMMAND_LINE)
        both = await asyncio.gather(
            *(entry.join(link, name, SECRET, HERE) for name in ("ann", "bob")), return_exceptions=True
        )
        assert sorted(type(each) is str for each in both) == [False, True]
        assert [account.role for account in here.assistant.users.all()] == ["reviewer"]


async def test_a_new_password_ends_the_other_sessions(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        entry = here.assistant.entry
        mine, other = await person(here), await entry.login("ann", SECRET, HERE)
        with pytest.raises(ThumbwiseError, match="old password is wrong"):
            await entry.change_password(principal(here, mine), "wrong horse", "new password")
        with pytest.raises(ThumbwiseError, match="8 to 1024"):
            await entry.change_password(principal(here, mine), SECRET, "new")
        await entry.change_password(principal(here, mine), SECRET, "new password")
        assert (whose(here, mine), whose(here, other)) == ("ann", None)
        with pytest.raises(ThumbwiseError, match="is wrong"):
            await entry.login("ann", SECRET, HERE)
        assert whose(here, await entry.login("ann", "new password", HERE)) == "ann"


async def test_a_login_with_a_password_that_is_changed_meanwhile_gives_no_session(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        mine = await person(here)
        entry, started = here.assistant.entry, here.assistant.sessions.start

        def late(*given: object, **named: object) -> str:
            hashed = entry.passwords.hashed("new password")
            here.assistant.users.set_password(
                here.assistant.users.get("ann").id, hashed, COMMAND_LINE, action="password.reset"
            )
            return started(*given, **named)  # type: ignore[arg-type]

        here.assistant.sessions.start = late  # type: ignore[method-assign]
        with pytest.raises(ThumbwiseError, match="was changed at this moment"):
            await entry.login("ann", SECRET, HERE)
        assert whose(here, mine) is None
        assert here.assistant.store.rows("SELECT * FROM sessions") == []


async def test_a_reset_link_sets_a_password_once_and_ends_all_sessions(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        mine, ann = await person(here), here.assistant.users.get("ann")
        old, link = (here.assistant.links.make("reset", "user", COMMAND_LINE, ann.id) for _ in range(2))
        with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
            await here.assistant.entry.reset(old, "new password", HERE)
        cookie = await here.assistant.entry.reset(link, "new password", HERE)
        assert (whose(here, mine), whose(here, cookie)) == (None, "ann")
        with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
            await here.assistant.entry.reset(link, "third password", HERE)


async def test_disabling_ends_sessions_and_links_for_good(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        mine, ann = await person(here), here.assistant.users.get("ann")
        link = here.assistant.links.make("reset", "user", COMMAND_LINE, ann.id)
        here.assistant.users.set_state(ann.id, "disabled", COMMAND_LINE)
        assert whose(here, mine) is None
        with pytest.raises(ThumbwiseError, match="disabled: ask an operator"):
            await here.assistant.entry.login("ann", SECRET, HERE)
        here.assistant.users.set_state(ann.id, "active", COMMAND_LINE)
        assert whose(here, mine) is None
        with pytest.raises(ThumbwiseError, match="wrong, used or expired"):
            await here.assistant.entry.reset(link, "new password", HERE)
        assert whose(here, await here.assistant.entry.login("ann", SECRET, HERE)) == "ann"


async def test_sessions_live_across_a_restart_and_old_ones_are_removed(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        mine, old = await person(here), await here.assistant.entry.login("ann", SECRET, HERE)
        long_ago = here.assistant.users.get("ann").created_at - 31 * DAY
        with here.assistant.store.write() as db:
            session = here.assistant.sessions.find(old)
            assert session is not None
            db.execute("UPDATE sessions SET used_at = ? WHERE sha256 = ?", [long_ago, session[0].id])
            db.execute("UPDATE links SET expires_at = ?", [long_ago])
    async with team(tmp_path) as here:
        assert (whose(here, mine), whose(here, old)) == ("ann", None)
        assert len(here.assistant.store.rows("SELECT * FROM sessions")) == 1
        assert here.assistant.store.rows("SELECT * FROM links") == []


async def test_the_last_use_of_a_session_is_noted_once_an_hour(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        mine = await person(here)
        found = here.assistant.sessions.find(mine)
        assert found is not None
        hours_ago = found[0].used_at - DAY // 8
        with here.assistant.store.write() as db:
            db.execute("UPDATE sessions SET used_at = ?", [hours_ago])
            db.execute("UPDATE users SET seen_at = ?", [hours_ago])
        here.assistant.sessions.purge()  # which reads them anew
        async with here.client() as hers:
            assert (await hers.get("/pages/chat", cookies={here.assistant.who.cookie: mine})).status_code == 200
        (row,) = here.assistant.store.rows("SELECT used_at FROM sessions")
        (user,) = here.assistant.store.rows("SELECT seen_at FROM users")
        assert row["used_at"] == user["seen_at"] > hours_ago
        assert here.assistant.users.get("ann").seen_at == user["seen_at"]


async def test_an_account_has_at_most_a_hundred_sessions(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann")
        cookies = [here.assistant.sessions.start(ann.id, COMMAND_LINE) for _ in range(103)]
        assert [whose(here, cookie) for cookie in cookies] == [None] * 3 + ["ann"] * 100
        assert len(here.assistant.store.rows("SELECT * FROM sessions")) == 100


async def test_where_there_are_no_accounts_nobody_logs_in(tmp_path: Path) -> None:
    async with team(tmp_path, auth="local") as here:
        with pytest.raises(ThumbwiseError, match="no passwords here"):
            await here.assistant.entry.login("ann", SECRET, HERE)


async def test_the_audit_log_has_no_secret_and_no_name_that_was_typed(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        link = here.assistant.links.make("invite", "user", COMMAND_LINE)
        cookie = await here.assistant.entry.join(link, "ann", SECRET, HERE)
        for name in ("ann", "my password by mistake"):
            with pytest.raises(ThumbwiseError):
                await here.assistant.entry.login(name, "wrong horse", HERE)
        entries = here.assistant.store.rows("SELECT * FROM audit")
        assert [row["action"] for row in entries].count("login.failed") == 2
        for secret in (link, cookie, SECRET, "wrong horse", "my password", "argon2"):
            assert secret not in str(entries)
