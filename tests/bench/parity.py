"""AutoAttack by our engine beside pyautoattack: robust accuracy and, image by image, where they disagree.

    python tests/bench/parity.py --model SPEC --dataset NAME --eps LIST [-n 1000] [--seeds 0,1,2] --out DIR

Evaluates the model by our engine (seed 0) and by the reference under each seed, each resumable and kept as a record in
DIR, then prints the accuracies and, for each pair of evaluations, the images that only one of them felled. The
disagreements between two seeds of the reference are the measure for those between it and us.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from advbench.cli.evaluate import Flags, evaluate
from advbench.record import Fates, Record, load_record


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--eps", required=True)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--curve", default="exact")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    results: dict[str, tuple[Record, Fates]] = {}
    for engine, seed in [("own", 0), *(("reference", int(seed)) for seed in given.seeds.split(","))]:
        folder = given.out / f"{engine}-{seed}"
        flags = Flags(
            models=[given.model], attacks=[given.attack], eps=given.eps, n=given.n, dataset=given.dataset,
            arch=given.arch, engine=engine, seed=seed, curve=given.curve, out=folder, resume=True, device="cpu",
        )  # fmt: skip
        (record,) = evaluate(flags)
        results[f"{engine} seed {seed}"] = load_record(next(folder.rglob(f"{record.id}.json")))
    print(f"\n{given.model}, {given.attack}, n {given.n}, robust images at each eps:")
    for name, (record, _) in results.items():
        counts = ", ".join(f"{point.eps_text}: {point.robust}" for point in record.curve)
        flags = ", ".join(f"{flag.severity} {flag.name}" for flag in record.flags) or "no flags"
        print(f"  {name:<18} {counts}; {record.seconds:.0f} s; {flags}")
    print("images that only one of two felled, (only the first, only the second) at each eps:")
    for (first, (record, one)), (second, (_, other)) in combinations(results.items(), 2):
        pairs = []
        for place, point in enumerate(record.curve):
            a, b = ((fates.fell >= 0) & (fates.fell <= place) for fates in (one, other))
            pairs.append(f"{point.eps_text}: ({np.sum(a & ~b)}, {np.sum(b & ~a)})")
        print(f"  {first} / {second}: {', '.join(pairs)}")


if __name__ == "__main__":
    main()
