"""Effects of the systems: trainings, evaluations and analyses on real data, and the claims that they decide.

Each system of the benchmark is a file in this folder, with an `EFFECT`. Settings are chosen by `Tuning` on held-out
images; the numbers come from records, cards of runs and tables of analyses; a verdict is a function of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from findings import Finding, Numbers, Verdict

from advbench.defaults.tuning import Trial, choose, read
from advbench.recipe import Recipe

BASE = Path("effects")  # runs and tables of analyses, which `make effects` makes again and nobody commits
BOARDS = Path("leaderboards")
GRID = "0,0.1,0.2"
# APGD-T towards the three nearest classes. Three nets of leaderboards/attacks.md keep as many of 1,000 images as under
# all nine, for 40 % of the passes.
NEAREST = ("steps=20", "targets=malt", "n_targets=3")


@dataclass(frozen=True)
class Runs:
    """Trainings with one recipe, one for each seed. `{seed}` in `sets` is replaced by the seed.

    `common` are the fields of the recipe that all trainings of a comparison share, `sets` those of this one. `tuned`
    adds its choice to them. `after`: trainings whose folders `sets` name, such as a teacher's.
    """

    label: str
    method: str
    sets: tuple[str, ...] = ()
    arch: str = "mlp"
    eps: str = "0.1"
    epochs: int | None = None
    seeds: tuple[int, ...] = (0,)
    dataset: str = "digits"
    common: tuple[str, ...] = ()
    tuned: Tuning | None = None
    after: tuple[Runs, ...] = ()
    folders_in: Path = BASE / "runs"

    def folder(self, seed: int) -> Path:
        """The run folder of `seed`, named by the recipe, or by the label if there are settings."""
        plain = not self.sets and not self.common and self.epochs is None and self.tuned is None
        name = f"{self.method}-{self.dataset}-{self.arch}-linf-{self.eps}" if plain else self.label.replace(" ", "-")
        return self.folders_in / f"{name}-s{seed}"

    @property
    def folders(self) -> list[Path]:
        return list(map(self.folder, self.seeds))

    @property
    def words(self) -> list[str]:
        """The words of `advbench train` for the recipe, without seed and settings."""
        found = ["train", "--method", self.method, "--dataset", self.dataset, "--arch", self.arch, "--eps", self.eps]
        return found + ([] if self.epochs is None else ["--epochs", str(self.epochs)])

    def settings(self, seed: int) -> list[str]:
        """Fields of the recipe, as --set takes them. Raises KeyError while nothing is chosen by `tuned`."""
        chosen = () if self.tuned is None else self.tuned.chosen()
        return [text.format(seed=seed) for text in (*self.common, *chosen, *self.sets)]

    def command(self, seed: int) -> list[str]:
        """The arguments of `advbench train`. Raises KeyError while nothing is chosen by `tuned`."""
        sets = [word for text in self.settings(seed) for word in ("--set", text)]
        return [*self.words, *sets, "--seed", str(seed), "--out", str(self.folder(seed)), "--resume"]

    def recipe_sha256(self, seed: int) -> str | None:
        """The hash of the recipe that `command` trains, None while nothing is chosen by `tuned`."""
        try:
            sets = self.settings(seed)
        except KeyError:
            return None
        recipe = Recipe.resolve(
            method=self.method, dataset=self.dataset, arch=self.arch, eps=self.eps,
            flags={"epochs": self.epochs, "seed": seed}, sets=sets,
        )  # fmt: skip
        return recipe.sha256


@dataclass(frozen=True)
class Tuning:
    """A grid: fields of the recipe of `base`, with values. The choice, made on held-out images, is kept in a file.

    Where values are added to the grid, only what the file lacks is run. `shared`: another data set's choice, of which
    the fields that the grid does not have are taken over.
    """

    name: str
    base: Runs
    grid: tuple[tuple[str, tuple[str, ...]], ...]
    select: str = "margin"
    shared: Tuning | None = None

    @property
    def file(self) -> Path:
        return BOARDS / "tuning" / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        return BASE / "tuning" / self.name

    @property
    def tries(self) -> int:
        return prod(len(values) for _, values in self.grid)

    @property
    def tried(self) -> int:
        """How many settings the file has, those of earlier grids, too; as many as the grid while it is not done."""
        return len({tuple(sorted(one.settings.items())) for one in read(self.file)}) if self.done else self.tries

    @property
    def left(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The smallest grid that has all points of which the file lacks a seed; empty if it has all of them."""
        trials = read(self.file) if self.file.is_file() else []
        fields = [field for field, _ in self.grid]
        tried = {(tuple(map(one.settings.get, fields)), one.seed) for one in trials}
        every = product(*(values for _, values in self.grid))
        points = [point for point in every if not {(point, seed) for seed in self.base.seeds} <= tried]
        left = [set(values) for values in zip(*points, strict=True)]
        if len(points) == 1:  # a grid of one point is none
            place = max(range(len(fields)), key=lambda place: len(self.grid[place][1]))
            left[place] |= set(self.grid[place][1][:2])
        return tuple(
            (field, tuple(filter(some.__contains__, all))) for (field, all), some in zip(self.grid, left, strict=False)
        )

    @property
    def done(self) -> bool:
        return not self.left and (self.shared is None or self.shared.done)

    def command(self) -> list[str]:
        """The arguments of `advbench train --grid`, for what is left of it, or for all of it."""
        fields = (*self.base.common, *self.base.sets, *self.taken_over)
        sets = [word for text in fields for word in ("--set", text)]
        left = self.left or self.grid
        grid = [word for field, values in left for word in ("--grid", f"{field}={','.join(values)}")]
        seeds = ",".join(map(str, self.base.seeds))
        out = ["--select", self.select, "--seed", seeds, "--out", str(self.folder), "--resume"]
        return [*self.base.words, *sets, *grid, *out]

    def chosen(self) -> tuple[str, ...]:
        """The chosen fields, as --set takes them. Raises KeyError unless all of the grid was tried."""
        return (*self.taken_over, *(f"{field}={value}" for field, value in self._chosen().items()))

    @property
    def taken_over(self) -> tuple[str, ...]:
        found = self.shared.chosen() if self.shared else ()
        return tuple(text for text in found if text.partition("=")[0] not in dict(self.grid))

    def _chosen(self) -> Mapping[str, str]:
        if not (best := self._best({})):
            raise KeyError(f"{self.name}: no try has a score")
        return best[0].settings

    def _best(self, within: Mapping[str, tuple[str, ...]]) -> list[Trial]:
        """What is chosen of the tries with these values, a row a seed. Raises KeyError unless all was tried."""
        if not self.done:
            raise KeyError(self.name)
        weights = "last" if "validation.select=last" in self.base.common else "best"
        grid = {**dict(self.grid), **within}
        ours = [one for one in read(self.file) if all(one.settings[name] in values for name, values in grid.items())]
        return choose(ours, weights=weights, select=self.select).get(self.base.method, [])

    def at_edge(self) -> dict[str, float]:
        """The choices ("FIELD=VALUE") that are the first or last value tried, so that one beyond may be better.

        With the points, of the held-out images, that each gains over the best try with the value beside it. It is not
        listed below one point: then one beyond is hardly better; nor where an earlier grid tried one beyond, with the
        other settings as they were chosen, and it is no better.
        """
        best, ends = self._best({}) if self.done else [], {}
        for field, values in self.grid if best else ():
            chosen = best[0].settings[field]
            if len(values) == 1 or chosen not in (values[0], values[-1]):
                continue
            beside = values[1 if chosen == values[0] else -2]
            lead = 100 * (self._right(best) - self._right(self._best({field: (beside,)}))) / sum(one.n for one in best)
            if lead >= 1 and not self._no_better_beyond(best, field, beside):
                ends[f"{field}={chosen}"] = lead
        return ends

    def _no_better_beyond(self, best: Sequence[Trial], field: str, beside: str) -> bool:
        """Whether the file has a try beyond the grid's end in `field`, otherwise as `best`, that is no better.

        `beside`: the grid's value next to the end, which says on which side beyond is.
        """
        weights, seeds, chosen = best[0].weights, {one.seed for one in best}, best[0].settings
        tries: dict[str, list[Trial]] = {}
        for one in read(self.file):
            if one.weights == weights and one.seed in seeds and {**one.settings, field: ""} == {**chosen, field: ""}:
                tries.setdefault(one.settings[field], []).append(one)
        end, inner = float(chosen[field]), float(beside)
        return any(
            (float(value) - end) * (end - inner) > 0
            and len(rows) == len(best)
            and self._right(rows) <= self._right(best)
            for value, rows in tries.items()
        )

    def _right(self, rows: Sequence[Trial]) -> int:
        """How many held-out images count for a setting."""
        return sum((one.clean_k if self.select == "clean" else one.robust_k) or 0 for one in rows)

    def runs(self, label: str, seeds: tuple[int, ...], *sets: str) -> Runs:
        """Trainings with what was chosen, and further `sets`, which go first where both name a field."""
        return replace(self.base, label=label, seeds=seeds, sets=(*self.base.sets, *sets), tuned=self)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of each of `runs` on the first `n` test images, by its weights or those in `file`.

    With `n` 0 there are 1,000, or all if there are fewer. `sets` are settings of the attack, in which `{seed}` is
    replaced by the seed. `norm`: of the perturbations, whatever it was in training. `leaderboard`: of which its records
    are rows. `after`: trainings whose folders `sets` name.
    """

    runs: Runs
    eps: str = GRID
    attack: str = "autoattack"
    file: str = ""
    n: int = 0
    sets: tuple[str, ...] = ()
    norm: str = "linf"
    leaderboard: Path | None = None
    after: tuple[Runs, ...] = ()

    @property
    def key(self) -> str:
        attack = "" if self.attack == "autoattack" else self.attack
        norm = "" if self.norm == "linf" else self.norm
        images = f"n={self.n}" if self.n else ""
        words = (self.runs.label, self.file.removesuffix(".safetensors"), attack, norm, images)
        return " ".join(word for word in words if word)

    def spec(self, seed: int) -> str:
        return str(self.runs.folder(seed) / self.file)

    def settings(self, seed: int) -> list[str]:
        """The settings of the attack, as --set takes them."""
        return [text.format(seed=seed) for text in self.sets]

    def command(self, seed: int) -> list[str]:
        """The arguments of `advbench evaluate`."""
        found = ["evaluate", "--attack", self.attack, "--eps", self.eps, "--norm", self.norm]
        found += ["--model", self.spec(seed)]
        found += ["--arch", self.runs.arch, "--dataset", self.runs.dataset] if self.file else []
        found += ["-n", str(self.n)] if self.n else []
        found += [word for text in self.settings(seed) for word in ("--set", text)]
        out = ["--leaderboard", str(self.leaderboard)] if self.leaderboard else ["--out", str(BOARDS / "effects")]
        return [*found, *out, "--resume"]


def rated(runs: Runs, eps: str = "0.1", file: str = "") -> Evaluation:
    """APGD-T on all 10,000 test images of MNIST, Fashion-MNIST or CIFAR-10."""
    return Evaluation(runs, f"0,{eps}", "apgd-t", file, n=10_000, sets=NEAREST)


@dataclass(frozen=True)
class Analysis:
    """An `advbench analyze` of all `runs`, stored under `key`; `args` are further flags."""

    key: str
    name: str
    runs: tuple[Runs, ...] = ()
    args: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return BASE / "analyses" / self.key

    @property
    def images(self) -> str:
        """How many test images, if it has any."""
        return dict(zip(self.args, self.args[1:], strict=False)).get("-n", "")

    @property
    def folders(self) -> list[Path]:
        return [folder for runs in self.runs for folder in runs.folders]

    def command(self) -> list[str]:
        """The arguments of `advbench analyze`."""
        return ["analyze", self.name, *map(str, self.folders), *self.args, "--out", str(self.out), "--force"]

    @property
    def asked(self) -> dict[str, list[Any]]:
        """Its command and the recipe of each run, by which it is known again."""
        recipes = [runs.recipe_sha256(seed) for runs in self.runs for seed in runs.seeds]
        return {"command": self.command(), "recipes": recipes}


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, the paper's number, a judge of ours, and the runs `of` which it is.

    `analyses`: what the judge reads of them. `data`: in words what it is about, if that is no run.
    `own`: runs whose settings could be better than those that were chosen (by default those of no control), which would
    excuse the verdict `excuses`; so would settings that were chosen for other runs (`untuned`). `untuned_control`: the
    control has such settings, so that no gain over it is shown.
    """

    text: str
    paper: str
    judge: Callable[[Numbers], Finding]
    of: tuple[Runs, ...] = ()
    analyses: tuple[Analysis, ...] = ()
    data: str = ""
    own: tuple[Runs, ...] = ()
    excuses: Verdict = "refuted"
    untuned: bool = False
    untuned_control: bool = False

    def __post_init__(self) -> None:
        assert self.of or self.data, self.text

    @property
    def accused(self) -> tuple[Runs, ...]:
        return self.own or tuple(runs for runs in self.of if runs.method not in ("pgd-at", "trades", "standard"))


@dataclass(frozen=True)
class Effect:
    """What `make effects SYSTEM=name` does for a system.

    `about`: what a reader has to know of it. `figure`: draws its numbers as SVG, or raises KeyError while some are
    missing.
    """

    system: str
    source: str
    claims: tuple[Claim, ...]
    runs: tuple[Runs, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    analyses: tuple[Analysis, ...] = ()
    about: str = ""
    figure: Callable[[Numbers], bytes] | None = None

    @property
    def asked(self) -> dict[str, dict[str, list[Any]]]:
        """What each analysis is of, by its key."""
        return {one.key: one.asked for one in self.analyses}
