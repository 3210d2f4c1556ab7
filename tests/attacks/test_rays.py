"""RayS against a plain sequential form of the paper's algorithms, closed forms, all sign vectors, and hard labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench import rng
from advbench.attacks.rays import RayS
from advbench.data import load
from advbench.engine.attack import Answer, Problem, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.engine.verdicts import Verdicts
from advbench.models import build
from advbench.registry import find
from advbench.threat import around

N, SLOTS, EPS = 48, 16, 0.1


class Hard(nn.Module):
    """The labels of `net` as one-hot answers: no logits to climb, no gradients to follow."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


@pytest.fixture(scope="module")
def net(taught: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return taught(build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0))


def strike(net: nn.Module, name: str, eps: float, **settings: Any) -> tuple[Verdicts, Oracle]:
    """The attack on digits, as labelled by the net."""
    oracle = Oracle(net, slots=SLOTS)
    x, _ = load("digits", "test").batch(torch.arange(N))
    logits = oracle.logits(x)
    sizes = torch.full((N,), eps, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], logits.argmax(1), torch.arange(N), sizes, logits)
    attack = find("attacks", name).create(**settings).for_model("linf", 10)
    oracle.forwards = 0
    return Search(attack, samples, oracle, norm="linf", seed=0, keep_points=True).run(), oracle


def problem(x: Tensor, y: Tensor, eps: float = torch.inf) -> Problem:
    sizes = torch.full(y.shape, eps, dtype=torch.float64)
    return Problem(around("linf", x, sizes), y, torch.full_like(y, -1), rng.keys(0, "rays", torch.arange(len(y))))


def answered(labels: Tensor) -> Answer:
    """An answer of which `wrong` alone can be used."""
    return Answer(torch.full((len(labels), 3), torch.nan), labels, torch.full((len(labels),), torch.nan))


def sequential(x: Tensor, tolerance: float) -> Generator[Tensor, bool, None]:
    """The paper's algorithms 2 and 3 for one image: yields queries and is sent whether they mislead."""
    x, best, radius = x.flatten(), torch.ones(x.numel()), math.inf
    for level in itertools.count():
        size = math.ceil(len(x) / 2**level)
        for begin in range(0, len(x), size):
            tried = best.clone()
            tried[begin : begin + size] *= -1
            low, high = 0.0, min(radius, 1.0)
            if not (yield (x + high * tried).clamp(0, 1)):
                continue
            while high - low > tolerance / math.sqrt(len(x)):
                middle = (low + high) / 2
                low, high = (low, middle) if (yield (x + middle * tried).clamp(0, 1)) else (middle, high)
            if high < radius:
                best, radius = tried, high


@pytest.mark.parametrize(("shape", "tolerance"), [((1, 8, 8), 1e-3), ((3, 2, 5), 1e-2), ((1, 1, 3), 1e-3)])
def test_every_query_is_the_papers(shape: tuple[int, ...], tolerance: float) -> None:
    draw = torch.Generator().manual_seed(0)
    x, w = torch.rand(5, *shape, generator=draw), torch.randn(6, math.prod(shape), generator=draw)

    def score(z: Tensor) -> Tensor:
        return torch.tanh((z.flatten(1) - 0.5) @ w[:3].T * 3) @ w[3:, :3]

    y = score(x).argmax(1)
    attack, p = RayS(name="rays", n_queries=700, tolerance=tolerance), problem(x, y)
    state, plain, labels = attack.start(p), [sequential(one, tolerance) for one in x], [None] * len(x)
    found = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(attack.n_queries):
        wanted = torch.stack([one.send(label) for one, label in zip(plain, labels, strict=True)])  # type: ignore[arg-type]
        torch.testing.assert_close(state.query.flatten(1), wanted, rtol=0, atol=1e-6)
        misled = score(state.query).argmax(1) != y
        found, labels = found | misled, misled.tolist()
        state = attack.step(p, state, answered(misled))
    assert found.any() and (state.radius.isfinite() == found).all()


