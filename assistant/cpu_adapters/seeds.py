"""A request with a seed may have a prompt that vLLM reads in pieces.

After each piece but the last vLLM samples a token, drops it, and sets the request's generator back by what that took.
vLLM 0.32 does so in a way that generators on CPU refuse, and the error ends its engine, for everybody. Here a generator
from which no token was kept begins again at its seed, so a seed gives the same reply however the prompt is read. That
of a reply that was interrupted and is read anew goes on where it is.
"""

from __future__ import annotations

from typing import Any


def rewind_seeds() -> None:
    """Have this process's vLLM set generators back itself no more; a second call changes nothing."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # that for CPU is made of it

    keep_books = GPUModelRunner._bookkeeping_sync
    if hasattr(keep_books, "rewinds"):
        return

    def rewinding(runner: Any, *args: Any, **given: Any) -> Any:
        batch, generators = runner.input_batch, runner.input_batch.generators
        for index, generator in generators.items():
            if runner.discard_request_mask.np[index] and not batch.req_output_token_ids[index]:
                generator.manual_seed(generator.initial_seed())
        batch.generators = {}
        try:
            return keep_books(runner, *args, **given)
        finally:
            batch.generators = generators

    rewinding.rewinds = True  # type: ignore[attr-defined]
    GPUModelRunner._bookkeeping_sync = rewinding
