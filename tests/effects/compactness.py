"""Local and global compactness (ADR) on AT: its gain, each term alone, other bases, its mechanism."""

from __future__ import annotations

from typing import Any

from act import SEEDS as FRESH
from controls import AT, FASHION, FASHION_AT, SEEDS, TRADES
from evidence import Analysis, Claim, Effect, Evaluation, Runs, rated
from findings import Finding, Gain, Numbers, differences, mean_sd, verdict, worst

TERMS = ("lc", "ls", "gc", "conf")
OFF = tuple(f"method.{term}=0" for term in ("lc", "ls", "gc", "gs", "conf"))
NONE = Runs("compactness off", "compactness", OFF)

# --- on AT, in the regime of ACT --------------------------------------------------------------------------

TUNED = FASHION.tuning("compactness", "method.lc", ("0.3", "1", "3"), "0.01", "0.02", "0.05")
AT_TESTED = rated(FASHION_AT)
ALL = TUNED.runs("fashion-1000 compactness", FRESH)
ALONE = {
    term: TUNED.runs(f"fashion-1000 {term} alone", FRESH, *(f"method.{other}=0" for other in TERMS if other != term))
    for term in TERMS
}
TESTED = {runs.label: rated(runs) for runs in (ALL, *ALONE.values())}
TABLE = "compactness-fashion/features"
FEATURES = Analysis("compactness-fashion", "features", (FASHION_AT, ALL, ALONE["lc"], ALONE["gc"]), ("-n", "2000"))


def over_at(of: Runs, numbers: Numbers) -> tuple[str, Gain]:
    """Clean and robust accuracy, and the gain over AT."""
    key = TESTED[of.label].key
    ours = f"{mean_sd(numbers.clean(key))} / {mean_sd(numbers.robust(key, FASHION.eps))}"
    return ours, numbers.gain(key, AT_TESTED.key, FASHION.eps)


def all_terms(numbers: Numbers) -> Finding:
    """A gain over AT."""
    ours, gain = over_at(ALL, numbers)
    at = f"{mean_sd(numbers.clean(AT_TESTED.key))} / {mean_sd(numbers.robust(AT_TESTED.key, FASHION.eps))}"
    return Finding(f"clean / APGD-T: AT {at}, all terms {ours}", gain.verdict, str(gain))


def each_alone(numbers: Numbers) -> Finding:
    """Shown if each term alone gains over AT, refuted if one does not."""
    found = {term: over_at(runs, numbers) for term, runs in ALONE.items()}
    ours = ", ".join(f"{term} {text}" for term, (text, _) in found.items())
    difference = "; ".join(f"{term}: {gain}" for term, (_, gain) in found.items())
    return Finding(f"clean / APGD-T: {ours}", worst([gain.verdict for _, gain in found.values()]), difference)


def mechanism(numbers: Numbers) -> Finding:
    """The distance of z(x) and z(x') over that of classes falls with each seed; refuted if it rises with each."""
    found = {
        runs.label: numbers.column(TABLE, runs, "to_inter") for runs in (FASHION_AT, ALL, ALONE["lc"], ALONE["gc"])
    }
    moved = differences(found[ALL.label], found[FASHION_AT.label])
    ours = ", ".join(f"{label.removeprefix('fashion-1000 ')} {mean_sd(by, 3)}" for label, by in found.items())
    told = "shown" if max(moved) < 0 else "refuted" if min(moved) > 0 else "not shown"
    return Finding(f"to_inter: {ours}", told, f"all terms, seeds {' '.join(f'{value:+.3f}' for value in moved)}")


# --- other bases, on digits -------------------------------------------------------------------------------

HALVES, SUM = "method.natural_share=0.5", "method.natural=true"
BASES = {
    "halves of clean and adversarial": (
        Runs("compactness halves off", "compactness", (HALVES, *OFF), seeds=SEEDS),
        Runs("compactness halves", "compactness", (HALVES,), seeds=SEEDS),
    ),
    "sum of clean and adversarial": (
        Runs("compactness sum off", "compactness", (SUM, *OFF), seeds=SEEDS),
        Runs("compactness sum", "compactness", (SUM, "method.gs=1"), seeds=SEEDS),
    ),
    "TRADES": (TRADES, Runs("compactness-trades", "compactness-trades", seeds=SEEDS)),
}
BASED = tuple(runs for pair in BASES.values() for runs in pair)


