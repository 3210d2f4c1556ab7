"""Gradient adversarial training: Sinha, Chen, Badrinarayanan and Rabinovich 2018, arXiv:1806.08028.

A reconstruction from the abstract, a reader's notes and patent claims. An auxiliary net A classifies where a gradient
comes from. Through gradient reversal, the main net f learns to make A fail.

defence:       g = dCE(f(x), y)/dx.  A: min CE(A(g), y).  f: min J - alpha CE(A(g), y)
    J is GREACE, which pushes away from the classes that g reveals: its gradient with respect to logit a != y should be
    p_a + beta A_a,  A_a = [softmax A(g)]_a
    literal    CE(f(x), y) + beta sum_{a != y} A_a f_a(x), which has no lower bound
    bounded    CE(f(x) + log(1 + beta A_a [a != y]), y), which has one
distillation:  A tells g of the student f from g of a trained teacher; f: min CE(f(x), y) - alpha CE(A(g_f), student)
multi-task:    task t (the classes; quarter turns) has g_t = dCE_t/dz at the features z, and a gradient-alignment layer
    w_t (D), initially 1. z learns from w_t g_t. A predicts t from w_t g_t, and w is trained to make A fail. Only f is
    used for inference.

A receives the gradients times `scale`. The gradients of a confident net are tiny, which hides where they come from.
Once they are too small for A, A no longer pushes f, and the logits stop growing long before the gradients of the
cross-entropy vanish for an attack too. With `relative`, A receives the gradients divided by their size in the batch, so
some always remain to be made smaller, and their directions still reveal the class. How A receives the gradients is our
choice. alpha and beta grow from 0 over the first `ramp` of the training. Double backward needs smooth activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.checkpoint import load_model
from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Objective, Setup, Tools
from advbench.methods.terms import ce
from advbench.models.tasks import Rotation
from advbench.recipe import Recipe

SMOOTH = ("softplus", "silu")

ENTRIES: dict[str, dict[str, Any]] = {
    "great": {
        "make": "GREAT",
        "summary": "gradients that do not reveal the class, by an auxiliary net (Sinha et al. 2018): masks gradients",
        "paper": "Gradient Adversarial Training of Neural Networks",
        "arxiv": "1806.08028",
        "year": 2018,
        "claim": "robust to FGSM and its iterations without adversarial examples; better distillation and multi-task",
        "cost": 0.35,
        "cautions": [
            "masks gradients: robust to cross-entropy PGD, hardly to AutoAttack; a positive control for the flags",
            "a reconstruction from the abstract, notes and claims; the literal GREACE diverges",
            "US patents 12020167 and 12393847 claim the method: a research baseline",
        ],
        "recipe": {"model.activation": "softplus", "validation.select": "last"},
    },
}


@dataclass(frozen=True, kw_only=True)
class GREAT(Method):
    """Gradient adversarial training. alpha = beta = 0 is standard training, bit for bit, in defence and distillation.

    - `form`: which of the three forms of the paper.
    - `alpha`: weight of A's reversed gradient.
    - `beta`: weight of GREACE, in the form defence.
    - `greace`: its form: bounded, or literal, which has no lower bound.
    - `ramp`: share of the training in which alpha and beta grow from 0.
    - `scale`: factor on the gradients that A receives.
    - `relative`: divide these gradients by their size in the batch first.
    - `teacher`: a model spec, for the form distillation.
    - `turns`: weight of the second task, which turns images by quarters, in the form multi-task.

    A net from outside without the setting `activation` must be smooth by itself.
    """

    compiles: ClassVar[bool] = False

    form: Literal["defence", "distillation", "multi-task"] = "defence"
    alpha: float = 1.0
    beta: float = 1.0
    greace: Literal["bounded", "literal"] = "bounded"
    ramp: float = 0.5
    scale: float = 8.0
    relative: bool = False
    teacher: str = ""
    turns: float = 1.0

    @property
    def attacks(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features", "head") if self.form == "multi-task" else ()

    @property
    def is_paced(self) -> bool:
        return self.ramp > 0

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        activation = recipe.model.settings.get("activation", "" if ":" in recipe.model.arch else "relu")
        if self.form != "multi-task" and activation and activation not in SMOOTH:
            raise UserError(
                f"{recipe.method.name} differentiates gradients, which {activation} does not allow: "
                f"set model.activation to one of {', '.join(SMOOTH)}"
            )
        if (self.form == "distillation") != bool(self.teacher):
            raise UserError("method.form=distillation and no other form needs a teacher: set method.teacher=RUN")
        if not 0 <= self.ramp <= 1:
            raise UserError(f"method.ramp is {self.ramp:g}: write a share of the training, 0 to 1")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        if self.form == "multi-task":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(setup.seed)
                size, width = setup.feature_dim, 64
                auxiliary = nn.Sequential(nn.Linear(size, width), nn.Softplus(), nn.Linear(width, 2))
                head = Rotation().head(size, setup.shape)
            return {"auxiliary": auxiliary, "turns": head, "alignment": Alignment(2, size)}
        parts: dict[str, nn.Module] = {"auxiliary": setup.build(setup.seed)}
        if self.form == "distillation":
            loaded = load_model(self.teacher, dataset=setup.recipe.dataset)
            parts["teacher"] = loaded.net.requires_grad_(False)
        return parts

    def part_optim(self, name: str) -> dict[str, Any]:
        return {"weight_decay": 0.0} if name == "alignment" else {}

    def inner(self, nets: Nets, x: Tensor, y: Tensor) -> Objective | None:
        return None

    def outer(self, nets: Nets, x: Tensor, x_adv: Tensor, y: Tensor) -> dict[str, Tensor]:
        return self.aligned(nets, x, y) if self.form == "multi-task" else self.defended(nets, x, y)

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        if self.form != "distillation":
            return tools.update(lambda: self.outer(nets, x, x, y))
        g = tools.gradient(lambda z: ce(nets.parts["teacher"](z), y), x)  # in eval mode
        return tools.update(lambda: self.distilled(nets, x, y, g))

    def defended(self, nets: Nets, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms of J, and CE(A(g), y), whose gradient reaches A as it is and f reversed."""
        alpha, beta = self._ramped(nets)
        logits, g = _with_gradient(nets, x, y)
        answer = nets.parts["auxiliary"](self._seen_by_auxiliary(_reversed(g, alpha)))
        revealed = beta * functional.softmax(answer.detach().float(), 1).scatter(1, y[:, None], 0.0)
        if self.greace == "bounded":
            terms = {"ce": nets.ce(logits.float() + revealed.log1p(), y)}
        else:
            terms = {"ce": nets.ce(logits, y), "greace": (revealed * logits.float()).sum(1).mean()}
        nets.note("class_from_gradient", (answer.argmax(1) == y).float().mean())
        return terms | {"auxiliary": ce(answer, y).mean()}

    def distilled(self, nets: Nets, x: Tensor, y: Tensor, g_teacher: Tensor) -> dict[str, Tensor]:
        """CE(f(x), y), and A's cross-entropy on the gradients (B, C, H, W) of the student (0) and the teacher (1)."""
        logits, g = _with_gradient(nets, x, y)
        seen = self._seen_by_auxiliary(torch.cat([_reversed(g, self._ramped(nets)[0]), g_teacher]))
        origin = torch.arange(2, device=x.device).repeat_interleave(len(x))
        answer = nets.parts["auxiliary"](seen)[:, :2]
        nets.note("origin_from_gradient", (answer.argmax(1) == origin).float().mean())
        return {"ce": nets.ce(logits, y), "auxiliary": ce(answer, origin).mean()}

    def aligned(self, nets: Nets, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The losses of the two tasks, which train the heads; a term of value 0 that trains z; A's cross-entropy."""
        alignment = nets.parts["alignment"]
        assert isinstance(alignment, Alignment)
        rotation = Rotation()
        turned, by = rotation.view(x, nets.key), rotation.target(x, y, nets.key)
        terms, tensors, encoder = {}, [], []
        heads: tuple[Callable[[Tensor], Tensor], ...] = (nets.f.head, nets.parts["turns"])
        tasks = (("ce", x, y, 1.0), ("turns", turned, by, self.turns))
        for task, (name, images, labels, weight) in enumerate(tasks):
            z = nets.f.features(images)
            cut = z.detach().requires_grad_()
            terms[name] = weight * nets.ce(heads[task](cut), labels)
            (g,) = torch.autograd.grad(terms[name], cut, retain_graph=True)
            aligned = alignment.w[task] * g.float()
            encoder.append(((z - z.detach()) * aligned.detach()).sum())
            tensors.append(_reversed(len(x) * aligned, self._ramped(nets)[0]))
        origin = torch.arange(2, device=x.device).repeat_interleave(len(x))
        answer = nets.parts["auxiliary"](self._seen_by_auxiliary(torch.cat(tensors)))
        nets.note("task_from_gradient", (answer.argmax(1) == origin).float().mean())
        return terms | {"encoder": torch.stack(encoder).sum(), "auxiliary": ce(answer, origin).mean()}

    def _seen_by_auxiliary(self, g: Tensor) -> Tensor:
        """The gradients g (B, ...) as A receives them."""
        if self.relative:
            g = g / g.detach().abs().amax().clamp_min(1e-30)  # squares of tiny gradients underflow
            g = g / (g.square().mean() + 1e-12).sqrt()
        return self.scale * g

    def _ramped(self, nets: Nets) -> tuple[float, float]:
        grown = min(1.0, nets.progress / self.ramp) if self.ramp else 1.0
        return self.alpha * grown, self.beta * grown


class Alignment(nn.Module):
    """`w` (tasks, D), initially 1: the factors on each task's gradients in the backward pass."""

    def __init__(self, tasks: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(tasks, size))


def _with_gradient(nets: Nets, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits f(x) (B, K), and dCE/dx (B, C, H, W), which can be differentiated again."""
    x = x.detach().requires_grad_()
    logits = nets.f(x)
    (g,) = torch.autograd.grad(ce(logits, y).sum(), x, create_graph=True)
    return logits, g


def _reversed(g: Tensor, alpha: float) -> Tensor:
    """g, with its gradient multiplied by -alpha in the backward pass; without gradient for alpha 0."""
    return g.detach() - alpha * (g - g.detach()) if alpha else g.detach()
