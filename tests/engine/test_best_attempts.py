"""The strongest attempts on images that stand: the query of the largest margin inside the ball."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from linear_classifiers import least_squares
from torch import Tensor, nn

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Answer, Attack, Problem, Samples, State
from advbench.engine.losses import margin
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.evaluator import Evaluation, Settings, evaluate
from advbench.threat import around

EPS, GREY = 0.2, 0.3


@dataclass(frozen=True, kw_only=True)
class Path(Attack):
    """Queries at given distances from the image, a row of them for each restart."""

    asks = "logits"
    norms = ("linf",)
    steps: int = field(init=False, default=1)
    paths: tuple[tuple[float, ...], ...] = ((0.0,),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", len(self.paths[0]) - 1)

    def at(self, p: Problem, i: Tensor) -> Tensor:
        assert p.restart is not None
        distances = torch.tensor([[*path, 0.19] for path in self.paths])  # 0.19: after the end, which must not count
        return p.region.x + distances[p.restart, i.clamp_max(self.steps + 1)].view(-1, 1, 1, 1)

    def start(self, p: Problem) -> State:
        return State(self.at(p, torch.zeros_like(p.y)), torch.zeros_like(p.y))

    def step(self, p: Problem, s: State, a: Answer) -> State:
        return State(self.at(p, s.i + 1), s.i + 1)


class Rising(nn.Module):
    """The margin of label 0 is the mean of the image less `at`."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - self.at
        return torch.stack([-over, over], 1)


def search(attack: Attack, net: nn.Module, copy: nn.Module | None = None, **how: Any) -> Search:
    count, eps = how.pop("count", 1), how.pop("eps", EPS)
    oracle = Oracle(net, copy, slots=2)
    x = torch.full((count, 1, 2, 2), GREY)
    sizes = torch.full((count,), eps, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], torch.zeros(count).long(), torch.arange(count), sizes, oracle.logits(x))
    oracle.forwards = 0
    return Search(attack, samples, oracle, norm="linf", seed=0, **{"keep_attempts": True, **how})


def distance(point: Tensor) -> float:
    return round(float(point.mean()) - GREY, 4)


@pytest.mark.parametrize(
    ("paths", "best"),
    [
        (((0.05, 0.15, 0.1),), 0.15),
        (((0.15, 0.05, 0.1),), 0.15),
        (((0.05, 0.1, 0.15),), 0.15),
        (((0.05, 0.3, 0.1),), 0.1),  # 0.3 lies outside of the ball
        (((0.05, -0.1, -0.2),), 0.05),
        (((0.05, 0.1), (0.12, 0.0), (0.1, 0.11)), 0.12),
    ],
)
@pytest.mark.parametrize("stride", [1, 8])
def test_the_query_of_the_largest_margin_in_the_ball(
    paths: tuple[tuple[float, ...], ...], best: float, stride: int
) -> None:
    attack = Path(name="path", paths=paths, restarts=len(paths))
    verdicts = search(attack, Rising(0.9), count=3, stride=stride).run()
    assert not verdicts.fell.any() and verdicts.points == {}
    assert sorted(verdicts.attempts) == [0, 1, 2]
    assert {distance(point) for _, _, point in verdicts.attempts.values()} == {best}
    assert all(reached == pytest.approx(2 * (GREY + best - 0.9)) for reached, _, _ in verdicts.attempts.values())
    margins = search(attack, Rising(0.9), count=3, stride=stride, keep_attempts=False, keep_margins=True).run()
    assert torch.equal(margins.best_margin, verdicts.best_margin) and margins.attempts == {}
    assert margins.best_margin.tolist() == pytest.approx([2 * (GREY + best - 0.9)] * 3)


def test_what_falls_has_none_and_what_is_not_asked_for_is_not_kept() -> None:
    attack = Path(name="path", paths=((0.05, 0.15), (0.0, 0.1)), restarts=2)
    fell = search(attack, Rising(GREY + 0.12), count=3, keep_points=True).run()
    assert fell.fell.all() and fell.attempts == {} and len(fell.points) == 3
    assert search(attack, Rising(0.9), keep_attempts=False).run().attempts == {}
    nearest = search(attack, Rising(0.9), eps=torch.inf, keep_margins=True).run()
    assert nearest.attempts == {} and nearest.best_margin.isneginf().all()
    assert search(attack, Rising(0.9), keep_attempts=False).run().best_margin.isneginf().all()


def test_keeping_them_costs_no_pass_and_changes_no_verdict() -> None:
    attack = Path(name="path", paths=((0.05, 0.15), (0.0, 0.1)), restarts=2)
    for at in (GREY + 0.12, 0.9):
        kept, plain = (search(attack, Rising(at), count=5, keep_attempts=keep) for keep in (True, False))
        assert torch.equal(kept.run().fell, plain.run().fell)
        assert kept.oracle.forwards == plain.oracle.forwards


def test_a_hit_that_the_model_refuses_is_an_attempt() -> None:
    verdicts = search(Path(name="path", paths=((0.05, 0.15, 0.1),)), Rising(0.9), Rising(GREY + 0.12)).run()
    assert not verdicts.fell.any() and verdicts.unverified > 0
    assert distance(verdicts.attempts[0][2]) == 0.15


