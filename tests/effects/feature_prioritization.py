"""Feature prioritisation with no part, attention, penalty, or both, on a net with feature maps."""

from __future__ import annotations

from evidence import Analysis, Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, mean_sd, verdict

NET = "small_cnn_16_32_100"


def of(label: str, attention: bool, lam: str) -> Runs:
    sets = (f"method.attention={str(attention).lower()}", f"method.lam={lam}")
    return Runs(f"feature-prioritization {label}", "feature-prioritization", sets, arch=NET)


AT = Runs("pgd-at cnn", "pgd-at", arch=NET)
NONE, ATTENTION, PENALTY, BOTH = (
    of("none", False, "0"),
    of("attention", True, "0"),
    of("penalty", False, "0.01"),
    of("both", True, "0.01"),
)
MEASURED = (AT, ATTENTION, PENALTY, BOTH)
FEATURES = Analysis("feature-prioritization", "features", (AT, NONE, ATTENTION, PENALTY, BOTH), ("-n", "500"))
TABLE = "feature-prioritization/features"


def better(numbers: Numbers) -> tuple[str, Verdict]:
    """With both parts: at least 2 points more robust than AT, and less than 2 points less accurate on clean images."""
    clean = {runs.label: numbers.clean(runs.label) for runs in MEASURED}
    robust = {runs.label: numbers.robust(runs.label, "0.1") for runs in MEASURED}
    ours = "; ".join(f"{name}: {mean_sd(clean[name])} clean, {mean_sd(robust[name])} at 0.1" for name in clean)
    pgd = {runs.label: 100 * numbers.column(TABLE, runs, "attacked")[0] for runs in MEASURED}
    no_worse = clean[BOTH.label][0] > clean[AT.label][0] - 2
    gain = robust[BOTH.label][0] - robust[AT.label][0]
    return ours, verdict(no_worse and gain >= 2, no_worse and pgd[BOTH.label] - pgd[AT.label] >= 2)


def alike(numbers: Numbers) -> tuple[str, Verdict]:
    change = {r.label: numbers.column(TABLE, r, "divergence")[0] for r in (AT, ATTENTION, PENALTY, BOTH)}
    ours = "divergence of features: " + ", ".join(f"{name} {value:.3f}" for name, value in change.items())
    return ours, verdict(change[PENALTY.label] < change[AT.label] and change[BOTH.label] < change[ATTENTION.label])


def off_is_at(numbers: Numbers) -> tuple[str, Verdict]:
    same = numbers.trained[NONE.label][0]["model"] == numbers.trained[AT.label][0]["model"]
    return f"weights of the nets {'equal' if same else 'differ'}", verdict(same)


EFFECT = Effect(
    system="feature-prioritization",
    source="Feature prioritisation, Liu and JaJa 2019, arXiv:1810.02424 (a reconstruction from the abstract)",
    runs=(AT, NONE, ATTENTION, PENALTY, BOTH),
    evaluations=tuple(map(Evaluation, MEASURED)),
    analyses=(FEATURES,),
    claims=(
        Claim("better clean and robust accuracy than AT", "no AutoAttack number", better),
        Claim("features of x and x' become alike", "none", alike),
        Claim("no attention, lambda 0: AT to the bit (a property)", "by its form", off_is_at),
    ),
)