def test_the_first_queries_by_hand() -> None:
    """Of 4 elements at 0.5: all flipped, a bisection from 1 to 0.5, the halves at that radius, the elements."""
    x = torch.full((1, 1, 2, 2), 0.5)
    attack, p = RayS(name="rays", tolerance=0.5), problem(x, torch.zeros(1, dtype=torch.int64))  # 0.25 in Linf
    state, moves = attack.start(p), []
    for misled in (True, True, False, False, True, True, False):
        moves.append([round(move, 6) for move in (state.query - x).flatten().tolist()])
        state = attack.step(p, state, answered(torch.tensor([misled])))
    one, half = [-0.5] * 4, [0.5, 0.5, -0.5, -0.5]
    other = [[-0.5, -0.5, 0.5, 0.5], [-0.25, -0.25, 0.25, 0.25]]
    assert moves == [one, one, [-0.25] * 4, half, *other, [0.25, -0.25, 0.25, 0.25]]
    assert state.radius.tolist() == [0.25] and state.signs.flatten().tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize(("misled_at", "ends"), [(99, 7 + 8), (0, 7 + 8 + 1), (14, 7 + 8 + 1 + 8)])
def test_an_item_ends_after_a_round_of_elements_without_success(misled_at: int, ends: int) -> None:
    """Of 8 elements there are 7 larger blocks; a bisection, here of one query, follows the first that misleads."""
    x = torch.full((1, 1, 2, 4), 0.5)
    attack, p = RayS(name="rays", tolerance=4), problem(x, torch.zeros(1, dtype=torch.int64))
    state, queries = attack.start(p), 0
    while not bool(attack.done(state).all()):
        state = attack.step(p, state, answered(torch.tensor([queries in (misled_at, misled_at + 1)])))
        queries += 1
    assert queries == ends


def test_signs_in_blocks_are_found_by_the_level_of_the_blocks(cases: Any) -> None:
    """w has one sign in each quarter: 1 + 2 + 4 flips, and for each at most a query and a bisection."""
    case, tolerance = cases["two-sided"](False), 1e-5
    quarters = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat_interleave(9)
    case.weight[:2] = np.stack([quarters, -quarters]) * np.abs(case.weight[0])
    case.net.linear.weight.data = torch.from_numpy(case.weight).float()
    with torch.no_grad():
        case.y = case.net(case.x).argmax(1)
        logits = case.net(case.x)[:, :2].double().numpy()
    exact = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(case.weight[0] - case.weight[1]).sum()
    bisection = math.ceil(math.log2(6 / tolerance))
    enough = RayS(name="rays", n_queries=7 * (1 + bisection), tolerance=tolerance)
    found = case.strike(enough, "linf", np.inf).distance.numpy()
    assert np.allclose(found, exact, rtol=1e-4, atol=tolerance / 6)
    before = RayS(name="rays", n_queries=3, tolerance=tolerance)
    assert not np.allclose(case.strike(before, "linf", np.inf).distance.numpy(), exact, rtol=1e-2)


def test_no_sign_vector_is_nearer_and_no_flip_improves() -> None:
    """All 64 sign vectors of 6 elements on a net of two layers, by a fine grid of radii."""
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(24, 1, 2, 3, generator=draw).double()
    one, two = (torch.randn(shape, generator=draw).double() for shape in ((8, 6), (3, 8)))

    def score(z: Tensor) -> Tensor:
        return torch.tanh((z.double().flatten(-3) - 0.5) @ one.T * 2) @ two.T

    y = score(x).argmax(1)
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    vectors = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64).view(64, 1, 1, 2, 3)
    least = torch.full((24,), torch.inf, dtype=torch.float64)
    for row, vector in itertools.product(range(24), vectors):
        misled = score((x[row] + grid.view(-1, 1, 1, 1) * vector).clamp(0, 1)).argmax(1) != y[row]
        if misled.any():
            least[row] = min(least[row], grid[misled][0])

    attack, p = RayS(name="rays", tolerance=1e-4), problem(x.float(), y)
    state = attack.start(p)
    while not bool(attack.done(state).all()):
        state = attack.step(p, state, answered(score(state.query).argmax(1) != y))
    assert int(state.i.max()) < attack.n_queries / 10  # done, not out of queries
    felled = state.radius.isfinite()
    assert felled.any() and (state.radius >= least - grid[1]).all()
    # Flips one by one do not always lead to the nearest of all corners, but mostly here.
    assert (state.radius[felled] <= least[felled] + 2 * grid[1]).float().mean() > 0.5
    reached = state.radius.view(-1, 1, 1, 1)
    assert (score((x + reached * state.signs).clamp(0, 1)).argmax(1) != y)[felled].all()
    for place in range(6):
        flipped = state.signs.flatten(1).clone()
        flipped[:, place] *= -1
        nearer = (reached - 2e-4).clamp(0, 1) * flipped.view_as(state.signs)  # by more than two tolerances
        assert (score((x + nearer).clamp(0, 1)).argmax(1) == y)[felled].all()


