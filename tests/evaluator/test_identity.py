"""What makes two evaluations one: the model's code and answers, the question, and never what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.function import Function
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, bare, check, evaluate
from advbench.evaluator.identity import agree
from advbench.record import Fates, load_record

SETTINGS: dict[str, Any] = {"attack": "pgd", "attack_settings": {"steps": 3}, "eps": ["0", "0.05", "0.1"]}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(60))


class Means(nn.Module):
    """The nearest of the classes' mean images, after a change of the image that no hash sees."""

    weight: Tensor
    bias: Tensor

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        train = load("digits", "train")
        x, y = train.batch(slice(None))
        means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
        self.register_buffer("weight", 10 * means)
        self.register_buffer("bias", -5 * means.square().sum(1))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.change(x).flatten(1), self.weight, self.bias)


def torch_noise(x: Tensor) -> Tensor:
    return x + 0.3 * torch.randn_like(x)


def numpy_noise(x: Tensor) -> Tensor:
    return x + 0.3 * torch.from_numpy(np.random.randn(*x.shape).astype(np.float32))


def python_noise(x: Tensor) -> Tensor:
    return x + torch.tensor([[[[random.gauss(0, 0.5)]]] for _ in x])


def disturb() -> None:
    torch.rand(7), np.random.rand(5), random.random()


@pytest.mark.parametrize("noise", [torch_noise, numpy_noise, python_noise])
def test_a_random_models_record_depends_on_its_seed_alone(digits: Dataset, noise: Any) -> None:
    def record(seed: int) -> Evaluation:
        return evaluate(Means(noise), digits, Settings(**SETTINGS, seed=seed))

    first = record(0)
    assert "random" in [flag.name for flag in first.record.flags]
    disturb()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    again = record(0)
    assert again.record.id == first.record.id and again.record.curve == first.record.curve
    assert again.record.flags == first.record.flags
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert not np.array_equal(record(1).fates.fell, first.fates.fell)


def test_a_note_says_that_a_random_model_was_resumed_or_shared(digits: Dataset, tmp_path: Path) -> None:
    def stopped(net: nn.Module, path: Path) -> Any:
        left = iter(range(4))
        with pytest.raises(Interrupted):
            evaluate(net, digits, Settings(**SETTINGS), journal=Journal(path, stop=lambda: next(left, None) is None))
        found = evaluate(net, digits, Settings(**SETTINGS), journal=Journal(path), resume=True).record.flags
        return {flag.name: flag for flag in found}

    note = stopped(Means(torch_noise), tmp_path / "a")["other-noise"]
    assert note.severity == "note" and "resumed" in note.detail
    assert "other-noise" not in stopped(Means(), tmp_path / "b")
    shared = Journal()
    shared.begin({}, resume=False, number=1, of=2)
    assert shared.redrawn == "shared by 2 processes"


def test_the_code_of_the_class_is_in_the_record_and_the_question(digits: Dataset) -> None:
    record = evaluate(Means(), digits, Settings(**SETTINGS)).record
    assert record.model.code_sha256 is not None
    other = record.model.model_copy(update={"code_sha256": "0" * 64})
    loaded = bare(Means(), digits)
    asked = check(loaded, digits, Settings(**SETTINGS))
    assert check(replace(loaded, code_sha256=other.code_sha256), digits, Settings(**SETTINGS)) != asked


def test_a_name_for_each_question_and_one_for_all_its_spellings(digits: Dataset) -> None:
    net = Means()

    def name(data: Dataset = digits, **change: Any) -> str:
        return check(net, data, Settings(**{**SETTINGS, **change}))

    same = [name(), name(eps=["0.0", "5e-2", "1/10"]), name(eps=[0.1, 0, 0.05]), name(command=("x",))]
    assert len(set(same)) == 1
    others = [
        name(eps=["0", "0.1"]),
        name(attack="fgsm", attack_settings={}),
        name(attack_settings={"steps": 4}),
        name(norm="l2"),
        name(seed=1),
        name(precision="fp32"),
        name(precision="bf16"),
        name(curve="exact"),
        name(slots=8),
        name(keep_points=True),
        name(probes=False),
        name(data=digits.subset(range(59))),
        check(Means(lambda x: x).double().float(), digits, Settings(**SETTINGS, indices="first:60")),
        check(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, Settings(**SETTINGS)),
    ]
    assert len({*same, *others}) == 1 + len(others)
    assert {one.partition("-")[0] for one in (*same, *others[:-1])} == {same[0].partition("-")[0]}  # one model


