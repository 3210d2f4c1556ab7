"""Centre loss on standard training and on AT: lambda 0, 0.1, 1."""

from __future__ import annotations

from controls import AT, AT_AA, SEEDS, STANDARD, STANDARD_AA
from evidence import Analysis, Claim, Effect, Evaluation, Numbers, Runs, Verdict, more, said, verdict

WEAK = Runs("center-loss 0.1", "center-loss", seeds=SEEDS)
STRONG = Runs("center-loss 1", "center-loss", ("method.lam=1",))
ON_AT = Runs("center-loss-at 0.1", "center-loss-at")
FEATURES = Analysis("center-loss", "features", (STANDARD, WEAK, STRONG), ("-n", "500"))
TABLE = "center-loss/features"


def compact(numbers: Numbers) -> tuple[str, Verdict]:
    """Intra/inter at least halves."""
    plain, weak, strong = (numbers.column(TABLE, runs, "intra_inter") for runs in (STANDARD, WEAK, STRONG))
    ours = f"intra/inter {said(plain, 2)} without, {said(weak, 2)} at lambda 0.1, {said(strong, 2)} at 1"
    return ours, verdict(all(2 * weak[seed] <= plain[seed] for seed in weak))


def small_eps(numbers: Numbers) -> tuple[str, Verdict]:
    """More accurate at half of the eps where AT is measured, with lambda 0.1."""
    plain, weak, strong = (numbers.robust(runs.label, "0.1") for runs in (STANDARD, WEAK, STRONG))
    told = f"at 0.1: {said(plain)} without, {said(weak)} at lambda 0.1, {said(strong)} at 1"
    pgd = [{s: 100 * v for s, v in numbers.column(TABLE, r, "attacked").items()} for r in (WEAK, STANDARD)]
    return f"{told}; PGD-20: {said(pgd[1])} without, {said(pgd[0])} at 0.1", verdict(more(weak, plain), more(*pgd))


def full_eps(numbers: Numbers) -> tuple[str, Verdict]:
    """Robust where AT is: at least half of AT's accuracy at 0.2."""
    at, weak = numbers.robust("pgd-at", "0.2"), numbers.robust("center-loss 0.1", "0.2")
    ours = f"at 0.2: {said(weak)} at lambda 0.1; AT {said(at)}"
    return ours, verdict(all(2 * weak[seed] >= at[seed] for seed in weak))


def on_top_of_at(numbers: Numbers) -> tuple[str, Verdict]:
    at, both = numbers.robust("pgd-at", "0.1"), numbers.robust("center-loss-at 0.1", "0.1")
    return f"at 0.1: AT {said(at)}, with centre loss {said(both)} (seed 0)", verdict(more(both, at))


EFFECT = Effect(
    system="center-loss",
    source="Discriminative features, Agarwal et al. 2019, arXiv:1811.00621 (a reconstruction from the abstract)",
    runs=(STANDARD, WEAK, STRONG, ON_AT, AT),
    evaluations=(STANDARD_AA, Evaluation(WEAK), Evaluation(STRONG), Evaluation(ON_AT), AT_AA),
    analyses=(FEATURES,),
    claims=(
        Claim("the classes' features become compact", "none: a picture", compact),
        Claim("harder to attack, without adversarial training: at small eps", "no AutoAttack number", small_eps),
        Claim("harder to attack, without adversarial training: at full eps", "no AutoAttack number", full_eps),
        Claim("on top of AT (not in the paper)", "none", on_top_of_at),
    ),
)
