"""An optimiser meta-trained on adversarial loss trains new nets on clean images: other nets, other data, few images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from evidence import Claim, Effect, Evaluation, Runs, Tuning, rated
from findings import Finding, Numbers, conclude, mean_sd

SEEDS = (1, 2, 3)  # seed 0 chose the settings
SMALL = ("model.width=64", "model.depth=1")
ANY = "validation.select=robust"  # says which epoch's f is kept; only the optimiser is used, after the last one
META = {
    label: Runs(
        f"learned-optimizer meta {label}", "learned-optimizer", (*SMALL, ANY, *extra), epochs=22, seeds=(0, *SEEDS)
    )
    for label, extra in {"robust": (), "clean": ("method.gamma=1",)}.items()
}
LEARNED = {"learned": "robust", "clean loss": "clean"}  # a training, and the loss that its optimiser was trained on
ADAM = ("model.activation=softplus", "optim.name=adam")
CONTROLS = {"adam": "standard", "adam-at": "pgd-at"}
# Rates for about 40 steps, the same of a convolutional net, and rates for many steps.
SHORT, SHORT_CNN, LONG = ("0.01", "0.03", "0.1"), ("0.001", "0.003", "0.01"), ("0.003", "0.01", "0.03")


@dataclass(frozen=True)
class Place:
    """Where f is trained. `epochs` make about 40 steps with the first of `batches`; the others make fewer.

    The learned optimiser has no rate: its batch size is chosen. The controls have the first one, so they take at least
    as many steps. `names`: of the trainings. `rates`: of the controls. `long`: the epochs of those controls that are
    trained to the end.
    """

    name: str
    dataset: str
    epochs: int
    batches: tuple[str, str, str]
    images: int
    held_out: int
    names: tuple[str, ...]
    arch: str = "mlp"
    sets: tuple[str, ...] = SMALL
    rates: tuple[str, ...] = SHORT
    long: int = 0
    trained: dict[str, Runs] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        found = {name: self.learned(name) if name in LEARNED else self.control(name) for name in self.names}
        object.__setattr__(self, "trained", found)

    def learned(self, name: str) -> Runs:
        meta = META[LEARNED[name]]
        source = f"method.source={meta.folder(0)}"
        base = self.recipe(name, "learned-optimizer", (source,), epochs=self.epochs, after=(meta,))
        each_seed = source.removesuffix("0") + "{seed}"
        return self.tuned(name, base, "batch_size", self.batches).runs(self.label(name), SEEDS, each_seed)

    def control(self, name: str) -> Runs:
        adam, _, long = name.partition(" ")
        epochs, rates = (self.long, LONG) if long else (self.epochs, self.rates)
        base = self.recipe(name, CONTROLS[adam], (*ADAM, f"batch_size={self.batches[0]}"), epochs=epochs)
        return self.tuned(name, base, "optim.lr", rates).runs(self.label(name), SEEDS)

    def label(self, name: str) -> str:
        return f"{self.name} {name}"

    def recipe(self, name: str, method: str, sets: tuple[str, ...], **more: Any) -> Runs:
        held_out = (f"validation.held_out={self.held_out}", "validation.n=100", "validation.select=last")
        regime: dict[str, Any] = {"dataset": self.dataset, "arch": self.arch, "eps": "0.1"}
        regime["common"] = (f"train_n={self.images}", *held_out)
        return Runs(f"{self.label(name)} tuning", method, (*self.sets, *sets), **regime, **more)

    def tuned(self, name: str, base: Runs, varied: str, values: tuple[str, ...]) -> Tuning:
        return Tuning(f"learned-{self.name}-{name}".replace(" ", "-"), base, ((varied, values),))

    def evaluation(self, name: str) -> Evaluation:
        """AutoAttack on all 500 digits, APGD-T on 10,000 images of the other data sets."""
        if self.dataset == "digits":
            return Evaluation(self.trained[name], "0,0.1")
        return rated(self.trained[name])


DIGITS: dict[str, Any] = {"dataset": "digits", "epochs": 3, "batches": ("64", "96", "128"), "images": 800}
EQUAL = ("learned", "clean loss", "adam", "adam-at")
DIGITS |= {"held_out": 497, "names": (*EQUAL, "adam long", "adam-at long"), "long": 20}
NETS = (
    Place("same net", **DIGITS),
    Place("wider", sets=("model.width=128", "model.depth=1"), **DIGITS),
    Place("deeper", sets=("model.width=64", "model.depth=2"), **DIGITS),
)
MANY: dict[str, Any] = {"epochs": 1, "batches": ("256", "384", "512"), "images": 10000, "held_out": 2000}
MANY |= {"names": EQUAL}
MOVES = (
    Place("mnist", "mnist", **MANY),
    Place("fashion cnn", "fashion-mnist", arch="small_cnn_16_32_100", sets=(), rates=SHORT_CNN, **MANY),
)
# Not of digits: the optimiser has seen all of these in its meta-training.
LOW = (*EQUAL, "adam-at long")
FEW = (Place("500 of fashion", "fashion-mnist", 5, ("64", "84", "100"), 500, 2000, LOW, long=100),)
PLACES = (*NETS, *MOVES, *FEW)


def beats(other: str, places: Sequence[Place]) -> Callable[[Numbers], Finding]:
    """A judge: a gain at 0.1 over the training `other`, in each of `places`."""

    def judge(numbers: Numbers) -> Finding:
        """A gain, in each place."""
        pairs = {one.name: [one.evaluation(name).key for name in ("learned", other)] for one in places}
        gains = {name: numbers.gain(*pair, "0.1") for name, pair in pairs.items()}
        parts = ", ".join(
            f"{name} {mean_sd(numbers.robust(control, '0.1'))} to {mean_sd(numbers.robust(learned, '0.1'))}"
            for name, (learned, control) in pairs.items()
        )
        return conclude(f"at 0.1, {other} to learned: {parts}", gains)

    return judge


def claim(text: str, other: str, places: Sequence[Place]) -> Claim:
    own, controls = (tuple(one.trained[name] for one in places) for name in ("learned", other))
    return Claim(text, "no number known", beats(other, places), (*own, *controls), own=own)


EFFECT = Effect(
    system="learned-optimizer",
    source="Learning to learn from mistakes, Serban et al. 2020, arXiv:2008.05247 (a reconstruction from the abstract)",
    about="One optimiser a seed is meta-trained on digits and a net of 64 units. Of its trainings the batch size was "
    "chosen, of Adam's the rate; Adam has the smallest of the batch sizes, so as many steps in an epoch, or more. Few "
    "images: 500 of Fashion-MNIST.",
    runs=(*META.values(), *(runs for one in PLACES for runs in one.trained.values())),
    evaluations=tuple(one.evaluation(name) for one in PLACES for name in one.trained),
    claims=(
        claim("beats the LSTM meta-trained on clean loss: same, wider, deeper net", "clean loss", NETS),
        claim("beats the LSTM meta-trained on clean loss: new data, new data and net", "clean loss", MOVES),
        claim("beats Adam on clean images at equal epochs (a control)", "adam", NETS),
        claim("beats Adam on clean images for 20 epochs (a control)", "adam long", NETS),
        claim("beats AT by Adam at equal epochs (a control)", "adam-at", NETS),
        claim("beats AT by Adam for 20 epochs (a control)", "adam-at long", NETS),
        claim("new data, new data and net: beats Adam on clean images at equal epochs", "adam", MOVES),
        claim("new data, new data and net: beats AT by Adam at equal epochs", "adam-at", MOVES),
        claim("few images: beats the LSTM meta-trained on clean loss", "clean loss", FEW),
        claim("few images: beats Adam on clean images at equal epochs", "adam", FEW),
        claim("few images: beats AT by Adam at equal epochs", "adam-at", FEW),
        claim("few images: beats AT by Adam for 100 epochs", "adam-at long", FEW),
    ),
)