def test_labels_are_all_it_sees(net: nn.Module) -> None:
    """One-hot answers give the distances of the net; Square, which climbs logits, loses its way on them."""
    bare, _ = strike(net, "rays", torch.inf, n_queries=600)
    hard, _ = strike(Hard(net), "rays", torch.inf, n_queries=600)
    assert torch.equal(bare.distance, hard.distance) and bare.distance.isfinite().all()
    ratio = hard.distance / strike(net, "fmn", torch.inf, steps=200)[0].distance
    assert ratio.median() < 1.1  # a distance by gradients
    square, blind = (int(strike(one, "square", EPS, n_queries=600)[0].fell.sum()) for one in (net, Hard(net)))
    ours = int(strike(Hard(net), "rays", EPS, n_queries=600)[0].fell.sum())
    assert ours >= square - 2 and blind <= 0.75 * ours


def test_one_size_falls_as_the_nearest_points_say(net: nn.Module) -> None:
    """In a ball of one size an item ends at its first hit inside, and a loop of an oracle alone, as a probe, agrees."""
    nearest, all_queries = strike(Hard(net), "rays", torch.inf, n_queries=400)
    within, fewer = strike(Hard(net), "rays", EPS, n_queries=400)
    clear = (nearest.distance / EPS - 1).abs() > 1e-3
    assert torch.equal(within.fell[clear], (nearest.distance <= EPS)[clear]) and 0 < within.fell.sum() < N
    assert fewer.forwards < all_queries.forwards

    x, _ = load("digits", "test").batch(torch.arange(N))
    oracle = Oracle(Hard(net), slots=N)
    p, attack = problem(x, oracle.logits(x).argmax(1), EPS), RayS(name="rays", n_queries=400)
    state, fell = attack.start(p), torch.zeros(N, dtype=torch.bool)
    for _ in range(attack.n_queries):
        answer = oracle.answer(attack, p, state.query)
        fell |= answer.wrong & p.region.contains(state.query)
        state = attack.step(p, state, answer)
    assert torch.equal(fell[clear], within.fell[clear])


def test_queries_are_counted_and_end_where_no_flip_helps(net: nn.Module) -> None:
    for queries in (1, 30):
        _, oracle = strike(net, "rays", torch.inf, n_queries=queries)
        judged = oracle.forwards - queries * N  # what verified the points
        assert 0 < judged <= N + SLOTS
    long, oracle = strike(net, "rays", torch.inf, n_queries=6000)
    assert oracle.forwards < 4000 * N
    assert torch.equal(long.distance, strike(net, "rays", torch.inf)[0].distance)


def test_an_image_that_is_wrong_already_is_at_no_distance() -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack, p = RayS(name="rays"), problem(x, torch.zeros(3, dtype=torch.int64))
    state = attack.start(p)
    for _ in range(40):
        state = attack.step(p, state, answered(torch.ones(3, dtype=torch.bool)))
    assert (state.radius <= 1e-3 / 4).all()


def test_restarts_begin_with_signs_of_their_own(net: nn.Module) -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    p = problem(x, torch.zeros(3, dtype=torch.int64))
    p.restart = torch.tensor([0, 1, 2])
    first, one, two = RayS(name="rays", restarts=3).start(p).signs
    assert (first == 1).all() and not torch.equal(one, two)
    assert set(one.unique().tolist()) == set(two.unique().tolist()) == {-1.0, 1.0}
    alone, _ = strike(net, "rays", torch.inf, n_queries=200)
    thrice, _ = strike(net, "rays", torch.inf, n_queries=200, restarts=3)
    assert (thrice.distance <= alone.distance).all() and (thrice.distance < alone.distance).any()
