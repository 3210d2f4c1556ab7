"""Replayed steps give the results of eager ones, and no attack's step waits for the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import proofs
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from advbench import rng
from advbench.engine.attack import Answer, Attack, Problem, Samples
from advbench.engine.cuda_graph import WARM_UP_RUNS
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.errors import UserError
from advbench.models import build
from advbench.models.base import Model
from advbench.models.tasks import NAMES, Head, make_heads, make_tasks
from advbench.registry import entries, find
from advbench.threat import around

NORMS = ("linf", "l2", "l1", "l0", "fourier-linf")
COUNT, SLOTS, CLASSES = 9, 4, 5


def attacks() -> Iterator[Any]:
    for name in entries("attacks"):
        made = proofs.made(name, "quick")
        if isinstance(made, tuple):
            continue
        for norm in NORMS:
            try:
                yield pytest.param(made.for_model(norm, CLASSES), norm, id=f"{name}-{norm}")
            except UserError:
                continue


class OnlyMeta(TorchDispatchMode):
    """Fails if an operation makes a tensor that is not on the meta device: on CUDA it would be copied from the host.

    Operations that wait for a value fail by themselves, because meta tensors have none.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [value for value in (out if isinstance(out, list | tuple) else [out]) if isinstance(value, Tensor)]
        assert all(value.device.type == "meta" for value in made), f"{func} makes a tensor on the host"
        return out


@pytest.mark.parametrize(("attack", "norm"), list(attacks()))
def test_no_step_waits_for_the_host(attack: Attack, norm: str) -> None:
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device="meta")

    x, row = meta(SLOTS, 1, 6, 6), meta(SLOTS, dtype=torch.int64)
    key = rng.keys(0, attack.name, row)
    p = Problem(around(norm, x, meta(SLOTS, dtype=torch.float64)), row, row, key, row)

    def turn(state: Any) -> Any:
        for asks in attack.turn:
            shape = (SLOTS, CLASSES, 1, 6, 6) if asks == "jacobian" else (SLOTS, 1, 6, 6)
            grad = None if asks == "logits" else meta(*shape)
            value = meta(SLOTS, CLASSES) if asks == "jacobian" else meta(SLOTS)
            wrong = meta(SLOTS, dtype=torch.bool)
            p.region.contains(state.query)
            p.region.size(state.query - x)
            attack.done(state)
            state = attack.step(p, state, Answer(meta(SLOTS, CLASSES), wrong, value, grad))
        return state

    state = turn(attack.start(p))  # makes the cached tables, as the warm-up does
    with OnlyMeta():
        turn(turn(state))


def fake(body: Callable[[], None]) -> Callable[[], None]:
    """A `Capture` that acts as `cuda_graph` does: warm up, record without running, replay."""
    for _ in range(WARM_UP_RUNS):
        body()
    return body


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.one, self.two = (nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((16, 36), (CLASSES, 16)))

    def forward(self, z: Tensor) -> Tensor:
        return (z.flatten(1) @ self.one.T).tanh() @ self.two.T


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Net().eval()


def search(net: nn.Module, attack: Attack, norm: str, **more: Any) -> Search:
    x = torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    oracle = Oracle(net, slots=SLOTS)
    logits = oracle.logits(x)
    size = {"linf": 0.05, "l2": 0.2, "l1": 0.6, "l0": 2, "fourier-linf": 0.05}[norm]
    eps = torch.full((COUNT,), torch.inf if attack.minimum_norm else size, dtype=torch.float64)
    samples = Samples(lambda rows: x[rows], logits.argmax(1), torch.arange(COUNT), eps, logits)
    return Search(attack, samples, oracle, norm=norm, seed=0, **more)


MIXED = [
    ("pgd", "linf"), ("apgd-t", "l2"), ("apgd-ce", "l1"), ("apgd-ce", "fourier-linf"), ("fab", "l2"), ("square", "l1"),
    ("fmn", "linf"), ("ddn", "l2"), ("cw-l2", "l2"), ("deepfool", "linf"), ("rays", "linf"), ("hopskipjump", "l2"),
    ("odi-margin", "linf"), ("pma", "l2"), ("sigma-zero", "l0"),
]  # fmt: skip
SHORT: dict[str, dict[str, Any]] = {
    "apgd-ce": {"steps": 15},
    "apgd-t": {"steps": 15},
    "cw-l2": {"searches": 2, "iterations": 5},
    "ddn": {"steps": 15},
    "fab": {"steps": 4, "restarts": 2},
    "fmn": {"steps": 15},
    "hopskipjump": {"n_queries": 300},
    "odi-margin": {"steps": 6, "restarts": 3, "odi_steps": 3},
    "pgd": {"steps": 4, "momentum": 0.5},
    "pma": {"steps": 10},
    "rays": {"n_queries": 60},
    "sigma-zero": {"steps": 15},
    "square": {"n_queries": 12},
}


@pytest.mark.parametrize(("name", "norm"), MIXED)
@pytest.mark.parametrize("stride", [1, 3])
def test_replayed_steps_give_the_verdicts_of_eager_ones(net: nn.Module, name: str, norm: str, stride: int) -> None:
    attack = find("attacks", name).create(**SHORT.get(name, {})).for_model(norm, CLASSES)
    eager, replayed = search(net, attack, norm), search(net, attack, norm, capture=fake, stride=stride)
    one, two = eager.run(), replayed.run()
    assert replayed.eager == ""
    assert one.fell.tolist() == two.fell.tolist() and one.fell.any()
    if attack.minimum_norm:
        assert one.distance.tolist() == two.distance.tolist()


