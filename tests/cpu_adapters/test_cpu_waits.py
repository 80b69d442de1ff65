"""vLLM's processes wait for one another asleep, and no core is spared on a small machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import zmq

from thumbwise.cpu_adapters import waits


class Pair:
    """A reader and a writer of one shared buffer, which only signal."""

    def __init__(self, module: Any, context: zmq.Context[Any], address: str) -> None:
        self.writer = module.SpinCondition(is_reader=False, context=context, notify_address=address)
        self.reader = module.SpinCondition(is_reader=True, context=context, notify_address=address)


@pytest.fixture
def shm() -> Iterator[Any]:
    from vllm.distributed.device_communicators import shm_broadcast

    with patch.object(shm_broadcast.SpinCondition, "wait", shm_broadcast.SpinCondition.wait):
        waits.wait_asleep.__wrapped__()
        with patch.object(shm_broadcast, "sched_yield", side_effect=AssertionError("it span")):
            yield shm_broadcast


@pytest.fixture
def pair(shm: Any) -> Iterator[Pair]:
    context: zmq.Context[Any] = zmq.Context()
    yield Pair(shm, context, "inproc://signals")
    context.destroy(linger=0)  # with the sockets


def test_a_reader_sleeps_until_the_signal(pair: Pair) -> None:
    pair.reader.record_read()
    with patch.object(waits, "BRIEF", 60_000):  # longer than a test may take
        pair.writer.notify()
        pair.reader.wait()
    assert not pair.reader.local_notify_socket.poll(0)


def test_a_signal_that_was_lost_is_not_waited_for(pair: Pair) -> None:
    pair.reader.record_read()
    with patch.object(pair.reader.poller, "poll", wraps=pair.reader.poller.poll) as poll:
        pair.reader.wait(60_000)
    poll.assert_called_once_with(waits.BRIEF)


def test_a_reader_that_is_let_go_wakes_up(pair: Pair) -> None:
    pair.reader.record_read()
    with patch.object(waits, "BRIEF", 60_000):
        pair.reader.cancel()
        pair.reader.wait()
    assert pair.reader.read_cancel_socket.poll(0)


def test_after_a_quiet_second_it_waits_as_vllm_does(pair: Pair) -> None:
    pair.reader.last_read -= 10
    with patch.object(pair.reader.poller, "poll", wraps=pair.reader.poller.poll) as poll:
        pair.reader.wait(2)
    poll.assert_called_once_with(timeout=2)


@pytest.mark.parametrize(("cores", "said", "spared"), [(2, None, "0"), (4, None, "0"), (5, None, None), (2, "1", "1")])
def test_no_core_is_spared_where_there_are_few(
    cores: int, said: str | None, spared: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    with patch.dict(os.environ, {waits.SPARED: said} if said else {}, clear=True):
        waits.spare_no_core()
        assert os.environ.get(waits.SPARED) == spared
