"""Auxiliary tasks: they give no reliable robustness, and attacks on their sum mislead."""

from __future__ import annotations

from collections.abc import Callable

from controls import AT, AT_AA, STANDARD, STANDARD_AA
from evidence import Analysis, Claim, Effect, Evaluation, Runs
from findings import Numbers, Verdict, mean_sd, verdict

ROTATION = Runs("multi-task", "multi-task")
AUTOENCODER = Runs("multi-task autoencoder", "multi-task", ("method.tasks=autoencoder",))
ROTATION_AT = Runs("multi-task-at", "multi-task-at")
MULTI_TASK = {"rotation": ROTATION, "autoencoder": AUTOENCODER, "AT with rotation": ROTATION_AT}
ATTACKS = Analysis("multi-task", "vulnerability", tuple(MULTI_TASK.values()), ("-n", "500", "--eps", "0.1"))


def illusion(name: str) -> Callable[[Numbers], tuple[str, Verdict]]:
    """The attack on the sum of the tasks leaves at least 2 points more than the attack on the main task alone."""

    def judge(numbers: Numbers) -> tuple[str, Verdict]:
        columns = ("main", "sum", "relative", "wgd", "strongest")
        row = {column: 100 * numbers.column("multi-task/main", MULTI_TASK[name], column)[0] for column in columns}
        parts = ", ".join(f"{column} {value:.1f}" for column, value in row.items())
        return f"main task at 0.1 under PGD on: {parts}", verdict(row["sum"] - row["main"] >= 2)

    return judge


def no_robustness(numbers: Numbers) -> tuple[str, Verdict]:
    """No auxiliary task gains 2 points under AutoAttack at 0.1, with or without AT."""
    plain, at = numbers.robust("standard", "0.1"), numbers.robust("pgd-at", "0.1")
    robust = {name: numbers.robust(runs.label, "0.1") for name, runs in MULTI_TASK.items()}
    gain = {name: found[0] - (at if "AT" in name else plain)[0] for name, found in robust.items()}
    ours = (
        f"at 0.1: no tasks {mean_sd(plain)}, rotation {mean_sd(robust['rotation'])}, autoencoder "
        f"{mean_sd(robust['autoencoder'])}; AT {mean_sd(at)}, with rotation {mean_sd(robust['AT with rotation'])}"
    )
    return ours, verdict(max(gain.values()) < 2)


EFFECT = Effect(
    system="multi-task",
    source="Promises and illusions of multi-task learning, Ghamizi et al. 2022, arXiv:2110.15053",
    runs=(STANDARD, AT, *MULTI_TASK.values()),
    evaluations=(STANDARD_AA, AT_AA, *map(Evaluation, MULTI_TASK.values())),
    analyses=(ATTACKS,),
    claims=(
        *(
            Claim(f"an attack on the sum of the tasks is weaker on the main one: {name}", "Taskonomy", illusion(name))
            for name in MULTI_TASK
        ),
        Claim("auxiliary tasks give no reliable robustness", "Taskonomy", no_robustness),
    ),
)