ATTACKED = ("sum", "relative", "wgd", "cyclic", "jigsaw")


@pytest.fixture(scope="module")
def several() -> tuple[Model, dict[str, Head]]:
    net = build("mlp", num_classes=CLASSES, in_channels=1, image_size=6, seed=0).eval()
    tasks = make_tasks(NAMES, "", CLASSES, (0, 0, 1, 1, 2))
    return net, make_heads(tasks, net.feature_dim, (1, 6, 6), seed=0)


@pytest.mark.parametrize("attacked", ATTACKED)
def test_a_task_oracle_makes_no_tensor_on_the_host(attacked: str, several: tuple[Model, dict[str, Head]]) -> None:
    attack = find("attacks", "multi-task").create(attacked=attacked).for_model("linf", CLASSES)
    net = copy.deepcopy(several[0]).to("meta")
    heads = {name: copy.deepcopy(head).to("meta") for name, head in several[1].items()}
    attack = replace(attack, heads=heads)
    oracle = attack.oracle(Oracle(net, slots=SLOTS), 0)
    x, row = torch.zeros(SLOTS, 1, 6, 6, device="meta"), torch.zeros(SLOTS, dtype=torch.int64, device="meta")
    p = Problem(around("linf", x, row.double()), row, row, row, row, index=row)
    with OnlyMeta():
        answer = oracle.answer(attack, p, x)
    losses = 1 if attacked == "jigsaw" else 1 + len(NAMES)
    assert answer.value.shape == (SLOTS, losses) and answer.gradient.shape == (SLOTS, losses, 1, 6, 6)


@pytest.mark.parametrize("attacked", ATTACKED)
def test_replayed_steps_on_tasks_give_the_points_of_eager_ones(
    attacked: str, several: tuple[Model, dict[str, Head]]
) -> None:
    (net, heads), index = several, torch.arange(COUNT)
    made = find("attacks", "multi-task").create(attacked=attacked, steps=6).for_model("linf", CLASSES)
    attack = replace(made, heads=heads)
    x, found = torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1)), []
    for how in ({}, {"capture": fake, "stride": 3}):
        oracle = attack.oracle(Oracle(net, slots=SLOTS), 0)
        logits = oracle.logits(x)
        samples = Samples(lambda rows: x[rows], logits.argmax(1), index, torch.full((COUNT,), 0.6).double(), logits)
        run = Search(attack, samples, oracle, norm="linf", seed=0, keep_points=True, **how)  # type: ignore[arg-type]
        found.append(run.run().points)
        assert run.eager == ""
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.equal(point, found[1][row]) for row, point in found[0].items())


def test_passes_of_replays_are_counted(net: nn.Module) -> None:
    attack = find("attacks", "apgd-ce").create(steps=20).for_model("linf", CLASSES)
    eager = search(net, attack, "linf")

    def uncounted(body: Callable[[], None]) -> Callable[[], None]:
        oracle = replayed.oracle
        fake(body)
        body()

        def replay() -> None:
            counts = oracle.forwards, oracle.backwards
            body()
            oracle.forwards, oracle.backwards = counts

        return replay

    replayed = search(net, attack, "linf", capture=uncounted)
    for run in (eager, replayed):
        run.samples.eps.fill_(1e-6)  # no sample falls, so every item runs to its end
        run.run()
    more = (WARM_UP_RUNS + 1) * SLOTS  # the warm-up, and the eager step with which the first replay is compared
    assert replayed.oracle.forwards == eager.oracle.forwards + more
    assert replayed.oracle.backwards == eager.oracle.backwards + more


def test_a_step_that_cannot_be_recorded_stays_eager_and_says_why(net: nn.Module) -> None:
    def refuse(body: Callable[[], None]) -> Callable[[], None]:
        body()
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    attack = find("attacks", "apgd-t").create(steps=8).for_model("linf", CLASSES)
    run = search(net, attack, "linf", capture=refuse)
    assert torch.equal(run.run().fell, search(net, attack, "linf").run().fell)
    assert run.eager == "RuntimeError: operation not permitted when stream is capturing"


def test_a_replay_that_gives_other_numbers_is_not_used(net: nn.Module) -> None:
    attack = find("attacks", "apgd-t").create(steps=8).for_model("linf", CLASSES)
    run = search(net, attack, "linf", capture=lambda body: lambda: None)
    assert torch.equal(run.run().fell, search(net, attack, "linf").run().fell)
    assert run.eager == "a replay of the step gives other numbers than the step"


def test_out_of_memory_errors_are_raised(net: nn.Module) -> None:
    def full(body: Callable[[], None]) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        search(net, find("attacks", "pgd").create(), "linf", capture=full).run()


def test_a_stopped_search_with_replays_resumes(net: nn.Module) -> None:
    attack = find("attacks", "apgd-t").create(steps=12).for_model("linf", CLASSES)
    whole = search(net, attack, "linf").run()
    rounds = iter(range(5))

    def stop(running: Search) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    killed = search(net, attack, "linf", capture=fake)
    with pytest.raises(KeyboardInterrupt):
        killed.run(stop)
    saved = killed.snapshot()
    before = {name: value.clone() for name, value in saved["state"].items()}
    killed.run()  # must not change the snapshot
    assert all(torch.equal(before[name], value) for name, value in saved["state"].items())
    resumed = search(net, attack, "linf", capture=fake)
    resumed.restore(saved)
    assert torch.equal(resumed.run().fell, whole.fell)
    assert all(torch.equal(before[name], value) for name, value in saved["state"].items())
