"""The forecast of an evaluation: planned against made passes, several evaluations, several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench import data as datasets
from advbench.data.dataset import Dataset
from advbench.evaluator import Journal, Series, Settings, evaluate, expected_work
from advbench.evaluator import forecast as module
from advbench.evaluator.eps_grid import bisections
from advbench.evaluator.evaluate import bare, planned
from advbench.evaluator.forecast import Forecast, Part
from advbench.evaluator.parallel import worker
from advbench.outlook import Outlook

EPS = ["0", "0.02", "0.05", "0.1"]


class Steep(nn.Module):
    """Right about everything by a margin that no eps below 1 can overcome, or half of it if `weak`.

    `above` is in every logit. In bf16, a large one hides the margins.
    """

    def __init__(self, data: Dataset, *, weak: bool = False, above: float = 0.0) -> None:
        super().__init__()
        x, y = data.batch(slice(None))
        self.register_buffer("x", x.flatten(1))
        self.register_buffer("one_hot", torch.eye(10)[y])
        self.weak, self.above = weak, above
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x.flatten(1), self.x)
        logits = torch.softmax(-20 * near, 1) @ self.one_hot
        return self.scale * logits + self.above + (0.02 * x.flatten(1)[:, :10] if self.weak else 0)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits", "test").subset(range(40))


@dataclass
class Seen:
    """What was told of one evaluation: the outlooks, and the passes that were planned when the attacks began."""

    outlooks: list[Outlook]
    planned: float
    forecast: Forecast


def told(net: nn.Module, data: Dataset, series: Series | None = None, **settings: Any) -> tuple[Seen, Any]:
    whole = series or Series()
    outlooks: list[Outlook] = []
    planned: list[float] = []

    def progress(forecast: Forecast) -> None:
        outlooks.append(whole.outlook(forecast))
        if forecast.parts and not planned:
            planned.append(sum(part.left for part in forecast.parts) + forecast._left())

    journal = Journal(progress=progress)
    result = evaluate(net, data, Settings(**{"eps": EPS, "slots": 16, **settings}), journal=journal)
    return Seen(outlooks, planned[0], journal.forecast), result


@pytest.mark.parametrize(
    ("attacks", "more", "curve"),
    [
        (["pgd", "square"], {"steps": 8, "n_queries": 30}, "fast"),
        (["apgd-t"], {"steps": 4}, "exact"),
        (["fab-t"], {"steps": 4}, "fast"),
    ],
)
def test_planned_passes_are_those_made_where_all_images_stand(
    digits: Dataset, attacks: list[str], more: dict[str, Any], curve: str
) -> None:
    seen, result = told(
        Steep(digits), digits, attack=attacks, attack_settings=more, curve=curve, probes=False, precision="fp32"
    )
    record = result.record
    made = record.forwards + record.backwards
    assert record.curve[-1].robust == len(digits)
    assert 0.75 * made <= seen.planned <= 1.25 * made, (seen.planned, made)


def test_share_rises_and_time_is_known_from_the_first_pass_to_the_last_probe(digits: Dataset) -> None:
    seen, _ = told(
        Steep(digits, weak=True),
        digits,
        attack=["pgd", "apgd-t", "square"],
        attack_settings={"steps": 5, "n_queries": 40},
    )
    shares = [one.share or 0.0 for one in seen.outlooks]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] < 1
    stages = list(dict.fromkeys(one.what for one in seen.outlooks))
    assert stages[0] == "preparing" and stages[-1] == "probes"
    assert stages[1:4] == ["attack 1 of 3: pgd", "attack 2 of 3: apgd-t", "attack 3 of 3: square"]
    begun = [one for one in seen.outlooks if one.what != "preparing"][1:]
    assert all(one.left is not None for one in begun)
    assert (begun[-1].left or 0.0) < max(one.left or 0.0 for one in begun)
    assert any("of 40 fell" in one.more for one in begun)


def test_the_recheck_is_planned_and_told(digits: Dataset) -> None:
    seen, _ = told(
        Steep(digits, above=1000.0),
        digits,
        attack=["apgd-t"],
        attack_settings={"steps": 2},
        precision="bf16",
        probes=False,
        eps=["0.1"],
    )
    stages = list(dict.fromkeys(one.what for one in seen.outlooks))
    assert stages[1:4] == ["attack 1 of 3: apgd-t", "attack 2 of 3: apgd-ce in fp32", "attack 3 of 3: apgd-t in fp32"]
    assert [part.left for part in seen.forecast.parts] == [0.0, 0.0, 0.0]


def own(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    for _ in range(3):
        model(x)
    return x


def test_attacks_on_whole_batches_are_told(digits: Dataset) -> None:
    seen, _ = told(Steep(digits), digits, attack=[own], eps=["0.05", "0.1"])
    told_of = [one for one in seen.outlooks if one.what.endswith(":own")]
    assert len(told_of) >= 2 * 3 * 3  # points, batches, passes
    assert any(one.left for one in told_of) and told_of[-1].share == max(one.share or 0 for one in told_of)


def test_what_the_progress_raises_in_an_attack_from_outside_comes_out_as_it_is(digits: Dataset) -> None:
    class Enough(Exception):
        pass

    def progress(forecast: Forecast) -> None:
        if forecast.stage.endswith(":own"):
            raise Enough

    with pytest.raises(Enough):
        evaluate(Steep(digits), digits, Settings(attack=own, eps=["0.1"]), journal=Journal(progress=progress))


def test_the_share_never_falls_over_several_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    series = Series([1.0, 2.0, 1.0])

    def at(second: float, forecast: Any, left: float | None) -> Outlook:
        now[0] = second
        monkeypatch.setattr(forecast, "left", lambda: left)
        return series.outlook(forecast)

    one = Forecast(stage="pgd")
    assert at(0, one, None) == Outlook("model 1 of 3, pgd", 0.0, None, "")
    first = at(50, one, 50.0)
    assert (first.share, first.left) == (0.125, 350.0)  # the others take three times as long
    grown = at(60, one, 90.0)
    assert grown.share == first.share and grown.left == 90 + 3 * 150
    at(100, one, 0.0)
    series.next()
    second = at(100, Forecast(stage="probes"), 200.0)
    assert second.what == "model 2 of 3, probes" and (second.share, second.left) == (0.25, 300.0)
    series.next(skipped=True)  # measured before
    third = at(100, Forecast(stage="pgd"), 100.0)
    assert (third.share, third.left) == (0.5, 100.0)


def test_the_slowest_of_several_processes_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Forecast(others=lambda: [(40.0, 2, 10), (7.0, 1, 10)])
    here.parts = [Part("pgd")]
    assert here.left() == 40.0 and here.fallen() == "3 of 20 fell"
    here.others = lambda: [(None, 0, 0)]
    assert here.left() is None


def test_worker_processes_tell_this_one(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TELL_SECONDS", 0.0)
    written: list[bytes] = []

    class Pipe:
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)

    pipe: Any = Pipe()
    journal = Journal(progress=worker.teller(pipe))
    settings = Settings(attack="pgd", attack_settings={"steps": 3}, eps=["0.1"], slots=16, probes=False)
    evaluate(Steep(digits), digits, settings, journal=journal)
    import pickle

    every = [pickle.loads(one) for one in written]
    assert len(every) > 4 and any(one[0] for one in every) and max(one[2] for one in every) == 40

    class Gone(Pipe):
        write = staticmethod(lambda data: (_ for _ in ()).throw(BrokenPipeError()))

    gone: Any = Gone()
    worker.teller(gone)(journal.forecast)  # the starting process was killed: `stop` says so


def test_work_follows_images_attacks_and_the_size_of_the_net(digits: Dataset) -> None:
    def work(net: Callable[[], nn.Module], data: Dataset, attack: str, curve: str = "fast") -> float:
        loaded, settings = bare(net(), data), Settings(attack=attack, eps=EPS, curve=curve)
        return expected_work(loaded, data, settings, planned(loaded, data, settings)[0])

    small = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    large = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.Linear(512, 10))  # noqa: E731
    base = work(small, digits, "pgd")
    assert work(small, digits.subset(range(20)), "pgd") == pytest.approx(base / 2)
    assert work(small, digits, "autoattack") > 10 * base
    assert work(small, digits, "pgd", "exact") == pytest.approx(base * 3 / bisections(3))
    assert work(large, digits, "pgd") > base
