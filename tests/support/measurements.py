"""Measurements made up from fates, to be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from advbench.compare import Measured, Side
from advbench.eps import parse_eps_list
from advbench.record import AttackRef, DatasetRef, Engine, Environment, Fates, ModelRef, Record, Trained

EPS = "0,4/255,8/255"


def other_images(n: int = 1000) -> dict[str, Any]:
    """A change of a measurement: other images of the same dataset."""
    return {"dataset": DatasetRef(name="cifar10", split="test", indices=f"random:7:{n}", images_sha256="c" * 64)}


def made(fell: Any, sizes: Any = None, **changes: Any) -> Measured:
    """A measurement of cifar10 by pgd; `changes` are parts of the record, or its spec, eps, date, name or device."""
    fell = np.asarray(fell)
    fates = Fates(fell, np.where(fell > 0, 0, -1), sizes)
    spec = changes.pop("spec", "runs/a")
    eps = changes.pop("eps", EPS)
    date = changes.pop("date", "2026-08-01T12:00:00+00:00")
    device = changes.pop("device", "cpu")
    parts: dict[str, Any] = {
        "model": ModelRef(
            name=changes.pop("name", None), spec=spec, arch="small_cnn", params=1,
            weights_sha256=spec.encode().hex()[:64].rjust(64, "0"),
            trained=changes.pop("trained", Trained(method="act", norm="linf", eps=8 / 255, eps_text="8/255")),
        ),
        "dataset": DatasetRef(name="cifar10", split="test", indices=f"first:{len(fell)}", images_sha256="b" * 64),
        "norm": "linf",
        "eps": parse_eps_list(eps, changes.get("norm", "linf")),
        "attack": [AttackRef(name="pgd", version="1")],
        "engine": Engine(name="advbench", version="1", slots=64, precision="fp32"),
        "seed": 0,
        "environment": Environment(advbench="0.1.0", date=date, command=("advbench", "evaluate"), device=device),
    }  # fmt: skip
    return Measured(Record.of(fates, **{**parts, **changes}), fates, Path("x.json"))


def side(label: str, *units: Measured) -> Side:
    return Side(label, units)


def fallen(counts: list[int], n: int = 1000) -> np.ndarray:
    """Samples sorted by strength: `counts[i]` of `n` stand at the i-th eps."""
    fell = np.full(n, -1)
    for index in reversed(range(len(counts))):
        fell[counts[index] :] = index
    return fell
