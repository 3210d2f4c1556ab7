"""The multi-task attack: its weights by hand, and its results on encoders with closed forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.multi_task import COMBINED, MultiTask, TaskOracle, weights
from advbench.attacks.pgd import PGD
from advbench.checkpoint import Loaded
from advbench.data import load
from advbench.engine.attack import Attack, Context, Problem, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.search_copy import search_copy
from advbench.engine.verdicts import Verdicts
from advbench.errors import UserError
from advbench.models.base import Model
from advbench.models.tasks import NAMES, Autoencoder, Head, Macro, make_heads, make_tasks
from advbench.threat import around

COUNT, SLOTS, SIDE = 24, 16, 8
ALL = ("main", *COMBINED, *NAMES)
NOW, FIRST = np.array([[16.0, 12, 5], [1, 2, 3]]), np.array([[4.0, 6, 3], [2, 0, 1]])


def attack(attacked: str, **settings: object) -> MultiTask:
    return MultiTask(name="multi-task", attacked=attacked, **settings)  # type: ignore[arg-type]


def strike(
    net: nn.Module,
    heads: Mapping[str, Head],
    one: Attack,
    norm: str,
    eps: float | np.ndarray,
    x: Tensor,
    y: Tensor,
    rows: Tensor | None = None,
    search: nn.Module | None = None,
) -> Verdicts:
    """The verdicts, with points, of attack `one` on `rows` of the images (all if not given)."""
    at = torch.arange(len(y)) if rows is None else rows
    oracle = Oracle(net, search, slots=SLOTS)
    sizes = torch.as_tensor(np.broadcast_to(eps, len(y)).copy(), dtype=torch.float64)[at]
    samples = Samples(lambda some: x[at[some]], y[at], at, sizes, oracle.logits(x[at]))
    made = one.for_model(norm, 10)
    if isinstance(made, MultiTask):
        made = replace(made, heads=heads)
    return Search(made, samples, made.oracle(oracle, 0), norm=norm, seed=0, keep_points=True).run()


def test_the_weights_are_the_papers() -> None:
    now, first, i = torch.tensor(NOW), torch.tensor(FIRST), torch.tensor([3, 4])
    floor = np.maximum(FIRST, 1e-8)
    rate = NOW / floor
    expected = {
        "sum": np.ones((2, 3)),
        "relative": 1 / floor,
        "wgd": rate / rate.mean(1, keepdims=True),
        "cyclic": np.array([[1, 0, 0], [0, 1, 0]]),  # the main task at step 0 and every 3 steps
    }
    for name in COMBINED:
        assert np.allclose(weights(name, now, first, i).numpy(), expected[name]), name
    assert weights("main", now[:, :1], first[:, :1], i).tolist() == [[1], [1]]


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    return load("digits", "test").batch(slice(0, COUNT))


class Normed(Model):
    """With a BatchNorm, which the search copy folds."""

    feature_dim = 8 * 16

    def __init__(self) -> None:
        super().__init__(num_classes=10, in_channels=1, image_size=SIDE)
        self.conv, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.linear = nn.Linear(self.feature_dim, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x))).flatten(1)  # type: ignore[no-any-return]

    def head(self, z: Tensor) -> Tensor:
        return self.linear(z)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net(taught: Callable[[Model], Model]) -> Model:
    """Trained for a few steps, so that it has BatchNorm statistics and right answers to attack."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Normed()
    return taught(made)


@pytest.fixture(scope="module")
def heads(net: Model) -> dict[str, Head]:
    made = make_heads(make_tasks(NAMES, "digits", 10), net.feature_dim, (1, SIDE, SIDE), seed=1)
    return {name: head.eval().requires_grad_(False) for name, head in made.items()}


