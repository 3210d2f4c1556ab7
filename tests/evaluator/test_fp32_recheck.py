"""After a search in bf16, the images that stand are attacked again in fp32, and the record says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.cli.again import asked
from advbench.cli.keep import answers
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.losses import margin
from advbench.engine.oracle import Oracle
from advbench.errors import Interrupted
from advbench.evaluator import Evaluation, Journal, Settings, evaluate
from advbench.evaluator import fp32_recheck as recheck_module
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.evaluate import planned
from advbench.evaluator.fp32_recheck import (
    NEAR,
    SET,
    copy_error,
    covered,
    misled,
    near_margins,
    recheck_attacks,
)
from advbench.evaluator.parallel import processes, worker
from advbench.evaluator.runner import Runner
from advbench.registry import find

N = 40
EPS = ["0", "0.05", "0.15", "0.3"]


class Masked(nn.Module):
    """A linear model whose gradients are zero in bf16, as rounding may make them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(*reversed(weight.shape))
        self.linear.weight.data, self.linear.bias.data = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits.detach() if x.dtype is torch.bfloat16 else logits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def masked() -> nn.Module:
    x, y = load("digits", "train").batch(slice(0, 800))
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    return Masked(20 * means, -10 * (means**2).sum(1)).eval()  # the nearest class mean


def measure(
    net: nn.Module,
    data: Dataset,
    *,
    precision: str = "bf16",
    journal: Journal | None = None,
    resume: bool = False,
    **more: Any,
) -> Evaluation:
    given: dict[str, Any] = {"attack": ["pgd"], "attack_settings": {"steps": 3}, "eps": EPS, "slots": 16}
    given["probes"] = False
    return evaluate(net, data, Settings(precision=precision, **{**given, **more}), journal=journal, resume=resume)


@pytest.mark.parametrize("curve", ["fast", "exact"])
def test_what_bf16_hides_falls_in_fp32(masked: nn.Module, digits: Dataset, curve: str) -> None:
    exact = evaluate(
        masked, digits, Settings(attack=["apgd-ce", "apgd-t"], eps=EPS, slots=16, curve=curve, probes=False)
    )
    result = measure(masked, digits, curve=curve)
    assert result.fates.fell.tolist() == exact.fates.fell.tolist()
    assert [ref.name for ref in result.record.attack] == ["pgd", "apgd-ce", "apgd-t"]
    assert [ref.settings.get("precision") for ref in result.record.attack] == [None, "fp32", "fp32"]
    assert result.record.attack[2].settings["n_targets"] == 3
    assert result.record.attack_name == f"pgd+{SET}"
    felled = np.bincount(result.fates.by[result.fates.by >= 0], minlength=3)
    assert felled[1] > 10 and felled[0] < 5  # without gradients, PGD hits by chance
    without = measure(masked, digits, curve=curve, precision="fp32")
    assert result.record.backwards > 5 * without.record.backwards


def test_nearest_points_are_searched_in_fp32(masked: nn.Module, digits: Dataset) -> None:
    """A bf16 copy has another decision boundary: its nearest points are rarely adversarial to the model."""
    asked = {"attack": ["ddn"], "norm": "l2", "eps": ["0", "0.5", "1"], "attack_settings": {"steps": 5}}
    result, fp32 = measure(masked, digits, **asked), evaluate(masked, digits, Settings(slots=16, probes=False, **asked))  # type: ignore[arg-type]
    assert result.record.engine.precision == "fp32" and result.record.id == fp32.record.id


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "fourier-linf"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_every_norm_and_number_of_classes_has_a_recheck(norm: str, classes: int) -> None:
    asked = [find("attacks", "pgd").create(), find("attacks", "pgd").create(eot=3, straight_through=True)]
    made, refs = recheck_attacks(asked, norm=norm, classes=classes)
    assert [(one.eot, one.straight_through) for one in made] == [(3, True)] * 2
    assert not any(one.straight_through for one in recheck_attacks(asked[:1], norm=norm, classes=classes)[0])
    targets = made[1].target_classes(torch.randn(5, classes), torch.zeros(5, dtype=torch.int64))
    assert targets.shape == (5, min(3, classes - 1))
    assert made[1].loss == ("dlr" if classes > 3 else "cw")
    assert all(ref.settings["larger_eps"] == (norm == "l1") for ref in refs)


