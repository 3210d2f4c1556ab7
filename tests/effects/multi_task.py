"""Auxiliary tasks: they give no reliable robustness, and attacks on their sum mislead."""

from __future__ import annotations

from typing import Any

from act import DECAYS
from act import SEEDS as FRESH
from controls import AT, AT_AA, SEEDS
from evidence import Analysis, Claim, Effect, Evaluation, Runs, Tuning, rated
from findings import Finding, Gain, Numbers, absent, differences, mean_sd, verdict, worst

LITTLE = 5.0  # points: an interval below it is not the tens of points of adversarial training
LABELS = ("rotation", "jigsaw", "macro")  # tasks with a cross-entropy

# --- without adversarial training: Fashion-MNIST, at an eps where standard training withstands something ---

EPS = "0.02"
RATES = ("optim.lr", ("0.02", "0.05", "0.1"))


def tuning(method: str, field: str, values: tuple[str, ...]) -> Tuning:
    common = ("train_n=10000", "validation.held_out=2000", "validation.n=100", "validation.select=last")
    recipe: dict[str, Any] = {"dataset": "fashion-mnist", "arch": "small_cnn_16_32_100", "eps": EPS, "epochs": 10}
    base = Runs(f"fashion-10000 {method} tuning", method, common=common, **recipe)
    return Tuning(f"fashion-10000-{method}", base, (RATES, (field, values)))


TUNED = tuning("multi-task", "method.weight", ("0.3", "1", "3"))
ALONE = tuning("standard", "optim.weight_decay", DECAYS).runs("fashion-10000 standard", FRESH)
TASKS = {task: TUNED.runs(f"fashion-10000 {task}", FRESH, f"method.tasks={task}") for task in (*LABELS, "autoencoder")}
LIGHT, HEAVY = (TUNED.runs(f"fashion-10000 rotation {w}", FRESH, f"method.weight={w}") for w in ("0.1", "10"))
MEASURED = (ALONE, *(TASKS[task] for task in LABELS), LIGHT, HEAVY)
TESTED = {runs.label: rated(runs, EPS) for runs in MEASURED}

# --- on adversarial training: digits ----------------------------------------------------------------------

ON_AT = {
    "rotation": Runs("multi-task-at", "multi-task-at", seeds=SEEDS),
    **{
        task: Runs(f"multi-task-at {task}", "multi-task-at", (f"method.tasks={task}",), seeds=SEEDS)
        for task in ("jigsaw", "macro")
    },
}
ON_AT_TESTED = {task: Evaluation(runs) for task, runs in ON_AT.items()}

VULNERABILITY = Analysis("multi-task-fashion", "vulnerability", (*TASKS.values(), LIGHT, HEAVY), ("-n", "1000"))
VULNERABILITY_AT = Analysis("multi-task-at", "vulnerability", tuple(ON_AT.values()), ("-n", "500"))


def weaker(of: dict[str, Runs], table: str, numbers: Numbers) -> dict[str, tuple[str, list[float]]]:
    """For each task: the accuracies under both attacks, and by how much the attack on the sum leaves more, by seed."""
    found = {}
    for task, runs in of.items():
        main, total = (numbers.percent(f"{table}/main", runs, column) for column in ("main", "sum"))
        found[task] = f"{task} {mean_sd(main)} to {mean_sd(total)}", differences(total, main)
    return found


def told(found: dict[str, tuple[str, list[float]]], held: bool) -> Finding:
    difference = "; ".join(f"{task}: {' '.join(f'{d:+.1f}' for d in by)}" for task, (_, by) in found.items())
    ours = ", ".join(text for text, _ in found.values())
    return Finding(f"main task, PGD on it to PGD on the sum: {ours}", verdict(held), f"by seed: {difference}")


def illusion(numbers: Numbers) -> Finding:
    """The attack on the sum leaves at least 2 points more than that on the main task, with each task and seed."""
    found = weaker({task: TASKS[task] for task in LABELS}, VULNERABILITY.key, numbers)
    return told(found, min(d for _, by in found.values() for d in by) >= 2)


