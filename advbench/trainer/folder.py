"""The run folder: it is never overwritten unasked, and all of a run is saved together.

The sealed training state also holds the best weights, and every save writes the weight files from the same moment.
So after a kill at any time, resuming makes the files and the state agree again.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from shlex import quote
from typing import Any

from advbench import figure, ranks
from advbench.checkpoint import (
    BEST,
    CARD,
    LAST,
    STATE,
    ModelCard,
    RunCard,
    load_train_state,
    read_card,
    save_train_state,
    save_weights,
    weights_sha256,
    write_card,
)
from advbench.environment import environment
from advbench.errors import UserError, reading
from advbench.files import is_temporary, write_atomic
from advbench.methods.base import make
from advbench.models import describe
from advbench.recipe import Recipe, differences, is_longer, saved_sha256
from advbench.trainer.history import History
from advbench.trainer.session import Session
from advbench.trainer.validation import catastrophic_overfitting
from advbench.version import __version__

RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
FIGURE = "training.svg"
PARTS = "parts"
LOCK = ".lock"


def check(out: Path, recipe: Recipe, *, resume: bool, force: bool) -> bool:
    """Whether `out` holds a saved run of this recipe that is to be resumed. Writes nothing.

    Raises UserError if `out` holds anything other than a run, a run without `resume` or `force`, or, with `resume`, a
    run of another recipe, one that is not finished and has lost its state, or one of fewer epochs that more would have
    changed so far.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")
    if not out.exists() or all(file.name == LOCK or is_temporary(file) for file in out.iterdir()):
        return False
    if not (out / RECIPE).is_file():
        raise UserError(f"{out} holds something other than a run: name another folder with --out")
    if force:
        return False
    if not resume:
        raise UserError(f"{out} exists: resume it with --resume, overwrite it with --force, or name another --out")
    old, named = Recipe.load(out / RECIPE), quote(str(out))
    longer = is_longer(old, recipe)
    changed = [] if longer else differences(old, recipe)
    if changed:
        raise UserError(
            f"{out} was trained with another recipe ({'; '.join(changed)}): go on with its own by "
            f"advbench train --resume --out {named} (config={str(out / RECIPE)!r} in Python), name another --out, or "
            "--force"
        )
    if longer and ((out / CARD).is_file() or (out / STATE).is_file()) and (why := shortened_by(old, recipe)):
        raise UserError(
            f"{out} cannot go on to {recipe.epochs} epochs: its recipe is for {old.epochs}, and {', '.join(why)} "
            f"followed that number: start a new run from its weights with --init {named}"
        )
    if (out / STATE).is_file():
        return True
    if (out / CARD).is_file() and not finished(out, recipe):
        start = (
            f"start a new run from its weights with --init {named}" if longer else "--force trains it again over them"
        )
        raise UserError(f"{out} cannot be resumed: {STATE} is missing; {start}")
    return (out / CARD).is_file()


def begin(out: Path, recipe: Recipe) -> None:
    """Remove the files of an earlier run in `out`, and write the recipe. Raises UserError if it cannot be written."""
    for name in (CARD, BEST, LAST, METRICS, FIGURE):  # the card first: it has the hashes of the other files
        (out / name).unlink(missing_ok=True)
    for folder in (out / PARTS, (out / STATE).parent):
        shutil.rmtree(folder, ignore_errors=True)
    write_atomic(out / RECIPE, recipe.to_toml())


def renew(out: Path, recipe: Recipe) -> None:
    """Write `recipe`, with which the run in `out` goes on, over the saved one if their hashes differ.

    It has more epochs, or fields that did not exist when the run was begun. The card gets its hash. Raises UserError if
    it cannot be written.
    """
    if saved_sha256(out / RECIPE) != recipe.sha256:
        write_atomic(out / RECIPE, recipe.to_toml())


def finished(out: Path, recipe: Recipe) -> bool:
    """Whether the run in `out` is finished, with all epochs of `recipe`."""
    if not (out / CARD).is_file():
        return False
    card = read_card(out)
    epochs = card.results.get("epochs")
    return card.finished and (not isinstance(epochs, int) or epochs >= recipe.epochs)


