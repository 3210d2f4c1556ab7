"""`--engine reference`: AutoAttack by its own package, for those who doubt ours."""

from __future__ import annotations

import logging
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.errors import UserError
from advbench.evaluator import walk
from advbench.evaluator.bench import Bench
from advbench.record import Fates
from advbench.registry import find
from advbench.threat import around

NAME = "pyautoattack"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}
SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def version() -> str:
    """The version of the installed package."""
    return metadata.version(NAME)


def check(names: list[str], norm: str, settings: dict[str, Any]) -> None:
    """UserError for attacks or norms that the reference does not have, and for settings, which it has its own of."""
    if settings:
        raise UserError(f"--engine reference runs its attacks as published: leave out --set {', '.join(settings)}")
    if norm not in NORMS:
        raise UserError(f"--engine reference has no norm {norm}: choose from {', '.join(NORMS)}")
    if len(names) != 1 or names[0] not in (*VERSIONS, *SINGLE):
        raise UserError(f"--engine reference runs one of {', '.join((*VERSIONS, *SINGLE))}, not {'+'.join(names)}")


def members(name: str) -> tuple[str, ...]:
    """The attacks that the reference runs under a name, in its order."""
    return tuple(find("attacks", name).about.get("members", (name,)))


def curve(bench: Bench, name: str, eps: list[float], *, slots: int) -> Fates:
    """The exact walk with the reference: at each eps, its attacks one after the other on those who still stand.

    As the package does by itself, in batches of `slots`: each of them is kept in the journal once it ends. In `by`,
    attacks count as in `members`.
    """
    from pyautoattack import AutoAttack

    way = walk.Walk(eps, bench.correct)
    data = bench.data
    kind = VERSIONS.get(name, "standard")  # "custom" would have five restarts of APGD, which no version has alone

    def run(member: str, rows: NDArray[np.int64], size: float) -> dict[str, Tensor]:
        x, y = data.batch(torch.from_numpy(rows).to(data.device))
        adversary = AutoAttack(
            bench.net, norm=NORMS[bench.norm], eps=size, seed=bench.seed, device=data.device, version=kind
        )
        adversary.attacks_to_run = [member]
        z, _ = adversary.run_standard_evaluation(x, y, batch_size=bench.oracle.slots)
        inside = around(bench.norm, x, torch.full(y.shape, size, dtype=torch.float64, device=x.device)).contains(z)
        return {"fell": (bench.oracle.verify(z, y) & inside).cpu()}

    def strike(
        attack: int, rows: NDArray[np.int64], points: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        sizes = np.asarray(eps)[points]
        fell = []
        for start in range(0, len(rows), slots):
            part = partial(run, members(name)[attack], rows[start : start + slots], float(sizes[0]))
            fell.append(bench.fitting(lambda part=part: bench.journal.once(part))["fell"])  # type: ignore[misc]
        return torch.cat(fell).numpy(), sizes

    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        walk.exact(way, strike, len(members(name)))
    finally:
        logger.setLevel(level)
    return way.fates()
