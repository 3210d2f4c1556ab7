"""Our engine beside pyautoattack: the same net, images, eps, budget and threads, one attack after the other.

    python tests/bench/attacks.py [--model SPEC] [--dataset NAME] [--eps EPS] [-n N] [--attacks LIST] [--threads T]

Prints, for each attack, the seconds of both, their ratio, and the robust accuracy each reached. It is no test: times
are of this machine, and only their ratios in one run are worth quoting.
"""

from __future__ import annotations

import argparse

import torch

from advbench.checkpoint import load_model
from advbench.data import load
from advbench.evaluator import Evaluation, evaluate


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pyautoattack:model_test")
    parser.add_argument("--arch", default=None)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--eps", default="0.25/255")
    parser.add_argument("--attacks", default="apgd-ce,apgd-t,fab-t,square")
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load(given.dataset, "test").subset(range(given.n))
    model = load_model(given.model, arch=given.arch, dataset=data)

    def run(attack: str, engine: str) -> Evaluation:
        return evaluate(model, data, attack=attack, eps=[given.eps], engine=engine, curve="exact")

    run("fgsm", "own")  # warm-up: what is made once is not timed
    print(f"{given.model}, {given.dataset}, eps {given.eps}, n {given.n}, {given.threads} threads")
    print(f"{'attack':<10}{'ours s':>10}{'theirs s':>10}{'ratio':>8}{'ours %':>9}{'theirs %':>10}")
    for attack in given.attacks.split(","):
        ours, theirs = run(attack, "own").record, run(attack, "reference").record
        robust = [100 * record.curve[0].accuracy for record in (ours, theirs)]
        ratio = theirs.seconds / ours.seconds
        print(
            f"{attack:<10}{ours.seconds:>10.1f}{theirs.seconds:>10.1f}{ratio:>8.2f}{robust[0]:>9.1f}{robust[1]:>10.1f}"
        )


if __name__ == "__main__":
    main()
