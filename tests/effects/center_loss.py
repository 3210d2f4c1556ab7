"""Centre loss on standard training and on AT: lambda 0, 0.1, 1."""

from __future__ import annotations

from functools import partial
from typing import Any

from controls import AT, AT_AA, SEEDS
from evidence import Analysis, Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, exceeds, mean_sd, verdict

# Features approach their centres slowly: the recipe's 20 epochs are 360 steps, and the best epoch is an early one.
LONG: dict[str, Any] = {"epochs": 200, "seeds": SEEDS}
LAST = "validation.select=last"
PLAIN = Runs("standard long", "standard", (LAST,), **LONG)
WEAK = Runs("center-loss 0.1 long", "center-loss", (LAST,), **LONG)
STRONG = Runs("center-loss 1 long", "center-loss", (LAST, "method.lam=1"), **LONG)
ON_AT = Runs("center-loss-at 0.1", "center-loss-at")
FEATURES = Analysis("center-loss", "features", (PLAIN, WEAK, STRONG), ("-n", "500"))
TABLE = "center-loss/features"


def compact(of: Runs, numbers: Numbers) -> tuple[str, Verdict]:
    """The ratio of intra-class to inter-class distance at least halves."""
    plain, pulled = (numbers.column(TABLE, runs, "intra_inter") for runs in (PLAIN, of))
    return f"intra/inter {mean_sd(plain, 2)} to {mean_sd(pulled, 2)}", verdict(
        all(2 * pulled[s] <= plain[s] for s in SEEDS)
    )


def small_eps(numbers: Numbers) -> tuple[str, Verdict]:
    """More robust than standard training at 0.1, half of the eps at which AT is compared, with either lambda."""
    plain, weak, strong = (numbers.robust(runs.label, "0.1") for runs in (PLAIN, WEAK, STRONG))
    parts = f"at 0.1: {mean_sd(plain)} without, {mean_sd(weak)} at lambda 0.1, {mean_sd(strong)} at 1"
    pgd = [numbers.percent(TABLE, runs, "attacked") for runs in (PLAIN, WEAK, STRONG)]
    by_pgd = f"PGD-20: {mean_sd(pgd[0])}, {mean_sd(pgd[1])}, {mean_sd(pgd[2])}"
    return f"{parts}; {by_pgd}", verdict(
        all(exceeds(one, plain) for one in (weak, strong)), all(exceeds(one, pgd[0]) for one in pgd[1:])
    )


def full_eps(numbers: Numbers) -> tuple[str, Verdict]:
    """At least half of AT's robust accuracy at 0.2."""
    at, weak, strong = (numbers.robust(label, "0.2") for label in ("pgd-at", WEAK.label, STRONG.label))
    ours = f"at 0.2: {mean_sd(weak)} at lambda 0.1, {mean_sd(strong)} at 1; AT {mean_sd(at)}"
    return ours, verdict(all(2 * max(weak[seed], strong[seed]) >= at[seed] for seed in SEEDS))


def on_top_of_at(numbers: Numbers) -> tuple[str, Verdict]:
    at, both = numbers.robust("pgd-at", "0.1"), numbers.robust("center-loss-at 0.1", "0.1")
    return f"at 0.1: AT {mean_sd(at)}, with centre loss {mean_sd(both)} (seed 0)", verdict(exceeds(both, at))


EFFECT = Effect(
    system="center-loss",
    source="Discriminative features, Agarwal et al. 2019, arXiv:1811.00621 (a reconstruction from the abstract)",
    runs=(PLAIN, WEAK, STRONG, ON_AT, AT),
    evaluations=(Evaluation(PLAIN), Evaluation(WEAK), Evaluation(STRONG), Evaluation(ON_AT), AT_AA),
    analyses=(FEATURES,),
    claims=(
        Claim("the classes' features become compact: lambda 0.1", "none: a picture", partial(compact, WEAK)),
        Claim("the classes' features become compact: lambda 1", "none: a picture", partial(compact, STRONG)),
        Claim("harder to attack, without adversarial training: at small eps", "no AutoAttack number", small_eps),
        Claim("harder to attack, without adversarial training: at full eps", "no AutoAttack number", full_eps),
        Claim("on top of AT (not in the paper)", "none", on_top_of_at),
    ),
)
