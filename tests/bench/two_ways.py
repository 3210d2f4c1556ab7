"""The same evaluation in two ways: `curve`, exact and fast; `precision`, fp32 and bf16.

    python tests/bench/two_ways.py curve|precision [--model SPEC]... [--dataset NAME] [--attack NAME] [--eps LIST]

For each model: seconds (of the processor: a busy machine is no excuse), passes through the model, and the images that
stand at each eps, both ways, with those that only one way felled. Without --model, nets are trained on the spot, one
adversarially and one not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from advbench.checkpoint import load_model
from advbench.data import load
from advbench.evaluator import Evaluation, Settings, evaluate
from advbench.recipe import Recipe
from advbench.trainer import train

WAYS = {"curve": ("exact", "fast"), "precision": ("fp32", "bf16")}
POINTS = {"digits": "0,0.02,0.04,0.06,0.08,0.1,0.15,0.2", "mnist": "0,0.05,0.1,0.15,0.2,0.25,0.3,0.35"}


def main() -> None:
    """Run both ways for each model, and print what they differ by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(WAYS))
    parser.add_argument("--model", action="append")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--eps", default=None)
    parser.add_argument("-n", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load(given.dataset, "test")
    data = data.subset(range(min(given.n or len(data), len(data))))
    eps = (given.eps or POINTS[given.dataset]).split(",")
    with tempfile.TemporaryDirectory() as folder:
        for spec in given.model or trained(Path(folder), given.dataset, eps[-3]):
            model = load_model(spec, arch=given.arch, dataset=data)

            def run(way: str, model: object = model) -> tuple[Evaluation, float]:
                began = time.process_time()
                settings = Settings(
                    attack=given.attack.split(","),
                    eps=eps,
                    norm=given.norm,
                    device=given.device,
                    **{given.what: way},
                )
                made = evaluate(model, data, settings)
                return made, time.process_time() - began

            print(f"{spec}: {given.attack}, {given.norm}, n {len(data)}, {given.threads} threads, {given.device}")
            show(eps, {way: run(way) for way in WAYS[given.what]})


def trained(folder: Path, dataset: str, eps: str) -> list[str]:
    """Run folders of two nets of seconds: one adversarially trained, one not."""
    made = []
    for method in ("pgd-at", "standard"):
        recipe = Recipe.resolve(method=method, dataset=dataset, arch="mlp", eps=eps, sets=["epochs=15"])
        made.append(str(train(recipe, folder / method, device="cpu")))
    return made


def show(eps: list[str], results: dict[str, tuple[Evaluation, float]]) -> None:
    """The table of one model."""
    (first, one), (second, two) = results.items()
    for way, (result, seconds) in results.items():
        record = result.record
        print(f"  {way:<6}{seconds:>8.1f} s  {record.forwards:,} forward and {record.backwards:,} backward passes")
    print(f"  {second} in {two[1] / one[1]:.2f} x the time of {first}")
    print(f"  {'eps':<8}{first:>8}{second:>8}{'points':>9}  felled only by {first}, by {second}")
    n = len(one[0].fates)
    for place, text in enumerate(eps):
        a, b = (result.fates.standing(place) for result in (one[0], two[0]))
        difference = 100 * (int(b.sum()) - int(a.sum())) / n
        print(f"  {text:<8}{a.sum():>8}{b.sum():>8}{difference:>9.2f}  {np.sum(b & ~a)}, {np.sum(a & ~b)}", flush=True)


if __name__ == "__main__":
    main()
