"""Adversarial Concurrent Training beside AT and TRADES, three seeds each."""

from __future__ import annotations

from controls import AT, AT_AA, SEEDS, TRADES, TRADES_AA
from evidence import Analysis, BySeed, Claim, Effect, Evaluation, Numbers, Runs, Verdict, more, said, verdict

ACT = Runs("act", "act", seeds=SEEDS)
PGD = Analysis("act-pgd", "features", (ACT, AT, TRADES), ("-n", "500"))


def trade_off(numbers: Numbers) -> tuple[str, Verdict]:
    """More robust than both controls at no less clean accuracy."""
    names = {"act": ACT, "pgd-at": AT, "trades": TRADES}
    clean = {name: numbers.clean(name) for name in names}
    attacked = {name: numbers.robust(name, "0.1") for name in names}
    pgd = {name: percent(numbers.column("act-pgd/features", runs, "attacked")) for name, runs in names.items()}
    ours = "; ".join(
        f"{name}: {said(clean[name])} clean, {said(attacked[name])} at 0.1 (PGD-20 {said(pgd[name])})" for name in names
    )
    no_dearer = not any(more(clean[other], clean["act"]) for other in ("pgd-at", "trades"))

    def gains(of: dict[str, BySeed]) -> bool:
        return no_dearer and all(more(of["act"], of[other]) for other in ("pgd-at", "trades"))

    return ours, verdict(gains(attacked), gains(pgd))


def percent(shares: BySeed) -> BySeed:
    return {seed: 100 * share for seed, share in shares.items()}


EFFECT = Effect(
    system="act",
    source="Adversarial Concurrent Training, Arani et al. 2020, arXiv:2008.07015",
    runs=(ACT, AT, TRADES),
    evaluations=(Evaluation(ACT), AT_AA, TRADES_AA),
    analyses=(PGD,),
    claims=(
        Claim(
            "more robust than AT and TRADES at no less clean accuracy",
            "CIFAR-10, clean / PGD-20: 84.3 / 55.8; AT 82.8 / 51.3; TRADES 82.4 / 52.8; no AutoAttack number",
            trade_off,
        ),
    ),
)
