"""Local and global compactness (ADR) on AT: its gain, each term alone, with clean images, its mechanism."""

from __future__ import annotations

from collections.abc import Sequence

from act import MUCH, SEEDS
from controls import AT, FASHION, FASHION_AT
from evidence import Analysis, Claim, Effect, Evaluation, Runs, rated
from findings import GAINED, PARTS, Finding, Gain, Numbers, Verdict, by_seeds, conclude, mean_sd, verdict, worst

TERMS = ("lc", "ls", "gc", "conf")
OFF = tuple(f"method.{term}=0" for term in ("lc", "ls", "gc", "gs", "conf"))
NONE = Runs("compactness off", "compactness", OFF)

TUNED = FASHION.tuning("compactness", "method.lc", ("0.3", "1", "3"), "0.02", "0.05", decays=MUCH)
AT_TESTED = rated(FASHION_AT)
ALL = TUNED.runs("fashion-1000 compactness", SEEDS)
ALONE = {
    term: TUNED.runs(f"fashion-1000 {term} alone", SEEDS, *(f"method.{other}=0" for other in TERMS if other != term))
    for term in TERMS
}
TESTED = {runs.label: rated(runs) for runs in (ALL, *ALONE.values())}
STRONGEST = {runs: Evaluation(runs, f"0,{FASHION.eps}", n=1000) for runs in (FASHION_AT, ALL)}
TABLE = "compactness-fashion/features"
FEATURES = Analysis("compactness-fashion", "features", (FASHION_AT, ALL, ALONE["lc"], ALONE["gc"]), ("-n", "2000"))


def over_at(of: Runs, numbers: Numbers) -> tuple[str, Gain]:
    """Clean and robust accuracy, and the gain over AT."""
    key = TESTED[of.label].key
    ours = f"{mean_sd(numbers.clean(key))} / {mean_sd(numbers.robust(key, FASHION.eps))}"
    return ours, numbers.gain(key, AT_TESTED.key, FASHION.eps)


def all_terms(numbers: Numbers) -> Finding:
    """A gain over AT, and under AutoAttack on 1,000 images."""
    ours, gain = over_at(ALL, numbers)
    hardest = numbers.gain(STRONGEST[ALL].key, STRONGEST[FASHION_AT].key, FASHION.eps)
    alone = numbers.gain(TESTED[ALL.label].key, TESTED[ALONE["conf"].label].key, FASHION.eps)
    at = f"{mean_sd(numbers.clean(AT_TESTED.key))} / {mean_sd(numbers.robust(AT_TESTED.key, FASHION.eps))}"
    weakest, strongest = (mean_sd(numbers.robust(one.key, FASHION.eps)) for one in STRONGEST.values())
    beside = f"AutoAttack on 1,000 images: AT {weakest}, all terms {strongest}"
    found = conclude(f"clean / APGD-T: AT {at}, all terms {ours}; {beside}", {"": gain, "under AutoAttack": hardest})
    return found._replace(difference=f"{found.difference}{PARTS}beside it, over conf alone: {alone.brief}")


def each_alone(numbers: Numbers) -> Finding:
    """Each term alone gains over AT; refuted if none does."""
    found = {term: over_at(runs, numbers) for term, runs in ALONE.items()}
    ours = ", ".join(f"{term} {text}" for term, (text, _) in found.items())
    return conclude(f"clean / APGD-T: {ours}", {term: gain for term, (_, gain) in found.items()}, all_or_none)


def all_or_none(gains: Sequence[Gain]) -> Verdict:
    told = {gain.verdict for gain in gains}
    return worst([*told]) if told <= {*GAINED} else "refuted" if told == {"refuted"} else "not shown"


def mechanism(numbers: Numbers) -> Finding:
    """The distance of z(x) and z(x') over that of classes falls."""
    found = {
        runs.label: numbers.column(TABLE, runs, "to_inter") for runs in (FASHION_AT, ALL, ALONE["lc"], ALONE["gc"])
    }
    fall = by_seeds(found[FASHION_AT.label], found[ALL.label], digits=3)
    ours = ", ".join(f"{label.removeprefix('fashion-1000 ')} {mean_sd(by, 3)}" for label, by in found.items())
    return conclude(f"to_inter: {ours}", {"fall by all terms": fall})


HALF = "method.natural_share=0.5"  # of each batch is clean
BASE, ON_BASE = (
    TUNED.runs(f"fashion-1000 compactness {name}", SEEDS, HALF, *sets)
    for name, sets in {"halves off": OFF, "halves": ()}.items()
)
BASED = {runs: rated(runs) for runs in (BASE, ON_BASE)}


def on_base(numbers: Numbers) -> Finding:
    """On half clean and half adversarial images, a gain over no term."""
    gain = numbers.gain(BASED[ON_BASE].key, BASED[BASE].key, FASHION.eps)
    off, on = (
        f"{mean_sd(numbers.clean(one.key))} / {mean_sd(numbers.robust(one.key, FASHION.eps))}" for one in BASED.values()
    )
    return conclude(f"clean / APGD-T: no term {off}, all terms {on}", {"": gain})


def off_is_at(numbers: Numbers) -> Finding:
    """The same weights of the net."""
    same = numbers.trained["compactness off"][0]["model"] == numbers.trained["pgd-at"][0]["model"]
    return Finding(f"weights of the nets {'equal' if same else 'differ'}, seed 0", verdict(same))


PAPER = "CIFAR-10, AutoAttack: base 44.1 with a clean term, 48.8 without"
BASE_PAPER = "CIFAR-10, AutoAttack: base 44.1 with a clean term"
EFFECT = Effect(
    system="compactness",
    source="Local and global compactness (ADR), Bui et al. 2020, arXiv:2007.05123",
    about="What was chosen for all terms is what each alone, and the form with clean images, has.",
    runs=(AT, NONE, FASHION_AT, ALL, *ALONE.values(), *BASED),
    evaluations=(AT_TESTED, *TESTED.values(), *STRONGEST.values(), *BASED.values()),
    analyses=(FEATURES,),
    claims=(
        Claim("more robust than AT", PAPER, all_terms, (FASHION_AT, ALL, ALONE["conf"]), own=(ALL,)),
        Claim(
            "each term helps alone",
            "the abstract: each is studied in isolation",
            each_alone,
            (FASHION_AT, *ALONE.values()),
            untuned=True,
        ),
        Claim(
            "more robust than its base with clean images",
            BASE_PAPER,
            on_base,
            tuple(BASED),
            own=(ON_BASE,),
            untuned=True,
            untuned_control=True,
        ),
        Claim("all weights 0: AT to the bit (a property)", "by its form", off_is_at, (AT, NONE)),
        Claim("features of x and x' come together", "lower divergence", mechanism, FEATURES.runs, (FEATURES,)),
    ),
)