def test_auto_makes_no_attack_stronger_than_it_is() -> None:
    standard = find("attacks", "autoattack").create(norm="linf")
    assert covered(standard) and not covered([find("attacks", "pgd").create()])


def test_a_record_in_bf16_can_be_repeated_and_recognised(masked: nn.Module, digits: Dataset) -> None:
    record = measure(masked, digits).record
    assert asked(record, 10) == (["pgd"], {"steps": 3})
    question: dict[str, Any] = {
        "model": record.model.model_dump(
            include={"weights_sha256", "arch", "settings", "code_sha256", "mean", "std", "abstain"}
        ),
        "images": record.dataset.images_sha256,
        "indices": list(record.dataset.indices),
        "norm": "linf",
        "eps": record.eps,
        "attacks": [ref.model_dump(mode="json") for ref in record.attack],
        "engine": {**record.engine.model_dump(mode="json"), "slots": 512},  # before memory ran out
        "seed": 0,
        "keep_points": False,
        "probes": False,
        "advbench": record.environment.advbench,
    }
    assert answers(record, question)
    assert not answers(record, {**question, "seed": 1})


def test_order_and_interruption_change_nothing(masked: nn.Module, digits: Dataset, tmp_path: Path) -> None:
    def run(data: Dataset, stop: Callable[[], bool] = lambda: False, resume: bool = False) -> Evaluation:
        return measure(masked, data, journal=Journal(tmp_path / "journal", stop=stop), resume=resume)

    whole = run(digits)
    backwards = run(digits.subset(list(reversed(range(N)))))
    assert backwards.fates.fell.tolist() == whole.fates.fell.tolist()[::-1]
    assert backwards.fates.by.tolist() == whole.fates.by.tolist()[::-1]
    for number, allowed in enumerate([3, 40, 150, 400, 10**9]):
        left = iter(range(allowed))
        try:
            resumed = run(digits, lambda left=left: next(left, None) is None, number > 0)  # type: ignore[misc]
        except Interrupted:
            continue
    assert resumed.record.id == whole.record.id
    assert number == 4 and resumed.record.forwards >= whole.record.forwards
    assert resumed.record.useful == pytest.approx(whole.record.useful) and 0.1 < whole.record.useful < 1
    parts = whole.record.environment.parts  # type: ignore[attr-defined]
    assert parts.keys() == {"attacks", "verification", "recheck", "host"} and parts["recheck"] > 0
    assert whole.record.seconds / 2 < sum(parts.values()) < whole.record.seconds + 0.01


def test_fp32_has_no_recheck(masked: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recheck_module, "APGD", None)
    assert len(measure(masked, digits, precision="fp32").record.attack) == 1


