"""Passwords are hashed by argon2id, away from the event loop, and a missing hash is checked like any other."""

from __future__ import annotations

import asyncio
import threading

import pytest
from argon2 import PasswordHasher
from argon2.low_level import Type

from thumbwise.accounts.passwords import LONGEST, SHORTEST, THREADS, Passwords
from thumbwise.errors import ThumbwiseError

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


async def test_a_hash_is_argon2id_salted_and_fits_its_password_only() -> None:
    passwords = Passwords()
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert first.startswith("$argon2id$")
    assert first != second
    assert await passwords.check(first, "correct horse")
    assert not await passwords.check(first, "Correct horse")
    assert not await passwords.check(first, "")
    passwords.close()


async def test_keyboards_that_write_a_letter_in_two_ways_give_one_password() -> None:
    passwords = Passwords()
    kept = await passwords.hash("caf\u00e9 society")
    assert await passwords.check(kept, "cafe\u0301 society")
    assert await passwords.check(await passwords.hash("\ud800 half a character"), "\ud800 half a character")
    passwords.close()


async def test_without_a_hash_the_same_work_is_done_and_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords()
    verified: list[tuple[int, int, int]] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> bool:
            verified.append((self.time_cost, self.memory_cost, self.parallelism))
            return super().verify(hash, password)

    passwords._hasher = Counting()
    kept = await passwords.hash("correct horse")
    for known, text in ((kept, "wrong horse"), (None, "wrong horse"), (kept, "x" * (LONGEST + 1)), ("no hash", "x")):
        assert not await passwords.check(known, text)
    assert len(verified) == 4
    assert len(set(verified)) == 1
    assert (passwords._hasher.type, passwords._hasher.memory_cost) == (Type.ID, 64 * 1024)
    passwords.close()


async def test_the_event_loop_goes_on_and_two_are_checked_at_once() -> None:
    passwords = Passwords()
    working, most, names = 0, 0, set()
    lock, verify = threading.Lock(), passwords._verify

    def watching(kept: str | None, text: str) -> bool:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
            names.add(threading.current_thread().name.split("_")[0])
        try:
            return verify(kept, text)
        finally:
            with lock:
                working -= 1

    passwords._verify = watching  # type: ignore[method-assign]
    turns, checks = 0, asyncio.gather(*(passwords.check(None, "x" * 20) for _ in range(6)))
    while not checks.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert await checks == [False] * 6
    assert turns > 6
    assert most <= THREADS
    assert names == {"passwords"}
    passwords.close()


@pytest.mark.parametrize("length", [0, SHORTEST - 1, LONGEST + 1])
async def test_a_password_has_8_to_1024_characters(length: int) -> None:
    with pytest.raises(ThumbwiseError, match="8 to 1024 characters"):
        await Passwords().hash("x" * length)


async def test_a_hash_with_other_parameters_is_outdated() -> None:
    passwords = Passwords()
    old = CHEAP.hash("correct horse")
    assert await passwords.check(old, "correct horse")
    assert passwords.outdated(old)
    assert not passwords.outdated(await passwords.hash("correct horse"))
    passwords.close()
