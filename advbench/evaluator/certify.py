"""Images of an evaluation that are proved to stand, beside those that no attack felled."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.certify import Graph, NoBound, certify, traced
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import UserError, one_line
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings
from advbench.models.adapted import plain
from advbench.models.black_box import is_black_box
from advbench.record import Fates, Flag

TRIAL = 0.1  # seconds for an image
IMAGES = 32  # that are certified between two looks at whether to stop


@dataclass(frozen=True)
class Proofs:
    """`proved` (n,) int16: as in `Fates`; None where there are no bounds, because of `why`. `seconds`: what it took."""

    proved: NDArray[np.int16] | None
    why: str = ""
    seconds: float = 0.0

    def flags(self) -> list[Flag]:
        """A note where nothing could be proved."""
        detail = f"no image was certified: {self.why}"
        return [] if self.proved is not None else [Flag(name="not-certified", severity="note", detail=detail)]


def check(settings: Settings, run: Plan) -> None:
    """Raise UserError where attacks cannot be skipped: their verdicts, or sizes, would depend on it."""
    whole = any(isinstance(one, WholeBatch) for one in (*run.attacks, *run.escalation))
    if settings.certify == "first" and (whole or run.curve not in ("fast", "exact")):
        raise UserError(
            "--certify first skips attacks on single images at an eps, which these attacks do not make: use --certify "
            "after"
        )


def before(runner: Runner, settings: Settings) -> Proofs:
    """The proofs before the attacks, which the runner then skips. A resumed evaluation goes on with those it had."""
    journal = runner.journal
    if journal.proved is None:
        proofs = _prove(runner, settings, None)
        journal.proved = None if proofs.proved is None else torch.from_numpy(proofs.proved)
    else:
        proofs = Proofs(journal.proved.numpy())
    return proofs


def after(runner: Runner, settings: Settings, fates: Fates) -> Proofs:
    """The proofs after the attacks, on images that stand. Those that fell are tried too, though less hard."""
    return _prove(runner, settings, fates)


def _prove(runner: Runner, settings: Settings, fates: Fates | None) -> Proofs:
    began = time.perf_counter()
    try:
        graph = _graph(runner)
    except NoBound as error:
        return Proofs(None, str(error), time.perf_counter() - began)
    runner.journal.forecast.stage = "proofs"
    sizes = settings.sizes
    first = int(np.searchsorted(sizes, 0, side="right"))
    proved = np.where(runner.correct, first - 1, -1).astype(np.int16)
    for rows in np.array_split(np.arange(len(proved)), -(-len(proved) // IMAGES)):
        for point in range(first, len(sizes)):
            tried = rows[(proved[rows] == point - 1) & runner.correct[rows]]
            fell = np.zeros(len(tried), dtype=bool) if fates is None else ~fates.standing(point)[tried]
            for some, thorough in ((tried[~fell], True), (tried[fell], False)):
                if len(some):
                    runner.journal.poll()
                    proved[some[_certified(graph, runner, settings, some, sizes[point], thorough)]] = point
    return Proofs(proved, seconds=time.perf_counter() - began)


def _certified(
    graph: Graph, runner: Runner, settings: Settings, rows: NDArray[np.int64], eps: float, thorough: bool
) -> NDArray[np.bool_]:
    x, y = runner.data.batch(torch.from_numpy(rows).to(runner.data.device))
    found = certify(graph, x, y, eps, settings.norm, seconds=settings.certify_seconds, thorough=thorough)
    return found.cpu().numpy()


def _graph(runner: Runner) -> Graph:
    """The graph of the model, on which the bounds were tried. Raises NoBound."""
    if runner.oracle.random:
        raise NoBound("its outputs are random")
    if runner.oracle.rejects:
        raise NoBound("it may reject inputs")
    if is_black_box(runner.net):
        raise NoBound(f"{type(plain(runner.net)).__name__} is a black box")
    x, y = runner.data.batch(slice(0, 2))
    graph = traced(runner.net, x)
    try:
        certify(graph, x, y, 1e-3, "l2", seconds=TRIAL)
    except Exception as error:  # in other shapes than the usual, or without memory, a model from elsewhere may fail
        raise NoBound(f"the bounds fail ({one_line(error)})") from error
    return graph


def merge(runner: Runner, settings: Settings, fates: Fates, proofs: Proofs) -> Fates:
    """The fates with the proofs. Raises UserError where an image was felled at an eps at which it is proved to stand.

    That is a defect of ours, of the attacks or of the bounds. A file keeps the image and the point that felled it.
    """
    if proofs.proved is None:
        return fates
    both = np.flatnonzero((fates.fell >= 0) & (fates.fell <= proofs.proved))
    if len(both):
        file = _witness(runner, settings, fates, proofs.proved, both)
        raise UserError(
            f"a defect of advbench: {len(both)} images are proved to stand at an eps at which an attack felled them; "
            f"please report it with {file}"
        )
    return Fates(fates.fell, fates.by, fates.norm, fates.logits, proofs.proved)


def _witness(
    runner: Runner, settings: Settings, fates: Fates, proved: NDArray[np.int16], rows: NDArray[np.int64]
) -> Path:
    """A file with the images, their labels and positions, the points that felled them, and both eps."""
    x, y = runner.data.batch(torch.from_numpy(rows).to(runner.data.device))
    points = [runner.points[row].numpy() if row in runner.points else np.full(x.shape[1:], np.nan) for row in rows]
    path = runner.journal.path
    file = (path.parent if path else Path()).joinpath(f"contradiction-{runner.data.images_sha256[:8]}.npz")
    sizes = np.asarray(settings.sizes)
    np.savez_compressed(
        file, x=x.cpu().numpy(), x_adv=np.stack(points), y=y.cpu().numpy(),
        index=runner.data.indices.cpu().numpy()[rows], fell=sizes[fates.fell[rows]], proved=sizes[proved[rows]],
        norm=np.array(settings.norm),
    )  # fmt: skip
    return file


def cost(runner: Runner, settings: Settings, proofs: Proofs) -> dict[str, Any]:
    """What the environment of a record says of the proofs."""
    said: dict[str, Any] = {
        "when": settings.certify,
        "seconds_an_image": settings.certify_seconds,
        "seconds": round(proofs.seconds, 3),
    }
    strikes, passes = runner.skipped
    return {**said, "skipped_strikes": strikes, "skipped_passes": passes} if settings.certify == "first" else said
