"""Running out of memory halves the slots; slots are measured once; only per-sample numbers grow with n."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench import ranks
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.kernels import out_of_memory
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, evaluate
from advbench.evaluator import slots as slots_module
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.slots import (
    MAX_CUDA_SLOTS,
    MIN_CUDA_SLOTS,
    architecture_sha256,
    cached,
    choose_slots,
    fastest,
    problem_of,
    rate_of,
    seconds_of,
    step_of,
)

N = 50
ATTACKS = {
    "attack": ["pgd", "fab", "square"],
    "attack_settings": {"steps": 4, "n_queries": 20},
    "eps": ["0", "0.05", "0.1"],
}


class Small(nn.Module):
    """A linear model on 8x8 images that takes at most `most` rows, and at most `then` after `later` passes."""

    def __init__(self, most: int = 10**9, *, later: int = 10**9, then: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)) / 4)
            self.linear.bias.zero_()
        self.most, self.later, self.then = most, later, then

    def __deepcopy__(self, memo: dict[int, Any]) -> Small:
        return self  # the search copy runs out of memory too

    def forward(self, x: Tensor) -> Tensor:
        self.later -= 1
        if len(x) > (self.most if self.later > 0 else self.then):
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} rows")
        seen.append(len(x))
        return self.linear(x.flatten(1))


seen: list[int] = []


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


def measure(
    net: nn.Module,
    data: Dataset,
    slots: int | None,
    journal: Journal | None = None,
    resume: bool = False,
    **more: Any,
) -> Evaluation:
    settings = Settings(slots=slots, **{**ATTACKS, **more})
    return evaluate(net.eval(), data, settings, journal=journal, resume=resume)


def flag(result: Evaluation, name: str) -> list[str]:
    return [one.detail for one in result.record.flags if one.name == name]


@pytest.mark.parametrize("attack", [["pgd", "fab", "square"], ["fab"]])
def test_out_of_memory_halves_the_slots_and_continues(digits: Dataset, attack: list[str]) -> None:
    settings = ATTACKS["attack_settings"] if len(attack) > 1 else {"steps": 4}
    expected = measure(Small(), digits, 16, attack=attack, attack_settings=settings)
    assert not flag(expected, "slots")
    result = measure(Small(30), digits, 64, attack=attack, attack_settings=settings)
    assert result.record.engine.slots == 16
    assert result.record.id == expected.record.id  # nothing had fallen in larger passes
    assert [detail.partition(":")[0] for detail in flag(result, "slots")] == [
        "out of memory with 64 slots",
        "out of memory with 32 slots",
    ]
    again = measure(Small(30), digits, result.record.engine.slots, attack=attack, attack_settings=settings)
    assert again.record.id == result.record.id and not flag(again, "slots")


@pytest.mark.parametrize("passes", [12, 25, 45])
def test_hits_before_memory_ran_out_are_kept(digits: Dataset, tmp_path: Path, passes: int) -> None:
    expected = measure(Small(), digits, 8)
    net = Small(16, later=passes, then=8)
    result = measure(net, digits, 16)
    assert net.later < 0 and result.record.engine.slots == 8
    assert result.fates.fell.tolist() == expected.fates.fell.tolist()  # linear in fp32: independent of the slots
    (detail,) = flag(result, "slots")
    assert "continued with 8" in detail and "hits before were verified in passes of 16 rows or more" in detail


def test_halved_slots_are_reused_on_resuming(digits: Dataset, tmp_path: Path) -> None:
    def run(stop: Callable[[], bool], *, resume: bool) -> Evaluation:
        journal = Journal(tmp_path / "journal", stop=stop)
        return measure(Small(16), digits, None, journal=journal, resume=resume)

    rounds = iter(range(12))
    with pytest.raises(Interrupted):
        run(lambda: next(rounds, None) is None, resume=False)
    seen.clear()
    result = run(lambda: False, resume=True)
    assert max(seen) <= 16 and result.record.engine.slots == 16
    assert len(flag(result, "slots")) == 1  # from 32: the rule for 50 images
    assert result.record.id == measure(Small(), digits, 16).record.id


@pytest.mark.parametrize("later", [120, 60])  # passes after the first stop, and before it
def test_with_fewer_slots_the_journal_tells_the_same_searches(digits: Dataset, tmp_path: Path, later: int) -> None:
    """How many strikes of a search go at once must not follow the memory that is left."""
    eps = ["0", *(str(size / 100) for size in range(2, 8))]
    given: dict[str, Any] = {"attack": ["pgd", "square"], "eps": eps}
    rounds = iter(range(40))
    net = Small(then=8, later=later)
    with pytest.raises(Interrupted):
        measure(net, digits, 32, Journal(tmp_path / "journal", stop=lambda: next(rounds, None) is None), **given)
    assert (net.later > 0) is (later > 100)
    result = measure(Small(8), digits, 32, Journal(tmp_path / "journal"), resume=True, **given)
    assert result.record.engine.slots == 8
    assert result.fates.fell.tolist() == measure(Small(), digits, 8, **given).fates.fell.tolist()


def test_no_pass_is_larger_than_the_slots(digits: Dataset) -> None:
    seen.clear()
    measure(Small(), digits, 8, attack="autoattack", norm="l2", eps=["0", "0.5"])
    assert max(seen) == 8


def test_too_little_memory_for_one_image_is_an_error(digits: Dataset) -> None:
    with pytest.raises(UserError, match="one image at a time"):
        measure(Small(2, later=30, then=0), digits, 2)


def test_what_counts_as_a_lack_of_memory() -> None:
    assert out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_rule_for_a_cpu_depends_on_the_images_alone(digits: Dataset) -> None:
    def slots(n: int) -> int:
        data = digits.subset([row % N for row in range(n)])
        return choose_slots(Small(), data, norm="linf", precision="fp32")

    assert [slots(n) for n in (1, 8, 9, 64, 200, 5000)] == [8, 8, 8, 32, 128, 256]


@pytest.mark.parametrize(
    ("best", "memory", "expected"), [(512, 10**9, 512), (10**9, 10**9, MAX_CUDA_SLOTS), (512, 300, 256)]
)
def test_slots_double_while_they_pay_and_fit(best: int, memory: int, expected: int) -> None:
    def rate(slots: int) -> float:
        if slots > memory:
            raise torch.OutOfMemoryError
        return float(min(slots, best) * (1 + 0.01 * (slots > best)))

    assert fastest(rate) == expected


def test_the_first_count_may_not_fit_and_other_errors_pass() -> None:
    def none(slots: int) -> float:
        raise torch.OutOfMemoryError

    assert fastest(none) == MIN_CUDA_SLOTS // 2

    def broken(slots: int) -> float:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        fastest(broken)


class Clock:
    """Shows the time that the steps have taken; each timing has its own seconds a step, in order."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.now, self.steps = iter(seconds), 0.0, 0

    def step(self) -> None:
        self.steps += 1

    def __call__(self) -> float:
        self.now += self.steps * next(self.seconds) if self.steps else 0.0
        self.steps = 0
        return self.now


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        # The warm-up; 1, 2, 4, 8 and 16 steps, until they take 0.2 s; twice as many again.
        ((0.5, 0.09, 0.02, 0.02, 0.02, 0.02, 0.03, 0.01), 0.01),
        ((0.5, 0.3, 0.4, 0.35), 0.3),
    ],
)
def test_a_timing_is_long_enough_and_the_best_of_three_counts(seconds: tuple[float, ...], best: float) -> None:
    clock = Clock(*seconds)
    assert seconds_of(clock.step, torch.device("cpu"), clock) == pytest.approx(best)
    assert next(clock.seconds, None) is None


