"""Gradient adversarial training: masked gradients, student nets, and two tasks that share features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from evidence import Analysis, Claim, Effect, Evaluation, Runs, Tuning
from findings import PARTS, SECOND_LOOK, Finding, Numbers, absent, conclude, differences, mean_sd, verdict

# --- the defence ------------------------------------------------------------------------------------------

CNN: dict[str, Any] = {"arch": "small_cnn_16_32_100", "eps": "0.2", "epochs": 20, "seeds": (2, 3, 4)}
NORMAL = "model.normalize=digits"  # with seeds 0 and 1 the settings were chosen by hand so that gradients are masked
ADAM = ("model.activation=softplus", "optim.name=adam", "optim.lr=0.01", "optim.weight_decay=0")
PLAIN = Runs("great control standard", "standard", (NORMAL, *ADAM, "validation.select=last"), **CNN)
MASKING = Runs("great masking", "great", (NORMAL, "method.beta=0.02"), **CNN)
PER_SAMPLE = ("method.relative=true", "method.per=sample", "method.scale=1", "method.greace=bounded", "method.beta=1")
DIRECTIONS = Runs("great directions", "great", (NORMAL, *PER_SAMPLE), **CNN)
DEFENCE = (PLAIN, MASKING, DIRECTIONS)
ATTACKS = ("fgsm", "pgd", "autoattack")
ATTACKED = {(runs.label, attack): Evaluation(runs, attack=attack) for runs in DEFENCE for attack in ATTACKS}
FEATURES = Analysis("great-masking", "features", (PLAIN, MASKING), ("-n", "500"))


def defence(numbers: Numbers) -> Finding:
    """At 0.2 at least 10 points with each seed: under AutoAttack, or only under PGD."""
    keys = {a: [ATTACKED[one.label, a].key for one in (MASKING, PLAIN)] for a in ATTACKS}
    gains = {a: numbers.gain(*pair, "0.2") for a, pair in keys.items()}
    held = {a: min(gain.by_seed) >= 10 for a, gain in gains.items()}
    robust = {a: [mean_sd(numbers.robust(key, "0.2")) for key in pair] for a, pair in keys.items()}
    ours = ", ".join(f"{a} {control} to {great}" for a, (great, control) in robust.items())
    difference = PARTS.join(f"{a}: {gain.brief}" for a, gain in gains.items())
    return Finding(f"standard to GREAT at 0.2: {ours}", verdict(held["autoattack"], held["pgd"]), difference)


def caught(numbers: Numbers) -> Finding:
    """With each seed GREAT's record under FGSM or PGD is suspect or broken, and none of standard training is."""

    def doubted(runs: Runs, seed: int) -> bool:
        records = [numbers.records[ATTACKED[runs.label, attack].key][seed][0] for attack in ("fgsm", "pgd")]
        return any(flag.severity != "note" for record in records for flag in record.flags)

    found = {runs.label: [seed for seed in runs.seeds if doubted(runs, seed)] for runs in (MASKING, PLAIN)}
    ours = "; ".join(f"{label}: {len(seeds)} of {len(MASKING.seeds)} seeds" for label, seeds in found.items())
    caught_all = len(found[MASKING.label]) == len(MASKING.seeds)
    return Finding(f"suspect or broken: {ours}", verdict(caught_all and not found[PLAIN.label]))


def probe(numbers: Numbers) -> Finding:
    """The probe's accuracy falls by at least 20 points with each seed."""
    great, plain = (numbers.percent("great-masking/features", runs, "gradient_probe") for runs in (MASKING, PLAIN))
    found = differences(great, plain)
    ours = f"a linear probe tells the class from the gradient: {mean_sd(plain)} to {mean_sd(great)} %"
    return Finding(ours, verdict(max(found) <= -20), f"seeds {' '.join(f'{value:+.1f}' for value in found)}")


def no_masking(numbers: Numbers) -> Finding:
    """Under PGD at 0.2 no gain over standard training, and an interval below 2 points."""
    keys = [ATTACKED[runs.label, "pgd"].key for runs in (DIRECTIONS, PLAIN)]
    gain = numbers.gain(*keys, "0.2")
    directions, plain = (mean_sd(numbers.robust(key, "0.2")) for key in keys)
    return conclude(f"PGD at 0.2: {plain} to {directions}", {"": gain}, partial(absent, reach=2.0))


# --- distillation and two tasks ---------------------------------------------------------------------------

SEEDS = (1, 2, 3)  # others chose the settings
RATES = ("optim.lr", ("0.001", "0.003", "0.01", "0.03", "0.1"))
DECAY = ("optim.weight_decay", ("0", "0.0005", "0.005"))
TEACHER = Runs("great teacher", "standard", ("model.activation=softplus",), arch="small_cnn")
TAUGHT = ("method.form=distillation", f"method.teacher={TEACHER.folder(0)}")


