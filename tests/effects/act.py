"""Adversarial Concurrent Training beside AT and TRADES: the trade-off of clean and robust accuracy, as frontiers.

Few images and long training, where adversarial training overfits; the last epoch, which the authors deploy. Each method
has twelve tries on held-out images. Then, with fresh seeds, come ACT over b, TRADES over beta and AT over the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from evidence import Claim, Effect, Evaluation, Runs, Tuning, rated
from findings import SECOND_LOOK, Finding, Numbers, conclude, differences, mean_sd, verdict
from frontier import Frontiers, Point, draw_frontiers

from advbench.statistics import LEVEL

SEEDS = (1, 2, 3)  # seed 0 chose the settings
DECAY = "optim.weight_decay"
# Weight decays against overfitting, of
DECAYS = ("0.0005", "0.005", "0.01", "0.02")  # methods without a weight of their own,
STRONG = ("0.005", "0.01", "0.02", "0.05")  # AT on few images, which wants the most,
LITTLE = ("0.0005", "0.005")  # methods with a weight of their own,
MUCH = ("0.005", "0.02")  # and those of them that add something to AT.
Grid = tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]  # a field, its values, rates and weight decays
GRIDS: dict[str, Grid] = {  # of each method
    "act": ("method.b", ("0.8", "0.9"), ("0.1", "0.2", "0.4"), LITTLE),
    "trades": ("method.beta", ("6", "12"), ("0.02", "0.05", "0.1"), LITTLE),
    "pgd-at": (DECAY, STRONG, ("0.01", "0.02", "0.05"), ()),
}
ALONG = {  # the setting that moves a method along its frontier, and its values
    "act": ("method.b", ("0.7", "0.8", "0.9", "0.95")),
    "trades": ("method.beta", ("3", "6", "12", "24")),
    "pgd-at": ("optim.lr", ("0.01", "0.02", "0.05", "0.1")),
}


def named(setting: str) -> str:
    """A field, or a field and its value, in short: optim.lr=0.1 is lr 0.1."""
    name, _, value = setting.partition("=")
    return f"{name.rpartition('.')[2].removeprefix('weight_')} {value}".strip()


def grid_of(
    weight: str, values: Sequence[str], *rates: str, decays: Sequence[str] = LITTLE
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Rates and values of the field `weight`, and between them `decays`, unless weight decay is that field."""
    between = () if weight == DECAY else ((DECAY, tuple(decays)),)
    return (("optim.lr", rates), *between, (weight, tuple(values)))


