"""Attacks that look for the nearest adversarial example beside those of the same name in other libraries.

    python tests/bench/parity_attacks.py --model SPEC [--arch NAME] [--dataset NAME] [-n N] [--attacks LIST]
                                         [--steps K] [--queries Q] [--seeds LIST] [--out FILE.md]

sigma-zero: adversarial-library's, K steps. hopskipjump: Foolbox's in L2 and in Linf, Q queries an image. Only images
that the model gets right are attacked. Every query of either side counts: the distance of an image is that of the
nearest point that misled the model, in one pass of its own at the end for ours, when it was asked for theirs.
Foolbox gets one image at a time, because images of one batch wait for each other in bisections and step sizes, and
its queries would not be those of its algorithm.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import report
import torch
from numpy.typing import NDArray
from peers import available
from torch import Tensor, nn

from advbench.checkpoint import load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.environment import environment
from advbench.evaluator import Journal
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.runner import Runner
from advbench.evaluator.slots import choose_slots
from advbench.threat import around
from advbench.version import __version__

TITLE = """# Our attacks beside those of other libraries

Written by `make parity-attacks`: the attacks that look for the nearest adversarial example and are not in pyautoattack,
at equal numbers of passes for each image. The median is over all images that the model gets right, those that did not
fall counted as infinitely far. "ours nearer" and "theirs nearer": on how many images the one or the other found a
nearer point, by more than 1 %; two seeds of one library are the measure for those between two libraries.

Where the codes differ: the step size of adversarial-library's sigma-zero is one step behind the cosine. Foolbox begins
hopskipjump at the first of 50 blends of image and noise that misleads, ours at the noise, and both bisect from there;
in Linf its bisections end at 1 / n^2 of their first radius, ours of the present one; it asks two points of each round
twice.

pyautoattack, torchattacks, Foolbox, ART and adversarial-library have no odi-margin, pma, rays and multi-targeted, and
none takes the targets of MALT.
"""
Distances = NDArray[np.float64]
Peer = Callable[[nn.Module, Tensor, Tensor, int, int], Distances]


class Spent(Exception):
    """All queries were made."""


class Watched(nn.Module):
    """`net` for one image x (1, C, H, W) of class y: it keeps the distance of the nearest query that misled it."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, norm: str, queries: int) -> None:
        super().__init__()
        self.net, self.y, self.left = net, y, queries
        self.region = around(norm, x, torch.full((1,), torch.inf, dtype=torch.float64))
        self.distance = np.inf

    def forward(self, z: Tensor) -> Tensor:
        if not self.left:
            raise Spent
        self.left -= 1
        logits: Tensor = self.net(z)
        if int(logits.argmax(1)) != int(self.y):
            self.distance = min(self.distance, float(self.region.size((z - self.region.x).double())))
        return logits


def foolbox_hopskipjump(norm: str) -> Peer:
    def run(net: nn.Module, x: Tensor, y: Tensor, queries: int, seed: int) -> Distances:
        import foolbox

        torch.manual_seed(seed)
        found = []
        for image, label in zip(x.split(1), y.split(1), strict=True):
            watched = Watched(net, image, label, norm, queries).eval()
            attack = foolbox.attacks.HopSkipJumpAttack(constraint=norm, steps=queries)
            try:
                with torch.no_grad():
                    attack.run(foolbox.PyTorchModel(watched, bounds=(0, 1), device="cpu"), image, label)
            except Spent:
                pass
            except ValueError as none:  # all of its 1,000 random images were classified correctly
                if "init_attack failed" not in str(none):
                    raise
            found.append(watched.distance)
        return np.array(found)

    return run


