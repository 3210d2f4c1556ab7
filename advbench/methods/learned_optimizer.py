"""Learning to learn from mistakes: Serban, Poll and Visser, ICANN 2020, arXiv:2008.05247.

A reconstruction from the abstract, with the optimiser of Andrychowicz et al. 2016 (arXiv:1606.04474):

theta_{t+1} = theta_t + 0.05 m(grad CE(theta_t; x), h_t; phi),  m an LSTM of two layers, the same for each coordinate
min_phi mean_t gamma CE(theta_t; x) + (1 - gamma) CE(theta_t; x'),  x' = argmax CE(theta_t; x'), theta_t constant

with t from 0 to T - 1, so that the last of an unroll's updates has no loss after it (in Andrychowicz et al. from 1 to
T).

For the share `meta` of the run, each batch triggers one unroll: m trains a new network of the recipe's architecture for
T steps, on batches seen before, and phi takes one step. Then m is frozen and trains f on clean images alone. With
`source`, a run of this method, its m trains f from the start, which may have another architecture or dataset. m knows
T steps: choose `epochs`, `batch_size` and `train_n` so that f takes about as many, such as one epoch of 10,000 images
in batches of 256, and give the controls as many steps, with learning rates of their own.

Our additions, without which meta-training collapses: the output scale 0.05, smooth activations, a first phase on the
clean loss, then a growing eps, T growing from 20 to 40, clipped gradients (optim.clip). Controls: gamma = 1 (m trained
on the clean loss), and Adam on clean and on adversarial images (`standard`, `pgd-at` with optim.name=adam).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advbench import ranks
from advbench.errors import UserError
from advbench.methods.base import Method, Nets, Setup, Tools
from advbench.methods.terms import ce
from advbench.models.state_files import fit_state, read_state
from advbench.recipe import Recipe
from advbench.recipe.fields import Count, Positive, Share

ENTRIES: dict[str, dict[str, Any]] = {
    "learned-optimizer": {
        "make": "LearnedOptimizer",
        "summary": "an LSTM optimiser meta-trained on adversarial loss, then training on clean images",
        "paper": "Learning to Learn from Mistakes: Robust Optimization for Adversarial Noise",
        "arxiv": "2008.05247",
        "year": 2020,
        "claim": "adversarial knowledge moves to new networks and data without new adversarial examples",
        "cost": 20.0,
        "cautions": [
            "a reconstruction from the abstract",
            "beats the same optimiser meta-trained on clean loss, not Adam on clean images",
            "memory grows with T x weights: meta-train on a small net, then use method.source on larger ones",
            "f must not be trained for many more than T steps: choose epochs, batch_size and train_n accordingly",
            "controls take as many steps, with the best of several learning rates (optim.lr)",
        ],
        "recipe": {
            "model.activation": "softplus",
            "optim.clip": 0.5,
            "validation.select": "last",  # before the last part of the run f is not trained at all
        },
    },
}

PART = "optimizer"


class CoordinateLSTM(nn.Module):
    """m: two LSTM layers of `units` and a linear output times `scale`, applied to each coordinate separately."""

    def __init__(self, units: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.first, self.second = nn.LSTMCell(2, units), nn.LSTMCell(units, units)
        self.out = nn.Linear(units, 1)

    def forward(self, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The updates (P,) and the next state (4, P, units), for gradients g (P,) and `state` (4, P, units)."""
        h1, c1 = self.first(preprocess(g), (state[0], state[1]))
        h2, c2 = self.second(h1, (state[2], state[3]))
        return self.scale * self.out(h2)[:, 0], torch.stack([h1, c1, h2, c2])


def preprocess(g: Tensor, p: float = 10.0) -> Tensor:
    """m's input (P, 2): (log|g| / p, sign g) where |g| >= e^-p, else (-1, e^p g) (Andrychowicz et al., appendix A)."""
    large = g.abs() >= math.exp(-p)
    size = torch.where(large, g.abs().clamp_min(math.exp(-p)).log() / p, -1.0)
    return torch.stack([size, torch.where(large, g.sign(), math.exp(p) * g)], 1)


class OptimizerState(nn.Module):
    """The state (4, P, units) of m while it trains f."""

    state: Tensor

    def __init__(self, weights: int, units: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(4, weights, units))


