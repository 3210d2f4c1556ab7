"""Freed memory that stays: fewer page faults, counted by the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from advbench.allocator import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
def large():
    for _ in range(20):
        block = bytearray(64 * 2**20)
large()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
large()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is tuned on glibc alone")
def test_what_is_freed_is_used_again() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert faults("kept") < 100 < 20 * 64 * 2**20 / 2**21 < faults("as it was")  # of 4 KiB, or 2 MiB, each
