"""Single-step training and weight perturbation beside AT: controls in every table, not among the ten systems."""

from __future__ import annotations

from evidence import Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, mean_sd, verdict

LARGE = {"eps": "0.3", "epochs": 60}
FAST, NOISY, FREE = (
    Runs(f"{name} at 0.3", name, **LARGE) for name in ("fast-at", "n-fgsm", "free-at")
)  # fmt: skip
AT = Runs("pgd-at", "pgd-at")
AWP = Runs("pgd-at awp", "pgd-at", ("awp.gamma=0.01",))


def collapse(numbers: Numbers) -> tuple[str, Verdict]:
    results = {}
    for runs in (FAST, NOISY, FREE):
        trained = numbers.trained[runs.label][0]
        flags = [flag["name"] for flag in trained["flags"]]
        results[runs.label] = (trained["held_out_last"], "catastrophic-overfitting" in flags)
    ours = "; ".join(
        f"{label}: held out PGD {100 * held['robust']:.1f}, FGSM {100 * held['fgsm']:.1f}{', flagged' * flagged}"
        for label, (held, flagged) in results.items()
    )
    return ours, verdict(results[FAST.label][1] and not results[NOISY.label][1])


def awp(numbers: Numbers) -> tuple[str, Verdict]:
    at, perturbed = numbers.robust("pgd-at", "0.1"), numbers.robust("pgd-at awp", "0.1")
    return f"at 0.1: AT {mean_sd(at)}, with AWP {mean_sd(perturbed)} (seed 0)", verdict(perturbed[0] - at[0] >= 2)


EFFECT = Effect(
    system="single-step",
    source="FGSM-RS 2001.03994, N-FGSM 2202.01181, free AT 1904.12843; AWP 2004.05884",
    runs=(FAST, NOISY, FREE, AT, AWP),
    evaluations=(Evaluation(AT), Evaluation(AWP)),
    claims=(
        Claim("FGSM-RS overfits catastrophically, N-FGSM does not", "FGSM-RS: a seed of 3 collapses", collapse),
        Claim("weight perturbation adds to AT", "CIFAR-10, AutoAttack: 48.7 to 49.9", awp),
    ),
)
