"""Feature prioritisation with no part, attention, penalty, or both, on a net with feature maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from act import MUCH
from controls import FASHION, FASHION_AT
from evidence import Analysis, Claim, Effect, Evaluation, Runs, rated
from findings import BySeed, Finding, Numbers, Verdict, by_seeds, conclude, mean_sd, verdict

NET = FASHION_AT.arch
LEARNED = 30  # percent of held-out images that withstand PGD, from which a net tells something
METHOD = "feature-prioritization"
AT, NONE = (
    Runs("pgd-at cnn", "pgd-at", arch=NET),
    Runs(f"{METHOD} none", METHOD, ("method.attention=false", "method.lam=0"), arch=NET),
)
TUNING = FASHION.tuning(METHOD, "method.lam", ("0.01", "0.1", "1"), "0.02", "0.05", decays=MUCH)
BOTH, ATTENTION, PENALTY = (
    TUNING.runs(f"{FASHION.name} {METHOD} {label}".strip(), FASHION_AT.seeds, *sets)
    for label, sets in {"": (), "attention": ("method.lam=0",), "penalty": ("method.attention=false",)}.items()
)
PARTS = {"AT": FASHION_AT, "attention": ATTENTION, "penalty": PENALTY, "both": BOTH}
RATED = {name: rated(PARTS[name]) for name in ("AT", "both")}
AT_LINE = tuple(
    rated(replace(one.runs, seeds=FASHION_AT.seeds))
    for one in (*FASHION.evaluations["pgd-at"][1:], *FASHION.others["pgd-at"])
)
AT_RUNS = (FASHION_AT, *(one.runs for one in AT_LINE))
STRONGEST = {name: Evaluation(PARTS[name], f"0,{FASHION.eps}", n=1000) for name in RATED}
FEATURES = Analysis(f"{FASHION.name}-features", "features", tuple(PARTS.values()), ("-n", "2000"))

SHORT: dict[str, Any] = {"dataset": "mnist", "arch": NET, "eps": "0.3", "epochs": 5, "seeds": FASHION_AT.seeds}
SHORT |= {"common": ("train_n=10000", "batch_size=32", "validation.held_out=2000", "validation.select=last")}
MNIST_AT = Runs("mnist-10000 pgd-at", "pgd-at", **SHORT)
MNIST_BOTH = Runs(f"mnist-10000 {METHOD}", METHOD, **SHORT)
MNIST_ATTENTION = replace(MNIST_BOTH, label=f"{MNIST_BOTH.label} attention", sets=("method.lam=0",))
SALIENCE = {
    "fashion-mnist": {name: PARTS[name] for name in ("AT", "attention", "both")},
    "mnist": {"AT": MNIST_AT, "attention": MNIST_ATTENTION, "both": MNIST_BOTH},
}
SALIENT = {
    dataset: Analysis(f"salience-{dataset}", "salience", tuple(parts.values()), ("-n", "2000"))
    for dataset, parts in SALIENCE.items()
}


def better(numbers: Numbers) -> Finding:
    """With both parts, a gain over AT in clean and in robust accuracy, in this over AT's line at equal clean accuracy,
    too, and under AutoAttack on 1,000 images.
    """
    gains = {
        name: numbers.gain(by["both"].key, by["AT"].key, eps)
        for name, by, eps in (
            ("clean", RATED, "0"),
            ("robust", RATED, FASHION.eps),
            ("under AutoAttack", STRONGEST, FASHION.eps),
        )
    }
    rivals = [one.key for one in (RATED["AT"], *AT_LINE)]
    gains["robust over AT's line"] = numbers.at_equal_clean(RATED["both"].key, rivals, FASHION.eps)
    ours = "; ".join(
        f"{name}: {mean_sd(numbers.clean(one.key))} / {mean_sd(numbers.robust(one.key, FASHION.eps))}"
        f" ({numbers.beside(one.key, STRONGEST[name].key, FASHION.eps)})"
        for name, one in RATED.items()
    )
    return conclude(f"clean / APGD-T: {ours}", gains)


def attention_adds(numbers: Numbers) -> Finding:
    """Under PGD-20 on 2,000 images, both parts gain over the penalty alone."""
    robust, clean = (
        {name: numbers.percent(f"{FEATURES.key}/features", runs, column) for name, runs in PARTS.items()}
        for column in ("attacked", "clean")
    )
    ours = "; ".join(f"{name} {mean_sd(clean[name])} / {mean_sd(found)}" for name, found in robust.items())
    return conclude(f"clean / PGD-20: {ours}", {"": by_seeds(robust["both"], robust["penalty"], 2.0)})


def alike(numbers: Numbers) -> Finding:
    """The penalty makes the divergence of the features less, alone and beside attention."""
    change = {name: numbers.column(f"{FEATURES.key}/features", runs, "divergence") for name, runs in PARTS.items()}
    falls = {
        f"{base} - {name}": by_seeds(change[base], change[name], digits=3)
        for name, base in (("penalty", "AT"), ("both", "attention"))
    }
    ours = ", ".join(f"{name} {mean_sd(found, 3)}" for name, found in change.items())
    return conclude(f"divergence of features: {ours}", falls)


def salient(dataset: str, numbers: Numbers) -> Finding:
    """With both parts, the gradient's share on the strokes is 2 points above AT's, and so is the attention's above that
    of equal weights; on nets that have learned.
    """
    table = f"{SALIENT[dataset].key}/salience"

    def share(part: str, name: str) -> BySeed:
        return numbers.percent(table, SALIENCE[dataset][part], name)

    gradients = {part: share(part, "gradient") for part in SALIENCE[dataset]}
    attention, equal = share("both", "attention"), share("both", "ink")
    ours = ", ".join(f"{part} {mean_sd(found)}" for part, found in gradients.items())
    ours = f"of the gradient: {ours}; of the attention: {mean_sd(attention)}, of equal weights: {mean_sd(equal)}"
    gains = {
        "gradient": by_seeds(gradients["both"], gradients["AT"], 2.0),
        "attention": by_seeds(attention, equal, 2.0),
    }
    trained = [of for runs in SALIENCE[dataset].values() for of in numbers.trained[runs.label].values()]
    least = 100 * min(of["held_out_last"]["robust"] for of in trained)
    found = conclude(f"{ours}; at least {least:.0f} of held-out images withstand PGD", gains)
    return found if least >= LEARNED else found._replace(verdict="not shown")


def off_is_at(numbers: Numbers) -> tuple[str, Verdict]:
    same = numbers.trained[NONE.label][0]["model"] == numbers.trained[AT.label][0]["model"]
    return f"weights of the nets {'equal' if same else 'differ'}", verdict(same)


def on(dataset: str) -> tuple[Callable[[Numbers], Finding], tuple[Runs, ...], tuple[Analysis, ...]]:
    """The judge, the runs and the analysis of the claim about salience."""
    return partial(salient, dataset), tuple(SALIENCE[dataset].values()), (SALIENT[dataset],)


EFFECT = Effect(
    system="feature-prioritization",
    source="Feature prioritisation, Liu and JaJa 2019, arXiv:1810.02424 (a reconstruction from the abstract)",
    about="AT's settings were chosen by robust accuracy alone. Cleaner nets of AT are those of its line, over the rate "
    "and over weight decay, as in act. Attention or penalty alone have the settings that were chosen for both; nothing "
    "was chosen on MNIST.",
    runs=(*PARTS.values(), *AT_RUNS[1:], MNIST_AT, MNIST_ATTENTION, MNIST_BOTH, AT, NONE),
    evaluations=(*RATED.values(), *AT_LINE, *STRONGEST.values()),
    analyses=(FEATURES, *SALIENT.values()),
    claims=(
        Claim("better clean and robust accuracy than AT", "no AutoAttack number", better, (*AT_RUNS, BOTH)),
        Claim("attention adds to the penalty", "none", attention_adds, tuple(PARTS.values()), (FEATURES,), own=(BOTH,)),
        Claim("features of x and x' become alike", "none", alike, tuple(PARTS.values()), (FEATURES,), untuned=True),
        *(
            Claim(f"gradients and attention fall on what is salient: {dataset}", "none", *on(dataset), untuned=True)
            for dataset in SALIENCE
        ),
        Claim("no attention, lambda 0: AT to the bit (a property)", "by its form", off_is_at, (AT, NONE)),
    ),
)
