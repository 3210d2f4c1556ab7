"""Steps of the optimisers with a norm of their own, by hand, and their bias on separable data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.recipe import Optim
from advbench.trainer.optim import optimizer
from advbench.trainer.steepest import prox

CPU = torch.device("cpu")


def one_step(name: str, g: list[list[float]], bias: float, **settings: float) -> tuple[list[list[float]], float]:
    w, b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))
    opt = optimizer(Optim(name=name, lr=0.5, weight_decay=0, **settings), [w, b], CPU)  # type: ignore[arg-type]
    w.grad, b.grad = torch.tensor(g), torch.tensor([bias])
    opt.step()
    return w.tolist(), b.item()


def test_sign_descent_steps_by_the_l1_norm_of_the_whole_gradient() -> None:
    w, b = one_step("sign-gd", [[1.0, -2.0], [0.0, 3.0]], 4.0)
    assert w == [[-5.0, 5.0], [0.0, -5.0]] and b == -5.0


def test_coordinate_descent_moves_one_coordinate_of_all_tensors() -> None:
    assert one_step("coordinate-descent", [[1.0, -2.0], [0.0, 3.0]], 4.0) == ([[0, 0], [0, 0]], -2.0)
    assert one_step("coordinate-descent", [[1.0, -2.0], [0.0, 3.0]], 1.0) == ([[0, 0], [0, -1.5]], 0.0)


def test_coordinate_descent_takes_weights_in_any_layout() -> None:
    w = nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
    opt = optimizer(Optim(name="coordinate-descent", lr=0.5, weight_decay=0), [w], CPU)
    w.grad = torch.zeros_like(w)
    w.grad[1, 2, 0, 1] = -4.0
    opt.step()
    assert w.nonzero().tolist() == [[1, 2, 0, 1]] and w[1, 2, 0, 1].item() == 2.0


def test_fista_reaches_the_soft_threshold() -> None:
    """min (w - 1)^2 / 2 + 0.3 |w| is at 0.7, and for 0.2 in place of 1 at 0; the bias goes free."""
    w, b, aim = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(1)), torch.tensor([[1.0, 0.2]])
    opt = optimizer(Optim(name="fista", lr=0.5, weight_decay=0.3), [w, b], CPU)
    for _ in range(200):
        opt.zero_grad()
        (((w - aim) ** 2).sum() / 2 + (b - 1).square().sum() / 2).backward()
        opt.step()
    assert w[0].tolist() == pytest.approx([0.7, 0.0], abs=1e-5) and b.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("penalty", ["l1", "l2", "linf"])
def test_prox_is_a_minimum(penalty: str) -> None:
    order = {"l1": 1, "l2": 2, "linf": torch.inf}[penalty]
    v = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(w: torch.Tensor) -> torch.Tensor:
        return (w - v).square().sum(1) / 2 + 0.7 * torch.linalg.vector_norm(w, order, dim=1)

    found = prox(v, 0.7, penalty)
    for size in (1e-3, 0.1, 1.0):
        noise = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert (value(found) <= value(found + size * noise)).all()


def test_each_wins_its_own_norm_on_separable_data() -> None:
    """Margin over dual norm, of all three on the same points: Faghri et al. 2021, table of optimisers."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(3, 40, generator=draw)
    duals = {"sgd": 2, "coordinate-descent": 1, "sign-gd": torch.inf}
    lr = {"sgd": 0.01, "coordinate-descent": 0.05, "sign-gd": 0.0005}
    reached = {}
    for name in duals:
        w = nn.Parameter(torch.zeros(1, 40))
        opt = optimizer(Optim(name=name, lr=1.0, momentum=0, weight_decay=0), [w], CPU)  # type: ignore[arg-type]
        for _ in range(3000):
            opt.zero_grad()
            loss = torch.exp(-(x @ w[0])).mean()
            opt.param_groups[0]["lr"] = lr[name] / loss.item()
            loss.backward()
            opt.step()
            if loss.item() < 1e-25:
                break
        reached[name] = [((x @ w[0]).min() / torch.linalg.vector_norm(w, p)).item() for p in duals.values()]
    for place, name in enumerate(duals):
        assert max(reached, key=lambda other: reached[other][place]) == name
