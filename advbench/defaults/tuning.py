"""Tuning by a grid: what was tried, and what is chosen by held-out images.

A grid's file, `grid.csv`, is a table of `Trial`: a row for the best and one for the last epoch of each run. Its columns
`set FIELD` are the fields that were varied; an empty cell is a field that the method lacks or that was not varied.
`chosen` reads it, so that one may commit the file and train by it again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.errors import UserError, reading, unknown
from advbench.escape import csv_text
from advbench.files import locked, write_atomic
from advbench.registry import find

if TYPE_CHECKING:
    from advbench.data.dataset import Dataset
    from advbench.evaluator import Journal
    from advbench.recipe import Recipe

FILE = "grid.csv"
SELECT = ("margin", "clean")
WEIGHTS = ("best", "last")
# On 500 digits, an MLP by ACT and one by PGD-AT, at the training eps: as many stand as under AutoAttack, for a fiftieth
# of its passes. PGD leaves 12 and 3 more standing, so that a choice by it would favour ACT.
ATTACK, ATTACK_SETTINGS = "apgd-t", {"steps": 20, "n_targets": 3, "targets": "malt"}
ATTACK_TEXT = " ".join([ATTACK, *(f"{name}={value}" for name, value in ATTACK_SETTINGS.items())])
FEW_HELD_OUT = 2000  # below, a score of 50 % has an interval of more than 2.2 points on each side
_PROBLEM = ("seed", "dataset", "train_n", "init", "method.name", "model.arch", "threat", "validation")
_SET = "set "  # before a varied field, in the names of columns


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A row of a grid's file: the weights of one run, and how they do on its held-out images.

    - `settings`: the varied fields that the method has, as --set takes them. `seed`: of the training.
    - `weights`: "best", those of the epoch that the recipe deploys, or "last". They are the same where the recipe has
      validation.select=last.
    - `n`: the held-out images. `clean_k`, `robust_k`: how many of them are classified correctly, and how many of these
      withstand `attack` at the training eps. None where the loss of the training was no longer finite.
    - `passes`: forward and backward passes of the training for each image that it was shown. `updates` of the weights,
      `epochs`, `train_images`: of the training.
    - `images_sha256`: of the held-out images. `folder`: of the run, beside the file.
    """

    method: str
    settings: Mapping[str, str]
    seed: int
    weights: str
    n: int
    clean_k: int | None
    robust_k: int | None
    passes: float | None
    updates: int | None
    epochs: int
    train_images: int
    dataset: str
    arch: str
    norm: str
    eps: str
    attack: str
    images_sha256: str
    recipe_sha256: str
    weights_sha256: str
    folder: str

    @property
    def problem(self) -> tuple[str | int, ...]:
        """What must be the same in all rows."""
        images = self.train_images, self.n, self.images_sha256[:8]
        return self.dataset, self.arch, self.norm, self.eps, *images, self.attack


_FIELDS = [field.name for field in dataclasses.fields(Trial) if field.name != "settings"]
_NUMBERS: dict[str, type] = {
    **dict.fromkeys(("seed", "n", "clean_k", "robust_k", "updates", "epochs", "train_images"), int), "passes": float
}  # fmt: skip


def parse_grid(texts: Iterable[str]) -> dict[str, list[str]]:
    """The values of each field in FIELD=VALUE,VALUE,... texts. Raises UserError for other forms and unfit fields."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not all(listed) or not all(name.strip().split(".")):
            raise UserError(f"--grid {text!r} is not FIELD=VALUE,VALUE,...: write for example optim.lr=0.05,0.1")
        name = name.strip()
        if any(name == field or name.startswith(f"{field}.") for field in _PROBLEM):
            raise UserError(
                f"--grid {name}: it decides what is learnt or how it is judged, not how well: vary settings such as "
                "optim.lr, epochs or method.beta"
            )
        found[name] = [*dict.fromkeys([*found.get(name, []), *listed])]
    return found


def combinations(grid: Mapping[str, Sequence[str]], method: str | None, methods: Sequence[str]) -> list[list[str]]:
    """The FIELD=VALUE texts of each point of the grid for `method`, without fields that only others of `methods` have.

    A field that none of them has is left in, for the recipe to refuse.
    """

    def has(name: str | None, field: str) -> bool:
        maker = find("methods", name).load() if name else None
        return not dataclasses.is_dataclass(maker) or field in {one.name for one in dataclasses.fields(maker)}

    own = []
    for field in grid:
        section, _, setting = field.partition(".")
        others = section == "method" and not has(method, setting) and any(has(name, setting) for name in methods)
        own += [] if others else [field]
    return [
        [f"{field}={value}" for field, value in zip(own, values, strict=True)]
        for values in product(*map(grid.__getitem__, own))
    ]


def settings_of(recipe: Recipe, fields: Iterable[str]) -> dict[str, str]:
    """Those of `fields` that `recipe` has, as --set takes them."""
    from advbench.recipe.trees import get

    tree = recipe.tree()
    values = {field: get(tree, field, None) for field in fields}
    return {field: _written(value) for field, value in values.items() if value is not None}


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(_written, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def run_name(recipe: Recipe, settings: Mapping[str, str]) -> str:
    """The name of a run's folder in a grid: METHOD-FIELD-VALUE-...-sSEED."""
    words = (recipe.method.name, *(word for pair in settings.items() for word in pair), f"s{recipe.seed}")
    return "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)


