"""Images of an evaluation that are proved to stand, beside those that no attack felled."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.certify import Graph, NoBound, certify, traced
from advbench.certify.graph import OTHER_LOGITS
from advbench.engine.kernels import out_of_memory
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import Interrupted, UserError, one_line
from advbench.evaluator.plan import Plan
from advbench.evaluator.runner import Runner
from advbench.evaluator.settings import Settings
from advbench.models.adapted import plain
from advbench.models.black_box import is_black_box
from advbench.record import Fates, Flag, contradictions

TRIAL = 0.1  # seconds for an image
IMAGES = 32  # that are certified between two looks at whether to stop, where that takes no longer than as many seconds
UNTRIED = -2  # in a journal, of images that the proofs have not come to


@dataclass(frozen=True)
class Proofs:
    """`proved` (n,) int16: as in `Fates`; None where there are no bounds, because of `why`. `seconds`: what it took,
    None where a part of it was done before the evaluation was resumed."""

    proved: NDArray[np.int16] | None
    why: str = ""
    seconds: float | None = None

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
    """The proofs before the attacks, which the runner then skips."""
    return _prove(runner, settings, None)


def after(runner: Runner, settings: Settings, fates: Fates) -> Proofs:
    """The proofs after the attacks, on images that stand. Those that fell are tried too, though less hard."""
    return _prove(runner, settings, fates)


def _prove(runner: Runner, settings: Settings, fates: Fates | None) -> Proofs:
    """The proofs of all images. A resumed evaluation goes on with those that it had."""
    began, journal, saved = time.perf_counter(), runner.journal, runner.journal.proved
    proved = np.where(runner.correct, UNTRIED, -1).astype(np.int16) if saved is None else saved.numpy().copy()
    untried = np.flatnonzero(proved == UNTRIED)
    if len(untried):
        try:
            graph = _graph(runner)
        except NoBound as error:
            return Proofs(None, str(error), time.perf_counter() - began)
    journal.forecast.stage, journal.proved = "proofs", torch.from_numpy(proved)  # which share their memory
    sizes = settings.sizes
    first = int(np.searchsorted(sizes, 0, side="right"))
    at_once = max(1, int(IMAGES / max(1.0, settings.certify_seconds)))
    for rows in np.split(untried, range(at_once, len(untried), at_once)):
        found = np.full(len(rows), first - 1, dtype=np.int16)
        for point in range(first, len(sizes)):
            left = found == point - 1
            fell = np.zeros(len(rows), dtype=bool) if fates is None else ~fates.standing(point)[rows]
            for some, thorough in ((left & ~fell, True), (left & fell, False)):
                if some.any():
                    journal.poll()
                    found[some] += _certified(graph, runner, settings, rows[some], sizes[point], thorough)
        proved[rows] = found
    return Proofs(proved, seconds=time.perf_counter() - began if saved is None else None)


def _certified(
    graph: Graph, runner: Runner, settings: Settings, rows: NDArray[np.int64], eps: float, thorough: bool
) -> NDArray[np.bool_]:
    """Which of the images `rows` (m,) are proved at `eps`: (m,) bool. An image that does not fit into memory is not."""
    x, y = runner.data.batch(torch.from_numpy(rows).to(runner.data.device))
    try:
        found = certify(
            graph, x, y, eps, settings.norm, seconds=settings.certify_seconds, thorough=thorough,
            poll=runner.journal.poll,
        )  # fmt: skip
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    else:
        return found.cpu().numpy()
    if len(rows) == 1:
        return np.zeros(1, dtype=bool)
    halves = np.array_split(rows, 2)
    return np.concatenate([_certified(graph, runner, settings, half, eps, thorough) for half in halves])


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
        for rows in torch.arange(len(runner.correct), device=x.device).split(IMAGES):
            runner.journal.poll()
            with torch.no_grad():
                if not graph.agrees(runner.net, runner.data.batch(rows)[0]):
                    raise NoBound(OTHER_LOGITS)
    except (NoBound, Interrupted):
        raise
    except Exception as error:  # in other shapes than the usual, or without memory, a model from elsewhere may fail
        raise NoBound(f"the bounds fail ({one_line(error)})") from error
    return graph


def merge(runner: Runner, settings: Settings, fates: Fates, proofs: Proofs) -> Fates:
    """The fates with the proofs. Raises UserError where an image was felled at an eps at which it is proved to stand.

    That is a defect of ours, of the attacks or of the bounds. A file keeps the image and the point that felled it.
    """
    if proofs.proved is None:
        return fates
    both = contradictions(fates.fell, proofs.proved)
    if len(both):
        file = _witness(runner, settings, fates, proofs.proved, both)
        raise UserError(
            f"a defect of advbench: {len(both)} images are proved to stand at an eps at which an attack felled them; "
            f"please report it with {file}"
        )
    return replace(fates, proved=proofs.proved)


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
        "seconds": None if proofs.seconds is None else round(proofs.seconds, 3),
    }
    strikes, passes = runner.skipped
    return {**said, "skipped_strikes": strikes, "skipped_passes": passes} if settings.certify == "first" else said
