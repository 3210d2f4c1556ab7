"""`--engine reference`: AutoAttack by its own package, for those who doubt ours."""

from __future__ import annotations

import logging
import time
from importlib import metadata

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.errors import UserError
from advbench.evaluator import walk
from advbench.evaluator.bench import Bench
from advbench.record import Fates

NAME = "pyautoattack"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus", "autoattack-rand": "rand"}
SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


def version() -> str:
    """The version of the installed package."""
    return metadata.version(NAME)


def check(names: list[str], norm: str) -> None:
    """UserError for attacks or norms that the reference does not have."""
    if norm not in NORMS:
        raise UserError(f"--engine reference has no norm {norm}: choose from {', '.join(NORMS)}")
    if len(names) != 1 or names[0] not in (*VERSIONS, *SINGLE):
        raise UserError(f"--engine reference runs one of {', '.join((*VERSIONS, *SINGLE))}, not {'+'.join(names)}")


def curve(bench: Bench, name: str, eps: list[float]) -> Fates:
    """The exact walk with the reference: at each eps, its whole set on those who still stand."""
    from pyautoattack import AutoAttack

    way = walk.Walk(eps, bench.correct)
    data, batch = bench.data, bench.oracle.slots
    kind = {"version": VERSIONS[name]} if name in VERSIONS else {"version": "custom", "attacks": [name]}

    def strike(
        attack: int, rows: NDArray[np.int64], points: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        sizes = np.asarray(eps)[points]
        x, y = data.batch(torch.from_numpy(rows).to(data.device))
        adversary = AutoAttack(
            bench.net, norm=NORMS[bench.norm], eps=float(sizes[0]), seed=bench.seed, device=data.device, **kind
        )
        z, _ = adversary.run_standard_evaluation(x, y, batch_size=batch)
        return bench.oracle.verify(z, y).cpu().numpy(), sizes

    logger = logging.getLogger("auto-attack")
    level, began = logger.level, time.perf_counter()
    logger.setLevel(logging.ERROR)
    try:
        walk.exact(way, strike, 1)
    finally:
        logger.setLevel(level)
        bench.journal.seconds += time.perf_counter() - began
    return way.fates()
