"""Which vLLM servers of a pool are taken out, and why. The rules alone: nothing is asked and nothing is changed here.

A server that is taken out answers nobody until it has been checked and probed like a new one. Two things can end in
that. An error below 500 blames what was asked (a prompt that is too long, a version that fails its probe). An error of
500 or more blames the server.

A *reply* that failed (`after_reply`; the first line that fits):

| what happened | taken out | then |
|---|---|---|
| part of the reply was sent already | no | the reader gets the error: another server would say something else |
| the error blames the request | no | the reader gets the error |
| no other server is left to ask | no | the reader gets the error: a bad server is better than none |
| the server sent somebody something within `LIVES` seconds | no | another one is asked: server or request is slow |
| anything else | yes | another one is asked |

*Work* that every server does, such as loading and probing a version (`after_work`; the first line that fits):

| what happened | taken out | then |
|---|---|---|
| it went well on none | nobody | the caller gets the error, one that blames the work if there is one |
| on as many as it went well on, or more, the error blames the work | nobody | the caller gets that error |
| anything else | each server where it failed or was late | the results of the others count |
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from thumbwise.errors import ThumbwiseError

LIVES = 5.0
"""Seconds since a server last sent part of an answer within which it is not taken for broken."""

Server = TypeVar("Server", bound=Hashable)


class Then(Enum):
    """What follows a reply that failed."""

    RAISE = "the reader gets the error"
    ASK_ANOTHER = "another server is asked"
    TAKE_OUT = "the server is taken out, and another one is asked"


def after_reply(status: int, *, begun: bool, others: int, silent: float) -> Then:
    """What follows a reply that failed with `status`, by the table above.

    `begun`: part of it was sent. `others`: servers that are ready and were not asked yet. `silent`: seconds since the
    server last sent part of any answer.
    """
    if begun or _blames_the_request(status) or others == 0:
        return Then.RAISE
    return Then.TAKE_OUT if silent > LIVES else Then.ASK_ANOTHER


@dataclass(frozen=True)
class Verdict(Generic[Server]):
    """Servers to take out, each with the reason; or the error that the caller gets, and then none is taken out."""

    out: Mapping[Server, str] = field(default_factory=dict)
    error: ThumbwiseError | None = None


def after_work(good: int, errors: Mapping[Server, ThumbwiseError]) -> Verdict[Server]:
    """What follows work that went well on `good` servers and failed on the others with `errors`, by the table above."""
    blaming = [error for error in errors.values() if _blames_the_request(error.status)]
    if good == 0 or len(blaming) >= good:
        return Verdict(error=(blaming or list(errors.values()))[0])
    return Verdict(out={server: str(error) for server, error in errors.items()})


def _blames_the_request(status: int) -> bool:
    return status < 500
