"""The switch that refuses the database's lock to an event loop, on for all tests and the servers that they start."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import traceback
import types
from pathlib import Path

from thumbwise import faults
from thumbwise.feedback import writer

COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
os.environ[faults.DEBUG_LOCKS] = "1"
on_loop = writer.on_loop
waited: list[str] = []
"""Where an event loop would have waited in this test; what is raised there may have been caught."""


def on_loop_of_ours() -> bool:
    """As the writer's, but where it is a test's own coroutine that asks for the database: that may block its loop."""
    if not on_loop() or not run_by_asyncio():
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None and not frame.f_code.co_flags & COROUTINE:
        frame = frame.f_back
    if Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[2]):
        return False
    waited.append("".join(traceback.format_stack()))
    return True


def run_by_asyncio() -> bool:
    """Playwright leaves a loop of its own in the thread of a test, which does not wait for what the test does."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).parent == Path(asyncio.__file__).parent:
            return True
        frame = frame.f_back
    return False


writer.on_loop = on_loop_of_ours
