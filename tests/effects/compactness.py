"""Local and global compactness (ADR) on AT: its gain, its parts and its mechanism."""

from __future__ import annotations

from controls import AT, AT_AA, AT_LONG
from evidence import Analysis, Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, exceeds, mean_sd, verdict

FULL = Runs("compactness", "compactness")
OFF = tuple(f"method.{weight}=0" for weight in ("lc", "ls", "gc", "gs", "conf"))
NONE = Runs("compactness off", "compactness", OFF)
LC = Runs("compactness lc long", "compactness", OFF[1:], epochs=100)  # the norm needs many epochs to grow without bound
FEATURES = Analysis("compactness", "features", (AT, FULL), ("-n", "500"))
RUNAWAY = Analysis("compactness-lc", "features", (AT_LONG, LC), ("-n", "500"))
TABLE = "compactness/features"


def gain(numbers: Numbers) -> tuple[str, Verdict]:
    at, full = numbers.robust("pgd-at", "0.1"), numbers.robust("compactness", "0.1")
    pgd = [numbers.percent(TABLE, runs, "attacked") for runs in (FULL, AT)]
    ours = (
        f"at 0.1: AT {mean_sd(at)}, with all terms {mean_sd(full)} (PGD-20 {mean_sd(pgd[1])} and {mean_sd(pgd[0])}); "
        f"clean {mean_sd(numbers.clean('pgd-at'))} and {mean_sd(numbers.clean('compactness'))}"
    )
    return ours, verdict(exceeds(full, at), exceeds(*pgd))


def off_is_at(numbers: Numbers) -> tuple[str, Verdict]:
    same = numbers.trained["compactness off"][0]["model"] == numbers.trained["pgd-at"][0]["model"]
    return f"weights of the nets {'equal' if same else 'differ'}, seed 0", verdict(same)


def mechanism(numbers: Numbers) -> tuple[str, Verdict]:
    """The divergence of features falls, also relative to the distance of classes."""
    found = {}
    for name in ("divergence", "to_inter", "entropy"):
        found[name] = [numbers.column(TABLE, runs, name) for runs in (AT, FULL)]
    ours = ", ".join(f"{name} {mean_sd(at, 2)} to {mean_sd(full, 2)}" for name, (at, full) in found.items())
    falls = all(
        full[seed] < at[seed] for name in ("divergence", "to_inter") for at, full in [found[name]] for seed in at
    )
    return f"AT to all terms: {ours}", verdict(falls)


def runaway(numbers: Numbers) -> tuple[str, Verdict]:
    """LC alone, on a net without BatchNorm: the feature norm grows without bound, and the alarm shows it."""
    norm = [numbers.column("compactness-lc/features", runs, "norm")[0] for runs in (AT_LONG, LC)]
    at, lc = (numbers.robust(runs.label, "0.1")[0] for runs in (AT_LONG, LC))
    alarm = [numbers.trained[label][0]["largest"]["norm_alarm"] for label in (FULL.label, LC.label)]
    ours = (
        f"feature norm {norm[0]:.1f} with AT, {norm[1]:.1f} with LC alone; share of batches with the alarm, largest of "
        f"an epoch: {alarm[1]:.0%} for LC alone, {alarm[0]:.0%} with all terms; at 0.1 {at:.1f} with AT, {lc:.1f}"
    )
    return ours, verdict(alarm[1] > 0.5 and norm[1] > 2 * norm[0])


EFFECT = Effect(
    system="compactness",
    source="Local and global compactness (ADR), Bui et al. 2020, arXiv:2007.05123",
    runs=(AT, FULL, NONE, AT_LONG, LC),
    evaluations=(AT_AA, Evaluation(FULL), Evaluation(AT_LONG), Evaluation(LC)),
    analyses=(FEATURES, RUNAWAY),
    claims=(
        Claim("more robust than its AT base", "CIFAR-10, AutoAttack: base 44.1 with a clean term, 48.8 without", gain),
        Claim("all weights 0: AT to the bit (a property)", "by its form", off_is_at),
        Claim("features of x and x' come together", "lower divergence", mechanism),
        Claim("without BatchNorm LC alone lets the feature norm run away (ours)", "none", runaway),
    ),
)
