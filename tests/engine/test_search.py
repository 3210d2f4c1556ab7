"""How a search treats hits: attacks with given queries, on a model that is wrong above a threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench import rng
from advbench.engine.attack import Answer, Attack, Problem, Samples, State
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search

EPS, GREY = 0.2, 0.3
KEYS: list[tuple[int, int, int, int]] = []  # of the problems given to `Path.start`: label, target, restart, key


@dataclass
class PathState(State):
    x: Tensor
    distances: Tensor  # (S, n): distance of each query from the image


@dataclass(frozen=True, kw_only=True)
class Path(Attack):
    """Queries at fixed distances from the image, with one path (list of distances) for each target and restart."""

    asks = "logits"
    norms = ("linf",)
    steps: int = field(init=False, default=1)
    paths: tuple[tuple[float, ...], ...] = ((0.0,),)
    beyond: float = 0.0  # distance of the queries after the end of the path
    n_targets: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", len(self.paths[0]) - 1)

    def target_classes(self, logits: Tensor, y: Tensor) -> Tensor:
        return torch.arange(1, self.n_targets + 1).expand(len(y), -1)

    def start(self, p: Problem) -> PathState:
        assert p.restart is not None
        number = p.restart * self.n_targets + p.target - 1
        KEYS.extend(zip(p.y.tolist(), p.target.tolist(), p.restart.tolist(), p.key.tolist(), strict=True))
        distances = torch.tensor(self.paths)[number % len(self.paths)]
        return PathState(p.region.x + distances[:, 0].view(-1, 1, 1, 1), torch.zeros_like(p.y), p.region.x, distances)

    def step(self, p: Problem, s: PathState, a: Answer) -> PathState:
        far = s.distances.gather(1, (s.i + 1).clamp_max(self.steps)[:, None])[:, 0]
        far = torch.where(s.i < self.steps, far, self.beyond).view(-1, 1, 1, 1)
        return PathState(s.x + far, s.i + 1, s.x, s.distances)


class Above(nn.Module):
    """Predicts the last class, which is wrong, if the mean of an image is above `at`, and class 0 below."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(1) - self.at
        return torch.stack([-over, *[torch.full_like(over, -9.0)] * 3, over], 1)


def search(attack: Attack, net: nn.Module, copy: nn.Module | None = None, **more: Any) -> Search:
    """The attack on `count` grey images of class 0."""
    count, slots, eps = more.get("count", 1), more.get("slots", 2), more.get("eps", EPS)
    oracle = Oracle(net, copy, slots=slots)
    x = torch.full((count, 1, 2, 2), GREY)
    sizes = torch.full((count,), eps, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], torch.zeros(count).long(), torch.arange(count), sizes, oracle.logits(x))
    oracle.forwards = 0
    return Search(attack, samples, oracle, norm="linf", seed=7, stride=more.get("stride", 1), keep_points=True)


def test_a_point_outside_of_the_ball_is_no_candidate() -> None:
    """At distance 0.3 the model is wrong, but the point is outside; at 0.2 it is inside, but the model is right."""
    verdicts = search(Path(name="path", paths=((0.3, 0.2, 0.3),)), Above(GREY + 0.25)).run()
    assert not verdicts.fell.any() and verdicts.unverified == 0 and verdicts.distance.isinf().all()
    later = search(Path(name="path", paths=((0.3, 0.1, 0.15),)), Above(GREY + 0.12)).run()
    assert later.fell.all() and later.unverified == 0
    assert torch.allclose(later.points[0], torch.tensor(GREY + 0.15))


def test_the_point_after_the_last_update_is_judged_and_none_after_it() -> None:
    fell = [
        bool(search(Path(name="path", paths=(path,)), Above(GREY + 0.1)).run().fell)
        for path in ((0.0, 0.0, 0.15), (0.0, 0.15, 0.0), (0.15, 0.0, 0.0), (0.0, 0.0, 0.05))
    ]
    assert fell == [True, True, True, False]
    attack = Path(name="path", paths=((0.0, 0.0),), beyond=0.15)
    assert not search(attack, Above(GREY + 0.1), stride=8).run().fell.any()


