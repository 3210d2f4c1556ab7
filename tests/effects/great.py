"""Gradient adversarial training: robust to PGD on the cross-entropy, and to hardly anything else."""

from __future__ import annotations

from evidence import Analysis, Claim, Effect, Evaluation, Numbers, Runs, Verdict, verdict

CNN = {"arch": "small_cnn_16_32_100", "eps": "0.2"}
ADAM = ("model.activation=softplus", "optim.name=adam", "optim.lr=0.002")
GREAT = Runs("great", "great", **CNN)
PLAIN = Runs("standard softplus", "standard", ADAM, **CNN)
ATTACKS = ("fgsm", "pgd", "autoattack")
FEATURES = Analysis("great", "features", (PLAIN, GREAT), ("-n", "500"))
GRID = "0,0.1,0.2"


def defence(numbers: Numbers) -> tuple[str, Verdict]:
    """A gain of 10 points or more at 0.2, by attack."""
    told, gain = [], {}
    for attack in ATTACKS:
        keys = [label if attack == "autoattack" else f"{label} {attack}" for label in ("standard softplus", "great")]
        plain, great = (numbers.robust(key, "0.2")[0] for key in keys)
        told.append(f"{attack} {plain:.1f} to {great:.1f}")
        gain[attack] = great - plain
    return f"standard to GREAT at 0.2: {', '.join(told)}", verdict(gain["autoattack"] >= 10, gain["pgd"] >= 10)


def probe(numbers: Numbers) -> tuple[str, Verdict]:
    plain, great = (100 * numbers.column("great/features", runs, "gradient_probe")[0] for runs in (PLAIN, GREAT))
    return f"a linear probe tells the class from the gradient: {plain:.1f} to {great:.1f} %", verdict(
        great < plain - 20
    )


def caught(numbers: Numbers) -> tuple[str, Verdict]:
    doubts = sorted({*numbers.doubts("great"), *numbers.doubts("great pgd")})
    honest = numbers.doubts("standard softplus")
    ours = f"suspect or broken: {', '.join(doubts) or 'nothing'}; standard: {', '.join(honest) or 'nothing'}"
    return ours, verdict(bool(doubts) and not honest)


EFFECT = Effect(
    system="great",
    source="Gradient adversarial training, Sinha et al. 2018, arXiv:1806.08028 (a reconstruction)",
    runs=(GREAT, PLAIN),
    evaluations=tuple(Evaluation(runs, GRID, attack) for runs in (PLAIN, GREAT) for attack in ATTACKS),
    analyses=(FEATURES,),
    claims=(
        Claim("robust without adversarial examples", "robust to FGSM and iterations of it", defence),
        Claim("gradients do not tell the class", "none", probe),
        Claim("the flags catch it (ours)", "none", caught),
    ),
)
