"""Multi-task learning: Ghamizi et al., AAAI 2022, arXiv:2110.15053 (after Mao et al. 2020).

The authors' code was read.

min E[ CE(f(x), y) + weight x mean_t L_t(x) ],  t the auxiliary tasks, with a shared encoder and a head each

The tasks are made from the data (`models/tasks.py`). This is not a defence but an object of study: the paper shows that
auxiliary tasks bring no reliable robustness, and that an attack on the sum of the tasks is weak on each. The heads
are the run's parts: `advbench evaluate --attack multi-task` and `advbench analyze vulnerability` attack the tasks alone
and together. Only f is deployed. `attacked` names the losses that the inner attack of adversarial training maximises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advbench.methods.base import Method, Nets, Objective, Setup
from advbench.methods.terms import ce
from advbench.models.tasks import MAIN, Head, Task, answers, losses, make_heads, make_tasks
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative

ENTRIES: dict[str, dict[str, Any]] = {
    "multi-task": {
        "make": "MultiTask",
        "summary": "auxiliary tasks made from the data beside standard training (Ghamizi et al. 2022)",
        "paper": "Adversarial Robustness in Multi-Task Learning: Promises and Illusions",
        "arxiv": "2110.15053",
        "year": 2022,
        "claim": "auxiliary tasks give no reliable robustness; attacks on all tasks at once make it seem so",
        "cost": 0.2,
        "cautions": [
            "an evaluation, not a defence: score the main task under the attack on it alone",
            "the paper's tasks are Taskonomy's; these are made from the images, as in its code",
        ],
        "recipe": {"validation.select": "clean"},
    },
    "multi-task-at": {
        "make": "MultiTask",
        "set": {"attacked": "main"},
        "summary": "auxiliary tasks beside adversarial training (after Ghamizi et al. 2022)",
        "paper": "Adversarial Robustness in Multi-Task Learning: Promises and Illusions",
        "arxiv": "2110.15053",
        "year": 2022,
        "claim": "none: a control, adversarial training with the same tasks",
        "cost": 1.1,
        "cautions": ["adversarial examples for the sum of the tasks (attacked=sum) are weaker on the main task"],
    },
}


@dataclass(frozen=True, kw_only=True)
class MultiTask(Method):
    """Multi-task learning.

    - `tasks`: the auxiliary tasks: rotation, macro, jigsaw, autoencoder.
    - `weight`: of their mean loss.
    - `macro`: the superclass of each class, for the task macro.
    - `attacked`: "none" trains on clean images; "main" on adversarial examples that maximise CE(f(x), y); "sum" on
      adversarial examples that maximise the sum of all losses.
    """

    tasks: tuple[str, ...] = ("rotation",)
    weight: NotNegative = 1.0
    macro: tuple[int, ...] = ()
    attacked: Literal["none", "main", "sum"] = "none"

    @property
    def attacks(self) -> bool:
        return self.attacked != "none"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        self.tasks_for(recipe.dataset, num_classes)

    def tasks_for(self, dataset: str, num_classes: int) -> dict[str, Task]:
        """The auxiliary tasks for `dataset`, by name. Raises UserError for unknown tasks or superclasses."""
        return make_tasks(self.tasks, dataset, num_classes, self.macro)

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        tasks = self.tasks_for(setup.recipe.dataset, setup.num_classes)
        return {**make_heads(tasks, setup.feature_dim, setup.shape, setup.seed)}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        if not self.attacks:
            return None
        if self.attacked == "main":
            return lambda z: ce(nets.f(z), y)
        return lambda z: torch.stack(list(self.losses(nets, x, z, y, smoothing=0.0).values())).sum(0)

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        losses = self.losses(nets, x, x_adv, y, smoothing=nets.label_smoothing)
        share = self.weight / len(self.tasks)
        return {"ce": losses.pop(MAIN).mean(), **{name: share * loss.mean() for name, loss in losses.items()}}

    def losses(self, nets: Nets, x: Tensor, z: Tensor, y: Tensor, *, smoothing: float) -> dict[str, Tensor]:
        """The loss (B,) of the main task, its labels smoothed, and of each auxiliary task at z, a perturbation of x."""
        heads = {name: part for name, part in nets.parts.items() if isinstance(part, Head)}
        out = answers(nets.f, heads, z, nets.key)
        return losses(out, heads, x, y, nets.key, smoothing=smoothing)
