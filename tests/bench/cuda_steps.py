"""Milliseconds of a step of an attack, all of whose rows are useful."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from cuda_bench import Bench
from cuda_table import Found, Job, Left

from advbench.engine.kernels import exact_kernels, has_bf16
from advbench.engine.oracle import Oracle
from advbench.engine.search_copy import search_copy
from advbench.eps import parse_eps
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.slots import problem_of, seconds_of, step_of

ATTACKS = ("apgd-ce", "square", "fab-t", "pgd")
PRECISIONS = ("bf16", "TF32", "IEEE fp32")  # TF32: what PyTorch does by default, convolutions in TF32


def jobs(bench: Bench) -> list[Job]:
    """Each attack, number of rows and precision, as a graph and eager: what an evaluation runs first."""
    cuda = bench.device.type == "cuda"
    rows = bench.sizes.rows
    precisions = [one for one in PRECISIONS if cuda or (one != "TF32" and (one != "bf16" or has_bf16(bench.device)))]
    graphs = [True, False] if cuda else [False]
    every = [(a, r, p, g) for g in graphs for r in rows for a in ATTACKS for p in precisions]
    first = [one for one in every if one[1] == rows[0] and one[2] == precisions[0] and one[3] == graphs[0]]
    second = [one for one in every if one[0] == ATTACKS[0]]
    return [
        Job(f"{attack}, {count:,} rows, {precision}, {'graph' if graph else 'eager'}",
            partial(_step, bench, attack, count, precision, graph))
        for attack, count, precision, graph in dict.fromkeys([*first, *second, *every])
    ]  # fmt: skip


def _step(bench: Bench, name: str, rows: int, precision: str, graph: bool, left: Left) -> Iterator[Found]:
    (attack,), _ = resolve([name], {}, norm="linf", classes=bench.data.num_classes)
    seconds, why_eager = 0.0, ""

    def work() -> None:
        nonlocal seconds, why_eager
        example = bench.data.batch(slice(0, 1))[0]
        copy, _ = search_copy(bench.model.net, torch.bfloat16 if precision == "bf16" else None, example=example)
        oracle = Oracle(bench.model.net, copy, slots=rows)
        p = problem_of(bench.data, rows, "linf", parse_eps(bench.eps, "linf").value)
        p.target = attack.target_classes(oracle.logits(p.region.x), p.y)[:, 0]
        step, why_eager = step_of(attack, oracle, p, graph=graph)
        seconds = seconds_of(step, bench.device)

    with nullcontext() if precision == "TF32" else exact_kernels(bench.device):
        held = bench.held(work)
    forwards, backwards = len(attack.turn) * attack.eot, sum(one != "logits" for one in attack.turn) * attack.eot
    forward, backward = bench.operations
    share = bench.share(rows * (forwards * forward + backwards * backward), seconds)
    facts = [f"{rows / seconds:,.0f} rows/s", share, held, f"no graph: {why_eager}" if graph and why_eager else ""]
    yield (
        f"{name}, {rows:,} rows, {precision}, {'eager' if why_eager else 'graph'}",
        f"{1e3 * seconds:.2f} ms a step",
        ", ".join(fact for fact in facts if fact),
    )
