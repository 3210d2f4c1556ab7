"""Consistency beside AT of equal compute, updates and augmentation: the last epoch, and how far it is below the best.

AT has twice the epochs and twice the batch size: an update of consistency takes two views of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from act import DECAY, LITTLE
from controls import FASHION, FASHION_AT
from evidence import Claim, Effect, Evaluation, Runs, Tuning, rated
from findings import Finding, Gain, Numbers, Verdict, absent, conclude, gain, mean_sd, worst

EPS = FASHION.eps
AUGMENT = ("augment.crop=2", "augment.flip=true", "augment.cutout=14")
CHOSEN = ("validation.select=robust", "validation.n=500")


def tuned(tuning: Tuning, epochs: int, *sets: str) -> Runs:
    """The regime with augmentation; settings are chosen by the last epoch, the best one is by 500 held-out images."""
    base = replace(tuning.base, epochs=epochs, sets=(*AUGMENT, *sets))
    label = f"{FASHION.name} augmented {base.method}"
    tuning = replace(
        tuning, name=f"{FASHION.name}-augmented-{base.method}", base=replace(base, label=f"{label} tuning")
    )
    return tuning.runs(label, FASHION_AT.seeds, *CHOSEN)


# With augmentation, AT wants less weight decay than without: earlier tries had more of it.
AT = tuned(FASHION.tuning("pgd-at", DECAY, ("0", *LITTLE), "0.05", "0.1", "0.2"), 150)
CONSISTENT = tuned(
    FASHION.tuning("consistency", "method.lam", ("0.5", "1", "2"), "0.05", "0.1", decays=LITTLE), 75, "batch_size=25"
)
BARE = replace(FASHION_AT, label=f"{FASHION_AT.label} by its best", sets=(*FASHION_AT.sets, *CHOSEN))
EACH = {"AT": AT, "consistency": CONSISTENT, "AT without augmentation": BARE}
LAST = {runs: rated(runs, file="last.safetensors") for runs in EACH.values()}
BEST = {runs: rated(runs) for runs in EACH.values()}


def gap(numbers: Numbers) -> Finding:
    """Consistency falls by less than 1 point from its best epoch to its last, and by less than AT, which does fall."""
    pairs = {runs: [numbers.standing(by[runs].key, EPS) for by in (BEST, LAST)] for runs in LAST}
    fall, kept = (gain(*pairs[runs], same_nets=True) for runs in (AT, CONSISTENT))
    less = gain(
        *(best - 1.0 * last for best, last in (pairs[AT], pairs[CONSISTENT])), numbers.doubt(LAST[CONSISTENT].key)
    )
    ours = "; ".join(
        f"{name}: best {robust(numbers, BEST[runs])}, last {robust(numbers, LAST[runs])}" for name, runs in EACH.items()
    )
    gains = {"AT's fall": fall, "more than consistency's": less, "consistency's fall": kept}
    return conclude(f"APGD-T: {ours}", gains, no_fall)


def no_fall(gains: Sequence[Gain]) -> Verdict:
    *others, kept = gains
    return worst([*(one.verdict for one in others), absent([kept], 1.0)])


def last_epoch(numbers: Numbers) -> Finding:
    """At the last epoch, a gain over AT."""
    gained = numbers.gain(LAST[CONSISTENT].key, LAST[AT].key, EPS)
    ours = "; ".join(
        f"{name}: {mean_sd(numbers.clean(LAST[runs].key))} / {robust(numbers, LAST[runs])}"
        for name, runs in EACH.items()
    )
    return conclude(f"clean / APGD-T: {ours}", {"": gained})


def robust(numbers: Numbers, one: Evaluation) -> str:
    return mean_sd(numbers.robust(one.key, EPS))


EFFECT = Effect(
    system="consistency",
    source="Consistency regularisation, Tack et al. 2022, arXiv:2103.04623",
    runs=tuple(LAST),
    evaluations=(*LAST.values(), *BEST.values()),
    claims=(
        Claim(
            "no robust overfitting: the last epoch is as good as the best",
            "CIFAR-10: AT's gap disappears",
            gap,
            tuple(LAST),
        ),
        Claim(
            "more robust than AT, last epoch",
            "CIFAR-10, AutoAttack: 48.9 +- 0.1, AT 40.7 +- 0.3",
            last_epoch,
            tuple(LAST),
        ),
    ),
)
