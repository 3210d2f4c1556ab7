"""The optimiser chooses the norm: linear models, compared with the largest possible margins."""

from __future__ import annotations

from evidence import Analysis, Claim, Effect
from findings import Numbers, Verdict, verdict

from advbench.analyses.implicit_bias import OWN

MARGINS = Analysis("implicit-bias", "implicit-bias")


def margins(numbers: Numbers) -> tuple[str, Verdict]:
    """Each reaches 0.99 of the largest margin in its own norm (0.85 for the convolutional net) on every data set.

    It also beats, on average, all optimisers of other norms there.
    """
    worst = {str(row["optimiser"]): row for row in numbers.tables["implicit-bias/worst"]}
    mean = {str(row["optimiser"]): row for row in numbers.tables["implicit-bias/margins"]}
    parts, good = [], True
    for name, row in worst.items():
        norm = OWN.get(name) or name.split("-", 1)[1]
        rivals = [float(mean[other][norm]) for other in worst if (OWN.get(other) or other.split("-", 1)[1]) != norm]
        good &= float(row[norm]) >= (0.85 if "conv" in name else 0.99) and float(mean[name][norm]) > max(rivals)
        parts.append(f"{name} {float(row[norm]):.3f} of {norm}")
    return f"{', '.join(parts)}; every other optimiser below in that column", verdict(good)


EFFECT = Effect(
    system="implicit-bias",
    source="Adversarial robustness and optimisation bias, Faghri et al. 2021, arXiv:2102.08868",
    analyses=(MARGINS,),
    claims=(
        Claim(
            "each optimiser, and AT near the margin, is maximally robust in its own norm",
            "each at the optimum of its own norm",
            margins,
        ),
    ),
)
