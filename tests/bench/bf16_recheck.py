"""How near to failure a search in bf16 brought the images that only float32 fells.

    python tests/bench/bf16_recheck.py [--model SPEC]... [--arch NAME] [--dataset NAME] [--eps LIST] [-n N] [--attack SET]

For each model and eps, the attacks run in bf16, then those of the recheck in fp32 on all images that stand, and apart
from that all in fp32. An image's distance is how far its best margin in bf16 stayed below 0, in units of its largest
clean logit. The first table has a column for each range of distances: how many images stood after bf16, how many of
these the recheck felled, and how many only the evaluation all in fp32 felled. The second line says how many images
stand after bf16 and a recheck of all, after bf16 and a recheck of the near ones (within `NEAR_MARGIN`), and in fp32.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.checkpoint import Loaded, load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.eps import as_eps
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.fp32_recheck import recheck_attacks
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import NEAR_MARGIN, Runner
from advbench.evaluator.slots import choose_slots
from advbench.models.untouched import untouched

BOUNDS = [2.0**-k for k in range(9, 0, -1)]  # between the ranges of distances
Rows = NDArray[np.int64]


def main() -> None:
    """Print both tables for each model and eps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--eps", required=True)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for spec in given.model:
        data = load(given.dataset, "test")
        data = data.subset(range(min(given.n, len(data)))).to(torch.device(given.device))
        loaded = load_model(spec, arch=given.arch, dataset=data)
        attacks, _ = resolve(given.attack.split(","), {}, norm=given.norm, classes=data.num_classes)
        loaded.net.to(data.device)
        with untouched(loaded.net):
            for eps in given.eps.split(","):
                measured = measure(loaded, data, attacks, given.norm, as_eps(eps).value)
                print(f"{spec}, {given.norm} {eps}, n {len(data)}, {given.attack}", *table(*measured), "", sep="\n")


def measure(
    loaded: Loaded, data: Dataset, attacks: list[Attack], norm: str, eps: float
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]]]:
    """Distances (n,), and which images (n,) stand after each part of a search in bf16, and in fp32."""
    made: Any = {
        precision: Runner(
            loaded.net, data, norm=norm, seed=0, precision=precision, journal=Journal(),
            slots=choose_slots(loaded.net, data, norm=norm, precision=precision, weights_sha256=loaded.weights_sha256),
        )
        for precision in ("bf16", "fp32")
    }  # fmt: skip
    runner = made["bf16"]
    best = np.full((2, len(data)), -np.inf)  # over all attacks, and over those that are repeated

    def withstood(by: list[Attack], standing: NDArray[np.bool_], runner: Runner, *, in_fp32: bool) -> NDArray[np.bool_]:
        left = standing.copy()
        for attack in by:
            rows = np.flatnonzero(left)
            verdicts = runner.attack_at(attack, rows, np.full(len(rows), eps), in_fp32=in_fp32)
            reached = verdicts.best_margin.numpy()
            best[0, rows] = np.maximum(best[0, rows], reached)
            if not attack.follows_gradient():
                best[1, rows] = np.maximum(best[1, rows], reached)
            left[rows] = ~verdicts.fell.numpy()
        return left

    searched = withstood(attacks, runner.correct, runner, in_fp32=False)
    far, far_of_repeated = -best / runner.logits.abs().amax(1).numpy()
    recheck = recheck_attacks(attacks, norm=norm, classes=data.num_classes)[0]
    rechecked = withstood(recheck, searched, runner, in_fp32=True)
    near = searched & (far < NEAR_MARGIN)
    standing = {"bf16": searched, "recheck of all": rechecked, "recheck of near": rechecked | (searched & ~near)}
    again = near & rechecked & (far_of_repeated < NEAR_MARGIN)
    repeated = withstood([one for one in attacks if not one.follows_gradient()], again, runner, in_fp32=True)
    for name in ("recheck of all", "recheck of near"):
        standing[name] = standing[name] & (repeated | ~again)
    return far, {**standing, "fp32": withstood(attacks, runner.correct, made["fp32"], in_fp32=True)}


def table(far: NDArray[np.float64], standing: dict[str, NDArray[np.bool_]]) -> list[str]:
    """Lines of text: images by distance, and the images that stand."""
    searched, every, near, fp32 = standing.values()
    lines = ["  distance below   " + "".join(f"{f'1/{round(1 / bound)}':>7}" for bound in BOUNDS) + "   more"]
    for what, some in (
        ("stood in bf16", searched),
        ("felled in recheck", searched & ~every),
        ("felled in fp32 only", every & ~fp32),
    ):
        counts = np.bincount(np.searchsorted(BOUNDS, far[some], side="right"), minlength=len(BOUNDS) + 1)
        most = f"   largest {far[some].max():.4f}" if some.any() and some is not searched else ""
        lines.append(f"  {what:<19}" + "".join(f"{count:>6} " for count in counts) + most)
    share = (far[searched] < NEAR_MARGIN).mean() if searched.any() else 0
    lines.append("  stand: " + ", ".join(f"{name} {int(some.sum())}" for name, some in standing.items()))
    lines.append(f"  near: {share:.1%} of those that stood in bf16; felled by bf16 only: {int((fp32 & ~near).sum())}")
    lines.append(f"  lost by not looking at the others: {int((near & ~every).sum())}; lost against fp32: "
                 f"{int((near & ~fp32).sum())}, net {int(near.sum()) - int(fp32.sum())}")  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