def illusion_on_at(numbers: Numbers) -> Finding:
    """The same on adversarial training."""
    found = weaker(ON_AT, VULNERABILITY_AT.key, numbers)
    return told(found, min(d for _, by in found.values() for d in by) >= 2)


def no_illusion(numbers: Numbers) -> Finding:
    """The autoencoder's two attacks differ by less than 2 points, with each seed."""
    found = weaker({"autoencoder": TASKS["autoencoder"]}, VULNERABILITY.key, numbers)
    return told(found, max(abs(d) for d in found["autoencoder"][1]) < 2)


def no_gain(gains: dict[str, Gain], ours: str) -> Finding:
    """Refuted if a task gains robustness, shown if every interval lies below 5 points."""
    return Finding(ours, absent([*gains.values()], LITTLE), "; ".join(f"{name}: {g}" for name, g in gains.items()))


def no_robustness(numbers: Numbers) -> Finding:
    """Refuted if a task gains over standard training, shown if every interval lies below 5 points."""
    alone = TESTED[ALONE.label].key
    keys = {task: TESTED[TASKS[task].label].key for task in LABELS}
    robust = ", ".join(
        f"{task} {mean_sd(numbers.robust(key, EPS))}" for task, key in {"no task": alone, **keys}.items()
    )
    return no_gain({task: numbers.gain(key, alone, EPS) for task, key in keys.items()}, f"APGD-T at {EPS}: {robust}")


def no_robustness_on_at(numbers: Numbers) -> Finding:
    """Refuted if a task gains over AT, shown if every interval lies below 5 points."""
    keys = {task: one.key for task, one in ON_AT_TESTED.items()}
    robust = ", ".join(
        f"{task} {mean_sd(numbers.robust(key, '0.1'))}" for task, key in {"no task": AT_AA.key, **keys}.items()
    )
    return no_gain({task: numbers.gain(key, AT_AA.key, "0.1") for task, key in keys.items()}, f"at 0.1: {robust}")


def weight(numbers: Numbers) -> Finding:
    """From weight 0.1 to 10, PGD on the sum leaves 2 points more with each seed, and APGD-T less than 5 more."""
    light, heavy = (numbers.percent(f"{VULNERABILITY.key}/main", runs, "sum") for runs in (LIGHT, HEAVY))
    rises = differences(heavy, light)
    keys = [TESTED[runs.label].key for runs in (HEAVY, LIGHT)]
    gain = numbers.gain(*keys, EPS)
    attacked = [mean_sd(numbers.robust(key, EPS)) for key in keys]
    ours = f"PGD on the sum {mean_sd(light)} to {mean_sd(heavy)}; APGD-T {attacked[1]} to {attacked[0]}"
    both = worst([verdict(min(rises) >= 2), absent([gain], LITTLE)])
    return Finding(ours, both, f"PGD on the sum: {' '.join(f'{d:+.1f}' for d in rises)}; APGD-T: {gain}")


TASKONOMY = "Taskonomy"
EFFECT = Effect(
    system="multi-task",
    source="Promises and illusions of multi-task learning, Ghamizi et al. 2022, arXiv:2110.15053",
    about="The paper has Taskonomy's tasks; these are made from the images. The rate and the weight were chosen with "
    "rotation, and the other tasks have the same.",
    runs=(ALONE, *TASKS.values(), LIGHT, HEAVY, AT, *ON_AT.values()),
    evaluations=(*TESTED.values(), AT_AA, *ON_AT_TESTED.values()),
    analyses=(VULNERABILITY, VULNERABILITY_AT),
    claims=(
        Claim("an attack on the sum of the tasks is weaker on the main one", TASKONOMY, illusion, MEASURED[1:4]),
        Claim("the same on AT", "none", illusion_on_at, tuple(ON_AT.values())),
        Claim("not with an autoencoder (a control)", "none", no_illusion, (TASKS["autoencoder"],)),
        Claim("auxiliary tasks give no reliable robustness", TASKONOMY, no_robustness, MEASURED[:4]),
        Claim("nor on AT", "none", no_robustness_on_at, (AT, *ON_AT.values())),
        Claim("a larger weight only seems to help: rotation", TASKONOMY, weight, (LIGHT, HEAVY)),
    ),
)
