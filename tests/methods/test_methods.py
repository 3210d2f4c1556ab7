"""Every method, by its registry entry: the fields of the entry, and a tiny run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.errors import UserError
from advbench.methods.base import Method, make
from advbench.recipe import Recipe
from advbench.registry import entries
from advbench.trainer import train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
METHODS = list(entries("methods"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", METHODS)
def test_entries_have_what_the_readme_prints(name: str) -> None:
    entry = entries("methods")[name]
    assert {"summary", "paper", "arxiv", "year", "claim", "cost", "cautions"} <= set(entry.about)
    assert entry.summary and "\n" not in entry.summary and not entry.summary.endswith(".")
    assert isinstance(entry.about["cost"], float) and entry.about["cost"] > 0
    maker = entry.load()
    assert isinstance(maker, type) and issubclass(maker, Method)
    assert (maker.__doc__ or "").strip()


@pytest.mark.parametrize("name", METHODS)
def test_a_tiny_run_is_finite(name: str, recipe: Make, tmp_path: Path) -> None:
    out = train(recipe(name), tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2
    for line in lines:
        values = [*line.values(), *line["terms"].values(), *line["notes"].values()]
        assert all(math.isfinite(value) for value in values if isinstance(value, float))
        assert sum(line["terms"].values()) == pytest.approx(line["loss"], rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_weight_learns(name: str, recipe: Make) -> None:
    session = Session(recipe(name), CPU)
    nets = [("f", session.nets.f), *session.nets.parts.items()]
    before = {(net, key): value.clone() for net, module in nets for key, value in module.named_parameters()}
    for _ in range(2):
        session.step(session.order())
    still = [
        f"{net}.{key}"
        for net, module in nets
        for key, value in module.named_parameters()
        if net in session.tools.optimizers and torch.equal(value, before[net, key])
    ]
    assert still == []


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_leaves_weights_buffers_modes_and_random_numbers_alone(name: str, recipe: Make) -> None:
    for bn_mode in ("eval", "train"):
        session = Session(recipe(name, f"inner.bn_mode={bn_mode}", "model.dropout=0.5"), CPU)
        session.step(session.order())
        nets, tools = session.nets, session.tools
        x, y = session._batch(session.order()[:16])
        modules = [nets.f, *nets.parts.values()]
        for module in modules:
            module.zero_grad()
        state = {(i, key): value.clone() for i, m in enumerate(modules) for key, value in m.state_dict().items()}
        modes = [m.training for module in modules for m in module.modules()]
        random_state = torch.get_rng_state()
        with tools.attack_mode():
            x_adv = session.method.perturb(nets, x, y, tools)
        assert all(
            torch.equal(m.state_dict()[key], state[i, key]) for i, m in enumerate(modules) for key in m.state_dict()
        )
        assert [m.training for module in modules for m in module.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random_state)
        assert all(value.grad is None for module in modules for value in module.parameters())
        assert x_adv.shape == x.shape and not x_adv.requires_grad
        assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1


@pytest.mark.parametrize("name", [*METHODS, "trades method.beta=0", "center-loss method.base=at"])
def test_a_method_that_attacks_moves_images_and_no_other_does(name: str, recipe: Make) -> None:
    session = Session(recipe(*name.split()), CPU)
    if name == "learned-optimizer":  # attacks teach its optimiser, which trains f from clean images
        assert not session.method.attacks
        return
    x, y = session._batch(session.order()[:16])
    with session.tools.attack_mode():
        x_adv = session.method.perturb(session.nets, x, y, session.tools)
    assert torch.equal(x_adv, x) != session.method.attacks


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for the device: reading a value, or a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits_for_the_device(name: str, recipe: Make) -> None:
    awp = 0 if name == "learned-optimizer" else 0.01  # which refuses it
    session = Session(recipe(name, f"awp.gamma={awp}", "average.name=ema", "optim.clip=1", "augment.crop=1"), CPU)
    order = session.order()
    with NoWaiting():
        session.step(order)
    with pytest.raises(AssertionError), NoWaiting():
        session.check()


@pytest.mark.parametrize("name", METHODS)
def test_norms_a_method_has_no_attack_for_are_refused_before_training(name: str, recipe: Make) -> None:
    norms = make(recipe(name)).norms
    for norm in ("linf", "l2", "l1", "fourier-linf"):
        made = recipe(name, f"threat.norm={norm}")
        if norm in norms:
            Session(made, CPU).step(torch.arange(16))
        else:
            with pytest.raises(UserError, match=f"cannot train for norm {norm}: choose from linf"):
                Session(made, CPU)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_step_gives_the_same_weights(name: str, recipe: Make) -> None:
    nets = []
    for _ in range(2):
        session = Session(recipe(name), CPU)
        torch.manual_seed(0)
        session.step(session.order())
        nets.append(session.nets.f.state_dict())
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


@pytest.mark.parametrize("name", METHODS)
def test_no_number_of_a_method_may_be_negative(name: str, recipe: Make) -> None:
    """A negative weight would make another method of it, and its card would still say this one."""
    kind = type(make(recipe(name)))
    for one in fields(kind):
        if isinstance(one.default, int | float) and not isinstance(one.default, bool):
            with pytest.raises(UserError, match=rf"method\.{one.name}"):
                Session(recipe(name, f"method.{one.name}=-1"), CPU)


def test_a_class_that_is_no_method_is_refused(recipe: Make) -> None:
    with pytest.raises(UserError, match="is not a subclass of advbench"):
        make(recipe("pathlib:Path"))
