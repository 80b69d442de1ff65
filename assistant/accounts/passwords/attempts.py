"""Limits on wrong passwords, by the library `limits`: moving windows, in memory.

Only wrong attempts count, so a whole office behind one address can log in at once. Three windows:

| window | limit | stops |
|---|---|---|
| one address | `accounts.attempts_per_address` | one attacker against many accounts |
| one account from one address | `accounts.attempts_per_account` | one attacker against one account |
| one account from all addresses | ten times that | many addresses against one account |

The last window is the dangerous one: with enough addresses anybody could keep it full, and so keep a person out for
good. Therefore it does not hold for an address from which the account has logged in before (OWASP's "device cookie",
with the address as the device). The other two only refuse the address that typed the wrong passwords. All windows end
by themselves, nothing disables an account, and a reset link from an operator or the command line needs no attempt.
An unknown name counts as an account does: the answers must not differ. IPv6 counts by /64, the network of one customer.
The audit log gets at most 60 failed logins a minute, so that nobody can fill the disk with them.
A restart forgets the windows, but not the addresses: they are in the audit log.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from limits import parse, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from thumbwise.errors import ThumbwiseError
from thumbwise.feedback.records import sha256

if TYPE_CHECKING:
    from limits import RateLimitItem

    from thumbwise.feedback.store import Store
    from thumbwise.settings.access import AccountSettings

FROM_ANYWHERE = 10
"""How many times the limit of an account and an address is that of an account and all addresses."""
AT_ONCE = 2
"""Attempts that are decided at once: as many as passwords are checked at once. The others wait for their turn."""
MOST_WAITING = 256
TOLD = parse("60/minute")
"""Failed logins that the audit log gets."""
REMEMBERED_NS = 90 * 24 * 3600 * 10**9
"""How long an address counts as known after a login."""


class Attempt:
    """One attempt whose turn it is. It counts as wrong unless it was right."""

    def __init__(self) -> None:
        self.right = False


class Attempts:
    """Counts wrong attempts. To be used on one event loop."""

    def __init__(self, settings: AccountSettings, known: Iterable[tuple[str, str]] = ()) -> None:
        """Take pairs of an account and an address from which it logged in before."""
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._address = parse_many(settings.attempts_per_address)
        self._both = parse_many(settings.attempts_per_account)
        self._account = [type(item)(item.amount * FROM_ANYWHERE, item.multiples) for item in self._both]
        self._known = {(account, network(address)) for account, address in known}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def attempt(self, account: str, address: str) -> AsyncIterator[Attempt]:
        """Wait for the turn of an attempt; raises ThumbwiseError (429) if there were too many wrong ones.

        `account` is an account's id, an unknown name, or empty for an attempt that names none. Set `right` in the
        block if it was right; everything else, also an error or a reader who hangs up, counts as wrong.
        """
        if self._waiting >= MOST_WAITING:
            raise ThumbwiseError("Too many people log in at this moment: try again in a minute.", status=429)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            windows = self._windows(account, network(address))
            self._refuse(windows)
            attempt = Attempt()
            try:
                yield attempt
            finally:
                if attempt.right and account:
                    self._known.add((account, network(address)))
                if not attempt.right:
                    for item, key in windows:
                        self._limiter.hit(item, key)
        finally:
            self._turn.release()

    def worth_telling(self) -> bool:
        """Whether the audit log should get one more failed login."""
        return self._limiter.hit(TOLD, "told")

    def _windows(self, account: str, place: str) -> list[tuple[RateLimitItem, str]]:
        windows = [(item, f"address {place}") for item in self._address]
        if account:
            name = sha256(account)  # it may be a text of any length that somebody typed
            windows += [(item, f"both {name} {place}") for item in self._both]
            if (account, place) not in self._known:
                windows += [(item, f"account {name}") for item in self._account]
        return windows

    def _refuse(self, windows: list[tuple[RateLimitItem, str]]) -> None:
        full = [window for window in windows if not self._limiter.test(*window)]
        if full:
            ends = max(self._limiter.get_window_stats(*window).reset_time for window in full)
            seconds = max(1, round(ends - time.time()))
            raise ThumbwiseError(
                f"Too many wrong attempts: wait {seconds} seconds, or ask an operator for a link that sets a new "
                "password.",
                status=429,
            )


def known_addresses(store: Store, now: int) -> list[tuple[str, str]]:
    """Return from which addresses accounts logged in lately, as the audit log tells. Blocks."""
    rows = store.rows(
        "SELECT DISTINCT target, address FROM audit WHERE action = 'login' AND at > ?", [now - REMEMBERED_NS]
    )
    return [(row["target"], row["address"]) for row in rows]


def network(address: str) -> str:
    """Return what an address counts as: itself, or the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)
