"""Centre loss: its limits, Wen's update against plain numpy, and centres that are resumed with a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from advbench.errors import Interrupted, UserError
from advbench.methods.center_loss import Centers
from advbench.recipe import Recipe
from advbench.trainer import Watch, train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
Trained = Callable[..., Session]
Same = Callable[[nn.Module, nn.Module], bool]
CPU = torch.device("cpu")


@pytest.mark.parametrize("on", ["adversarial", "clean"])
@pytest.mark.parametrize(("name", "base"), [("center-loss", "standard"), ("center-loss-at", "pgd-at")])
def test_without_lambda_it_is_its_base_to_the_bit(
    name: str, base: str, on: str, recipe: Make, trained: Trained, same: Same
) -> None:
    plain = trained(recipe(base)).nets.f
    assert same(trained(recipe(name, "method.lam=0", f"method.on={on}")).nets.f, plain)
    assert not same(trained(recipe(name, f"method.on={on}")).nets.f, plain)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_centres_move_as_wen_says(alpha: float) -> None:
    rng = np.random.default_rng(0)
    c, z, y = rng.normal(size=(4, 3)), rng.normal(size=(9, 3)), np.array([0, 1, 1, 0, 0, 3, 3, 0, 1])
    expected = c.copy()
    for j in range(4):
        delta = sum((c[j] - z[i] for i in range(9) if y[i] == j), np.zeros(3)) / (1 + (y == j).sum())
        expected[j] -= alpha * delta
    centers = Centers(4, 3, learn=False).double()
    centers.c = torch.tensor(c)
    centers.follow(torch.tensor(z), torch.tensor(y), alpha)
    assert np.allclose(centers.c.numpy(), expected)
    assert np.array_equal(centers.c[2].numpy(), c[2])  # no image of class 2: it stays


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_term_is_half_the_squared_distance_to_the_own_centre(reduction: str, recipe: Make) -> None:
    session = Session(recipe("center-loss", f"method.reduction={reduction}", "method.lam=0.3"), CPU)
    nets, (x, y) = session.nets, session.data.batch(slice(8))
    nets.parts["centers"].c = torch.randn(10, 64)
    nets.f.eval()
    terms = session.method.outer(nets, x, x, y)
    z, c = nets.f.features(x).detach().numpy(), nets.parts["centers"].c.numpy()  # type: ignore[operator, union-attr]
    away = ((z - c[y.numpy()]) ** 2).sum(1) / 2
    expected = 0.3 * (away.mean() if reduction == "mean" else away.sum())
    assert float(terms["center"].detach()) == pytest.approx(expected, rel=1e-5)


def test_features_learn_from_centres_and_buffers_do_not_learn(recipe: Make) -> None:
    session = Session(recipe("center-loss"), CPU)
    nets, (x, y) = session.nets, session.data.batch(slice(8))
    term = session.method.outer(nets, x, x, y)["center"]
    found = torch.autograd.grad(term, list(nets.f.parameters()), allow_unused=True)
    names = [name for name, _ in nets.f.named_parameters()]
    assert {name for name, g in zip(names, found, strict=True) if g is not None} == {
        name for name in names if not name.startswith("linear")
    }
    assert "centers" not in session.tools.optimizers and not nets.parts["centers"].c.requires_grad


def test_centres_move_once_a_batch_with_weight_perturbation_too(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    follow = Centers.follow
    monkeypatch.setattr(Centers, "follow", lambda *given: (moves.append(1), follow(*given))[1])
    session = Session(recipe("center-loss", "awp.gamma=0.01"), CPU)
    session.step(session.order())
    assert moves == [1]
    assert float(session.nets.parts["centers"].c.abs().max()) > 0  # type: ignore[operator, union-attr]


def test_centres_by_sgd_take_its_plain_step_and_never_decay(recipe: Make) -> None:
    session = Session(recipe("center-loss", "method.update=sgd", "method.lam=2", "schedule.name=constant"), CPU)
    (group,) = session.tools.optimizers["centers"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.0, 0.0)
    order = session.order()
    rows = order[:16]
    centers = session.nets.parts["centers"]
    x, y = session._batch(rows)
    z = session.nets.f.features(x).detach()  # train mode: the same batch statistics as in the step
    session.step(order)
    for j in range(10):
        expected = 0.5 * z[y == j].sum(0) / 16  # from 0, down the gradient of 1/2 mean ||z - c||^2, whatever lambda
        assert torch.allclose(centers.c[j], expected, atol=1e-6)  # type: ignore[index]


def test_centres_are_saved_and_resumed_to_the_bit(recipe: Make, tmp_path: Path) -> None:
    class Once(Watch):
        left = 5

        def stop(self) -> bool:
            self.left -= 1
            return self.left == 0

    made = recipe("center-loss")
    whole = train(made, tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(made, tmp_path / "pieces", device="cpu", watch=Once())
    pieces = train(made, tmp_path / "pieces", device="cpu", resume=True)
    mine, theirs = (load_file(out / "parts" / "centers.safetensors")["c"] for out in (pieces, whole))
    assert mine.shape == (10, 64) and float(mine.abs().max()) > 0
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("update", ["wen", "sgd"])
def test_classes_grow_compact(update: str, recipe: Make) -> None:
    ratio = []
    for lam in (0, 0.1):
        session = Session(recipe("center-loss", f"method.lam={lam}", f"method.update={update}", "optim.lr=0.02"), CPU)
        x, y = session.data.batch(slice(96))
        for _ in range(80):
            session.method.step(session.nets, x, y, session.tools)
        with torch.no_grad():
            z = session.nets.f.features(x)
        c = torch.stack([z[y == j].mean(0) for j in range(10)])
        ratio.append(float((z - c[y]).norm(dim=1).mean() / torch.pdist(c).mean()))
    assert ratio[1] < 0.95 * ratio[0]


@pytest.mark.parametrize(("setting", "says"), [("lam=-1", "at least 0"), ("alpha=0", "write a number above 0")])
def test_values_that_make_no_sense_are_refused(setting: str, says: str, recipe: Make) -> None:
    with pytest.raises(UserError, match=says):
        Session(recipe("center-loss", f"method.{setting}"), CPU)
