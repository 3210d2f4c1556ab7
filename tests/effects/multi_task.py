"""Auxiliary tasks: they give no reliable robustness, and attacks on their sum mislead."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from act import DECAY, DECAYS, SEEDS, grid_of
from evidence import Analysis, Claim, Effect, Runs, Tuning, rated
from findings import PARTS, Finding, Numbers, absent, by_seeds, conclude, mean_sd, of_the_same, worst

LITTLE = 5.0  # points: an interval below it is not the tens of points of adversarial training
EPS = "0.02"  # where standard training withstands something
ATTACKS = {
    "sum": "the sum of the tasks",
    "wgd": "weights that follow each loss (the paper's definition 5)",
    "relative": "each loss over its clean value",
    "cyclic": "each task in turn",
}


def tuning(method: str, field: str, values: tuple[str, ...], *rates: str, task: str = "") -> Tuning:
    common = ("train_n=10000", "validation.held_out=2000", "validation.n=100", "validation.select=last")
    recipe: dict[str, Any] = {"dataset": "fashion-mnist", "arch": "small_cnn_16_32_100", "eps": EPS, "epochs": 10}
    sets = (f"method.tasks={task}",) if task else ()
    base = Runs(f"fashion-10000 {task or method} tuning", method, sets, common=common, **recipe)
    return Tuning(f"fashion-10000-{task or method}", base, grid_of(field, values, *rates))


# Not the autoencoder: the gradient of its loss is a hundredth of the main one's, so an attack on both is one on this.
TUNED = {
    task: tuning("multi-task", "method.weight", ("0.1", "0.3", "1"), "0.05", "0.1", task=task)
    for task in ("rotation", "jigsaw", "macro")
}
ALONE = tuning("standard", DECAY, DECAYS, "0.02", "0.05", "0.1").runs("fashion-10000 standard", SEEDS)
AT = replace(ALONE, label="fashion-10000 pgd-at", method="pgd-at")
TASKS = {task: tuned.runs(f"fashion-10000 {task}", SEEDS) for task, tuned in TUNED.items()}
LIGHT, HEAVY = (
    TUNED["rotation"].runs(f"fashion-10000 rotation {w}", SEEDS, f"method.weight={w}") for w in ("0.1", "3")
)
MEASURED = (ALONE, *TASKS.values(), LIGHT, HEAVY, AT)
TESTED = {runs.label: rated(runs, EPS) for runs in MEASURED}
VULNERABILITY = Analysis("multi-task-fashion", "vulnerability", (*TASKS.values(), LIGHT, HEAVY), ("-n", "1000"))
TABLE = f"{VULNERABILITY.key}/main"


def illusion(attack: str, numbers: Numbers) -> Finding:
    """With each task the attack leaves 2 points more of the main task than the attack on that one alone."""
    parts, gains = [], {}
    for task, runs in TASKS.items():
        main, every = (numbers.percent(TABLE, runs, column) for column in ("main", attack))
        parts.append(f"{task} {mean_sd(main)} to {mean_sd(every)}")
        gains[task] = of_the_same(every, main, 2.0)
    return conclude(f"main task, PGD on it to PGD on {ATTACKS[attack]}: {', '.join(parts)}", gains)


def no_robustness(numbers: Numbers) -> Finding:
    """No task gains 5 points over standard training, where AT does."""
    keys = {"AT": TESTED[AT.label].key, **{task: TESTED[runs.label].key for task, runs in TASKS.items()}}
    alone = TESTED[ALONE.label].key
    robust = ", ".join(
        f"{name} {mean_sd(numbers.robust(key, EPS))}" for name, key in {"no task": alone, **keys}.items()
    )
    gains = {name: numbers.gain(key, alone, EPS) for name, key in keys.items()}
    learned = gains.pop("AT")
    found = conclude(f"APGD-T at {EPS}: {robust}", gains, partial(absent, reach=LITTLE))
    found = found._replace(difference=PARTS.join([f"AT: {learned.brief}", found.difference]))
    return found if learned.low >= LITTLE else found._replace(verdict="not shown")


def weight(numbers: Numbers) -> Finding:
    """From weight 0.1 to 3, PGD on each loss over its clean value leaves 2 points more, and APGD-T less than 5 more."""
    light, heavy = (numbers.percent(TABLE, runs, "relative") for runs in (LIGHT, HEAVY))
    rise = by_seeds(heavy, light, 2.0)
    keys = [TESTED[runs.label].key for runs in (LIGHT, HEAVY)]
    gain = numbers.gain(*reversed(keys), EPS)
    attacked = " to ".join(mean_sd(numbers.robust(key, EPS)) for key in keys)
    ours = f"PGD on {ATTACKS['relative']} {mean_sd(light)} to {mean_sd(heavy)}; APGD-T {attacked}"
    return conclude(ours, {"PGD": rise, "APGD-T": gain}, lambda of: worst([of[0].verdict, absent([of[1]], LITTLE)]))


TASKONOMY, TABLES = "Taskonomy", (VULNERABILITY,)
EFFECT = Effect(
    system="multi-task",
    source="Promises and illusions of multi-task learning, Ghamizi et al. 2022, arXiv:2110.15053",
    about="The paper has Taskonomy's tasks; these are made from the images. AT has the settings of standard training.",
    runs=(ALONE, *TASKS.values(), LIGHT, HEAVY, AT),
    evaluations=tuple(TESTED.values()),
    analyses=(VULNERABILITY,),
    claims=(
        *(
            Claim(
                f"attacked by {words}, the main task seems more robust",
                TASKONOMY,
                partial(illusion, attack),
                tuple(TASKS.values()),
                TABLES,
            )
            for attack, words in ATTACKS.items()
        ),
        Claim(
            "auxiliary tasks give no reliable robustness",
            TASKONOMY,
            no_robustness,
            (ALONE, *TASKS.values(), AT),
            excuses="shown",
        ),
        Claim("a larger weight only seems to help: rotation", TASKONOMY, weight, (LIGHT, HEAVY), TABLES),
    ),
)