def test_a_recorded_step_makes_the_same_queries(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording is stood in for by the step itself."""
    monkeypatch.setattr(slots_module, "cuda_graph", lambda body: body)
    (attack,), _ = resolve(["fab-t"], {}, norm="linf", classes=10)
    p = problem_of(digits, 8, "linf")
    p.target = (p.y + 1) % 10

    def queries(graph: bool) -> list[Tensor]:
        asked: list[Tensor] = []
        net = Small()
        net.register_forward_pre_hook(lambda _, given: asked.append(given[0].clone()))
        step, why_not = step_of(attack, Oracle(net, slots=8), p, graph=graph)
        assert bool(why_not) is not graph
        for _ in range(3):
            step()
        return asked

    eager, recorded = queries(False), queries(True)
    assert len(eager) == 6  # two in a turn
    # The turn that was recorded was made once to try it and once by the recording; three more follow.
    assert len(recorded) == 10 and all(torch.equal(a, b) for a, b in zip(recorded[4:8], eager[2:], strict=True))


@pytest.mark.parametrize("norm", ["linf", "l1", "corruptions"])
def test_the_rate_is_that_of_steps_in_so_many_rows(digits: Dataset, norm: str) -> None:
    times = iter(range(100))
    rate = rate_of(Small(), digits, norm=norm, precision="fp32", clock=lambda: float(next(times)))
    seen.clear()
    assert rate(16) == 16 and set(seen) == {16}  # each timing is of one step and takes a second
    assert rate(64) == 64  # more than there are images


def test_a_measured_count_is_kept_and_asked_for_once(tmp_path: Path) -> None:
    asked = []

    def measured() -> int:
        asked.append(1)
        return 256

    path = tmp_path / "deeper" / "slots.json"
    assert [cached(path, "a card|a model", measured) for _ in range(3)] == [256] * 3 and len(asked) == 1
    assert cached(path, "another", lambda: 64) == 64
    assert json.loads(path.read_text()) == {"a card|a model": 256, "another": 64}
    path.write_text("{half a fi")
    assert cached(path, "a card|a model", measured) == 256 and len(asked) == 2


def test_without_a_writable_folder_slots_are_measured_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "slots.json", "key", lambda: 128) == 128


def test_a_device_is_measured_and_no_more_slots_than_images(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnDevice:
        device, shape = torch.device("cuda"), (1, 8, 8)

        def __len__(self) -> int:
            return 100

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(slots_module, "slots_file", lambda: tmp_path / "slots.json")
    monkeypatch.setattr(slots_module, "rate_of", lambda *given, **more: lambda slots: float(min(slots, 512)))
    data: Any = OnDevice()

    def slots(net: nn.Module) -> int:
        return choose_slots(net, data, norm="linf", precision="bf16")

    assert slots(Small()) == 128
    (key,) = json.loads((tmp_path / "slots.json").read_text())
    assert key.startswith("a card|torch ") and key.endswith(f"|{architecture_sha256(Small())}|1x8x8|linf|bf16")
    assert json.loads((tmp_path / "slots.json").read_text())[key] == 512
    monkeypatch.setattr(ranks, "world", lambda: 3)
    assert slots(Small()) == 64  # for 34 images


def test_an_architecture_is_the_same_whatever_its_weights_are() -> None:
    def net(width: int, activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), activation, nn.Linear(width, 2))

    one, again = (architecture_sha256(net(5, nn.ReLU())) for _ in range(2))
    assert one == again
    assert len({one, architecture_sha256(net(6, nn.ReLU())), architecture_sha256(net(5, nn.GELU()))}) == 3


def test_the_memory_of_a_search_does_not_grow_with_the_images(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the bytes of all tensors of a running search: besides the slots, a few numbers for each sample."""
    held: dict[int, int] = {}
    run = Search.run

    def watched(search: Search, watch: Any = None) -> Any:
        def look(running: Search) -> None:
            size = sum(value.nbytes for value in _tensors(vars(running), set()))
            n = len(running.samples.y)
            held[n] = max(held.get(n, 0), size)
            watch(running)

        return run(search, look)

    monkeypatch.setattr(Search, "run", watched)
    for times in (1, 4):
        data = digits.subset([row % N for row in range(times * N)])
        measure(Small(), data, 16, attack=["apgd-t"], eps=["0.3"], attack_settings={"steps": 3})
    few, many = sorted(held)[-2:]
    assert many > 3 * few
    per_sample = (held[many] - held[few]) / (many - few)
    assert per_sample < 200 < 64 * 4  # an image in float32 has 256


def _tensors(value: Any, known: set[int]) -> list[Tensor]:
    if id(value) in known or (callable(value) and not isinstance(value, nn.Module)):
        return []
    known.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _tensors(inner, known)]
    if isinstance(value, list | tuple):
        return [one for inner in value for one in _tensors(inner, known)]
    return _tensors(vars(value), known) if hasattr(value, "__dict__") and not isinstance(value, nn.Module) else []
