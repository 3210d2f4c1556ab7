"""Optimiser, architecture and norm: margins of linear models, linear nets on images, and the Fourier attack."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from controls import FASHION, FASHION_AT, FASHION_STANDARD
from evidence import Analysis, Claim, Effect, Evaluation, Runs, Tuning
from findings import Finding, Numbers, Verdict, conclude, gain, mean_sd, verdict
from numpy.typing import NDArray

from advbench.analyses.implicit_bias import OWN

MARGINS = Analysis("margins", "implicit-bias")


def margins(numbers: Numbers) -> tuple[str, Verdict]:
    """Each reaches 0.99 of the largest margin in its own norm (0.85 for the convolutional net) on every data set.

    It also beats, on average, all optimisers of other norms there.
    """
    least = {str(row["optimiser"]): row for row in numbers.tables[f"{MARGINS.key}/worst"]}
    mean = {str(row["optimiser"]): row for row in numbers.tables[f"{MARGINS.key}/margins"]}
    parts, good = [], True
    for name, norm in OWN.items():
        reached = float(least[name][norm])
        rival = max(float(mean[other][norm]) for other in OWN if OWN[other] != norm)
        good &= reached >= (0.85 if "conv" in name else 0.99) and float(mean[name][norm]) > rival
        parts.append(f"{name} {reached:.3f} of {norm}")
    return ", ".join(parts), verdict(good)


# --- the Fourier attack on image nets ---------------------------------------------------------------------

FOURIER = "0.1"  # a perturbation of the same mean square as one of 0.1 in linf
AT_L2 = replace(FASHION_AT, label=f"{FASHION.name} pgd-at l2", eps="1", sets=("threat.norm=l2",))
ATTACKED = {
    name: Evaluation(runs, f"0,0.05,{FOURIER}", "apgd-t", n=1000, sets=("steps=20", "n_targets=3"), norm="fourier-linf")
    for name, runs in {"AT in linf": FASHION_AT, "AT in l2": AT_L2, "standard": FASHION_STANDARD}.items()
}


def fourier(numbers: Numbers) -> Finding:
    """AT in linf and AT in l2 each gain over standard training at 0.1 in fourier-linf."""
    control = ATTACKED["standard"].key
    gains = {name: numbers.gain(one.key, control, FOURIER) for name, one in ATTACKED.items() if name != "standard"}
    ours = ", ".join(f"{name} {mean_sd(numbers.robust(one.key, FOURIER))}" for name, one in ATTACKED.items())
    return conclude(f"APGD-T at {FOURIER}: {ours}", gains)


# --- linear nets by plain gradient descent ----------------------------------------------------------------

PLAIN = (
    "train_n=1000", "batch_size=50", "optim.momentum=0", "optim.weight_decay=0", "schedule.name=constant",
    "validation.held_out=2000", "validation.n=100", "validation.select=last",
)  # fmt: skip
NETS = {
    "linear": "model.bias=false",
    "conv_linear": "model.bias=false",
    "mlp": "model.activation=identity",
    "small_cnn_16_32_100": "model.activation=identity",
}
SIZES = {"l2": ("0.5", "1", "1.5"), "fourier-linf": ("0.02", "0.04", "0.06")}  # l2 / 25: a flat spectrum's ratio


def descended(arch: str, *sets: str) -> Runs:
    """A linear net of this form, trained on MNIST by gradient descent; the rate is chosen by clean accuracy."""
    recipe: dict[str, Any] = {"dataset": "mnist", "arch": arch, "epochs": 200, "common": PLAIN}
    tuning = Tuning(
        f"descent-{arch}",
        Runs(f"descent {arch} tuning", "standard", sets, **recipe),
        (("optim.lr", ("0.002", "0.005", "0.02", "0.1", "0.5")),),
        "clean",
    )
    return tuning.runs(f"descent {arch}", FASHION_AT.seeds)


LINEAR_NETS = {arch: descended(arch, sets) for arch, sets in NETS.items()}
DESCENDED = {
    (arch, norm): Evaluation(runs, f"0,{','.join(sizes)}", "apgd-ce", n=1000, sets=("steps=20",), norm=norm)
    for arch, runs in LINEAR_NETS.items()
    for norm, sizes in SIZES.items()
}


def architecture(numbers: Numbers) -> Finding:
    """conv_linear gains over linear in fourier-linf, and more than in l2, each as the mean over three sizes."""

    def mean_standing(arch: str, norm: str) -> NDArray[Any]:
        return np.mean([numbers.standing(DESCENDED[arch, norm].key, eps) for eps in SIZES[norm]], axis=0)

    conv, plain = ({norm: mean_standing(arch, norm) for norm in SIZES} for arch in ("conv_linear", "linear"))
    doubt = numbers.doubt(DESCENDED["conv_linear", "fourier-linf"].key)
    gained = gain(conv["fourier-linf"], plain["fourier-linf"], doubt)
    more = gain(*(of["fourier-linf"] - of["l2"] for of in (conv, plain)), doubt)
    ours = "; ".join(
        f"{arch}: " + ", ".join(f"{norm} {100 * mean_standing(arch, norm).mean():.1f}" for norm in SIZES)
        for arch in NETS
    )
    return conclude(f"APGD-CE, {ours}", {"conv_linear over linear": gained, "more than in l2": more})


EFFECT = Effect(
    system="implicit-bias",
    source="Adversarial robustness and optimisation bias, Faghri et al. 2021, arXiv:2102.08868",
    about="The image nets of the Fourier attack have the settings that were chosen for AT at 0.1 in linf.",
    runs=(*(one.runs for one in ATTACKED.values()), *LINEAR_NETS.values()),
    evaluations=(*ATTACKED.values(), *DESCENDED.values()),
    analyses=(MARGINS,),
    claims=(
        Claim(
            "each optimiser, and AT near the margin, is maximally robust in its own norm",
            "each at the optimum of its own norm",
            margins,
            analyses=(MARGINS,),
            data="3, 12 or 25 points of 100 numbers, linear models, as advbench analyze implicit-bias draws them",
        ),
        Claim(
            "AT in linf and l2 also withstands the Fourier attack, on an image net",
            "none",
            fourier,
            tuple(one.runs for one in ATTACKED.values()),
            untuned=True,
        ),
        Claim(
            "a convolutional linear net is robust in fourier-linf, by gradient descent on images",
            "none",
            architecture,
            tuple(LINEAR_NETS.values()),
            own=(LINEAR_NETS["conv_linear"],),
        ),
    ),
)
