"""Memory that is freed stays with the process. Loads no torch.

The C library hands large freed blocks back to the system, which clears and maps them anew when the next layer asks:
120,000 page faults in each step of adversarial training on a CPU, a quarter to a third of its time
(`tests/bench/training.py`).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed() -> bool:
    """Have malloc keep what is freed, from here on; False where the C library is not glibc, and nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no handle of the program itself
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
