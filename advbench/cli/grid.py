"""`advbench train --grid`: runs over a grid of settings, their scores on held-out images, and what is chosen."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from advbench import ranks
from advbench.cli.console import Screen
from advbench.cli.stop import Stop
from advbench.defaults import tuning
from advbench.defaults.run_folders import Task
from advbench.defaults.tuning import Trial
from advbench.errors import UserError, unknown

if TYPE_CHECKING:
    from advbench.recipe import Recipe


def check_flags(grid: Sequence[str], select: str | None, *, eps: Sequence[str], out: Path | None, on: str) -> None:
    """Raise UserError for flags that do not go together, whatever is trained."""
    if select is not None and not grid:
        raise UserError("--select chooses among settings: name some with --grid, such as --grid optim.lr=0.05,0.1")
    if select not in (None, *tuning.SELECT):
        raise unknown("value of --select", select, tuning.SELECT)
    if grid and len(eps) > 1:
        raise UserError("--grid chooses settings for one eps: tune the others by themselves")
    if grid and on != "local":
        raise UserError("--grid scores its runs on this machine: leave out --on")
    if grid and out is None:
        raise UserError("--grid needs a folder for its runs and what was tried: name one with --out")


class Tuning:
    """The runs of a grid: their settings and names, their scores, and what is chosen.

    Raises UserError for a grid of one setting alone, and for recipes that cannot be compared.
    """

    def __init__(self, recipes: Sequence[Recipe], fields: Sequence[str], out: Path, select: str) -> None:
        self.file, self.select, self._fields = out / tuning.FILE, select, fields
        self._same = all(recipe.validation.select == "last" for recipe in recipes)  # the best epoch is the last one
        self.names = [tuning.run_name(recipe, self._settings(recipe)) for recipe in recipes]
        settings = Counter(method for method, _ in {(one.method.name, one.series_sha256) for one in recipes})
        if max(settings.values()) < 2:
            raise UserError("--grid has one setting of a method, and nothing to choose: give it two values or more")
        self.images = tuning.Split.of(recipes)
        self._check(recipes)
        self.trials: list[Trial] = []

    def _settings(self, recipe: Recipe) -> dict[str, str]:
        return tuning.settings_of(recipe, self._fields)

    def _check(self, recipes: Sequence[Recipe]) -> None:
        """Raise UserError if the file has runs of another problem, or of fields that its rows would not show."""
        if not self.file.exists():
            return
        trials = tuning.read(self.file)
        tuning.check(self.file, trials, tuning.unscored(recipes[0], self.file.parent, {}, self.images))
        ours = {recipe.method.name: recipe for recipe in recipes}
        for trial in {one.folder: one for one in trials}.values():
            if trial.method in ours and trial.folder not in self.names:
                tuning.check_fixed(self.file, trial, ours[trial.method], self._fields)

    def announce(self, screen: Screen, *, start: str = "") -> None:
        """Say what will be done, and how little a score tells where few images are held out."""
        n = len(self.images.held_out)
        screen.say(
            f"{start}{len(self.names)} runs, each scored by {tuning.ATTACK_TEXT} on {n:,} held-out images; what was "
            f"tried goes into {self.file}"
        )
        if n < tuning.FEW_HELD_OUT:
            screen.note(
                f"note: on {n:,} images a score of 50 % is known to +-{100 * tuning.half_width(n):.1f} points (95 %): "
                f"near ones are chosen by chance; hold out more, where there are more, by --set validation.held_out=N"
            )

    def run(
        self, task: Task, train: Callable[[], None], *, resume: bool, device: str, stop: Stop, screen: Screen
    ) -> None:
        """`train` a run, score it and keep its rows, also where its loss is no longer finite.

        Weights that the file has are not scored again, and with `resume` a run that it calls diverged is not trained
        again. Raises Interrupted after a signal.
        """
        from advbench.trainer import Diverged

        settings = self._settings(task.recipe)
        known = ranks.first(lambda: tuning.read(self.file) if self.file.exists() else [])
        rows = tuning.unscored(task.recipe, task.out, settings, self.images)
        if resume and rows[0] in known:
            screen.note(f"{task.out} diverged before: nothing to do (--force trains it again)")
        else:
            try:
                train()
            except Diverged as error:
                screen.warn(f"{task.out}: {error}")
            else:
                rows = self._scored(task, settings, known, device=device, stop=stop, screen=screen)
        self.trials = ranks.first(lambda: tuning.add(self.file, rows))

    def _scored(
        self,
        task: Task,
        settings: Mapping[str, str],
        known: Sequence[Trial],
        *,
        device: str,
        stop: Stop,
        screen: Screen,
    ) -> list[Trial]:
        from advbench.cli.keep import search_progress
        from advbench.evaluator import Journal

        with screen.bar("") as bar:
            return tuning.score(
                task.recipe, task.out, settings, self.images, known=known, device=device,
                journal=lambda: Journal(stop=stop, progress=search_progress(bar)),
            )  # fmt: skip

    def show(self, screen: Screen) -> None:
        """Print what was tried and what is chosen, of all rows of the file."""
        found = {weights: tuning.choose(self.trials, weights=weights, select=self.select) for weights in tuning.WEIGHTS}
        if screen.as_json:
            settings = {
                weights: {method: tried[0].settings for method, tried in of.items()} for weights, of in found.items()
            }
            trials = [asdict(one) for one in self.trials]
            screen.json({"grid": str(self.file), "select": self.select, "trials": trials, "chosen": settings})
            return
        if self._same:
            del found["best"]
        columns, rows = self._table(found)
        title = f"clean / margin, % of {len(self.images.held_out):,} held-out images, means over the seeds"
        screen.table(columns, rows, title=title)
        for weights, of in found.items():
            for method, tried in of.items():
                sets = [word for field, value in tried[0].settings.items() for word in ("--set", f"{field}={value}")]
                sets += ["--set", "validation.select=last"] if weights == "last" and not self._same else []
                screen.say(f"{weights} epoch: {shlex.join(['--method', method, *sets])}")
        tried_of = Counter(method for method, *_ in rows)
        if len({*tried_of.values()}) > 1:
            counts = ", ".join(f"{method} {count}" for method, count in tried_of.items())
            screen.note(f"note: not as many settings of each method were tried ({counts}), which favours some")
        for method in sorted({one.method for one in self.trials} - {*found["last"]}):
            screen.warn(f"no setting of {method} has a score for every seed: nothing is chosen")
        screen.say(f"what was tried: {self.file}")

    def _table(self, found: dict[str, dict[str, list[Trial]]]) -> tuple[list[str], list[list[str]]]:
        """A row for each method and setting: its scores, and the epochs of which it is chosen."""
        fields = list(dict.fromkeys(field for one in self.trials for field in one.settings))
        short = [field.rpartition(".")[2] for field in fields]
        heads = [name if short.count(name) == 1 else field for name, field in zip(short, fields, strict=True)]
        settings: dict[tuple[str, ...], dict[str, list[Trial]]] = {}
        for one in self.trials:
            key = one.method, *(one.settings.get(field, "") for field in fields)
            settings.setdefault(key, {}).setdefault(one.weights, []).append(one)
        rows = []
        for key, tried in settings.items():
            chosen = [weights for weights, of in found.items() if tried[weights][0] in of.get(key[0], ())]
            rows.append([*key, *(_means(tried[weights]) for weights in found), ", ".join(chosen)])
        return ["method", *heads, *(f"{weights} epoch" for weights in found), "chosen"], rows


def _means(trials: Sequence[Trial]) -> str:
    """The clean and the robust accuracy, means over the seeds in percent; a dash where a run has none."""
    from advbench.statistics import decimals

    counts = [(one.clean_k, one.robust_k) for one in trials if one.clean_k is not None and one.robust_k is not None]
    if len(counts) < len(trials):
        return "-"
    n, digits = trials[0].n, decimals(trials[0].n)
    return " / ".join(f"{100 * sum(of) / len(of) / n:.{digits}f}" for of in zip(*counts, strict=True))
