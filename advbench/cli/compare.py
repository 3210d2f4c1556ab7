"""`advbench compare`: paired differences between records, and a gate."""

from __future__ import annotations


def command() -> None:
    """Compare."""
