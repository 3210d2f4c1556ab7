"""Overdesign (trained at a larger eps than the attack's), corruptions, quantisation and filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from act import DECAY
from controls import FASHION, FASHION_AT, FASHION_STANDARD
from evidence import Analysis, Claim, Effect, Runs, rated
from findings import (
    GAINED,
    PARTS,
    BySeed,
    Finding,
    Numbers,
    absent,
    by_seeds,
    conclude,
    differences,
    mean_sd,
    of_the_same,
)

SMALL, DELTA, LARGER, LARGEST = "0.025", "0.1", "0.15", "0.2"


def at(eps: str) -> Runs:
    """AT of the control's recipe at another eps."""
    return FASHION_AT if eps == DELTA else replace(FASHION_AT, label=f"{FASHION_AT.label} at {eps}", eps=eps)


def linear(eps: str) -> Runs:
    """AT of a linear model, with settings chosen for it at this eps."""
    tuning = FASHION.tuning("pgd-at", DECAY, ("0", "0.0005", "0.005", "0.02"), "0.01", "0.05", "0.2")
    label = f"{FASHION.name} linear at {eps}"
    base = replace(tuning.base, label=f"{label} tuning", arch="linear", eps=eps)
    return replace(tuning, name=f"{FASHION.name}-linear-{eps}", base=base).runs(label, FASHION_AT.seeds)


ROBUST = {eps: at(eps) for eps in (SMALL, "0.05", DELTA, LARGER, LARGEST)}
DEEP = tuple(ROBUST.values())
LINEAR = {eps: linear(eps) for eps in (DELTA, LARGER)}
DEEP_RATED = {eps: rated(ROBUST[eps]) for eps in (DELTA, LARGER, LARGEST)}
LINEAR_RATED = {eps: rated(runs) for eps, runs in LINEAR.items()}
WEAK = ("--eps", DELTA, "--set", "attack=pgd", "--set", "steps=1")  # the accuracies under attack are measured above
CORRUPTED = {
    seed: Analysis(
        f"corruptions-s{seed}",
        "spectrum",
        tuple(replace(runs, seeds=(seed,)) for runs in (FASHION_STANDARD, *DEEP)),
        ("--set", "corruptions=simple", "-n", "2000", *WEAK),
    )
    for seed in FASHION_AT.seeds
}
LEVELS = Analysis("quantize-layers", "quantize", (FASHION_AT,), ("--set", "layer=all", "-n", "2000"))
FILTERS = Analysis("filters-conv", "filters", DEEP)


def overdesign(numbers: Numbers) -> Finding:
    """At 0.1, training at 0.15 gains over training at 0.1: as the paper's 12/255 over 8/255."""
    gained = numbers.gain(DEEP_RATED[LARGER].key, DEEP_RATED[DELTA].key, DELTA)
    accuracies = ", ".join(
        f"trained at {eps} {mean_sd(numbers.clean(one.key))} / {mean_sd(numbers.robust(one.key, DELTA))}"
        for eps, one in DEEP_RATED.items()
    )
    return conclude(f"clean / APGD-T at {DELTA}: {accuracies}", {"": gained})


def control(numbers: Numbers) -> Finding:
    """A linear model gains less than 1 point."""
    gained = numbers.gain(LINEAR_RATED[LARGER].key, LINEAR_RATED[DELTA].key, DELTA)
    accuracies = ", ".join(
        f"trained at {eps} {mean_sd(numbers.robust(one.key, DELTA))}" for eps, one in LINEAR_RATED.items()
    )
    return conclude(f"APGD-T at {DELTA}: {accuracies}", {"": gained}, partial(absent, reach=1.0))


def corruptions(numbers: Numbers) -> Finding:
    """The mean at 0.025, a quarter of the attack's eps as in the paper, gains 2 points over that at 0 and at 0.2."""
    means: dict[float, BySeed] = {}
    for seed, one in CORRUPTED.items():
        for row in numbers.tables[f"{one.key}/corruptions"]:
            means.setdefault(float(row["trained eps"]), {})[seed] = 100 * float(row["mean"])
    ends = (0.0, float(LARGEST))
    gains = {f"{SMALL} over {end:g}": by_seeds(means[float(SMALL)], means[end], 2.0) for end in ends}
    return conclude(", ".join(f"{mean_sd(means[eps])} at {eps:g}" for eps in sorted(means)), gains)


