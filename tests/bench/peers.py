"""The attacks of other libraries, each under the same signature, for side-by-side measurements.

A peer is `attack(net, x, y, eps) -> x'` with images (B, C, H, W) in [0, 1] and Linf eps, run with the settings of ours:
100 iterations and 9 targets where AutoAttack says so, 5,000 queries, PGD with 20 steps of eps / 10 from the
image itself. What a library does not have is not here; what is not installed is left out by `available`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
PACKAGES = {
    "pyautoattack": "pyautoattack",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "art": "adversarial-robustness-toolbox",
    "adv_lib": "adv-lib",
}
PGD_STEPS, PGD_STEP = 20, 0.1


class Counted(nn.Module):
    """`net`, counting the images that go forward and, where a gradient comes back from the logits, backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.net(x)
        if logits.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards += len(x)

            logits.register_hook(count)
        return logits


def available() -> dict[str, str]:
    """The versions of the libraries that are installed and can be imported."""
    found = {}
    for module, package in PACKAGES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        found[module] = metadata.version(package)
    return found


def peers(attack: str) -> dict[str, Run]:
    """The libraries that have `attack`, by module name."""
    return {module: run for (name, module), run in RUNS.items() if name == attack}


def _pyautoattack(member: str) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from pyautoattack import AutoAttack

        logging.getLogger("auto-attack").setLevel(logging.ERROR)
        # A custom version would have five restarts of APGD and other defaults than AutoAttack's own.
        attack = AutoAttack(net, norm="Linf", eps=eps, seed=0, device="cpu", version="standard")
        if member != "autoattack":
            attack.attacks_to_run = [member]
        return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]  # type: ignore[no-any-return]

    return run


def _torchattacks(name: str) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        import torchattacks

        made = {
            "pgd": lambda: torchattacks.PGD(net, eps, PGD_STEP * eps, PGD_STEPS, random_start=False),
            "apgd-ce": lambda: torchattacks.APGD(net, eps=eps, steps=100),
            "apgd-t": lambda: torchattacks.APGDT(net, eps=eps, steps=100),
            "fab-t": lambda: torchattacks.FAB(net, eps=eps, steps=100, multi_targeted=True),
            "square": lambda: torchattacks.Square(net, eps=eps, n_queries=5000, resc_schedule=False),
        }[name]()
        return made(x, y)  # type: ignore[no-any-return]

    return run


def _foolbox_pgd(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(rel_stepsize=PGD_STEP, steps=PGD_STEPS, random_start=False)
    _, clipped, _ = attack(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)
    return clipped  # type: ignore[no-any-return]


def _art(name: str) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescentPyTorch, SquareAttack
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = net(x[:1]).shape[1]
        model = PyTorchClassifier(
            net, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0.0, 1.0), device_type="cpu"
        )
        common = {"eps": eps, "batch_size": len(x), "verbose": False}
        made = {
            "pgd": lambda: ProjectedGradientDescentPyTorch(
                model, eps_step=PGD_STEP * eps, max_iter=PGD_STEPS, **common
            ),
            "apgd-ce": lambda: AutoProjectedGradientDescent(
                model, eps_step=2 * eps, max_iter=100, nb_random_init=1, loss_type="cross_entropy", **common
            ),
            "square": lambda: SquareAttack(model, max_iter=5000, **common),
        }[name]()
        return torch.from_numpy(np.asarray(made.generate(x.numpy(), y.numpy())))

    return run


def _adv_lib(name: str) -> Run:
    def run(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        from adv_lib import attacks

        if name == "pgd":
            return attacks.pgd_linf(  # type: ignore[no-any-return]
                net, x, y, eps, steps=PGD_STEPS, random_init=False, relative_step_size=PGD_STEP
            )
        if name == "apgd-ce":
            return attacks.apgd(net, x, y, eps, norm=float("inf"), loss_function="ce")  # type: ignore[no-any-return]
        if name == "apgd-t":
            return attacks.apgd_targeted(net, x, y, eps, norm=float("inf"))  # type: ignore[no-any-return]
        return attacks.fab(  # type: ignore[no-any-return]
            net, x, y, norm=float("inf"), ε=eps, restarts=9, targeted_restarts=True
        )

    return run


RUNS: dict[tuple[str, str], Run] = {
    **{(name, "pyautoattack"): _pyautoattack(name) for name in ("apgd-ce", "apgd-t", "fab-t", "square", "autoattack")},
    **{(name, "torchattacks"): _torchattacks(name) for name in ("pgd", "apgd-ce", "apgd-t", "fab-t", "square")},
    ("pgd", "foolbox"): _foolbox_pgd,
    **{(name, "art"): _art(name) for name in ("pgd", "apgd-ce", "square")},
    **{(name, "adv_lib"): _adv_lib(name) for name in ("pgd", "apgd-ce", "apgd-t", "fab-t")},
}