def on_bases(numbers: Numbers) -> Finding:
    """On each base a gain over it at 0.1, under AutoAttack."""
    gains = {name: numbers.gain(full.label, base.label, "0.1") for name, (base, full) in BASES.items()}
    ours = "; ".join(
        f"{name} {mean_sd(numbers.robust(base.label, '0.1'))} to {mean_sd(numbers.robust(full.label, '0.1'))}"
        for name, (base, full) in BASES.items()
    )
    difference = "; ".join(f"{name}: {gain}" for name, gain in gains.items())
    return Finding(f"at 0.1: {ours}", worst([gain.verdict for gain in gains.values()]), difference)


# --- the norm of the features, on digits ------------------------------------------------------------------

LONG: dict[str, Any] = {"arch": "small_cnn_16_32_100", "epochs": 50, "seeds": SEEDS}
LC_ALONE = Runs("compactness cnn lc", "compactness", OFF[1:], **LONG)
ALL_LONG = Runs("compactness cnn", "compactness", **LONG)
# AT notes no norm; with so small a weight it does, and is still AT.
NOTING_AT = Runs("compactness cnn noting", "compactness", ("method.lc=1e-12", *OFF[1:]), **LONG)
NORMED = Runs("compactness resnet lc", "compactness", ("model.width=8", *OFF[1:]), **{**LONG, "arch": "resnet18"})
NORMS = (NOTING_AT, LC_ALONE, ALL_LONG, NORMED)


def alarms(of: Runs, numbers: Numbers) -> list[float]:
    """By seed: the largest share of an epoch's batches with the alarm."""
    return [numbers.trained[of.label][seed]["largest"]["norm_alarm"] for seed in of.seeds]


def runaway(numbers: Numbers) -> Finding:
    """Without BatchNorm, LC alone and all terms raise the alarm in most batches of an epoch, with each seed; AT never.

    The alarm is on where the norm is more than twice that at half of the training.
    """
    found = {runs.label: alarms(runs, numbers) for runs in NORMS[:3]}
    ours = "; ".join(f"{label} {' '.join(f'{share:.0%}' for share in shares)}" for label, shares in found.items())
    grown = min(*found[LC_ALONE.label], *found[ALL_LONG.label]) > 0.5
    return Finding(f"batches with the alarm, by seed: {ours}", verdict(grown and not any(found[NOTING_AT.label])))


def held_by_batchnorm(numbers: Numbers) -> Finding:
    """With BatchNorm, LC alone raises the alarm in no batch, with any seed."""
    shares = alarms(NORMED, numbers)
    ours = f"resnet18 of width 8, batches with the alarm, by seed: {' '.join(f'{share:.0%}' for share in shares)}"
    return Finding(ours, verdict(not any(shares)))


def off_is_at(numbers: Numbers) -> Finding:
    """The same weights of the net."""
    same = numbers.trained["compactness off"][0]["model"] == numbers.trained["pgd-at"][0]["model"]
    return Finding(f"weights of the nets {'equal' if same else 'differ'}, seed 0", verdict(same))


PAPER = "CIFAR-10, AutoAttack: base 44.1 with a clean term, 48.8 without"
BASES_PAPER = "CIFAR-10, AutoAttack: base 44.1 with a clean term"
EFFECT = Effect(
    system="compactness",
    source="Local and global compactness (ADR), Bui et al. 2020, arXiv:2007.05123",
    runs=(AT, NONE, FASHION_AT, ALL, *ALONE.values(), *BASED, *NORMS),
    evaluations=(AT_TESTED, *TESTED.values(), *map(Evaluation, BASED)),
    analyses=(FEATURES,),
    claims=(
        Claim("more robust than AT", PAPER, all_terms, (FASHION_AT, ALL)),
        Claim(
            "each term helps alone",
            "the abstract: each is studied in isolation",
            each_alone,
            (FASHION_AT, *ALONE.values()),
        ),
        Claim("more robust than its bases with clean images", BASES_PAPER, on_bases, BASED),
        Claim("all weights 0: AT to the bit (a property)", "by its form", off_is_at, (AT, NONE)),
        Claim("features of x and x' come together", "lower divergence", mechanism, FEATURES.runs),
        Claim("without BatchNorm the feature norm runs away (ours)", "none", runaway, NORMS[:3]),
        Claim("with BatchNorm LC alone does not let it (ours)", "none", held_by_batchnorm, (NORMED,)),
    ),
)