class Memory(nn.Module):
    """The last `batches` batches, from which unrolls draw. No operation here makes the host wait for the device."""

    x: Tensor
    y: Tensor
    count: Tensor
    row: Tensor

    def __init__(self, batches: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.batches = batches
        self.register_buffer("x", torch.zeros(batches * shape[0], *shape[1:]))
        self.register_buffer("y", torch.zeros(batches * shape[0], dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("row", torch.arange(shape[0]), persistent=False)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Store a batch in place of the oldest one."""
        rows = self.count % self.batches * len(self.row) + self.row
        self.x.index_copy_(0, rows, x)
        self.y.index_copy_(0, rows, y)
        self.count += 1

    def draw(self) -> tuple[Tensor, Tensor]:
        """A random one of the stored batches: x (B, C, H, W) and y (B,)."""
        filled = self.count.clamp_max(self.batches)
        place = (torch.rand((), device=filled.device) * filled).long().clamp_max(filled - 1)
        rows = place * len(self.row) + self.row
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


@dataclass(frozen=True, kw_only=True)
class LearnedOptimizer(Method):
    """A learned optimiser.

    - `gamma`: weight of the clean loss.
    - `meta`: share of the run for meta-training.
    - `clean_phase`: share of the meta-training that uses the clean loss alone.
    - `full_eps`: share of the meta-training after which eps has its full size.
    - `T_first`: steps of the first unrolls.
    - `T`: steps of the last unrolls.
    - `units`: of each layer of m.
    - `scale`: of the output of m.
    - `meta_lr`: Adam's learning rate for phi.
    - `memory`: stored batches, from which unrolls draw.
    - `source`: the folder of a run whose optimiser, of the same `units` and `scale`, is used without further training.
    """

    gamma: Share = 0.5
    meta: float = 0.9
    clean_phase: Share = 0.35
    full_eps: Share = 0.7
    T_first: Count = 20
    T: Count = 40
    units: Count = 20
    scale: Positive = 0.05
    meta_lr: Positive = 0.003
    memory: Count = 16
    source: str = ""

    unused: ClassVar[tuple[str, ...]] = ()  # the inner attack is that of the meta-training

    @property
    def attacks(self) -> bool:
        return False

    @property
    def is_paced(self) -> bool:
        return True

    def check(self, recipe: Recipe, num_classes: int) -> None:
        super().check(recipe, num_classes)
        if ranks.world() > 1:
            raise UserError("learned-optimizer updates the weights itself: train it with one process")
        if recipe.awp.gamma:
            raise UserError("learned-optimizer updates the weights itself: awp.gamma must be 0")
        if self.clean_phase >= self.full_eps:
            raise UserError("method.clean_phase must be less than method.full_eps")
        if not self.source and not 0 < self.meta < 1:
            raise UserError(f"method.meta is {self.meta:g}: write the share for meta-training, above 0 and below 1")
        if self.T_first > self.T:
            raise UserError(f"method.T_first is {self.T_first}: write at most method.T, which is {self.T}")

    def parts(self, setup: Setup) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(setup.seed)
            m = CoordinateLSTM(self.units, self.scale)
        optimisee = setup.build(setup.seed)
        weights = sum(weight.numel() for weight in optimisee.parameters())
        state = OptimizerState(weights, self.units)
        if self.source:
            self.check_source(Path(self.source))
            return {PART: load_optimizer(m, Path(self.source)), "state": state}
        memory = Memory(self.memory, (setup.batch_size, *setup.shape))
        return {PART: m, "optimisee": optimisee, "memory": memory, "state": state}

    def check_source(self, source: Path) -> None:
        """Raise UserError if `source` has no recipe, or trained an optimiser of another form than this one's."""
        file = source / "recipe.toml"
        if not file.is_file():
            raise UserError(f"method.source {source} is not a run of learned-optimizer: {file} is missing")
        trained = Recipe.load(file).method.settings
        for name in ("units", "scale"):
            own = getattr(self, name)
            if trained.get(name, own) != own:
                raise UserError(
                    f"method.{name} is {own:g}, but the optimiser in {source} was trained with {trained[name]}: set "
                    f"method.{name}={trained[name]}"
                )

    def part_optim(self, name: str) -> dict[str, Any]:
        if name != PART:
            return {"lr": 0}
        return {"name": "adam", "lr": self.meta_lr, "momentum": 0.9, "weight_decay": 0.0}

    def step(self, nets: Nets, x: Tensor, y: Tensor, tools: Tools) -> dict[str, Tensor]:
        if self.source or nets.progress >= self.meta:
            return self.train(nets, x, y)
        memory = nets.parts["memory"]
        assert isinstance(memory, Memory)
        memory.add(x, y)
        return tools.update(lambda: self.unroll(nets, tools))

    def train(self, nets: Nets, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Take one step of f with m, on clean images."""
        m, lstm = nets.parts[PART], nets.parts["state"]
        assert isinstance(lstm, OptimizerState)
        weights = list(nets.f.parameters())
        loss = nets.ce(nets.f(x), y)
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            updates, lstm.state = m(torch.cat([g.float().flatten() for g in gradients]), lstm.state)
            for weight, update in zip(weights, updates.split([w.numel() for w in weights]), strict=True):
                weight.add_(update.view_as(weight))
        return {"clean": loss.detach(), "adversarial": torch.zeros_like(loss)}

    def unroll(self, nets: Nets, tools: Tools) -> dict[str, Tensor]:
        """The two terms of the meta-loss, over T steps of a new network."""
        u = nets.progress / self.meta
        steps = round(self.T_first + (self.T - self.T_first) * u)
        gamma = 1.0 if u < self.clean_phase else self.gamma
        grown = min(1.0, (u - self.clean_phase) / (self.full_eps - self.clean_phase))
        optimisee, m, memory = nets.parts["optimisee"], nets.parts[PART], nets.parts["memory"]
        assert isinstance(memory, Memory)
        theta = reinitialised(optimisee)
        state = torch.zeros(4, sum(v.numel() for v in theta.values()), self.units, device=memory.x.device)
        clean, adversarial = [], []
        for _ in range(steps):
            x, y = memory.draw()
            loss = nets.ce(functional_call(optimisee, theta, (x,)), y)
            gradients = torch.autograd.grad(loss, list(theta.values()), retain_graph=True)
            clean.append(loss)
            if gamma < 1:
                fixed = {name: value.detach() for name, value in theta.items()}
                x_adv = tools.attack(lambda z, w=fixed, y=y: ce(functional_call(optimisee, w, (z,)), y), x, y)  # type: ignore[misc]
                x_adv = x + grown * (x_adv - x)  # inside the smaller ball, since balls are convex
                adversarial.append(nets.ce(functional_call(optimisee, theta, (x_adv,)), y))
            # As published: m takes the gradient as data, so no second derivative is needed.
            updates, state = m(torch.cat([g.detach().flatten() for g in gradients]), state)
            theta = add_updates(theta, updates)
        terms = {"clean": gamma * torch.stack(clean).mean(), "adversarial": torch.zeros_like(clean[0]).detach()}
        if adversarial:
            terms["adversarial"] = (1 - gamma) * torch.stack(adversarial).mean()
        return terms


def load_optimizer(m: CoordinateLSTM, source: Path) -> CoordinateLSTM:
    """m with the weights of the run in `source`, frozen. Raises UserError if they are missing or do not fit."""
    file = source / "parts" / f"{PART}.safetensors"
    if not file.is_file():
        raise UserError(f"method.source {source} is not a run of learned-optimizer: {file} is missing")
    state, _ = read_state(file)
    assert isinstance(state, dict)
    fit_state(m, state, str(file), PART)
    return m.requires_grad_(False)


def reinitialised(net: nn.Module) -> dict[str, Tensor]:
    """Reinitialise `net`, and return its new weights by name, as leaves of a new autograd graph.

    Layers have PyTorch's own initialisation, unless a module around them that has `reset_parameters` gives another.
    """
    net.apply(reset)
    return {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}


def reset(module: nn.Module) -> None:
    """Give `module` new weights if it has `reset_parameters`, as PyTorch's layers do."""
    initialise = getattr(module, "reset_parameters", None)
    if callable(initialise):
        initialise()


def add_updates(theta: dict[str, Tensor], updates: Tensor) -> dict[str, Tensor]:
    """theta + updates (P,), by name."""
    parts = updates.split([value.numel() for value in theta.values()])
    return {name: value + update.view_as(value) for (name, value), update in zip(theta.items(), parts, strict=True)}
