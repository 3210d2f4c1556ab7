"""`--on`: where the tasks of a command run. A task is one training, or the evaluation of one model.

A task writes to the same run folder and leaderboard as the command on one machine would, and resumes from what was
saved there. All machines must therefore see the same folders under the same paths.
"""

from __future__ import annotations

from advbench.cli.cluster import ray, slurm
from advbench.cli.cluster.tasks import Job
from advbench.errors import unknown

Place = ray.Place | slurm.Place

__all__ = ["Job", "Place", "parse_place", "ray", "slurm"]


def parse_place(text: str) -> Place | None:
    """The place that `--on` names; None for `local`. Raises UserError."""
    kind = text.partition(":")[0].partition(",")[0]
    if kind == "ray":
        return ray.parse(text)
    if kind == "slurm":
        return slurm.parse(text)
    if text != "local":
        raise unknown("place", text, ("local", "ray", "ray:ADDRESS", "slurm", "slurm:KEY=VALUE,..."))
    return None
