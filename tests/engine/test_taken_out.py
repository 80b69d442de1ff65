"""The tables of `thumbwise.engine.taken_out`, line by line: who is taken out of a pool of vLLM servers, and why."""

from __future__ import annotations

import pytest

from thumbwise.engine.taken_out import LIVES, Then, after_reply, after_work
from thumbwise.errors import ThumbwiseError

SILENT = LIVES + 1
HEARD = LIVES - 1


@pytest.mark.parametrize(
    ("status", "begun", "others", "silent", "then"),
    [
        (502, True, 2, SILENT, Then.RAISE),  # part of the reply was sent
        (400, False, 2, SILENT, Then.RAISE),  # the request is to blame
        (422, False, 2, SILENT, Then.RAISE),
        (499, False, 2, SILENT, Then.RAISE),
        (502, False, 0, SILENT, Then.RAISE),  # it is the last one
        (502, False, 0, HEARD, Then.RAISE),
        (502, False, 1, HEARD, Then.ASK_ANOTHER),  # it answers others
        (502, False, 1, LIVES, Then.ASK_ANOTHER),
        (503, False, 1, SILENT, Then.TAKE_OUT),
        (500, False, 3, SILENT, Then.TAKE_OUT),
    ],
)
def test_a_reply_that_failed(status: int, begun: bool, others: int, silent: float, then: Then) -> None:
    assert after_reply(status, begun=begun, others=others, silent=silent) is then


@pytest.mark.parametrize(
    ("good", "statuses", "out", "error"),
    [
        (3, {}, [], None),
        (0, {"a": 503}, [], "a"),  # well on none: the error
        (0, {"a": 503, "b": 502}, [], "a"),
        (0, {"a": 503, "b": 422}, [], "b"),  # and rather one that blames the work
        (1, {"a": 422}, [], "a"),  # the work is to blame on as many as it went well on
        (2, {"a": 422, "b": 422}, [], "a"),
        (1, {"a": 503, "b": 422}, [], "b"),
        (2, {"a": 422}, ["a"], None),  # on fewer: those servers are to blame
        (3, {"a": 422, "b": 422}, ["a", "b"], None),
        (2, {"a": 422, "b": 503}, ["a", "b"], None),
        (1, {"a": 503}, ["a"], None),  # servers that are to blame, however many
        (1, {"a": 503, "b": 502, "c": 502}, ["a", "b", "c"], None),
    ],
)
def test_work_on_every_server(good: int, statuses: dict[str, int], out: list[str], error: str | None) -> None:
    errors = {server: ThumbwiseError(f"on {server}", status=status) for server, status in statuses.items()}
    verdict = after_work(good, errors)
    assert dict(verdict.out) == {server: f"on {server}" for server in out}
    assert verdict.error is (errors[error] if error else None)
