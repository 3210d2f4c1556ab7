"""An optimiser meta-trained on adversarial loss trains new nets on clean images: four trainings of three nets."""

from __future__ import annotations

from collections.abc import Callable

from evidence import Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, verdict

SOFT = ("model.activation=softplus",)
NETS = {
    "same": ("model.width=64", "model.depth=1"),
    "wider": ("model.width=128", "model.depth=1"),
    "deeper": ("model.width=64", "model.depth=2"),
}
META = {
    label: Runs(f"learned-optimizer meta {label}", "learned-optimizer", (*NETS["same"], *extra), epochs=22)
    for label, extra in {"robust": (), "clean": ("method.gamma=1",)}.items()
}
ADAM = (*SOFT, "optim.name=adam", "optim.lr=0.003")
STEPS = {"epochs": 3}  # of 18 batches each: about the T for which the optimiser was trained


def trainings(net: str) -> dict[str, Runs]:
    def learned(label: str) -> Runs:
        source = f"method.source={META[label].folder(0)}"
        return Runs(f"learned {label} {net}", "learned-optimizer", (*NETS[net], source), **STEPS)

    return {
        "clean loss": learned("clean"),
        "learned": learned("robust"),
        "adam": Runs(f"adam {net}", "standard", (*NETS[net], *ADAM), **STEPS),
        "adam-at": Runs(f"adam-at {net}", "pgd-at", (*NETS[net], *ADAM), **STEPS),
    }


ALL = {net: trainings(net) for net in NETS}


def beats(other: str) -> Callable[[Numbers], tuple[str, Verdict]]:
    """At least 2 points more than the training `other`, on each net."""

    def judge(numbers: Numbers) -> tuple[str, Verdict]:
        parts, gains = [], []
        for net, found in ALL.items():
            learned, control = (numbers.robust(found[name].label, "0.1")[0] for name in ("learned", other))
            parts.append(f"{net} {control:.1f} to {learned:.1f}")
            gains.append(learned - control)
        return f"at 0.1, {other} to learned: {', '.join(parts)}", verdict(min(gains) >= 2)

    return judge


EFFECT = Effect(
    system="learned-optimizer",
    source="Learning to learn from mistakes, Serban et al. 2020, arXiv:2008.05247 (a reconstruction from the abstract)",
    runs=(*META.values(), *(runs for found in ALL.values() for runs in found.values())),
    evaluations=tuple(Evaluation(runs, "0,0.1") for found in ALL.values() for runs in found.values()),
    claims=(
        Claim("beats the LSTM meta-trained on clean loss, on same, wider, deeper nets", "none", beats("clean loss")),
        Claim("beats Adam on clean images (a control)", "none", beats("adam")),
        Claim("beats Adam on adversarial images at equal steps (a control)", "none", beats("adam-at")),
    ),
)  # fmt: skip
