"""What analyses of trained runs share: loading runs and images, attacks, and which images withstand them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench import consent
from advbench.attacks.aimed import Aimed
from advbench.attacks.base import make as make_attack
from advbench.attacks.base import with_settings
from advbench.attacks.pgd import PGD
from advbench.checkpoint import load_model
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack, Problem, Samples, solve
from advbench.engine.losses import ce, wrong
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.eps import Eps, parse_eps
from advbench.errors import UserError
from advbench.methods.base import make
from advbench.models.base import Model
from advbench.recipe import Recipe
from advbench.registry import training_dataset
from advbench.rng import keys
from advbench.threat import around

BATCH = 256


@dataclass(frozen=True)
class TrainedRun:
    """A trained run: its network (in eval mode, without weight gradients), its recipe and a unique name."""

    folder: Path
    net: Model
    recipe: Recipe
    name: str

    @property
    def trained_eps(self) -> Eps:
        """The eps of its adversarial training; 0 if its method does not attack."""
        threat = self.recipe.threat
        with consent.reading(self.folder / "recipe.toml").given():
            return Eps(threat.eps, threat.eps_value) if make(self.recipe).attacks else Eps("0", 0.0)


def load_runs(runs: Sequence[Path], device: torch.device, *, at_least: int = 1) -> list[TrainedRun]:
    """Load the runs. They are named after their folders, or by the whole paths if two folders have the same name.

    Raises UserError for fewer than `at_least` runs, a run named twice, a network from outside the zoo, and runs of
    different datasets or norms.
    """
    if len(runs) < at_least:
        raise UserError(f"{len(runs)} runs were named: name at least {at_least} run folder{'s' * (at_least > 1)}")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UserError("a run was named twice: name different ones")
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = list(map(str, runs))
    trained = []
    for run, name in zip(runs, names, strict=True):
        net = load_model(str(run), device=device).net
        if not isinstance(net, Model):
            raise UserError(f"{run} does not hold a network of the zoo")
        trained.append(TrainedRun(run, net.requires_grad_(False), Recipe.load(run / "recipe.toml"), name))
    first = trained[0].recipe
    for one in trained[1:]:
        if one.recipe.dataset != first.dataset:
            raise UserError(f"{one.folder} was trained on {one.recipe.dataset}, {runs[0]} on {first.dataset}")
        if one.recipe.threat.norm != first.threat.norm:
            raise UserError(f"{one.folder} has norm {one.recipe.threat.norm}, {runs[0]} {first.threat.norm}")
    return trained


def images(trained: Sequence[TrainedRun], split: str, n: int, device: torch.device) -> Dataset:
    """The first n images of the split ("train" or "test") that the runs were trained on; all if there are fewer."""
    with consent.reading(trained[0].folder / "recipe.toml").given():
        data = load(training_dataset(trained[0].recipe.dataset), "train" if split == "train" else "test")
    return data.subset(range(min(n, len(data)))).to(device)


def one_eps(text: str | float | None, one: TrainedRun) -> Eps:
    """The eps in `text`, or the run's own if there is none. Raises UserError if it cannot be read."""
    threat = one.recipe.threat
    return Eps(threat.eps, threat.eps_value) if text is None else parse_eps(str(text), threat.norm)


def named_attack(name: str, norm: str, steps: int | None = None) -> tuple[Attack, ...]:
    """The registered attack `name`, or all attacks of a set, with `steps` steps if given and if they have steps.

    Raises UserError for an unknown attack, and for one that needs more than logits.
    """
    settings = {} if steps is None else {"steps": steps}
    found = tuple(with_settings(one, settings) for one in make_attack(name, norm))
    for one in found:
        if type(one).prepare not in (Attack.prepare, Aimed.prepare):
            raise UserError(f"{one.name} reads more than logits, which analyses do not provide: choose another attack")
    return found


def withstands(
    net: nn.Module,
    data: Dataset,
    attacks: Sequence[Attack],
    *,
    norm: str,
    eps: float,
    seed: int = 0,
    search: nn.Module | None = None,
) -> Tensor:
    """Which images stand: `net` classifies them correctly, and no attack has a verified hit within eps.

    Returns bool (n,) on the CPU. `search`: the network that is searched in place of `net`.
    """
    oracle = Oracle(net, search, slots=min(BATCH, len(data)))
    logits = torch.cat([oracle.logits(x) for x, _ in batches(data)])
    stands = ~wrong(logits, data.labels)
    for attack in attacks:
        rows = stands.nonzero()[:, 0]
        if eps <= 0 or not len(rows):
            break
        sizes = torch.full((len(rows),), eps, dtype=torch.float64, device=data.device)
        samples = Samples(
            x=lambda chosen, rows=rows: data.batch(rows[chosen])[0],  # type: ignore[misc]
            y=data.labels[rows],
            index=data.indices[rows],
            eps=sizes,
            logits=logits[rows],
        )
        fitted = attack.for_model(norm, data.num_classes)
        fell = Search(fitted, samples, oracle, norm=norm, seed=seed).run().fell
        stands[rows[fell.to(rows.device)]] = False
    return stands.cpu()


def perturbed(
    objective: Callable[[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]],
    data: Dataset,
    *,
    norm: str,
    eps: float,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """PGD points (n, C, H, W), after `steps` steps of eps / 4 from a uniform start.

    `objective(x, y, index)`, for clean images x, returns the function to be maximised: from perturbed z to (B,).
    """
    attack, out = PGD(name="pgd", steps=steps), []
    for start in range(0, len(data), BATCH):
        x, y = data.batch(slice(start, start + BATCH))
        index = data.indices[start : start + BATCH]
        sizes = torch.full((len(y),), eps, dtype=torch.float64, device=x.device)
        problem = Problem(around(norm, x, sizes), y, torch.full_like(y, -1), keys(seed, "analysis", index))
        out.append(solve(attack, objective(x, y, index), problem))
    return torch.cat(out)


def against(net: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]]:
    """The objective for `perturbed` that is the cross-entropy of `net`."""
    return lambda x, y, index: lambda z: ce(net(z).float(), y, torch.full_like(y, -1))


def batches(data: Dataset) -> list[tuple[Tensor, Tensor]]:
    """All images in order, as batches of x (B, C, H, W) and y (B,)."""
    return [data.batch(slice(start, start + BATCH)) for start in range(0, len(data), BATCH)]


def right(net: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    """Whether `net` classifies `points` (n, C, H, W) correctly: bool (n,)."""
    with torch.no_grad():
        return torch.cat([~wrong(net(z), of) for z, of in zip(points.split(BATCH), y.split(BATCH), strict=True)])


def directions(net: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """dCE/dx (n, D) of all images, each scaled to length sqrt(D) unless it is zero, and the classes (n,)."""
    found = []
    for x, y in batches(data):
        x = x.requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(net(x).double(), y, reduction="sum"), x)
        g = g.flatten(1)
        g = g / g.abs().amax(1, keepdim=True).clamp_min(1e-30)  # since squares of tiny gradients underflow
        found.append(g / g.norm(dim=1, keepdim=True).clamp_min(1e-12) * g.shape[1] ** 0.5)
    return torch.cat(found), data.labels