@dataclass(frozen=True)
class Regime:
    """The comparison on one data set. `name` is part of the names of its files.

    `shared`: the regime whose choices it takes over; of its own it has the rate, in three tries. `grids`: what is tried
    of each method. `seeds`: of the runs.
    `fresh`: the first test image of those that gains count, since it was found on those before. `level`: of intervals.
    `along`: the setting that moves a method along its frontier, and its values. `further`: of a method, another setting
    with which its line may go through these values of a field, too. `more`: fields of every recipe.
    """

    name: str
    dataset: str
    eps: str
    images: str
    epochs: int = 150
    shared: Regime | None = None
    grids: Mapping[str, Grid] = field(default_factory=lambda: GRIDS)
    seeds: tuple[int, ...] = SEEDS
    fresh: int = 0
    level: float = LEVEL
    along: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=lambda: ALONG)
    further: Mapping[str, tuple[str, str, tuple[str, ...]]] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    def tuning(
        self, method: str, weight: str, values: Sequence[str], *rates: str, decays: Sequence[str] = LITTLE
    ) -> Tuning:
        """Twelve tries: the rate, weight decay, and the method's own weight, unless `weight` is the decay.

        Only the rate where the others are shared.
        """
        common = (f"train_n={self.images}", "batch_size=50", "average.name=none", "label_smoothing=0")
        held_out = ("validation.held_out=2000", "validation.n=100", "validation.select=last")
        recipe: dict[str, Any] = {"dataset": self.dataset, "arch": "small_cnn_16_32_100", "eps": self.eps}
        recipe |= {"epochs": self.epochs, "common": (*common, *held_out, *self.more)}
        base = Runs(f"{self.name} {method} tuning", method, **recipe)
        if self.shared:
            others = self.shared.tuning(method, weight, values, *rates, decays=decays)
            return Tuning(f"{self.name}-{method}", base, (("optim.lr", rates),), shared=others)
        return Tuning(f"{self.name}-{method}", base, grid_of(weight, values, *rates, decays=decays))

    @cached_property
    def tunings(self) -> dict[str, Tuning]:
        """The choice of each method's settings."""
        return {
            name: self.tuning(name, weight, values, *rates, decays=decays)
            for name, (weight, values, rates, decays) in self.grids.items()
        }

    @cached_property
    def lines(self) -> dict[str, tuple[Runs, ...]]:
        """The runs of each method, first those with all that was chosen, then those along its frontier."""
        return {
            method: (one.runs(f"{self.name} {method}", self.seeds), *self.line(method))
            for method, one in self.tunings.items()
        }

    def line(self, method: str, also: str = "", *along: Any) -> list[Runs]:
        """The runs of a method along its frontier, or with the setting `also` along another field."""
        weight, values = along or self.along[method]
        label = " ".join(filter(None, (self.name, method, named(also), named(weight))))
        sets = (also,) if also else ()
        return [self.tunings[method].runs(f"{label} {x}", self.seeds, f"{weight}={x}", *sets) for x in values]

    @cached_property
    def evaluations(self) -> dict[str, tuple[Evaluation, ...]]:
        """APGD-T on all test images, of each method's runs."""
        return {method: tuple(rated(runs, self.eps) for runs in line) for method, line in self.lines.items()}

    @cached_property
    def others(self) -> dict[str, tuple[Evaluation, ...]]:
        """The same, of what a method's line may go through, too."""
        return {
            method: tuple(rated(one, self.eps) for one in self.line(method, *also))
            for method, also in self.further.items()
        }

    @property
    def rated(self) -> tuple[Evaluation, ...]:
        """All that is measured by APGD-T on all test images."""
        return tuple(one for lines in (self.evaluations, self.others) for line in lines.values() for one in line)

    def rivals(self, method: str) -> list[str]:
        """The keys of all that a method's line may go through."""
        return [one.key for one in (*self.evaluations[method], *self.others.get(method, ()))]

    @cached_property
    def strongest(self) -> dict[str, Evaluation]:
        """AutoAttack on the first 1,000 test images, of the runs with what was chosen."""
        return {method: Evaluation(line[0], f"0,{self.eps}", n=1000) for method, line in self.lines.items()}

    @cached_property
    def transferred(self) -> dict[str, Evaluation]:
        """APGD by the gradients of ACT's natural net of the same seed, on all test images, of the same runs."""
        teachers = self.lines["act"][0]
        source = str(teachers.folder(0)).removesuffix("0") + "{seed}/parts/natural.safetensors"
        more: dict[str, Any] = {"sets": ("steps=20", f"source={source}"), "after": (teachers,)}
        return {
            method: Evaluation(line[0], f"0,{self.eps}", "transfer", n=10_000, **more)
            for method, line in self.lines.items()
        }

    def unmasked(self, numbers: Numbers) -> Finding:
        """The natural net's gradients leave more images than the robust nets' own, with each method and seed."""
        ours, by = [], []
        for method, found in self.evaluations.items():
            own, others = (numbers.robust(key, self.eps) for key in (found[0].key, self.transferred[method].key))
            ours.append(f"{method} {mean_sd(own)} to {mean_sd(others)}")
            by += differences(others, own)
        less = f"by seed: {' '.join(f'{d:+.1f}' for d in by)}"
        return Finding(f"APGD-T to transfer: {', '.join(ours)}", verdict(min(by) > 0), less)

    def counted(self, numbers: Numbers) -> Numbers:
        """The numbers as gains over a line count them."""
        return replace(numbers, first=self.fresh, level=self.level)

    def trade_off(self, numbers: Numbers) -> Finding:
        """Above the lines of TRADES and AT at equal clean accuracy, and above AT under AutoAttack on 1,000 images.

        What is cleaner or less clean than a line is compared with its nearest end.
        """
        counted = self.counted(numbers)
        chosen = {method: found[0].key for method, found in self.evaluations.items()}
        gains = {
            "over TRADES' line": counted.at_equal_clean(chosen["act"], self.rivals("trades"), self.eps),
            "over AT's line": counted.at_equal_clean(chosen["act"], self.rivals("pgd-at"), self.eps),
            "over AT under AutoAttack": numbers.gain(self.strongest["act"].key, self.strongest["pgd-at"].key, self.eps),
        }
        ours = "; ".join(
            f"{method} {mean_sd(numbers.clean(key))} / {mean_sd(numbers.robust(key, self.eps))}"
            f" ({numbers.beside(key, self.strongest[method].key, self.eps)})"
            for method, key in chosen.items()
        )
        return conclude(f"clean / APGD-T: {ours}", gains)

    def above(self, numbers: Numbers) -> Finding:
        """Every point of ACT's line is above TRADES' line at its clean accuracy, by a gain that is shown."""
        counted = self.counted(numbers)
        gains = {
            f"b {b}": counted.at_equal_clean(one.key, self.rivals("trades"), self.eps)
            for b, one in zip(self.along["act"][1], self.evaluations["act"][1:], strict=True)
        }
        points = "; ".join(
            f"{one.runs.label.removeprefix(self.name).strip()} {mean_sd(numbers.clean(one.key))} / "
            f"{mean_sd(numbers.robust(one.key, self.eps))}"
            for one in (*self.evaluations["act"][1:], *self.evaluations["trades"][1:], *self.others.get("trades", ()))
        )
        return conclude(points, gains)

    def frontiers(self, numbers: Numbers) -> Frontiers:
        """The frontier of each method, with its setting."""
        lines = {f"{method}, {named(self.along[method][0])}": one[1:] for method, one in self.evaluations.items()}
        for method, (also, weight, _) in self.further.items():
            lines[f"{method}, {named(weight)}, {named(also)}"] = self.others[method]
        return {
            name: [
                Point(one.runs.label.rpartition(" ")[2], numbers.clean(one.key), numbers.robust(one.key, self.eps))
                for one in line
            ]
            for name, line in lines.items()
        }

    @property
    def claims(self) -> tuple[Claim, ...]:
        runs = tuple(one.runs for one in self.rated)
        two = tuple(one for one in runs if one.method != "pgd-at")
        others = bool(self.shared)
        return (
            Claim(f"a better trade-off than AT and TRADES: {self.name}", PAPER, self.trade_off, runs, untuned=others),
            Claim(f"the whole frontier lies above TRADES': {self.name}", "none", self.above, two, untuned=others),
            Claim(
                f"attacks by the natural net's gradients fell less than by its robust one's (a control): {self.name}",
                "none",
                self.unmasked,
                tuple(line[0] for line in self.lines.values()),
            ),
        )