def tuned(
    name: str, regime: dict[str, Any], second: tuple[str, tuple[str, ...]], *sets: str, seeds: tuple[int, ...] = SEEDS
) -> Runs:
    """The trainings of GREAT with the rate and the `second` field that held-out digits chose by clean accuracy."""
    base = Runs(f"{name} tuning", "great", sets, **regime)
    return Tuning(name.replace(" ", "-"), base, (RATES, second), "clean").runs(name, seeds)


def few(n: int, epochs: int, **more: Any) -> dict[str, Any]:
    """`n` training digits; all others are held out."""
    held_out = (f"validation.held_out={1297 - n}", "validation.n=100", "validation.select=last")
    return {"common": (f"train_n={n}", *held_out), "epochs": epochs, **more}


FEW = few(200, 100, after=(TEACHER,))
STUDENTS = {
    "GREAT": tuned("great student", FEW, ("method.alpha", ("0.3", "1", "3")), *TAUGHT),
    "soft targets": tuned("great soft", FEW, ("method.soft", ("0.3", "1", "3")), *TAUGHT, "method.alpha=0"),
    "labels alone": tuned("great labels", FEW, DECAY, *TAUGHT, "method.alpha=0"),
}
PAIR = few(300, 60, arch="small_cnn_16_32_100", seeds=(0, 4))  # a rate that one seed chose diverged with others
BOTH, TURNS = "method.form=multi-task", ("method.turns", ("0.1", "0.3", "1"))
MORE = (*SEEDS, 5, 6, 7, 8, 9)
TASKS = {
    "GREAT": tuned("great two tasks", PAIR, TURNS, BOTH, seeds=MORE),  # no alpha: Adam takes it away
    "plain sum": tuned("great sum", PAIR, TURNS, BOTH, "method.alpha=0", seeds=MORE),
    "classes alone": tuned("great alone", PAIR, DECAY, BOTH, "method.alpha=0", "method.turns=0", seeds=MORE),
}
CLEAN = {runs.label: Evaluation(runs, "0,0.1", "fgsm") for group in (STUDENTS, TASKS) for runs in group.values()}


def more_accurate(group: dict[str, Runs], numbers: Numbers) -> Finding:
    """GREAT gains clean accuracy over each of the controls."""
    keys = {name: CLEAN[runs.label].key for name, runs in group.items()}
    great = keys["GREAT"]
    gains = {f"over {name}": numbers.gain(great, key) for name, key in keys.items() if key != great}
    ours = ", ".join(f"{name} {mean_sd(numbers.clean(key))}" for name, key in keys.items())
    return conclude(f"clean: {ours}", gains)


def distils(numbers: Numbers) -> Finding:
    """More accurate students than by soft targets, and than by labels alone."""
    return more_accurate(STUDENTS, numbers)


def aligns(numbers: Numbers) -> Finding:
    """More accurate on the classes than by the plain sum of the losses, and than without the second task."""
    return more_accurate(TASKS, replace(numbers, level=SECOND_LOOK))


PAIRED = (PLAIN, MASKING)
EFFECT = Effect(
    system="great",
    source="Gradient adversarial training, Sinha et al. 2018, arXiv:1806.08028 (a reconstruction)",
    about="Of the defence nothing was tuned for the best accuracy: with seeds 0 and 1 its settings were chosen by hand "
    "so that gradients are masked, to see which attacks are deceived. A gradient that has vanished in float32 "
    "counts as 0 for the probe: a fall of the probe means that there is no gradient left, rather than one that "
    "hides the class. Of the multi-task form the accuracy on the classes alone is measured: quarter turns have no "
    "evaluation. Its seeds 5 to 9 came after three had left it open, -2.6 (-7.6 to +2.4): for that second look "
    "its intervals are of 97.5 %.",
    runs=(*DEFENCE, TEACHER, *STUDENTS.values(), *TASKS.values()),
    evaluations=(*(e for e in ATTACKED.values() if (e.runs, e.attack) != (DIRECTIONS, "autoattack")), *CLEAN.values()),
    analyses=(FEATURES,),
    claims=(
        Claim("robust without adversarial examples", "ResNet-18 under FGSM and iterations of it", defence, PAIRED),
        Claim("the gradient tells the class less often", "none", probe, PAIRED, (FEATURES,)),
        Claim("the flags catch it (ours)", "none", caught, PAIRED),
        Claim(
            "gradients relative to the sample gain nothing under PGD (ours)",
            "none",
            no_masking,
            (PLAIN, DIRECTIONS),
            excuses="shown",
            untuned=True,
        ),
        Claim("better students than by soft targets", "none", distils, (*STUDENTS.values(),), own=(STUDENTS["GREAT"],)),
        Claim(
            "two tasks are learned better than by their sum", "none", aligns, (*TASKS.values(),), own=(TASKS["GREAT"],)
        ),
    ),
)