@pytest.mark.parametrize("attacked", ALL)
def test_a_step_goes_along_the_gradient_of_the_weighted_losses(
    attacked: str, net: Model, heads: dict[str, Head], images: tuple[Tensor, Tensor]
) -> None:
    """Compared with autograd through the weighted sum, with constant weights."""
    (x, y), index = images, torch.arange(COUNT)
    one = attack(attacked, random_start=False, heads=heads).for_model("l2", 10)
    assert isinstance(one, MultiTask)
    oracle = TaskOracle(Oracle(net, slots=COUNT), one, seed=0)
    first = oracle.clean(lambda rows: x[rows], y, index)
    region = around("l2", x, torch.full((COUNT,), 0.5, dtype=torch.float64))
    p = Problem(region, y, torch.full_like(y, -1), index, reference=first, index=index)
    state = replace(one.start(p), query=(x + 0.01).clamp(0, 1), i=torch.arange(COUNT) % 7)
    z = state.query.clone().requires_grad_()
    _, now = oracle._losses(net, x, z, y, index)
    w = weights(attacked, now.detach(), first, state.i)
    (g,) = torch.autograd.grad((w * now).sum(), z)
    by_hand = region.project(state.query + one.rel_step * region.e * region.steepest(g))
    stepped = one.step(p, state, oracle.answer(one, p, state.query)).query
    assert torch.allclose(stepped, by_hand, atol=1e-5) and not torch.equal(stepped, state.query)
    assert now.shape[1] == (1 if attacked in ("main", *NAMES) else 1 + len(NAMES))


def test_on_the_main_task_alone_it_is_pgd_point_by_point(
    net: Model, heads: dict[str, Head], images: tuple[Tensor, Tensor]
) -> None:
    copy, notes = search_copy(net)
    assert any("folded" in note for note in notes)
    plain = PGD(name="multi-task", steps=25)  # the name decides the random start
    ours, theirs = (strike(net, heads, one, "linf", 0.08, *images, search=copy) for one in (attack("main"), plain))
    assert torch.equal(ours.fell, theirs.fell) and 0 < ours.fell.sum() < COUNT
    assert ours.points.keys() == theirs.points.keys()
    assert all(torch.equal(point, theirs.points[row]) for row, point in ours.points.items())


class Halves(nn.Module):
    """Features are the pixels; only the upper half distinguishes the two classes."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.w = torch.cat([torch.randn(SIDE * SIDE // 2, generator=draw), torch.zeros(SIDE * SIDE // 2)])

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1) - 0.5

    def head(self, z: Tensor) -> Tensor:
        score = (z * self.w).sum(1)
        return torch.stack([score, -score, *[torch.full_like(score, -20.0)] * 8], 1)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.features(x)
        return z, self.head(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def distance(self, x: Tensor, norm: str) -> np.ndarray:
        """The exact distances |w.x| / ||w||_dual; [0, 1] does not cut the balls."""
        score = (self.features(x) * self.w).sum(1).abs().double().numpy()
        w = self.w.double().numpy()
        return np.asarray(score / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)))


@pytest.fixture(scope="module")
def halves() -> tuple[Halves, dict[str, Head], Tensor, Tensor]:
    """With an auxiliary task on the lower half: a loss of the main loss's size, and an orthogonal gradient."""
    net, x = Halves(), 0.5 + 0.05 * (torch.rand(COUNT, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) - 0.5)
    head = nn.Linear(SIDE * SIDE, 2)
    head.weight.data = torch.stack([net.w, -net.w]).flip(1)
    head.bias.data.zero_()
    return net, {"macro": Head(head, Macro([0, 1] * 5))}, x, net(x).argmax(1)


def test_closed_forms_of_a_linear_encoder(halves: tuple[Halves, dict[str, Head], Tensor, Tensor]) -> None:
    net, heads, x, y = halves
    exact = {norm: net.distance(x, norm) for norm in ("linf", "l2")}

    def fell(attacked: str, norm: str, factor: float) -> int:
        one = attack(attacked, steps=40, random_start=False)
        return int(strike(net, heads, one, norm, exact[norm] * factor, x, y).fell.sum())

    # In Linf each element's sign is decided by one task alone, whatever the weights.
    for attacked in ("main", "sum", "relative", "wgd"):
        assert fell(attacked, "linf", 1.001) == COUNT and fell(attacked, "linf", 0.999) == 0
    # In L2 the norm spent on one task is lost to the other.
    assert fell("main", "l2", 1.001) == COUNT
    for attacked in ("sum", "relative", "wgd", "cyclic"):
        assert fell(attacked, "l2", 1.001) < COUNT / 4 and fell(attacked, "l2", 0.999) == 0
        assert fell(attacked, "l2", 3) == COUNT
    for norm in ("linf", "l2"):
        assert fell("macro", norm, 5) == 0  # the main task's logits do not move


