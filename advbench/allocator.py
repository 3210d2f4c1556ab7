"""Keeps freed memory in the process. Does not import torch.

By default the C library returns large freed blocks to the system, which has to clear and map them again when the next
layer allocates: 120,000 page faults in each step of adversarial training on a CPU, a quarter to a third of its time
(`tests/bench/training.py`).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed() -> bool:
    """Make malloc keep freed memory from now on. Returns False, without effect, if the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows CDLL needs a name
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
