"""ACT beside AT and TRADES on digits, with one rate for all and the best epoch, until `act.py` is measured."""

from __future__ import annotations

from functools import partial

from controls import AT, AT_LONG, LONG, SEEDS, TRADES, TRADES_LONG
from evidence import Analysis, Claim, Effect, Evaluation, Runs
from findings import BySeed, Numbers, Verdict, exceeds, mean_sd, verdict

SHORT = (Runs("act", "act", seeds=SEEDS), AT, TRADES)
ALL = (Runs("act long", "act", **LONG), AT_LONG, TRADES_LONG)
PGD = Analysis("act-pgd", "features", SHORT, ("-n", "500"))
PGD_LONG = Analysis("act-long-pgd", "features", ALL, ("-n", "500"))


def robust(of: tuple[Runs, ...], analysis: Analysis, numbers: Numbers) -> tuple[str, Verdict]:
    """More robust than both controls."""
    attacked = [numbers.robust(runs.label, "0.1") for runs in of]
    pgd = [numbers.percent(f"{analysis.key}/features", runs, "attacked") for runs in of]
    ours = "; ".join(
        f"{runs.method} {mean_sd(attacked[i])} at 0.1 (PGD-20 {mean_sd(pgd[i])})" for i, runs in enumerate(of)
    )

    def gains(by: list[BySeed]) -> bool:
        return all(exceeds(by[0], other) for other in by[1:])

    return ours, verdict(gains(attacked), gains(pgd))


def clean(of: tuple[Runs, ...], numbers: Numbers) -> tuple[str, Verdict]:
    """Neither control is more accurate on clean images."""
    found = [numbers.clean(runs.label) for runs in of]
    ours = ", ".join(f"{runs.method} {mean_sd(found[i])}" for i, runs in enumerate(of))
    return ours, verdict(not any(exceeds(other, found[0]) for other in found[1:]))


PGD_20 = "CIFAR-10, PGD-20: 55.8; AT 51.3; TRADES 52.8; no AutoAttack number"
CLEAN = "CIFAR-10: 84.3; AT 82.8; TRADES 82.4"
EFFECT = Effect(
    system="act-digits",
    source="Adversarial Concurrent Training, Arani et al. 2020, arXiv:2008.07015",
    runs=(*SHORT, *ALL),
    evaluations=tuple(Evaluation(runs) for runs in (*SHORT, *ALL)),
    analyses=(PGD, PGD_LONG),
    claims=(
        Claim("more robust than AT and TRADES: 20 epochs", PGD_20, partial(robust, SHORT, PGD)),
        Claim("at no less clean accuracy: 20 epochs", CLEAN, partial(clean, SHORT)),
        Claim("more robust than AT and TRADES: 100 epochs", PGD_20, partial(robust, ALL, PGD_LONG)),
        Claim("at no less clean accuracy: 100 epochs", CLEAN, partial(clean, ALL)),
    ),
)
