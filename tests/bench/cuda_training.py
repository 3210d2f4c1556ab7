"""Images a second of adversarial training, PGD-10, compiled and not, beside the plain loop of papers' code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

from cuda_bench import Bench
from cuda_table import Cut, Found, Job, Left
from loops import timed
from training import Other, Ours, task_of

from advbench.recipe import Recipe
from advbench.trainer import session as sessions
from advbench.trainer.session import Session

COMPILING = 45.0
SECONDS = 2.0  # of a timing, in no more steps than `Sizes.steps`


def jobs(bench: Bench) -> list[Job]:
    """For each batch: ours not compiled, the plain loop, and ours compiled, whose compiler takes long."""
    first, *others = bench.sizes.batches
    quick = [("off", first), ("plain", first), ("inductor", first)]
    kinds = [*quick, *((kind, batch) for kind in ("off", "plain", "inductor") for batch in others)]
    if bench.device.type != "cuda":
        kinds = [one for one in kinds if one[0] != "inductor"]
    plain = "plain loop, TF32" if bench.device.type == "cuda" else "plain loop"
    names = {"off": "ours, not compiled", "plain": plain, "inductor": "ours, compiled"}
    return [
        Job(f"{names[kind]}, batch {batch}", partial(_train, bench, kind, names[kind], batch)) for kind, batch in kinds
    ]


def _train(bench: Bench, kind: str, name: str, batch: int, left: Left) -> Iterator[Found]:
    """The images are those of the measurement, whatever split they are of: what they show costs nothing."""
    if kind == "inductor" and left() < COMPILING:
        raise Cut(f"less than {COMPILING:.0f} s are left, which compiling may take")
    dataset, arch = ("cifar10", "resnet18") if bench.data.shape == (3, 32, 32) else ("digits", "mlp")
    sets = [f"batch_size={batch}", f"compile={'off' if kind == 'plain' else kind}", "validation.fraction=0"]
    recipe = Recipe.resolve(method="pgd-at", dataset=dataset, arch=arch, sets=sets)
    with mock.patch.object(sessions, "images", lambda recipe, device: (bench.data, None, "")):
        session = Session(recipe, bench.device)
    if kind == "plain":
        loop = Other("plain", task_of(session, bench.sizes.workers, 1))
        loop.measure(1)
        loop.measure(_steps(bench, loop.seconds[-1]))
        loop.end()
        seconds, remark = loop.seconds[-1], "in a process of its own"
    else:
        ours = Ours(session)
        began, seconds = time.perf_counter(), 0.0
        timed(ours.step, 2, bench.device)
        warm = time.perf_counter() - began
        if left() < 0:
            raise Cut(f"out of time after two steps in {warm:.0f} s")

        def work() -> None:
            nonlocal seconds
            once = timed(ours.step, 1, bench.device)
            seconds = timed(ours.step, _steps(bench, once), bench.device)

        held = bench.held(work)
        remark = f"{session.precision}, compiler {session.compile_status}, first two steps {warm:.1f} s"
        remark += f", {held}" if held else ""
    yield f"{name}, {arch}, batch {batch}", f"{batch / seconds:,.0f} images/s", remark


def _steps(bench: Bench, seconds: float) -> int:
    return max(1, min(bench.sizes.steps, int(SECONDS / seconds)))