def quantised(numbers: Numbers) -> Finding:
    """The first layer gains 2 points, with every seed, under the worst of three attacks; or under the plain one."""
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for row in numbers.tables[f"{LEVELS.key}/accuracy"]:
        layers.setdefault(str(row["layer"]), []).append(row)

    def by_seed(layer: str, attack: str) -> BySeed:
        return {seed: 100 * float(row[attack]) for seed, row in enumerate(layers[layer])}

    names = ("plain", "straight_through", "transfer", "worst")
    parts = []
    for layer in layers:
        gains = {name: differences(by_seed(layer, name), by_seed(layer, "unquantized")) for name in names}
        parts.append(f"{layer}: " + ", ".join(f"{name.replace('_', '-')} {mean_sd(g)}" for name, g in gains.items()))
    first = next(iter(layers))
    gained, seeming = (
        of_the_same(by_seed(first, name), by_seed(first, "unquantized"), 2.0) for name in ("worst", "plain")
    )
    found = gained.verdict
    if found not in GAINED and seeming.verdict == "shown":
        found = "shown only under PGD"
    difference = PARTS.join([f"{first}, under the worst attack: {gained}", f"under the plain one: {seeming}"])
    return Finding(f"gain by attack: {'; '.join(parts)}", found, difference)


def amplification(numbers: Numbers) -> Finding:
    """The first convolution falls from 0.025 to 0.2, and with every seed exceeds the second at every eps."""
    sizes: dict[str, dict[str, list[float]]] = {}
    for eps, runs in ROBUST.items():
        names = {folder.name for folder in runs.folders}
        for row in numbers.tables[f"{FILTERS.key}/filters"]:
            if row["run"] in names and row["kind"] == "Conv2d":
                sizes.setdefault(str(row["layer"]), {}).setdefault(eps, []).append(float(row["mean_max"]))
    (name, first), (_, second) = list(sizes.items())[:2]
    larger = all(a > b for eps in ROBUST for a, b in zip(first[eps], second[eps], strict=True))
    ends = (dict(enumerate(first[eps])) for eps in (SMALL, LARGEST))
    fall = by_seeds(*ends, digits=3)
    ours = "; ".join(
        f"{layer}: " + ", ".join(f"{mean_sd(found[eps], 3)} at {eps}" for eps in ROBUST)
        for layer, found in sizes.items()
    )
    told = fall.verdict if larger else "not shown"
    return Finding(f"mean over kernels of max |w|, {ours}", told, f"{name}, fall from {SMALL} to {LARGEST}: {fall}")


EFFECT = Effect(
    system="spectrum",
    source="Overdesign, quantisation and filters, Sridhar et al. 2022, arXiv:2206.06496",
    about="The convolutional nets have the settings that were chosen for AT at 0.1, which favours the control of "
    "overdesign. A linear model has its own at each eps.",
    runs=(FASHION_STANDARD, *DEEP, *LINEAR.values()),
    evaluations=(*DEEP_RATED.values(), *LINEAR_RATED.values()),
    analyses=(*CORRUPTED.values(), LEVELS, FILTERS),
    claims=(
        Claim(
            "trained at 1.5 times the attack's eps is better", "PGD-20, 8/255: 48.8 to 52.6", overdesign,
            tuple(ROBUST[eps] for eps in DEEP_RATED), untuned=True,
        ),
        Claim(
            "a linear model shows no such gain (a negative control)", "none", control, tuple(LINEAR.values()),
            own=(LINEAR[LARGER],), excuses="shown",
        ),
        Claim(
            "under 8 mild corruptions, training at a small eps is best",
            "CIFAR-10-C, mean error: 35.0 at 0, 18.8 at 2/255, 31.5 at 12/255", corruptions, (FASHION_STANDARD, *DEEP),
            tuple(CORRUPTED.values()), untuned=True,
        ),
        Claim(
            "quantising the first layer's outputs makes more robust", "+2.2 under PGD-20; BPDA undoes it", quantised,
            (FASHION_AT,), (LEVELS,),
        ),
        Claim(
            "filters of nets trained at larger eps amplify less", "first layer most of all", amplification, DEEP,
            (FILTERS,), untuned=True,
        ),
    ),
)  # fmt: skip
