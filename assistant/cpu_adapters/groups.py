"""A vLLM of one process opens no ports.

vLLM makes thirteen gloo process groups on CPU, also where each has one member, and every one of them listens on a port
of its own (loopback, unauthenticated) for members that never come. Here groups of one member get torch's "fake" backend
instead, which has no sockets and for which every collective is the identity. More than one process is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_no_ports() -> None:
    """Keep this process's vLLM from listening; a second call changes nothing."""
    import torch.distributed

    module: Any = torch.distributed
    if not hasattr(module.new_group, "alone"):
        module.init_process_group = _alone(module.init_process_group, lambda given: given.get("world_size") == 1)
        module.new_group = _alone(module.new_group, lambda given: module.get_world_size() == 1)


def _alone(make: Callable[..., Any], is_alone: Callable[[dict[str, Any]], bool]) -> Callable[..., Any]:
    """`make`, with the fake backend in place of gloo where a group has one member."""

    def wrapped(*args: Any, **given: Any) -> Any:
        if given.get("backend") == "gloo" and is_alone(given):
            import torch.testing._internal.distributed.fake_pg  # noqa: F401 - registers it

            given["backend"] = "fake"
        return make(*args, **given)

    wrapped.alone = True  # type: ignore[attr-defined]
    return wrapped
