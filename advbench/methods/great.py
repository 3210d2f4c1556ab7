"""Gradient adversarial training: Sinha, Chen, Badrinarayanan and Rabinovich 2018, arXiv:1806.08028.

A reconstruction from the abstract, a reader's notes and patent claims. An auxiliary net A classifies where a gradient
comes from. Through gradient reversal, the main net f learns to make A fail.

defence:       g = dCE(f(x), y)/dx.  A: min CE(A(g), y).  f: min J - alpha CE(A(g), y)
    J is GREACE, which pushes away from the classes that g reveals: its gradient with respect to logit a != y should be
    p_a + beta A_a,  A_a = [softmax A(g)]_a
    literal    CE(f(x), y) + beta sum_{a != y} A_a f_a(x), which has no lower bound
    bounded    CE(f(x) + log(1 + beta A_a [a != y]), y), which has one
distillation:  A tells g of the student f from g of a trained teacher; f: min CE(f(x), y) - alpha CE(A(g_f), student)
    The control of the paper are soft targets (Hinton et al. 2015): + soft T^2 KL(teacher(x) || f(x)), alpha = 0.
multi-task:    task t (the classes; quarter turns) has g_t = dCE_t/dz at the features z, and a gradient-alignment layer
    w_t (D), initially 1. z learns from w_t g_t. A predicts t from w_t g_t, and w is trained to make A fail. Only f is
    used for inference.

How A receives the gradients is our choice: times `scale`, and with `relative` divided before by their root mean square
over the batch or, with `per` "sample", each by its own. There its size cancels. So dCE/dx = sigmoid(m) dm/dx becomes
dm/dx, m = log sum_{a != y} exp f_a - f_y, which does not vanish where f is confident.

On digits the literal GREACE hides gradients, and A does not. It lowers all wrong logits for ever, with the force
beta A_a: once the gradients are too small for A, its answer is uniform and the force constant, until the cross-entropy
has no gradient left in float32. FGSM and PGD on the cross-entropy then fail; attacks on the margin do not. With beta
0.02 to 0.05 the labels are learned, with 1 they are not. With the bounded GREACE, logits stop growing early. Gradients
relative to the sample are directions, which do not vanish: A is right more often, and nothing is masked.

alpha and beta grow from 0, each from a time of its own on. Double backward needs smooth activations.
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
from advbench.methods.terms import ce, kl
from advbench.models.tasks import Rotation
from advbench.recipe import Recipe
from advbench.recipe.fields import NotNegative, Positive, Share

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
            "masks gradients: robust to cross-entropy PGD, not to AutoAttack; a positive control for the flags",
            "a reconstruction from the abstract, notes and claims; the literal GREACE has no lower bound",
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
    - `ramp`: share of the training in which alpha and beta grow from 0, linearly.
    - `alpha_from`, `beta_from`: share of the training after which alpha and beta begin to grow.
    - `scale`: factor on the gradients that A receives.
    - `relative`: divide these gradients by their root mean square first.
    - `per`: over which the mean is taken, with `relative`: the batch, or each sample.
    - `teacher`: a model spec, for the form distillation.
    - `soft`: weight of soft targets, in the form distillation: the control.
    - `T`: their temperature.
    - `turns`: weight of the second task, which turns images by quarters, in the form multi-task.

    A net from outside without the setting `activation` must be smooth by itself.
    """

    compiles: ClassVar[bool] = False

    form: Literal["defence", "distillation", "multi-task"] = "defence"
    alpha: NotNegative = 1.0
    beta: NotNegative = 1.0
    greace: Literal["bounded", "literal"] = "bounded"
    ramp: Share = 0.5
    alpha_from: Share = 0.0
    beta_from: Share = 0.0
    scale: Positive = 8.0
    relative: bool = False
    per: Literal["batch", "sample"] = "batch"
    teacher: str = ""
    soft: NotNegative = 0.0
    T: Positive = 4.0
    turns: NotNegative = 1.0

    @property
    def attacks(self) -> bool:
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features", "head") if self.form == "multi-task" else ()

    @property
    def is_paced(self) -> bool:
        return self.ramp > 0 or self.alpha_from > 0 or self.beta_from > 0

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
        if self.teacher and recipe.inner.bn_mode == "train":
            raise UserError("inner.bn_mode=train would make a teacher's answers depend on the batch: set it to eval")
        if self.soft and not self.teacher:
            raise UserError("method.soft is for method.form=distillation: no other form has a teacher")
        if self.per != "batch" and not self.relative:
            raise UserError(f"method.per={self.per} says how gradients are divided: set method.relative=true too")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        if self.form == "multi-task":
            Rotation().check(setup.shape)
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
        g = tools.gradient(lambda z: self._revealing(nets.parts["teacher"](z), y), x)  # in eval mode
        with tools.attack_mode(), torch.no_grad():
            taught = nets.parts["teacher"](x)
        return tools.update(lambda: self.distilled(nets, x, y, taught, g))

    def defended(self, nets: Nets, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms of J, and CE(A(g), y), whose gradient reaches A as it is and f reversed."""
        alpha, beta = self._ramped(nets)
        logits, g = self._with_gradient(nets, x, y)
        answer = nets.parts["auxiliary"](self._seen_by_auxiliary(_reversed(g, alpha)))
        revealed = beta * functional.softmax(answer.detach().float(), 1).scatter(1, y[:, None], 0.0)
        if self.greace == "bounded":
            terms = {"ce": nets.ce(logits.float() + revealed.log1p(), y)}
        else:
            terms = {"ce": nets.ce(logits, y), "greace": (revealed * logits.float()).sum(1).mean()}
        nets.note("class_from_gradient", (answer.argmax(1) == y).float().mean())
        return terms | {"auxiliary": ce(answer, y).mean()}

    def distilled(self, nets: Nets, x: Tensor, y: Tensor, taught: Tensor, g_teacher: Tensor) -> dict[str, Tensor]:
        """CE(f(x), y), A's cross-entropy on the gradients (B, C, H, W) of student (0) and teacher (1); soft targets.

        `taught` (B, K): the teacher's logits.
        """
        logits, g = self._with_gradient(nets, x, y)
        seen = self._seen_by_auxiliary(torch.cat([_reversed(g, self._ramped(nets)[0]), g_teacher]))
        origin = torch.arange(2, device=x.device).repeat_interleave(len(x))
        answer = nets.parts["auxiliary"](seen)[:, :2]
        nets.note("origin_from_gradient", (answer.argmax(1) == origin).float().mean())
        terms = {"ce": nets.ce(logits, y), "auxiliary": ce(answer, origin).mean()}
        if self.soft:
            terms["soft"] = self.soft * self.T**2 * kl(taught, logits, self.T).mean()
        return terms

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

    def _with_gradient(self, nets: Nets, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The logits f(x) (B, K), and the gradient (B, C, H, W) by x, which can be differentiated again."""
        x = x.detach().requires_grad_()
        logits = nets.f(x)
        (g,) = torch.autograd.grad(self._revealing(logits, y).sum(), x, create_graph=True)
        return logits, g

    def _revealing(self, logits: Tensor, y: Tensor) -> Tensor:
        """What A receives the gradient of: CE (B,), or m, whose gradient has the same direction and never vanishes."""
        if not (self.relative and self.per == "sample"):
            return ce(logits, y)
        logits, own = logits.float(), y[:, None]
        return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]

    def _seen_by_auxiliary(self, g: Tensor) -> Tensor:
        """The gradients g (B, ...) as A receives them."""
        if self.relative:
            over = tuple(range(1 if self.per == "sample" else 0, g.ndim))
            g = g / g.detach().abs().amax(over, keepdim=True).clamp_min(1e-30)  # squares of tiny gradients underflow
            g = g / (g.square().mean(over, keepdim=True) + 1e-12).sqrt()
        return self.scale * g

    def _ramped(self, nets: Nets) -> tuple[float, float]:
        grown = [_grown(nets.progress, start, self.ramp) for start in (self.alpha_from, self.beta_from)]
        return self.alpha * grown[0], self.beta * grown[1]


class Alignment(nn.Module):
    """`w` (tasks, D), initially 1: the factors on each task's gradients in the backward pass."""

    def __init__(self, tasks: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(tasks, size))


def _reversed(g: Tensor, alpha: float) -> Tensor:
    """g, with its gradient multiplied by -alpha in the backward pass; without gradient for alpha 0."""
    return g.detach() - alpha * (g - g.detach()) if alpha else g.detach()


def _grown(progress: float, start: float, ramp: float) -> float:
    """0 until `start`, then linearly to 1 over the share `ramp` of the training."""
    return min(1.0, max(0.0, progress - start) / ramp) if ramp else float(progress >= start)