@dataclass(frozen=True)
class Split:
    """The images of a grid: how many each run is trained on, and those that no run is trained on."""

    train_images: int
    held_out: Dataset

    @classmethod
    def of(cls, recipes: Sequence[Recipe]) -> Split:
        """The images of all `recipes`. Raises UserError if they differ among recipes, or if none are held out."""
        from advbench.trainer.prepare import split

        parts = ("fraction", "held_out", "seed")
        if len({(one.train_n, *(getattr(one.validation, part) for part in parts)) for one in recipes}) > 1:
            raise UserError("the methods' recipes hold out different images: set train_n and validation.* for all")
        train, held_out, _ = split(recipes[0])
        if held_out is None:
            raise UserError("--grid chooses by held-out images, and there are none: set validation.held_out=N")
        return cls(len(train), held_out)


def score(
    recipe: Recipe,
    run: Path,
    settings: Mapping[str, str],
    images: Split,
    *,
    known: Iterable[Trial],
    device: str,
    journal: Callable[[], Journal],
) -> list[Trial]:
    """The rows of a finished run. Weights whose row is among `known` are not attacked again.

    Raises UserError for a run that cannot be read, and Interrupted when a `journal` says stop.
    """
    from advbench.checkpoint import BEST, LAST, read_card
    from advbench.record import passes_an_image

    card = read_card(run)
    updates: Any = card.cost.get("updates")
    done = {(one.recipe_sha256, one.weights_sha256): (one.clean_k, one.robust_k) for one in known}
    found = []
    for trial, file in zip(unscored(recipe, run, settings, images), (BEST, LAST), strict=True):
        key = recipe.sha256, card.files[file]
        if key not in done:
            done[key] = _attacked(run / file, card.model.arch, recipe, images.held_out, device, journal())
        clean, robust = done[key]
        passes = passes_an_image(card.cost)
        found.append(
            replace(trial, clean_k=clean, robust_k=robust, passes=passes, updates=updates, weights_sha256=key[1])
        )
    return found


def unscored(recipe: Recipe, run: Path, settings: Mapping[str, str], images: Split) -> list[Trial]:
    """The rows of a run without scores, such as one whose loss is no longer finite."""
    return [
        Trial(
            method=recipe.method.name, settings=settings, seed=recipe.seed, weights=weights, n=len(images.held_out),
            clean_k=None, robust_k=None, passes=None, updates=None, epochs=recipe.epochs,
            train_images=images.train_images, dataset=recipe.dataset, arch=recipe.model.arch, norm=recipe.threat.norm,
            eps=recipe.threat.eps, attack=ATTACK_TEXT, images_sha256=images.held_out.images_sha256,
            recipe_sha256=recipe.sha256, weights_sha256="", folder=run.name,
        )
        for weights in WEIGHTS
    ]  # fmt: skip


def _attacked(file: Path, arch: str, recipe: Recipe, data: Dataset, device: str, journal: Journal) -> tuple[int, int]:
    """How many images the weights in `file` classify correctly, and how many of these withstand the attack."""
    from advbench.checkpoint import load_model
    from advbench.evaluator import Settings, evaluate
    from advbench.trainer import device_of

    loaded = load_model(str(file), arch=arch, dataset=data)
    data = data if data.num_classes_known else data.with_classes(loaded.num_classes)
    settings = Settings(
        attack=ATTACK, attack_settings=ATTACK_SETTINGS, eps=[recipe.threat.eps], norm=recipe.threat.norm,
        device=device_of(device), probes=False,
    )  # fmt: skip
    found = evaluate(loaded, data, settings, journal=journal)
    return int(found.fates.clean.sum()), found.record.curve[0].robust


def read(path: Path) -> list[Trial]:
    """The rows of a grid's file. Raises UserError if it cannot be read, or if they are of different problems."""
    with reading(path), path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if missing := sorted({*_FIELDS} - {*(reader.fieldnames or ())}):
            raise UserError(f"{path} is not the table of a grid: it has no column {missing[0]}")
        trials = [_read(row) for row in reader]
    check(path, [], trials)
    return trials


def _read(row: Mapping[str, str]) -> Trial:
    cells = {name: cell.removeprefix("'") for name, cell in row.items()}
    settings = {name.removeprefix(_SET): cell for name, cell in cells.items() if name.startswith(_SET) and cell}
    values: dict[str, Any] = {name: cells[name] for name in _FIELDS}
    for name, kind in _NUMBERS.items():
        values[name] = kind(values[name]) if values[name] else None
    return Trial(settings=settings, **values)