def test_an_interrupted_search_keeps_them() -> None:
    attack = Path(name="path", paths=((0.05, 0.15, 0.1, 0.02), (0.0, 0.1, 0.05, 0.16)), restarts=2)
    whole = search(attack, Rising(0.9), count=5).run()
    rounds = 0

    def stop(running: Search) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 6:
            raise InterruptedError

    first = search(attack, Rising(0.9), count=5)
    with pytest.raises(InterruptedError):
        first.run(stop)
    saved = first.snapshot()
    first.run()  # must not change what was saved
    second = search(attack, Rising(0.9), count=5)
    second.restore(saved)
    found = second.run().attempts
    assert found.keys() == whole.attempts.keys()
    assert all(found[row][:2] == one[:2] and torch.equal(found[row][2], one[2]) for row, one in whole.attempts.items())


def test_replayed_turns_keep_the_same() -> None:
    def capture(body: Callable[[], None]) -> Callable[[], None]:
        body()
        return body

    attack = Path(name="path", paths=((0.05, 0.15, 0.1), (0.0, 0.1, 0.16)), restarts=2)
    found = []
    for how in ({}, {"capture": capture, "stride": 2}):
        running = search(attack, Rising(0.9), count=5, **how)
        found.append(running.run().attempts)
        assert running.eager == ""
    assert found[0].keys() == found[1].keys()
    assert all(one[:2] == found[1][row][:2] and torch.equal(one[2], found[1][row][2]) for row, one in found[0].items())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(50))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return least_squares()


def run(net: nn.Module, data: Dataset, *attacks: Any, **how: Any) -> Evaluation:
    short = {"steps": 5, "n_queries": 20}
    fields = {field for one in attacks for field in short if field in _fields(one)}
    given = {"eps": ["0.03"], "processes": 1, "probes": False, "keep_points": True, **how}
    return evaluate(net, data, Settings(attack=attacks, attack_settings={f: short[f] for f in fields}, **given))


def _fields(attack: Any) -> list[str]:
    from advbench.attacks.base import make

    return make(attack, "linf")[0].setting_names() if isinstance(attack, str) else []


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attacks", [("fgsm",), ("pgd",), ("rfgsm",), ("apgd-dlr", "square"), ("apgd-ce", "fab-t")])
def test_images_that_stand_have_points_of_a_larger_margin_in_the_ball(
    net: nn.Module, digits: Dataset, attacks: tuple[str, ...], norm: str
) -> None:
    if "rfgsm" in attacks and norm != "linf":
        pytest.skip("rfgsm starts from signs")
    eps = {"linf": 0.03, "l2": 0.08, "l1": 0.1}[norm]
    result = run(net, digits, *attacks, norm=norm, eps=[str(eps)])
    x, y = digits.batch(slice(None))
    z, standing = result.adversarials, torch.from_numpy(result.fates.fell < 0)
    assert standing.any() and not (result.found & standing).any()
    region = around(norm, x, torch.full((len(y),), eps, dtype=torch.float64))
    assert region.contains(z).all()
    with torch.no_grad():
        before, after = margin(net(x), y), margin(net(z), y)
    gained = (after - before)[standing]  # not by every image: a step up the cross-entropy need not raise the margin
    assert (gained >= -1e-5).all() and (gained > 1e-3).float().mean() > 0.9 and (after[standing] <= 0).all()
    assert (after[result.found] >= 0).all()
    assert torch.equal(z[~torch.from_numpy(result.fates.clean)], x[~torch.from_numpy(result.fates.clean)])


def test_the_strongest_over_all_attacks_and_eps(net: nn.Module, digits: Dataset) -> None:
    y = digits.labels
    alone = [run(net, digits, name) for name in ("fgsm", "apgd-ce")]
    both = run(net, digits, "fgsm", "apgd-ce")
    standing = torch.from_numpy(both.fates.fell < 0)
    with torch.no_grad():
        ours, *others = (margin(net(one.adversarials), y)[standing] for one in (both, *alone))
    assert torch.equal(ours, torch.stack(others).amax(0))
    curve = run(net, digits, "apgd-ce", eps=["0.01", "0.02", "0.03"], curve="exact")
    assert torch.equal(curve.adversarials[standing], alone[1].adversarials[standing])


def test_several_processes_keep_the_same(net: nn.Module, digits: Dataset) -> None:
    one, two = (run(net, digits, "pgd", "apgd-t", processes=count) for count in (1, 2))
    assert one.attempts and torch.equal(one.adversarials, two.adversarials)


def test_a_function_that_fails_leaves_its_points(net: nn.Module, digits: Dataset) -> None:
    from advbench.attacks.function import Function

    def half(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        z = (x + torch.where(y.view(-1, 1, 1, 1) % 2 == 0, eps, 2 * eps)).clamp(0, 1)
        return z

    result = run(net, digits, Function.of("half", half), slots=50)
    x, _ = digits.batch(slice(None))
    standing, even = torch.from_numpy(result.fates.fell < 0), digits.labels % 2 == 0
    tried, outside = standing & even, standing & ~even
    assert tried.any() and torch.equal(result.adversarials[tried], (x + 0.03).clamp(0, 1)[tried])
    assert outside.any() and torch.equal(result.adversarials[outside], x[outside])


def test_they_must_be_asked_for(net: nn.Module, digits: Dataset) -> None:
    result = run(net, digits, "fgsm", keep_points=False)
    with pytest.raises(ValueError, match="keep_points=True"):
        _ = result.adversarials
