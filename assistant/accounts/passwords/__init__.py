"""Passwords: argon2id with the parameters of argon2-cffi, which follow RFC 9106.

A hash takes 64 MiB and about a tenth of a second on purpose. So it is computed in two threads that do nothing else,
never on the event loop and never in the store's threads: otherwise a few logins would stop all replies.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from thumbwise.errors import ThumbwiseError

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2
SHORTEST, LONGEST = 8, 1024
"""Characters of a password."""


class Passwords:
    """Hashes passwords and checks them."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._threads = ThreadPoolExecutor(THREADS, "passwords")

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, text: str) -> str:
        """Return the hash of a new password; raises ThumbwiseError for one that is too short or too long."""
        return await self._run(self.hashed, text)

    def hashed(self, text: str) -> str:
        """The same for the command line. Blocks."""
        return self._hasher.hash(_bytes(checked(text)))

    async def check(self, kept: str | None, text: str) -> bool:
        """Whether a password is the one whose hash is kept.

        Without a hash (an unknown name, an account without a password) the answer is no, and takes as long.
        """
        if len(text) > LONGEST:  # nobody has it
            text, kept = "", None
        return await self._run(self._verify, kept, text)

    def outdated(self, kept: str) -> bool:
        """Whether a hash was made with other parameters than today's, so that it should be made again."""
        return self._hasher.check_needs_rehash(kept)

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash(secrets.token_bytes(32))

    def _verify(self, kept: str | None, text: str) -> bool:
        nobodys = self._nobodys  # also where it is not needed: making it takes time, once
        try:
            return self._hasher.verify(kept or nobodys, _bytes(text)) and kept is not None
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        doing = functools.partial(work, *given, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, doing)


def checked(text: str) -> str:
    """Return a new password; raises ThumbwiseError for one that is too short or too long."""
    if not SHORTEST <= len(text) <= LONGEST:
        raise ThumbwiseError(f"A password has {SHORTEST} to {LONGEST} characters: choose another.")
    return text


def _bytes(text: str) -> bytes:
    """The bytes of a password: keyboards of different systems write the same letter in different ways."""
    return unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass")
