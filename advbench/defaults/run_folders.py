"""The default dataset and architecture of a training, and the folders of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.errors import UserError
from advbench.files import check_writable
from advbench.registry import entries

if TYPE_CHECKING:
    from advbench.models.normalized import Written
    from advbench.recipe import Recipe

RUNS = Path("runs")


@dataclass(frozen=True)
class Task:
    """One training run: its recipe, its folder, and whether it resumes what the folder holds."""

    recipe: Recipe
    out: Path
    going_on: bool


def choose_data(dataset: str | None, arch: str | None, *, cuda: bool) -> tuple[str, str, str]:
    """Dataset and architecture with defaults filled in, and why, in words."""
    if dataset is None and arch is None:
        if cuda:
            return "cifar10", "resnet18", "the default with a CUDA device"
        return "digits", "small_cnn", "the default without a CUDA device"
    if dataset is None:
        return "digits", str(arch), "the dataset that needs no download"
    if arch is None:
        entry = entries("data").get(dataset.partition(":")[0])
        shape = None if entry is None else entry.about.get("shape")
        if shape is None:  # data of the user's own, which are not read yet
            return dataset, "resnet18", "the usual model for colour images; for grey ones write --arch small_cnn"
        colour = shape[0] == 3
        return (
            dataset,
            "resnet18" if colour else "small_cnn",
            f"the usual model for {'colour' if colour else 'grey'} images",
        )
    return dataset, arch, "given"


def recipe_fields(*, mean: Written, std: Written, **fields: Any) -> dict[str, Any]:
    """`fields` of the recipe by their dotted names, None for those that are not given, with the normalisation.

    `mean` and `std`: see `normalized.parse_statistics`, which raises UserError.
    """
    if mean is None and std is None:
        return fields
    from advbench.models.normalized import parse_statistics

    found = parse_statistics(mean, std)
    return {**fields, "model.normalize": found and [list(numbers) for numbers in found]}


def describe(recipe: Recipe, why: str) -> str:
    """The run of `recipe` in one line."""
    threat, epochs = recipe.threat, f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    return (
        f"{recipe.method.name} on {recipe.dataset} with {recipe.model.arch} ({why}), {threat.norm} eps {threat.eps}, "
        f"{epochs}, seed {recipe.seed}"
    )


def place_runs(
    recipes: Sequence[Recipe], out: Path | None, *, resume: bool, force: bool, names: Sequence[str] = ()
) -> list[Task]:
    """A folder for each recipe. Raises UserError for a folder that cannot be written, or whose content would be lost.

    `out` is the folder of a single run, or the parent folder of several, with `names` in the place of those that follow
    from the recipe. Without it the folders lie under runs/, named after their recipe, with -2, -3, ... where that name
    is taken.
    """
    from advbench.trainer import folder

    if resume and force:
        raise UserError("--resume goes on with a run, and --force trains it again from its start: choose one")
    tasks = []
    taken: set[Path] = set()
    for number, recipe in enumerate(recipes):
        if out is None:
            place = _default_folder(recipe, taken, resume=resume)
        elif names:
            place = out / names[number]
        else:
            place = out if len(recipes) == 1 else out / recipe.run_name
        taken.add(place)
        check_writable(place)
        tasks.append(Task(recipe, place, folder.check(place, recipe, resume=resume, force=force and out is not None)))
    return tasks


def _default_folder(recipe: Recipe, taken: set[Path], *, resume: bool) -> Path:
    """runs/NAME, or NAME-2, ...: when resuming, the last one that this recipe, or one of fewer epochs, has begun.

    Otherwise the first free one.
    """
    from advbench.recipe import Recipe, differences, is_longer

    number, found = 1, None
    while True:
        place = RUNS / (recipe.run_name if number == 1 else f"{recipe.run_name}-{number}")
        if not place.exists() and place not in taken:
            return found or place
        kept = place / "recipe.toml"
        if resume and kept.is_file() and place not in taken:
            old = Recipe.load(kept)
            found = place if not differences(old, recipe) or is_longer(old, recipe) else found
        number += 1
