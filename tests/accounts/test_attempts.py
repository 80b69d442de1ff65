"""Limits on wrong passwords: they stop guessing, and keep nobody out for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from team import Team, team

from thumbwise.accounts.passwords.attempts import Attempts, network
from thumbwise.accounts.principal import COMMAND_LINE
from thumbwise.errors import ThumbwiseError
from thumbwise.home import Home
from thumbwise.settings import Settings
from thumbwise.settings.access import AccountSettings

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
SECRET = "correct horse"
TIGHT = AccountSettings(attempts_per_account="2/hour", attempts_per_address="5/hour")


async def outcome(attempts: Attempts, account: str, address: str, *, right: bool = False) -> int:
    """200 if an attempt had its turn, otherwise the status of the refusal."""
    try:
        async with attempts.attempt(account, address) as attempt:
            attempt.right = right
    except ThumbwiseError as error:
        return error.status
    return 200


async def outcomes(attempts: Attempts, account: str, address: str, number: int) -> list[int]:
    return [await outcome(attempts, account, address) for _ in range(number)]


async def test_wrong_attempts_on_an_account_from_an_address_are_limited() -> None:
    attempts = Attempts(TIGHT)
    assert await outcomes(attempts, "ann", "192.0.2.1", 3) == [200, 200, 429]
    assert await outcome(attempts, "ann", "192.0.2.1", right=True) == 429  # also the right one now
    assert await outcome(attempts, "ann", "192.0.2.2", right=True) == 200  # but she elsewhere is not
    assert await outcome(attempts, "bob", "192.0.2.1") == 200
    with pytest.raises(ThumbwiseError, match=r"wait \d+ seconds, or ask an operator for a link"):
        async with attempts.attempt("ann", "192.0.2.1"):
            pass


async def test_wrong_attempts_from_an_address_are_limited_whatever_they_name() -> None:
    attempts = Attempts(TIGHT)
    assert [await outcome(attempts, name, "192.0.2.1") for name in "abcdef"] == [200] * 5 + [429]
    assert [await outcome(attempts, "", "192.0.2.2") for _ in range(6)] == [200] * 5 + [429]


async def test_right_attempts_do_not_count() -> None:
    attempts = Attempts(TIGHT)
    found = [await outcome(attempts, f"user {number}", "192.0.2.1", right=True) for number in range(50)]
    assert found == [200] * 50


async def test_many_addresses_do_not_keep_an_account_out_where_it_is_known() -> None:
    attempts = Attempts(TIGHT)
    assert await outcome(attempts, "boss", "198.51.100.7", right=True) == 200
    guesses = [await outcome(attempts, "boss", f"192.0.2.{number}") for number in range(25)]
    assert guesses == [200] * 20 + [429] * 5
    assert await outcome(attempts, "boss", "198.51.100.8", right=True) == 429
    assert await outcome(attempts, "boss", "198.51.100.7", right=True) == 200


async def test_attempts_at_the_same_instant_do_not_slip_through() -> None:
    attempts = Attempts(TIGHT)

    async def slow() -> int:
        try:
            async with attempts.attempt("ann", "192.0.2.1"):
                await asyncio.sleep(0.01)
        except ThumbwiseError as error:
            return error.status
        return 200

    found = await asyncio.gather(*(slow() for _ in range(40)))
    assert 2 <= found.count(200) <= 3  # two have their turn at once


async def test_who_hangs_up_during_an_attempt_has_made_one() -> None:
    attempts = Attempts(TIGHT)

    async def begun(started: asyncio.Event) -> None:
        async with attempts.attempt("ann", "192.0.2.1"):
            started.set()
            await asyncio.sleep(60)

    for _ in range(2):
        started = asyncio.Event()
        task = asyncio.create_task(begun(started))
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
    assert await outcome(attempts, "ann", "192.0.2.1") == 429


def test_what_an_address_counts_as() -> None:
    assert network("192.0.2.1") == network("::ffff:192.0.2.1") == "192.0.2.1"
    assert network("2001:db8::1") == network("2001:db8::ffff:1%eth0") == "2001:db8::/64"
    assert network("2001:db8:0:1::1") != network("2001:db8::1")
    assert network("") == ""


@pytest.mark.parametrize("wrong", ["", "10", "many/minute", "0/minute", "10/fortnight"])
@pytest.mark.parametrize("name", ["attempts_per_account", "attempts_per_address"])
def test_a_wrong_limit_is_a_sentence_at_the_start(tmp_path: Path, name: str, wrong: str) -> None:
    with pytest.raises(ThumbwiseError, match=rf"{name}: .*write 10/minute"):
        Settings.load(Home.find(tmp_path), accounts={name: wrong})


# --- through the login -----------------------------------------------------------------------------------


async def status(here: Team, name: str, password: str, address: str) -> int:
    try:
        await here.assistant.entry.login(name, password, address)
    except ThumbwiseError as error:
        return error.status
    return 200


async def test_a_name_that_exists_and_one_that_does_not_are_limited_alike(tmp_path: Path) -> None:
    limits = {"attempts_per_account": "2/hour", "attempts_per_address": "100/hour"}
    async with team(tmp_path, accounts=limits) as here:
        here.account("ann", password=CHEAP.hash(SECRET))
        found = {}
        for name in ("ann", "nobody"):
            typed = (name, f" {name.upper()} ", name.replace("n", "\uff4e"))  # all three are the same name
            found[name] = [await status(here, each, "wrong horse", "192.0.2.1") for each in typed]
        assert found == {"ann": [401, 401, 429], "nobody": [401, 401, 429]}


async def test_failed_logins_do_not_fill_the_audit_log(tmp_path: Path) -> None:
    async with team(tmp_path, accounts={"attempts_per_address": "1000/hour"}) as here:

        async def wrong(kept: str | None, text: str) -> bool:
            return False

        here.assistant.entry.passwords.check = wrong  # type: ignore[method-assign]
        found = [await status(here, f"name {number}", "wrong horse", "192.0.2.1") for number in range(80)]
        assert found == [401] * 80
        entries = here.assistant.store.rows("SELECT 1 FROM audit WHERE action = 'login.failed'")
        assert 0 < len(entries) <= 60


async def test_an_attacker_with_many_addresses_locks_no_operator_out_also_after_a_restart(tmp_path: Path) -> None:
    limits = {"attempts_per_account": "1/hour"}
    async with team(tmp_path, accounts=limits) as here:
        here.account("boss", "operator", password=CHEAP.hash(SECRET))
        assert await status(here, "boss", SECRET, "198.51.100.7") == 200
    async with team(tmp_path, accounts=limits) as here:
        guesses = [await status(here, "boss", "wrong horse", f"192.0.2.{number}") for number in range(12)]
        assert guesses == [401] * 10 + [429] * 2
        assert await status(here, "boss", SECRET, "198.51.100.7") == 200
        link = here.assistant.people.reset("boss", COMMAND_LINE)
        assert await here.assistant.entry.reset(link, "new password", "203.0.113.1")


async def test_an_old_hash_is_renewed_at_the_login(tmp_path: Path) -> None:
    async with team(tmp_path) as here:
        ann = here.account("ann", password=CHEAP.hash("short"))
        kept = here.assistant.users.password_of(ann.id)
        assert await status(here, "ann", "short", "192.0.2.1") == 200  # too short for a new one, so it stays
        assert here.assistant.users.password_of(ann.id) == kept
        bob = here.account("bob", password=CHEAP.hash(SECRET))
        old = here.assistant.users.password_of(bob.id)
        assert await status(here, "bob", SECRET, "192.0.2.1") == 200
        assert here.assistant.users.password_of(bob.id) != old
        assert await status(here, "bob", SECRET, "192.0.2.1") == 200
