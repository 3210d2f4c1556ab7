"""`python -m advbench.evaluator.parallel.worker`: a worker process that `processes` starts. Not for use by hand."""

from __future__ import annotations

import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import BinaryIO

import numpy as np
import torch

from advbench import rng
from advbench.allocator import keep_freed
from advbench.engine.kernels import exact_kernels
from advbench.errors import Interrupted, UserError
from advbench.evaluator.forecast import Forecast
from advbench.evaluator.journal import Journal
from advbench.evaluator.outcome import attack_images
from advbench.evaluator.parallel.merge import ShareResult
from advbench.evaluator.parallel.processes import READY, Job
from advbench.evaluator.runner import Runner
from advbench.files import locked
from advbench.models import robustbench_zoo
from advbench.models.untouched import untouched
from advbench.signals import handle

TELL_SECONDS = 1.0  # between two reports of the progress


def main() -> None:
    """Read a job from stdin, accept it, run it, and write its result or its error to stdout."""
    keep_freed()
    warnings.simplefilter("ignore")  # the starting process gives the same warnings
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a model prints must not mix with the result
    try:
        with open(0, "rb", closefd=False) as asked, robustbench_zoo.imported() if pickle.load(asked) else nullcontext():
            job = pickle.load(asked)
    except Exception:  # the model's module is not found here: the starting process attacks all images
        return
    answers.write(READY)
    answers.flush()
    stopping = threading.Event()

    def watch() -> None:
        os.read(0, 1)  # returns when the starting process closes stdin or dies
        stopping.set()

    threading.Thread(target=watch, daemon=True).start()
    handle(lambda *_: stopping.set())  # a shutdown signals every process
    found: ShareResult | Exception
    try:
        found = work(job, stopping.is_set, teller(answers))
    except (UserError, Interrupted) as error:
        found = error
    except Exception as error:  # raised again by the starting process
        found = RuntimeError(f"{type(error).__name__} in a worker process: {error}")
    answers.write(pickle.dumps(found))
    answers.flush()


def teller(answers: BinaryIO) -> Callable[[Forecast], None]:
    """A function that writes to `answers`, once a second, what a forecast tells."""
    at = [0.0]

    def tell(forecast: Forecast) -> None:
        now = time.monotonic()
        if now - at[0] < TELL_SECONDS:
            return
        at[0] = now
        with suppress(OSError):  # the starting process has ended, which `stop` notices
            answers.write(pickle.dumps(forecast.told()))
            answers.flush()

    return tell


def work(job: Job, stop: Callable[[], bool], tell: Callable[[Forecast], None]) -> ShareResult:
    """The result on the images of `job`. Raises UserError, and Interrupted when `stop` returns true."""
    torch.set_num_threads(job.threads)
    journal = Journal(job.journal, stop=stop, progress=tell)
    journal.logits = job.logits
    file, settings = journal.file(job.number, job.of), job.settings
    # A worker whose starting process was killed may still be about to save the journal.
    lock = locked(file.with_name(f".lock{file.name}")) if file else nullcontext()
    with lock, untouched(job.net), exact_kernels(job.data.device):
        if file is not None and not job.resume and job.saved is None:
            file.unlink(missing_ok=True)
        journal.begin(job.question, number=job.number, of=job.of, resume=job.resume and job.saved is None)
        if job.saved is not None:
            journal.restore(job.saved)
        journal.copy_error = job.copy_error
        rng.reseed(settings.seed)
        runner = Runner(
            job.net,
            job.data,
            norm=settings.norm,
            seed=settings.seed,
            slots=job.slots,
            precision=job.run.precision,
            journal=journal,
            is_random=lambda net, data: job.random,
            keep_points=settings.keep_points,
            keep_hits=settings.certify != "off",
            rejects=job.rejects,
        )
        if not np.array_equal(runner.correct, job.correct):  # such as with classes patched at run time
            raise UserError(
                "the model gives other results in another process: OMP_NUM_THREADS=1 keeps the evaluation to one"
            )
        runner.proved = job.proved
        found = attack_images(runner, job.run, settings.sizes)
        return ShareResult.of(runner, found.fates, job.rows, ends=bool(job.run.escalation) and not job.run.escalated)


if __name__ == "__main__":
    main()
