"""Auxiliary tasks: they give no reliable robustness, and attacks on their sum mislead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from act import DECAY, DECAYS, SEEDS, grid_of
from evidence import Analysis, Claim, Effect, Runs, Tuning, rated
from findings import Finding, Gain, Numbers, absent, by_seeds, mean_sd, of_the_same, worst

LITTLE = 5.0  # points: an interval below it is not the tens of points of adversarial training
LABELS = ("rotation", "jigsaw", "macro")  # tasks with a cross-entropy

EPS = "0.02"  # where standard training withstands something


def tuning(method: str, field: str, values: tuple[str, ...], *rates: str, task: str = "") -> Tuning:
    common = ("train_n=10000", "validation.held_out=2000", "validation.n=100", "validation.select=last")
    recipe: dict[str, Any] = {"dataset": "fashion-mnist", "arch": "small_cnn_16_32_100", "eps": EPS, "epochs": 10}
    sets = (f"method.tasks={task}",) if task else ()
    base = Runs(f"fashion-10000 {task or method} tuning", method, sets, common=common, **recipe)
    return Tuning(f"fashion-10000-{task or method}", base, grid_of(field, values, *rates))


TUNED = {
    task: tuning("multi-task", "method.weight", ("0.1", "0.3", "1"), "0.05", "0.1", task=task)
    for task in (*LABELS, "autoencoder")
}
ALONE = tuning("standard", DECAY, DECAYS, "0.02", "0.05", "0.1").runs("fashion-10000 standard", SEEDS)
AT = replace(ALONE, label="fashion-10000 pgd-at", method="pgd-at")
TASKS = {task: tuned.runs(f"fashion-10000 {task}", SEEDS) for task, tuned in TUNED.items()}
LIGHT, HEAVY = (
    TUNED["rotation"].runs(f"fashion-10000 rotation {w}", SEEDS, f"method.weight={w}") for w in ("0.1", "3")
)
MEASURED = (ALONE, *(TASKS[task] for task in LABELS), LIGHT, HEAVY, AT)
TESTED = {runs.label: rated(runs, EPS) for runs in MEASURED}
VULNERABILITY = Analysis("multi-task-fashion", "vulnerability", (*TASKS.values(), LIGHT, HEAVY), ("-n", "1000"))


def weaker(task: str, numbers: Numbers) -> tuple[str, Gain]:
    """The accuracies of the main task under both attacks, and by how much the attack on the sum leaves more."""
    main, total = (numbers.percent(f"{VULNERABILITY.key}/main", TASKS[task], column) for column in ("main", "sum"))
    return f"{task} {mean_sd(main)} to {mean_sd(total)}", of_the_same(total, main, 2.0)


BOTH = "main task, PGD on it to PGD on the sum"


def illusion(numbers: Numbers) -> Finding:
    """The attack on the sum leaves 2 points more than that on the main task, with each task."""
    found = {task: weaker(task, numbers) for task in LABELS}
    ours, gains = (list(part) for part in zip(*found.values(), strict=True))
    difference = "; ".join(f"{task}: {gain}" for task, (_, gain) in found.items())
    return Finding(f"{BOTH}: {', '.join(ours)}", worst([gain.verdict for gain in gains]), difference)


def no_illusion(numbers: Numbers) -> Finding:
    """The autoencoder's two attacks differ by less than 2 points."""
    ours, gain = weaker("autoencoder", numbers)
    return Finding(f"{BOTH}: {ours}", absent([gain, replace(gain, low=-gain.high, high=-gain.low)], 2.0), gain.brief)


def no_robustness(numbers: Numbers) -> Finding:
    """No task gains 5 points over standard training, where AT does."""
    alone = TESTED[ALONE.label].key
    keys = {"AT": TESTED[AT.label].key, **{task: TESTED[TASKS[task].label].key for task in LABELS}}
    robust = ", ".join(
        f"{name} {mean_sd(numbers.robust(key, EPS))}" for name, key in {"no task": alone, **keys}.items()
    )
    gains = {name: numbers.gain(key, alone, EPS) for name, key in keys.items()}
    found = absent([gains[task] for task in LABELS], LITTLE) if gains["AT"].low >= LITTLE else "not shown"
    return Finding(f"APGD-T at {EPS}: {robust}", found, "; ".join(f"{name}: {g.brief}" for name, g in gains.items()))


def weight(numbers: Numbers) -> Finding:
    """From weight 0.1 to 3, PGD on the sum leaves 2 points more, and APGD-T less than 5 more."""
    light, heavy = (numbers.percent(f"{VULNERABILITY.key}/main", runs, "sum") for runs in (LIGHT, HEAVY))
    rise = by_seeds(heavy, light, 2.0)
    keys = [TESTED[runs.label].key for runs in (HEAVY, LIGHT)]
    gain = numbers.gain(*keys, EPS)
    attacked = [mean_sd(numbers.robust(key, EPS)) for key in keys]
    ours = f"PGD on the sum {mean_sd(light)} to {mean_sd(heavy)}; APGD-T {attacked[1]} to {attacked[0]}"
    return Finding(ours, worst([rise.verdict, absent([gain], LITTLE)]), f"PGD on the sum: {rise}; APGD-T: {gain.brief}")


TASKONOMY, TABLES = "Taskonomy", (VULNERABILITY,)
EFFECT = Effect(
    system="multi-task",
    source="Promises and illusions of multi-task learning, Ghamizi et al. 2022, arXiv:2110.15053",
    about="The paper has Taskonomy's tasks; these are made from the images. AT has the settings of standard training.",
    runs=(ALONE, *TASKS.values(), LIGHT, HEAVY, AT),
    evaluations=tuple(TESTED.values()),
    analyses=(VULNERABILITY,),
    claims=(
        Claim(
            "an attack on the sum of the tasks is weaker on the main one", TASKONOMY, illusion, MEASURED[1:4], TABLES
        ),
        Claim("not with an autoencoder (a control)", "none", no_illusion, (TASKS["autoencoder"],), TABLES),
        Claim(
            "auxiliary tasks give no reliable robustness",
            TASKONOMY,
            no_robustness,
            (*MEASURED[:4], AT),
            excuses="shown",
        ),
        Claim("a larger weight only seems to help: rotation", TASKONOMY, weight, (LIGHT, HEAVY), TABLES),
    ),
)
