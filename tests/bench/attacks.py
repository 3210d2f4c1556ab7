"""Our engine beside other libraries: the same net, images, eps, budget and threads, round by round.

    python tests/bench/attacks.py [--model SPEC] [--dataset NAME] [--eps EPS] [-n N] [--attacks LIST] [--threads T]
                                  [--rounds R] [--libraries LIST] [--out FILE.md]

Prints, for each attack and library, the median seconds, the median of the ratios to ours in the same round, the passes
an image, and the robust accuracy reached; --out puts the table into a Markdown file, in the place of that of the same
attacks, net and dataset. It is no test: times are of one machine, and only ratios of one run are worth quoting. Peers
that are not installed are named and left out (`pip install '.[peers]'`, in an environment of its own: they pin old
versions).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import report
import torch
from peers import PGD_STEP, PGD_STEPS, Counted, Run, available, peers
from torch import nn

from advbench.allocator import keep_freed
from advbench.checkpoint import load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.environment import environment
from advbench.eps import parse_eps
from advbench.evaluator import Journal, Settings, bare
from advbench.evaluator.parallel import attack_all, how_many
from advbench.evaluator.plan import plan
from advbench.evaluator.precision import bf16_pays
from advbench.evaluator.runner import Runner
from advbench.evaluator.slots import choose_slots
from advbench.version import __version__

SETTINGS = {"pgd": {"steps": PGD_STEPS, "rel_step": PGD_STEP, "random_start": False}}
Measured = tuple[float, float, float, float]  # seconds, forwards and backwards an image, robust accuracy in percent


def ours(net: nn.Module, data: Dataset, attack: str, eps: float, precision: str) -> tuple[Measured, str]:
    """`attack` by our engine, as `advbench evaluate` would, and how: making the search copy, starting processes and
    verifying every hit are part of the time."""
    began, journal = time.perf_counter(), Journal()
    settings = Settings(
        attack=attack, attack_settings=SETTINGS.get(attack, {}), eps=[eps], precision=precision, curve="exact"
    )
    run = plan(settings, bare(net, data), data, bf16_pays=lambda *attacks: bf16_pays(net, data, *attacks))
    slots = choose_slots(net, data, norm="linf", precision=run.precision)  # a rule of the images
    processes = how_many(net, data, run, slots=slots)
    runner = Runner(net, data, norm="linf", seed=0, slots=slots, precision=run.precision, journal=journal)
    fates = attack_all(runner, run, settings, processes, resume=False).fates
    seconds = time.perf_counter() - began
    n = len(data)
    how = f"advbench, {run.precision}, {processes} process{'es' if processes > 1 else ''}"
    return (seconds, journal.forwards / n, journal.backwards / n, 100 * float(np.mean(fates.fell < 0))), how


def theirs(run: Run, net: nn.Module, data: Dataset, eps: float, batch: int) -> Measured:
    """The same by a peer, in batches; its hits are judged by the model afterwards, outside the time."""
    x, y = data.batch(slice(0, len(data)))
    counted = Counted(net).eval()
    began = time.perf_counter()
    found = torch.cat([run(counted, *part, eps) for part in zip(x.split(batch), y.split(batch), strict=True)])
    seconds = time.perf_counter() - began
    if (found - x).abs().max() > eps * 1.0001 + 1e-6 or found.min() < 0 or found.max() > 1:
        warnings.warn("a peer's points leave the ball or [0, 1]", stacklevel=1)
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in found.float().split(batch)]) == y
    return seconds, counted.forwards / len(y), counted.backwards / len(y), 100 * float(right.double().mean())


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pyautoattack:model_test")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--eps", default="0.25/255")
    parser.add_argument("--attacks", default="pgd,apgd-ce,apgd-t,fab-t,square")
    parser.add_argument("--libraries", default=None)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--batch", type=int, default=250, help="of the peers; ours has its own slots")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", help="of ours")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed()  # as the command line does; peers have it too
    data = load(given.dataset, "test").subset(range(given.n))
    loaded = load_model(given.model, arch=given.arch, dataset=data)
    net, eps = loaded.net.eval(), parse_eps(given.eps, "linf").value
    versions = available()
    chosen = given.libraries.split(",") if given.libraries else list(versions)
    for name in sorted({*given.libraries.split(",")} - {*versions}) if given.libraries else []:
        print(f"{name} is not installed: left out", file=sys.stderr)
    ours(
        net, data.subset(range(min(8, given.n))), "pgd", eps, given.precision
    )  # warm-up: what is made once is not timed
    rows = []
    for attack in given.attacks.split(","):
        runs = {name: run for name, run in peers(attack).items() if name in chosen and name in versions}
        measured: dict[str, list[Measured]] = {name: [] for name in runs}
        mine: list[Measured] = []
        for _ in range(given.rounds):
            found, how = ours(net, data, attack, eps, given.precision)
            mine.append(found)
            for name, run in runs.items():
                measured[name].append(theirs(run, net, data, eps, given.batch))
        for name, rounds in {how: mine, **measured}.items():
            ratios = [each[0] / beside[0] for each, beside in zip(rounds, mine, strict=True)]
            _, forwards, backwards, robust = rounds[-1]
            rows.append(
                {
                    "attack": attack,
                    "library": name,
                    "seconds": f"{statistics.median(each[0] for each in rounds):.1f}",
                    "time / ours": f"{statistics.median(ratios):.2f}",
                    "forwards": f"{forwards:.0f}",
                    "backwards": f"{backwards:.0f}",
                    "robust %": f"{robust:.1f}",
                }
            )
            print(*rows[-1].values(), sep="\t", file=sys.stderr)
    peer_versions = ", ".join(f"{name} {versions[name]}" for name in chosen if name in versions)
    here = environment()
    text = (
        f"{loaded.arch} on {data.name} ({loaded.spec if ':' in loaded.spec else loaded.weights_sha256[:12]}), "
        f"Linf eps {given.eps}, n {given.n}, {given.threads} threads, rounds {given.rounds}; {here['device_name']}, "
        f"Python {here['python']}, torch {here['torch']}, advbench {__version__}, {peer_versions}; "
        f"{date.today()}\n\n{report.table(rows)}"
    )
    print(text)
    if given.out:
        heading = f"{', '.join(given.attacks.split(','))}: {loaded.arch} on {data.name}"
        report.write(given.out, report.SPEED, heading, text)


if __name__ == "__main__":
    main()