class Coarse(Masked):
    """Has no gradients, and in bf16 rounds its logits to large steps, which hides smaller progress."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1)).detach()
        return (logits / 4).round() * 4 if x.dtype is torch.bfloat16 else logits


@pytest.mark.parametrize("curve", ["fast", "exact"])
def test_images_near_failure_in_bf16_meet_the_same_attack_in_fp32(
    masked: nn.Module, digits: Dataset, curve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = Coarse(masked.linear.weight.data, masked.linear.bias.data).eval()
    given: dict[str, Any] = {"attack": ["square"], "attack_settings": {"n_queries": 150}, "curve": curve}
    fp32 = measure(coarse, digits, precision="fp32", **given)
    monkeypatch.setattr(recheck_module, "NEAR", -1e9)
    blind = measure(coarse, digits, **given)
    monkeypatch.undo()
    near = measure(coarse, digits, **given)
    stands, left, found = (sum(point.robust for point in one.record.curve) for one in (fp32, blind, near))
    assert stands <= found < left - 3
    assert [ref.name for ref in near.record.attack] == ["square", "apgd-ce", "apgd-t"]
    assert not np.isin(near.fates.by, (1, 2)).any()  # all that fell, fell to Square
    monkeypatch.setattr(recheck_module, "NEAR", 1e9)  # images far from failure are not repeated
    assert blind.record.forwards < near.record.forwards < measure(coarse, digits, **given).record.forwards


@pytest.mark.parametrize("slots", [16, 64])
def test_near_is_within_a_multiple_of_the_copys_error(masked: nn.Module, digits: Dataset, slots: int) -> None:
    def copy(x: Tensor) -> Tensor:  # the last image's third logit is off by 0.5, all others by less
        logits = masked(x)
        last = (x == digits.batch(slice(N - 1, N))[0]).flatten(1).all(1)
        return logits + 0.01 + 0.49 * last[:, None] * torch.eye(10)[2]

    logits = masked(digits.batch(slice(None))[0]).detach()
    largest = logits.abs().amax(1)
    expected = NEAR * 0.5 / largest[-1] * largest
    oracle = Oracle(masked, copy, slots=slots)  # type: ignore[arg-type]
    assert near_margins(copy_error(oracle, digits, logits), logits) == pytest.approx(expected.numpy(), rel=1e-4)


def test_a_worker_takes_the_copys_error_on_all_images(
    masked: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(attack=["pgd"], precision="bf16", eps=EPS, slots=16)
    run, _ = planned(masked, digits, settings)
    runner = Runner(masked, digits, norm="linf", seed=0, slots=16, precision="bf16", journal=Journal())
    errors = []

    def attack_images(runner: Runner, *_: Any) -> None:
        errors.append(runner.copy_error)
        raise Interrupted("seen")

    monkeypatch.setattr(worker, "attack_images", attack_images)
    for number in (0, 1):
        with pytest.raises(Interrupted, match="seen"):
            worker.work(processes.job(runner, run, settings, number, 2, resume=False), lambda: False, lambda _: None)
    assert errors == [runner.copy_error] * 2 and runner.copy_error > 0


def test_who_is_misled(masked: nn.Module, digits: Dataset) -> None:
    """Those whose gradient points elsewhere in the copy, none where the model has no gradient either."""
    turned = torch.arange(N) % 3 == 0
    x = digits.batch(slice(None))[0]

    class Turned(Masked):
        def forward(self, z: Tensor) -> Tensor:
            back = (z[:, None] == x[turned]).flatten(2).all(2).any(1)[:, None]
            logits = super().forward(z)
            return torch.where(back, (2 * logits.detach() - logits), logits)

    weight, bias = masked.linear.weight.data, masked.linear.bias.data
    (attack, _), _ = recheck_attacks([find("attacks", "pgd").create()], norm="linf", classes=10)

    def found(copy: nn.Module, net: nn.Module) -> list[bool]:
        return misled(Oracle(net, copy, slots=16), Oracle(net, slots=16), attack, digits, "linf").tolist()

    assert found(Turned(weight, bias), masked) == turned.tolist()
    assert found(masked, masked) == found(masked, Coarse(weight, bias)) == [False] * N
    assert found(Coarse(weight, bias), masked) == [True] * N


def test_images_far_from_failure_are_not_rechecked_and_none_is_lost(
    masked: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = nn.Sequential(nn.Flatten(), masked.linear).eval()
    given: dict[str, Any] = {"attack": ["apgd-t"], "attack_settings": {"steps": 10}}
    fp32, near = measure(plain, digits, precision="fp32", **given), measure(plain, digits, **given)
    monkeypatch.setattr(recheck_module, "NEAR", 1e9)
    every = measure(plain, digits, **given)
    assert near.fates.fell.tolist() == every.fates.fell.tolist() == fp32.fates.fell.tolist()
    spent, all_spent = (one.record.backwards - fp32.record.backwards for one in (near, every))
    assert 0 <= spent < all_spent / 3


def test_the_largest_margin_is_known_in_bf16_alone(masked: nn.Module, digits: Dataset) -> None:
    attacks, _ = resolve(["square", "apgd-t"], {"n_queries": 60, "steps": 5}, norm="linf", classes=10)
    runners = [
        Runner(masked, digits, norm="linf", seed=0, slots=16, precision=precision, journal=Journal())
        for precision in ("bf16", "fp32")
    ]
    rows = np.flatnonzero(runners[0].correct)
    clean = margin(runners[0].logits, digits.labels)[torch.from_numpy(rows)]
    for attack in attacks:
        found, in_fp32 = (runner.attack_at(attack, rows, np.full(len(rows), 0.1)) for runner in runners)
        stands = ~found.fell
        assert stands.any()
        assert bool((found.best_margin > clean).all() and (found.best_margin[~stands] >= 0).all())
        assert found.best_margin[stands].median() < 0
        assert bool(in_fp32.best_margin.isneginf().all())