def adv_lib_sigma_zero(net: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> Distances:
    from adv_lib.attacks import sigma_zero

    found = sigma_zero(net, x, y, num_steps=steps)
    with torch.no_grad():
        misled = (net(found).argmax(1) != y).numpy()
    return np.where(misled, (found != x).flatten(1).sum(1).numpy(), np.inf)


def ours(net: nn.Module, data: Dataset, name: str, norm: str, settings: dict[str, int], seed: int) -> Distances:
    """The distances (n,) of our attack, in fp32, verified; those of images that the model gets wrong are 0."""
    (attack,), _ = resolve([name], settings, norm=norm, classes=data.num_classes)
    slots = choose_slots(net, data, norm=norm, precision="fp32")  # a rule of the images
    runner = Runner(net, data, norm=norm, seed=seed, slots=slots, precision="fp32", journal=Journal())
    rows = np.flatnonzero(runner.correct)
    distance: Distances = np.zeros(len(data))
    distance[rows] = runner.attack_at(attack, rows, np.full(len(rows), np.inf)).distance.numpy()
    return distance


def row(library: str, seed: str, distance: Distances, beside: Distances | None = None) -> dict[str, str]:
    """A line of the table: `beside` are the distances of ours with the same seed."""
    nearer = ["", ""] if beside is None else [str(count) for count in by_one_alone(beside, distance)]
    return {
        "library": library,
        "seed": seed,
        "fell": f"{int(np.isfinite(distance).sum())} of {len(distance)}",
        "median": f"{np.median(distance):.4g}",
        "ours nearer": nearer[0],
        "theirs nearer": nearer[1],
    }


def by_one_alone(one: Distances, other: Distances) -> tuple[int, int]:
    """How many distances of `one` are less than those of `other`, by more than 1 %, and the other way round."""
    return int((one < 0.99 * other).sum()), int((other < 0.99 * one).sum())


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--attacks", default="sigma-zero,hopskipjump")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load(given.dataset, "test").subset(range(given.n))
    loaded = load_model(given.model, arch=given.arch, dataset=data)
    net = loaded.net.eval().requires_grad_(False)
    x, y = data.batch(slice(0, len(data)))
    with torch.no_grad():
        right = net(x).argmax(1) == y
    seeds = [int(seed) for seed in given.seeds.split(",")]
    steps, queries = {"steps": given.steps}, {"n_queries": given.queries}
    cases: dict[str, list[tuple[str, dict[str, int], list[int], str, Peer]]] = {
        "sigma-zero": [("l0", steps, seeds[:1], "adv_lib", adv_lib_sigma_zero)],  # neither has random numbers
        "hopskipjump": [(norm, queries, seeds, "foolbox", foolbox_hopskipjump(norm)) for norm in ("l2", "linf")],
    }
    versions, here = available(), environment()
    for name in given.attacks.split(","):
        for norm, settings, some, library, peer in cases[name]:
            if library not in versions:
                print(f"{library} is not installed: {name} is left out", file=sys.stderr)
                continue
            rows, found = [], []
            (budget,) = settings.values()
            for seed in some:
                told = str(seed) if len(some) > 1 else "none drawn"
                mine = ours(net, data, name, norm, settings, seed)[right.numpy()]
                theirs = peer(net, x[right], y[right], budget, seed)
                found.append((mine, theirs))
                rows += [row("advbench", told, mine), row(library, told, theirs, mine)]
                print(*rows[-2].values(), *rows[-1].values(), sep="\t", file=sys.stderr)
            text = (
                f"{', '.join(f'{key} {value}' for key, value in settings.items())}, the first {given.n} images; "
                f"{here['device_name']}, Python {here['python']}, torch {here['torch']}, advbench {__version__}, "
                f"{library} {versions[library]}; {date.today()}\n\n{report.table(rows)}"
            )
            for which, first, second in zip(("advbench", library), *found[:2], strict=True) if found[1:] else ():
                one, other = by_one_alone(first, second)
                text += f"\n{which}: nearer with seed {some[0]} {one}, with seed {some[1]} {other}.\n"
            heading = f"{name} in {norm}: {loaded.arch} on {data.name} ({loaded.weights_sha256[:12]})"
            print(f"{heading}\n{text}")
            if given.out:
                report.write(given.out, TITLE, heading, text)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*failed to draw sufficient random")
    main()
