"""vLLM's processes wait for one another asleep, and so leave every core to the computation.

The engine's scheduler and its worker pass messages through shared memory. In vLLM 0.32 whoever waits for one asks again
and again for up to a second after the last (`SpinCondition`), which takes a whole core, and vLLM keeps one out of the
computation for that: on two cores half of the machine. Here the waiting one sleeps until the writer's signal. A signal
can be lost while messages are frequent, so it looks by itself every millisecond too. Left out: machines of more cores
than FEW keep vLLM's spare one, which is little there, and serves the scheduler and the pages.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

BRIEF = 1
"""Milliseconds between two looks while messages are frequent."""
FEW = 4
"""Cores up to which none is spared."""
SPARED = "VLLM_CPU_NUM_OF_RESERVED_CPU"


@cache
def wait_asleep() -> None:
    """Have this process's readers of vLLM's shared memory sleep instead of spinning; a second call changes nothing."""
    import zmq
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    idle = SpinCondition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() > self.last_read + self.busy_loop_s:
            idle(self, timeout_ms)
        elif self.local_notify_socket in dict(self.poller.poll(BRIEF)):
            self.local_notify_socket.recv(flags=zmq.NOBLOCK)

    SpinCondition.wait = wait


def spare_no_core() -> None:
    """Let the computation have all of a few cores, unless the operator said how many to spare."""
    if len(os.sched_getaffinity(0)) <= FEW:
        os.environ.setdefault(SPARED, "0")