def add(path: Path, trials: Sequence[Trial]) -> list[Trial]:
    """Put rows into a grid's file, in the place of those of the same runs, and return all that it has then.

    Raises UserError if they are of another problem than those in it, or if it cannot be read or written.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        before = read(path) if path.exists() else []
        check(path, before, trials)
        rows = {(one.folder, one.weights): one for one in (*before, *trials)}
        write_atomic(path, _to_csv(rows.values()))
    return [*rows.values()]


def check(path: Path, before: Sequence[Trial], trials: Sequence[Trial]) -> None:
    """Raise UserError unless `trials` are of the same problem as the rows `before` in the file `path`."""
    problems = dict.fromkeys(one.problem for one in (*before, *trials))
    if len(problems) > 1:
        theirs, ours = (", ".join(map(str, problem)) for problem in [*problems][:2])
        raise UserError(f"{path} has runs of another problem ({theirs}) than these ({ours}): name another --out")


def check_fixed(path: Path, trial: Trial, recipe: Recipe, fields: Collection[str]) -> None:
    """Raise UserError if the run of a row differs from `recipe` in a field that neither varied: no row would show it.

    `fields`: those that `recipe` varies. A run whose folder is not beside the file `path` is not checked.
    """
    from advbench.recipe import Recipe
    from advbench.recipe.trees import leaves

    file = path.parent / trial.folder / "recipe.toml"
    if not file.is_file():
        return
    theirs, ours = (leaves(one.tree()) for one in (Recipe.load(file), recipe))
    for name in sorted({*theirs, *ours} - {"seed", *trial.settings, *fields}):
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"{name} is {theirs.get(name)} in {file.parent} and {ours.get(name)} here, and {path} would not show "
                "it: vary it by --grid, or name another --out"
            )


def _to_csv(trials: Collection[Trial]) -> str:
    varied = list(dict.fromkeys(field for one in trials for field in one.settings))
    names = ["method", *(f"{_SET}{field}" for field in varied), *_FIELDS[1:]]
    at = names.index("clean_k")
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*names[:at], "clean", "robust", *names[at:]], lineterminator="\n")
    writer.writeheader()
    for one in trials:
        cells = {name: getattr(one, name) for name in _FIELDS}
        cells |= {f"{_SET}{field}": value for field, value in one.settings.items()}
        cells |= {"clean": share(one.clean_k, one.n), "robust": share(one.robust_k, one.n)}
        writer.writerow({name: csv_text(cell) if isinstance(cell, str) else cell for name, cell in cells.items()})
    return stream.getvalue()


def share(k: int | None, n: int) -> float | None:
    """k / n to four places, None without k."""
    return None if k is None else round(k / n, 4)


def choose(trials: Iterable[Trial], *, weights: str, select: str = "margin") -> dict[str, list[Trial]]:
    """For each method the rows, one a seed, of the setting with the highest mean over the seeds.

    `weights`: "best" or "last". `select`: "margin", the images that withstand the attack, or "clean". Between equal
    ones the other decides, then the place in the table. Settings that lack a seed of the others, or a score, are left
    out, and methods without any other. Of a setting that is there twice with a seed, as where two grids have the same
    fields in another order, the later row counts. Raises UserError for an unknown word.
    """
    for what, word, choices in (("weights", weights, WEIGHTS), ("value of --select", select, SELECT)):
        if word not in choices:
            raise unknown(what, word, choices)
    methods: dict[str, dict[frozenset[tuple[str, str]], dict[int, Trial]]] = {}
    for one in trials:
        if one.weights == weights:
            methods.setdefault(one.method, {}).setdefault(frozenset(one.settings.items()), {})[one.seed] = one
    found = {}
    for method, settings in methods.items():
        seeds = {seed for tried in settings.values() for seed in tried}
        scores = {}
        for key, tried in settings.items():
            counts = [(one.robust_k, one.clean_k) for one in tried.values() if one.robust_k is not None]
            if tried.keys() == seeds and len(counts) == len(tried):
                robust, clean = (sum(count or 0 for count in each) for each in zip(*counts, strict=True))
                scores[key] = (robust, clean) if select == "margin" else (clean, robust)
        if scores:
            found[method] = [*settings[max(scores, key=scores.__getitem__)].values()]
    return found


def chosen(path: Path, *, weights: str = "best", select: str = "margin") -> dict[str, dict[str, str]]:
    """What `choose` chooses of a grid's file: for each method the fields that were varied, as --set takes them.

    Raises UserError if it cannot be read, or if a method has no setting with a score for every seed.
    """
    trials = read(path)
    found = choose(trials, weights=weights, select=select)
    if missing := sorted({one.method for one in trials} - {*found}):
        raise UserError(f"{path}: no setting of {missing[0]} has a score for every seed")
    return {method: dict(tried[0].settings) for method, tried in found.items()}


def half_width(n: int) -> float:
    """How far from an accuracy of half of `n` images its 95 % interval reaches, 0 to 1."""
    from advbench.statistics import wilson

    low, high = wilson(n // 2, n)
    return (high - low) / 2