def test_a_refused_item_continues_and_may_still_fall() -> None:
    """The copy is wrong from 0.05 on, the model itself from 0.12 on. After the first refusal it is known by how much
    the copy overstates margins, so 0.08 is no hit."""
    attack = Path(name="path", paths=((0.06, 0.08, 0.15, 0.06),))
    verdicts = search(attack, Above(GREY + 0.12), Above(GREY + 0.05)).run()
    assert verdicts.fell.all() and verdicts.unverified == 1
    assert verdicts.distance[0] == pytest.approx(0.15)
    never = search(attack, Above(GREY + 0.19), Above(GREY + 0.05)).run()
    assert not never.fell.any() and never.unverified == 1


def test_a_refused_item_continues_after_a_restart() -> None:
    """The search is stopped after each of its rounds in turn, and resumed from the snapshot."""
    nets = Above(GREY + 0.12), Above(GREY + 0.05)
    attack = Path(name="path", paths=((0.06, 0.08, 0.15, 0.06),))
    whole = search(attack, *nets, count=3).run()
    assert whole.fell.all() and whole.unverified == 3
    rounds = 0
    while True:
        rounds += 1
        left = iter(range(rounds))

        def stop(_: Search, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise InterruptedError

        killed = search(attack, *nets, count=3)
        try:
            killed.run(stop)
        except InterruptedError:
            resumed = search(attack, *nets, count=3)
            resumed.restore(killed.snapshot())
            again = resumed.run()
            assert torch.equal(again.distance, whole.distance) and again.unverified == whole.unverified
        else:
            break
    assert rounds > 5


@pytest.mark.parametrize("slots", [1, 2])
def test_a_hit_spares_the_sample_all_its_other_items(slots: int) -> None:
    """Two of four targets hit at their second query; the other two would make 40 queries. With so few slots hits are
    verified at once."""
    hit, none = (0.0, 0.15, *[0.0] * 38), (0.0,) * 40
    run = search(Path(name="path", paths=(hit, none, hit, none), n_targets=4), Above(GREY + 0.1), slots=slots)
    assert run.run().fell.all()
    assert run.oracle.forwards == (2 + 1) * slots
    whole = search(Path(name="path", paths=(none,), n_targets=4), Above(GREY + 0.1), slots=slots)
    assert not whole.run().fell.any()
    assert whole.oracle.forwards == 4 * 40


def test_a_slot_forgets_what_its_last_item_found() -> None:
    """Two samples, one after the other in one slot: the best size of the first is no limit for the second."""
    attack = Nearest(name="path", paths=((0.15, 0.2, 0.0),))
    verdicts = search(attack, Above(GREY + 0.1), count=2, slots=1, eps=torch.inf).run()
    assert torch.allclose(verdicts.distance, torch.tensor(0.15, dtype=torch.float64))


class Nearest(Path):
    minimum_norm = True


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_nearest_point_of_all_items_and_queries_is_kept(slots: int) -> None:
    paths = ((0.4, 0.2, 0.3), (0.5, 0.15, 0.2), (0.14, 0.3, 0.0), (0.4, 0.05, 0.0))
    verdicts = search(Nearest(name="path", paths=paths, n_targets=2, restarts=2), Above(GREY + 0.1), slots=slots,
                      eps=torch.inf).run()  # fmt: skip
    assert verdicts.distance[0] == pytest.approx(0.14)
    assert torch.allclose(verdicts.points[0], torch.tensor(GREY + 0.14))


def test_each_item_has_its_own_random_numbers() -> None:
    KEYS.clear()
    run = search(Path(name="path", paths=((0.0, 0.0),), n_targets=3, restarts=2), Above(1.0), count=4, slots=5)
    run.samples.index = run.samples.index + 10
    KEYS.clear()  # drops those of the initial fill of the slots
    run.run()
    wanted = {
        int(rng.keys(7, "path", torch.tensor([10 + sample]), torch.tensor(target), torch.tensor(restart)))
        for sample in range(4)
        for target in (1, 2, 3)
        for restart in (0, 1)
    }
    assert len(KEYS) == len(wanted) == 24
    assert {key for *_, key in KEYS} == wanted


def brighter(count: int, net: type[Above] = Above, **more: Any) -> Search:
    """`count` images of rising grey, the last of which fall first: image i needs count - i queries to pass `net`."""
    oracle = Oracle(net(GREY + 0.01 * count - 0.015), slots=more.pop("slots", count))
    grey = GREY + 0.01 * torch.arange(count)
    x = grey.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    sizes = torch.full((count,), 0.5, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], torch.zeros(count).long(), torch.arange(count), sizes, oracle.logits(x))
    path = Path(name="path", paths=(tuple(0.01 * step for step in range(count + 1)),))
    return Search(path, samples, oracle, norm="linf", seed=7, **more)


