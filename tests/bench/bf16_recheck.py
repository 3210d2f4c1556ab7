"""How near to failure a search in bf16 brought the images that only float32 fells.

    python tests/bench/bf16_recheck.py --model SPEC... [--arch NAME] [--dataset NAME] [--norm NORM] [--eps LIST]
        [-n N] [--attack SET]

For each model and eps, the attacks run in bf16, then those of the recheck in fp32 on *all* images that stand, and apart
from that all in fp32. An image's distance is how far its best margin in bf16 stayed below 0, in units of the copy's
error: the largest of its logits on clean images, relative to an image's largest logit. The columns are ranges of
distances; the rows say how many images stood after bf16, how many of these the recheck felled, and how many only the
evaluation all in fp32 felled. Below, how many images stand after bf16 with a recheck of all, of those in doubt (as
`fp32_recheck` says), and in fp32.
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
from advbench.evaluator.fp32_recheck import NEAR, misled, near_margins, recheck_attacks
from advbench.evaluator.journal import Journal
from advbench.evaluator.runner import Runner
from advbench.evaluator.slots import choose_slots
from advbench.models.untouched import untouched

BOUNDS = [0, 1, 2, 4, 8, 16, 32, 64]  # between the ranges of distances


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
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.bool_]], list[str]]:
    """Distances (n,), which images (n,) stand after each part of a search in bf16, and in fp32, and notes."""
    made: Any = {
        precision: Runner(
            loaded.net, data, norm=norm, seed=0, precision=precision, journal=Journal(),
            slots=choose_slots(loaded.net, data, norm=norm, precision=precision),
        )
        for precision in ("bf16", "fp32")
    }  # fmt: skip
    runner = made["bf16"]
    best = np.full((2, len(data)), -np.inf)  # over all attacks, and over those that are repeated

    def withstood(by: list[Attack], standing: NDArray[np.bool_], runner: Runner, *, in_fp32: bool) -> NDArray[np.bool_]:
        left = standing.copy()
        for attack in by:
            rows = np.flatnonzero(left)
            if not len(rows):
                break
            verdicts = runner.attack_at(attack, rows, np.full(len(rows), eps), in_fp32=in_fp32)
            reached = verdicts.best_margin.numpy()
            best[0, rows] = np.maximum(best[0, rows], reached)
            if not attack.follows_gradient():
                best[1, rows] = np.maximum(best[1, rows], reached)
            left[rows] = ~verdicts.fell.numpy()
        return left

    searched = withstood(attacks, runner.correct, runner, in_fp32=False)
    error = near_margins(runner.oracle, data, runner.logits) / NEAR
    far, far_without_gradients = -best / error
    recheck = recheck_attacks(attacks, norm=norm, classes=data.num_classes)[0]
    rechecked = withstood(recheck, searched, runner, in_fp32=True)
    elsewhere = misled(runner.oracle, runner._fp32_oracle(), recheck[0], data, norm)
    doubt = searched & ((far < NEAR) | elsewhere)
    again = rechecked & (far_without_gradients < NEAR)
    repeated = withstood([one for one in attacks if not one.follows_gradient()], again, runner, in_fp32=True)
    every = rechecked & (repeated | ~again)
    standing = {"bf16": searched, "recheck of all": every, "of those in doubt": every | (searched & ~doubt)}
    fp32 = withstood(attacks, runner.correct, made["fp32"], in_fp32=True)
    relative = float((error / runner.logits.abs().amax(1).numpy())[0])
    notes = [
        f"  error of a logit 1/{1 / relative:.0f}; in doubt {doubt.sum()}, of which {(searched & elsewhere).sum()} "
        f"with a gradient elsewhere; repeated without gradients {again.sum()}"
    ]
    return far, {**standing, "fp32": fp32}, notes


def table(far: NDArray[np.float64], standing: dict[str, NDArray[np.bool_]], notes: list[str]) -> list[str]:
    """Lines of text: images by distance, and the images that stand."""
    searched, every, doubt, fp32 = standing.values()
    lines = ["  distance below   " + "".join(f"{bound:>7g}" for bound in BOUNDS) + "   more"]
    for what, some in (
        ("stood in bf16", searched),
        ("felled in recheck", searched & ~every),
        ("felled in fp32 only", every & ~fp32),
    ):
        counts = np.bincount(np.searchsorted(BOUNDS, far[some], side="right"), minlength=len(BOUNDS) + 1)
        most = f"   largest {far[some].max():.2f}" if some.any() and some is not searched else ""
        lines.append(f"  {what:<19}" + "".join(f"{count:>5}  " for count in counts) + most)
    lines += notes
    lines.append("  stand: " + ", ".join(f"{name} {int(some.sum())}" for name, some in standing.items()))
    lost, gained = int((doubt & ~fp32).sum()), int((fp32 & ~doubt).sum())
    lines.append(
        f"  lost by leaving out the others {int((doubt & ~every).sum())}; against fp32 lost {lost}, gained {gained}"
    )
    return lines


if __name__ == "__main__":
    main()