PAPER = (
    "as CURE (ICLR 2024, table 1) has it, CIFAR-10, clean / PGD-20: 84.3 / 55.8; AT 82.8 / 51.3; TRADES 82.4 / 52.8; "
    "no AutoAttack number"
)
FIRST = Regime(
    "fashion-1000",
    "fashion-mnist",
    "0.1",
    "1000",
    seeds=(*SEEDS, 4, 5),
    fresh=2000,
    level=SECOND_LOOK,
    further={
        "trades": (f"{DECAY}=0.0005", "method.beta", ("3", "6", "12")),
        "pgd-at": ("optim.lr=0.05", DECAY, ("0.005", "0.01")),
    },
)
CLIPPED = ("optim.clip=1",)
MNIST = Regime(
    "mnist-1000",
    "mnist",
    "0.3",
    "1000",
    grids={
        "act": ("method.b", ("0.8", "0.9"), ("0.1", "0.2"), ("0.0001", "0.0005", "0.005")),
        # after twelve tries by the rates and decays of the other two
        "trades": ("method.beta", ("12", "24"), ("0.1", "0.2"), ("0.0001", "0.0005")),
        "pgd-at": (DECAY, DECAYS, ("0.05", "0.1", "0.2"), ()),
    },
    along={**ALONG, "pgd-at": (DECAY, DECAYS)},
    more=CLIPPED,
)
REGIMES = (FIRST, MNIST, Regime("cifar10-2000", "cifar10", "8/255", "2000", 75, shared=FIRST, more=CLIPPED))


def figure(numbers: Numbers) -> bytes:
    """The frontiers of every regime that is measured, under APGD-T on all test images. Raises KeyError without any."""
    measured = [one for one in REGIMES if {e.key for e in one.rated} <= numbers.records.keys()]
    found = {one.name: one.frontiers(numbers) for one in measured}
    if not found:
        raise KeyError("no regime is measured")
    return draw_frontiers(found, TITLE)


TITLE = "Clean and robust accuracy: ACT, TRADES and AT, each along its own setting"
EFFECT = Effect(
    system="act",
    source="Adversarial Concurrent Training, Arani et al. 2020, arXiv:2008.07015",
    about="That ACT may be better with few images and long training was found by trials on Fashion-MNIST, with other "
    "settings, on the first 2,000 test images: its gains over the lines count the other 8,000. Seeds 4 and 5 of "
    "fashion-1000 came after three had left the gain over TRADES open, +2.3 (-0.2 to +4.8): for that second look these "
    "intervals are of 97.5 %. TRADES' line may go through nets with a decay of 0.0005, too, which 1 of 2,000 held-out "
    "images decided against, and AT's through nets of rate 0.05 with less decay, which were cleaner and less robust on "
    "held-out images. The regimes after the first clip the gradient at norm 1, with every method: without that, ACT on "
    "MNIST at 0.3 fell to chance in a first try on held-out images.",
    runs=tuple(found.runs for one in REGIMES for found in one.rated),
    evaluations=tuple(
        found for one in REGIMES for found in (*one.rated, *one.strongest.values(), *one.transferred.values())
    ),
    claims=tuple(claim for one in REGIMES for claim in one.claims),
    figure=figure,
)
