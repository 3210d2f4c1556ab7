"""A measurement of ten minutes on an NVIDIA GPU, the most informative first, without a network.

    python tests/bench/bench_cuda.py [--budget SECONDS] [--sections LIST] [--pack FOLDER | --model SPEC --dataset NAME]
                               [--eps EPS] [--device cuda] [--out FILE.md]
    torchrun --nproc-per-node 2 tests/bench/bench_cuda.py ...

Each row is appended to FILE.md at once. A section that is over its share of the budget starts nothing more and says
what it left out; what one does not need, the last one has. The sections: card (rates of matrix products and copies;
which attacks are CUDA graphs), steps (milliseconds of a step, by rows and precision), host (what the host does between
steps), training (PGD-10 beside the plain loop), ours (AutoAttack on 1,000 images, in its parts), reference
(pyautoattack on up to 512 of them, with PyTorch's default kernels), whole (ours on all images, from where an earlier
measurement was cut). Under torchrun, ours and whole alone, on one card for each process or on one for all.
With --device cpu a rehearsal in small, whose numbers say nothing of a card.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import cuda_autoattack
import cuda_card
import cuda_host
import cuda_steps
import cuda_training
import torch
from cuda_bench import Bench, Sizes
from cuda_pack import IMAGES, WEIGHTS
from cuda_table import Section, Table, measure

from advbench import ranks
from advbench.checkpoint import load_model
from advbench.data import load
from advbench.environment import environment
from advbench.eps import parse_eps
from advbench.errors import UserError

TITLE = """# On a GPU

Written by `make bench-cuda`, one table a run. Rates are shares of what this card's bf16 matrix product was measured to
make. Seconds of AutoAttack are of attack alone, without start-up and data loading.
"""
SMALL = Sizes(rows=(16,), batches=(32,), ours=16, reference=(4, 8), slots=128, steps=5, workers=0)
SECONDS = {"card": 20, "steps": 60, "host": 10, "training": 120, "ours": 150, "reference": 150, "whole": 90}
SHARED = ("ours", "whole")  # by the processes of torchrun


def sections(bench: Bench, names: Sequence[str], *, exact: bool) -> list[Section]:
    """The sections called `names`, in their order here."""
    ours = cuda_autoattack.Ours()
    jobs = {
        "card": lambda: cuda_card.jobs(bench),
        "steps": lambda: cuda_steps.jobs(bench),
        "host": lambda: cuda_host.jobs(bench),
        "training": lambda: cuda_training.jobs(bench),
        "ours": lambda: cuda_autoattack.our_jobs(bench, ours),
        "reference": lambda: cuda_autoattack.reference_jobs(bench, ours, exact=exact),
        "whole": lambda: cuda_autoattack.whole_jobs(bench),
    }
    return [Section(name, seconds, jobs[name]()) for name, seconds in SECONDS.items() if name in names]


def main(argv: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
    """Run the measurement. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--sections", default=None, help=f"of {','.join(SECONDS)} [all; torchrun: {','.join(SHARED)}]")
    parser.add_argument("--pack", type=Path, help="what cuda_pack.py wrote, in the place of --model and --dataset")
    parser.add_argument("--model", default="pyautoattack:model_test", help="[weights of --pack if it has any]")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--eps", default="0.25/255")
    parser.add_argument("-n", type=int, default=10_000, help="images of whole")
    parser.add_argument("--exact-reference", action="store_true", help="the reference in exact fp32, as for verdicts")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    names = (given.sections or ",".join(SHARED if ranks.world() > 1 else SECONDS)).split(",")
    if unknown := sorted({*names} - {*(SHARED if ranks.world() > 1 else SECONDS)}):
        raise UserError(
            f"unknown section {unknown[0]}: choose from {', '.join(SECONDS)}; torchrun: {', '.join(SHARED)}"
        )
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this measures on an NVIDIA GPU, and there is no CUDA device here: --device cpu rehearses it")
    parse_eps(given.eps)
    if given.n < 1:
        raise UserError(f"-n is {given.n}: it must be at least 1")
    cards = f":{ranks.local_rank() % torch.cuda.device_count()}" if given.device == "cuda" else ""
    device = torch.device(given.device + cards)
    began = clock()
    dataset, model, arch = given.dataset, given.model, given.arch
    if given.pack is not None:
        dataset = f"npz:{given.pack / IMAGES}"
        if (given.pack / WEIGHTS).exists():
            model, arch = str(given.pack / WEIGHTS), None
    data = load(dataset, "test")
    loaded = load_model(model, arch=arch, dataset=data)
    loaded.net.to(device).eval()
    folder = given.out.parent if given.out else Path()
    sizes = replace(Sizes() if device.type == "cuda" else SMALL, whole=min(given.n, len(data)))
    bench = Bench(loaded, data.to(device), given.eps, device, sizes, folder)
    here = environment(str(device))
    versions = ", ".join(
        f"{name} {here[name]}" for name in ("python", "torch", "cuda", "cudnn", "advbench") if name in here
    )
    about = (
        f"{loaded.arch} ({loaded.weights_sha256[:12]}) on {Path(data.name).name}, Linf eps {given.eps}, "
        f"{given.budget:.0f} s; {here['device_name']}, {versions}; {date.today()}"
    )
    table = Table(given.out, TITLE, about)
    chosen = sections(bench, names, exact=given.exact_reference)
    measure(chosen, given.budget - (clock() - began), clock, table.row)


if __name__ == "__main__":
    try:
        with ranks.joined():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