def test_cyclic_takes_turns(halves: tuple[Halves, dict[str, Head], Tensor, Tensor]) -> None:
    net, heads, x, y = halves
    one, index = attack("cyclic", random_start=False, heads=heads), torch.arange(COUNT)
    oracle = TaskOracle(Oracle(net, slots=COUNT), one, seed=0)
    region = around("linf", x, torch.full((COUNT,), 0.1, dtype=torch.float64))
    p = Problem(region, y, torch.full_like(y, -1), index, reference=torch.ones(COUNT, 2), index=index)
    state, halves_moved = one.start(p), []
    for _ in range(4):
        after = one.step(p, state, oracle.answer(one, p, state.query))
        d = (after.query - state.query).flatten(1).abs().sum(0)
        halves_moved.append(["upper"] * bool(d[:32].sum() > 1e-3) + ["lower"] * bool(d[32:].sum() > 1e-3))
        state = after
    assert halves_moved == [["upper"], ["lower"], ["upper"], ["lower"]]


@pytest.mark.parametrize("attacked", ALL)
def test_verdicts_and_points_do_not_depend_on_order_or_split(
    attacked: str, net: Model, heads: dict[str, Head], images: tuple[Tensor, Tensor]
) -> None:
    one = attack(attacked, steps=6)
    whole = strike(net, heads, one, "linf", 0.1, *images)
    mixed = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    for rows in (mixed, mixed[:9], mixed[9:]):
        some = strike(net, heads, one, "linf", 0.1, *images, rows=rows)
        assert torch.equal(some.fell, whole.fell[rows])
        assert all(torch.equal(point, whole.points[int(rows[row])]) for row, point in some.points.items())


def test_passes_through_the_encoder_are_counted(
    net: Model, heads: dict[str, Head], images: tuple[Tensor, Tensor]
) -> None:
    """One forward pass for the image and one for each task with its own view; one backward pass per attacked task."""
    (x, y), index = images, torch.arange(COUNT)
    region = around("linf", x, torch.full((COUNT,), 0.1, dtype=torch.float64))
    for attacked, forwards, backwards in (("main", 1, 1), ("sum", 3, 5), ("jigsaw", 2, 1), ("macro", 1, 1)):
        one = replace(attack(attacked), heads=heads)
        oracle = TaskOracle(Oracle(net, slots=COUNT), one, seed=0)
        oracle.answer(one, Problem(region, y, torch.full_like(y, -1), index, index=index), x)
        assert (oracle.forwards, oracle.backwards) == (forwards * COUNT, backwards * COUNT)


def test_losses_that_are_not_finite_give_finite_points(images: tuple[Tensor, Tensor]) -> None:
    """NaN or infinite losses of a task must not give NaN images."""
    net, (x, _) = Halves(), images
    broken = nn.Linear(SIDE * SIDE, SIDE * SIDE)
    broken.weight.data.fill_(torch.inf)
    heads = {"autoencoder": Head(broken, Autoencoder())}
    for attacked in COMBINED:
        found = strike(net, heads, attack(attacked, steps=5), "linf", 0.5, x, net(x).argmax(1))
        assert found.nonfinite == 0 and all(point.isfinite().all() for point in found.points.values())


@pytest.mark.parametrize("setting", [{"loss": "cw"}, {"n_targets": 3}, {"target": 1}])
def test_losses_and_targets_of_its_own_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match="leave out loss, target and n_targets"):
        attack("sum", **setting)


def test_attacked_tasks_and_heads_are_checked(heads: dict[str, Head], net: Model) -> None:
    found = attack("rotation").with_heads(heads)
    assert len(found.heads_sha256) == 64 and found.with_heads(heads) == found
    assert "heads" not in found.settings() and "heads" not in found.setting_names()
    few = {name: heads[name] for name in ("macro", "autoencoder")}
    with pytest.raises(UserError, match=r"did you mean rotation.*choose from autoencoder, cyclic, jigsaw, macro, main"):
        attack("rotaton").with_heads(heads)
    with pytest.raises(UserError, match="unknown attacked 'rotation'"):
        attack("rotation").with_heads(few)
    with pytest.raises(UserError, match="name the run that was meant with --model"):
        replace(found, attacked="sum").with_heads(few)
    bare = Loaded(net, "python:Net", "net", "0" * 64, None, 10)
    with pytest.raises(UserError, match=r"multi-task attacks the tasks of a run .* which python:Net is not.*--model"):
        attack("sum").prepare(Context(bare, load("digits", "test"), "linf", 0))
