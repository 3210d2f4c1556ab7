"""Measurements made up from fates, to be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made_records import fallen, fates_of, images, record_of

from advbench.compare import Measured, Side

__all__ = ["fallen", "made", "other_images", "side"]


def other_images(n: int = 1000) -> dict[str, Any]:
    """A change of a measurement: other images of the same dataset."""
    return {"dataset": images(f"random:7:{n}")}


def made(fell: Any, sizes: Any = None, **changes: Any) -> Measured:
    """A measurement with these fates; for `changes` see `record_of`."""
    fates = fates_of(fell, sizes)
    return Measured(record_of(fates, **{"spec": "runs/a", **changes}), fates, Path("x.json"))


def side(label: str, *units: Measured) -> Side:
    return Side(label, units)