def shortened_by(old: Recipe, new: Recipe) -> list[str]:
    """The fields whose effect in a run of `old` so far would have been another with the epochs of `new`, if any.

    They say when something happens as a share of the epochs.
    """
    paced = {
        f"schedule.name={old.schedule.name}": old.schedule.name != "constant",
        "schedule.warmup": old.schedule.warmup,
        "inner.warmup": old.inner.warmup,
        "awp.warmup": old.awp.gamma and old.awp.warmup,
        "average.start": old.average.name != "none" and old.average.start,
        f"method {old.method.name}": make(new).is_paced,
    }
    return [field for field, does in paced.items() if does]


def save(out: Path, session: Session, history: History, *, name: str | None = None, done: bool = False) -> None:
    """Write the state, then the weight files, the metrics and the card. Raises UserError if that fails.

    `name`: what tables call the model; None for the name that the run has. With several processes all must call it; the
    first one writes.
    """
    state = {**session.state(), "history": history.state(), "data_sha256": session.data_sha256}
    ranks.first(lambda: _write(out, state, session, history, name, done))


def _write(out: Path, state: dict[str, Any], session: Session, history: History, name: str | None, done: bool) -> None:
    if name is None and (out / CARD).is_file():
        name = read_card(out).name
    state["advbench"] = __version__
    save_train_state(out, state)
    files, weights = {LAST: save_weights(session.deployed, out / LAST)}, {}
    if history.best is not None:
        best = copy.deepcopy(session.deployed)
        best.load_state_dict(history.best["f"])
        files[BEST], weights[BEST] = save_weights(best, out / BEST), weights_sha256(best)
        for part_name, part in session.nets.parts.items():
            best_part = copy.deepcopy(part)
            best_part.load_state_dict(history.best["parts"][part_name])
            file = f"{PARTS}/{part_name}.safetensors"
            files[file] = save_weights(best_part, out / file)
    write_atomic(out / METRICS, "".join(json.dumps(row) + "\n" for row in history.rows))
    if done and history.rows:
        write_atomic(out / FIGURE, _figure(session.recipe, history))
    write_card(out, _card(session, history, files, weights, name, done))


def restore(out: Path, session: Session) -> History:
    """Put `session` where the run in `out` was last saved, and return the run's history.

    Raises UserError if the data or the version of advbench differ, or a file is missing or damaged.
    """
    state = load_train_state(out, session.device)
    if state.get("advbench") != __version__:
        raise UserError(
            f"{out} was begun with advbench {state.get('advbench', 'before 0.1.0')}, this is {__version__}: resume "
            "with that version, or start over with --force"
        )
    with reading(f"the training state of {out}; start over with --force"):
        if state["data_sha256"] != session.data_sha256:
            raise UserError(f"{out} was trained on other images of {session.recipe.dataset} than those here now")
        session.restore(state)
        return History.from_state(state["history"])


def _figure(recipe: Recipe, history: History) -> bytes:
    with figure.panels(2, recipe.run_name) as (drawing, (losses, accuracies)):
        figure.draw_training(losses, accuracies, history.rows, history.best_epoch)
        return figure.render(drawing)


def _card(
    session: Session,
    history: History,
    files: dict[str, str],
    weights: dict[str, str],
    name: str | None,
    done: bool,
) -> RunCard:
    recipe, counter = session.recipe, session.counter
    flags = catastrophic_overfitting(history.scores, session.data.num_classes, history.best_epoch)
    return RunCard(
        name=name,
        model=ModelCard.model_validate(describe(session.deployed)),
        files=files,
        weights=weights,
        method=recipe.method.name,
        method_settings=recipe.method.settings,
        dataset=recipe.dataset,
        norm=recipe.threat.norm,
        eps=recipe.threat.eps_value,
        eps_text=recipe.threat.eps,
        seed=recipe.seed,
        recipe_sha256=recipe.sha256,
        series_sha256=recipe.series_sha256,
        environment=environment(str(session.device)),
        cost={
            "forwards": counter.forwards * ranks.world(),
            "backwards": counter.backwards * ranks.world(),
            "images": session.images,
            "updates": session.updates,
            "processes": ranks.world(),
            "seconds": round(history.seconds, 3),
            "images_per_s": round(session.images / history.seconds, 1) if history.seconds else 0.0,
            "precision": session.precision,
            "compile": session.compile_status,
            "peak_memory": session.peak_memory,
        },
        results={"epochs": session.epoch, "best": history.best_row, "last": history.rows[-1] if history.rows else None},
        flags=() if flags is None else (flags,),
        finished=done,
    )
