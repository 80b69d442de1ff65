"""Keep freed memory in the process: a training step frees and takes the same large buffers hundreds of times.

glibc hands every large freed block back to the kernel, which then clears new pages for the next one; on two
cores that is a fifth of a PPO iteration. Two `mallopt` calls stop that for this process. Left out: other
C libraries, where nothing happens.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and never shrink it; False where that is not possible."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