def test_a_journal_is_not_resumed_where_the_model_answers_otherwise(digits: Dataset, tmp_path: Path) -> None:
    """A closure changes the outputs; neither the weights nor a file do."""
    path, left = tmp_path / "journal", iter(range(4))
    with pytest.raises(Interrupted):
        evaluate(Means(), digits, Settings(**SETTINGS), journal=Journal(path, stop=lambda: next(left, None) is None))
    changed = Means(lambda x: x.flip(-1))
    expected = evaluate(changed, digits, Settings(**SETTINGS))
    with pytest.warns(UserWarning, match="no longer answers"):
        found = evaluate(changed, digits, Settings(**SETTINGS), journal=Journal(path), resume=True)
    assert np.array_equal(found.fates.fell, expected.fates.fell) and found.record.forwards == expected.record.forwards


def test_the_logits_of_a_model_from_outside_are_sealed_with_its_record(digits: Dataset, tmp_path: Path) -> None:
    net = Means()
    result = evaluate(net, digits, Settings(**SETTINGS))
    logits = result.fates.logits
    assert logits is not None and logits.shape == (60, 10)
    np.testing.assert_allclose(logits, net(digits.batch(slice(None))[0]), rtol=1e-3, atol=1e-3)
    path = result.record.save(tmp_path, result.fates)
    kept = load_record(path)[1].logits
    assert kept is not None and np.array_equal(kept, logits)
    seal = result.record.seal(result.fates)
    Fates(result.fates.fell, result.fates.by, result.fates.norm, logits + 1).save(path.with_suffix(".npz"), seal)
    with pytest.raises(UserError, match="damaged"):
        load_record(path)


def test_logits_agree_within_a_thousandth_of_their_spread() -> None:
    then = np.array([[0.0, 10.0], [5.0, np.nan]], np.float32)
    assert agree(None, None) and agree(then, then)
    assert agree(then, then + np.float32([[0.009, 0], [0, 0]]))
    assert not agree(then, then + np.float32([[0.02, 0], [0, 0]]))
    assert not agree(then, np.nan_to_num(then)) and not agree(then, then[:1])
    assert not agree(None, then) and not agree(then, None)
    offset = np.float32([[1e6, 1e6 + 4]])
    assert not agree(offset, offset[:, ::-1])  # a thousandth of the values would be 1000


def test_passes_that_nobody_counted_are_null(digits: Dataset) -> None:
    def mine(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return x

    few = digits.subset(range(8))
    record = evaluate(Means(), few, Settings(attack="fgsm", eps=["0.1"])).record
    assert record.forwards and record.backwards
    reference = evaluate(Means(), few, Settings(attack="apgd-ce", eps=["0.1"], engine="reference")).record
    own = evaluate(Means(), few, Settings(attack=["fgsm", Function.of("mine", mine)], eps=["0.1"])).record
    assert reference.forwards and reference.backwards
    assert (own.forwards, own.backwards) == (None, None) and own.seconds > 0


def test_a_random_model_draws_the_same_however_often_the_journal_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 10))

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net[1:](nn.functional.dropout(x, 0.3, training=True))

    data = load("digits", "test").subset(range(40))
    data = replace(data, labels=net.eval()(data.batch(slice(None))[0]).argmax(1))
    settings = Settings(attack=("pgd", "fmn"), attack_settings={"steps": 6}, eps=["0", "0.05"], probes=False)
    ids = []
    for number, interval in enumerate((1e9, 0.0)):
        monkeypatch.setattr("advbench.evaluator.journal._SAVE_INTERVAL", interval)
        kept = Journal(tmp_path / f"{number}.journal")
        ids.append(evaluate(Noisy(), data, settings, journal=kept).record.id)
    assert ids[0] == ids[1]