def widths(run: Search) -> list[int]:
    """The width of each round of a search, which is run to its end."""
    found: list[int] = []
    turns = iter(lambda: run.work.slot_steps, None)
    before = next(turns)

    def watch(search: Search) -> None:
        nonlocal before
        if (now := next(turns)) > before:
            found.append(int(now - before))
        before = now

    run.run(watch)
    return found


def test_the_width_follows_the_items() -> None:
    """After turn t the items of t images have ended; a width is left once another of at most 3/4 of it suffices."""
    run = brighter(16, width_step=4)
    assert widths(run) == [16] * 4 + [12] * 4 + [8] * 4 + [4] * 4
    assert run.work.slot_steps == 4 * (16 + 12 + 8 + 4) and run.work.useful == sum(range(1, 17))
    assert run.verdicts.fell.all() and run.oracle.slots == 16
    still = brighter(16)
    assert set(widths(still)) == {16} and still.work.useful == run.work.useful
    assert torch.equal(still.verdicts.distance, run.verdicts.distance)
    assert brighter(3, width_step=2, slots=16).width == 4 and brighter(3, slots=16).width == 16


class Uneven(Above):
    """Rounds otherwise in passes of 4 rows, and refuses less."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 4:
            raise ValueError("too few images")
        return super().forward(x) * (1 + 2.0**-20 * (len(x) == 4))


def test_an_exact_search_becomes_narrower_where_a_turn_gives_the_same_bits() -> None:
    """A new width must save 8 turns, half of the 16, for the trial, none of whose passes counts."""
    still, free = brighter(16), brighter(16, width_step=4, exact=True)
    assert set(widths(still)) == {16} and widths(free) == [16] * 8 + [8] * 4 + [4] * 4
    assert still.oracle.forwards - free.oracle.forwards == still.work.slot_steps - free.work.slot_steps > 0
    uneven = brighter(16, net=Uneven, width_step=2, exact=True)
    assert widths(uneven) == [16] * 8 + [8] * 8
    assert torch.equal(still.verdicts.distance, free.verdicts.distance)
    assert torch.equal(brighter(16, net=Uneven).run().distance, uneven.verdicts.distance)


def test_no_trial_of_a_width_reads_memory_that_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN in all of it, widths are as ever: the candidates of slots without a hit are compared as well."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        assert widths(brighter(16, width_step=4, exact=True)) == [16] * 8 + [8] * 4 + [4] * 4
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_narrowed_search_continues_after_a_restart() -> None:
    whole = brighter(16, width_step=4).run()
    for stop_after in range(1, 16):

        def stop(search: Search, last: int = stop_after) -> None:
            if search.verdicts.fell.sum() + sum(map(len, search.unchecked)) >= last:
                raise InterruptedError

        killed = brighter(16, width_step=4)
        with pytest.raises(InterruptedError):
            killed.run(stop)
        resumed = brighter(16, width_step=4)
        resumed.restore(killed.snapshot())
        assert resumed.width == killed.width
        assert torch.equal(resumed.run().distance, whole.distance)


def test_a_step_is_recorded_once_for_each_width() -> None:
    recorded: list[int] = []

    def capture(body: Any) -> Any:
        recorded.append(run.width)
        return body

    run = brighter(16, width_step=4, capture=capture)
    assert torch.equal(run.run().distance, brighter(16).run().distance)
    assert recorded == [16, 12, 8, 4] and run.eager == ""


def test_what_idles_within_a_stride_is_counted_as_half() -> None:
    """With 8 turns between two looks, items that end at turns 1 to 8 were useful for 4.5 turns each on average."""
    run = brighter(8, stride=8)
    run.run()
    assert run.work.slot_steps == 8 * 8 and run.work.useful == sum(range(1, 9))
    assert run.work.host > 0 and run.work.attacks > 0 and run.work.verification > 0 and run.work.recheck == 0
