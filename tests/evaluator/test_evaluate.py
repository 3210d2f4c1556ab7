"""Evaluation of a linear model on real digits, whose robust accuracy has a closed form, [0, 1] included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Journal, Settings, evaluate
from advbench.record import Fates

EPS = ["0", "0.02", "0.05", "0.1", "0.2", "0.3"]
N = 120


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    train = load("digits", "train")
    x, y = train.batch(slice(0, 600))
    fit = LogisticRegression(C=0.1, max_iter=500).fit(x.flatten(1).numpy(), y.numpy())
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    net[1].weight.data = torch.tensor(fit.coef_, dtype=torch.float32)
    net[1].bias.data = torch.tensor(fit.intercept_, dtype=torch.float32)
    return net.eval()


def closed_form(net: nn.Module, data: Dataset, eps: float) -> np.ndarray:
    """(n,) whether no class k can overtake y: the margin to k changes by at most sum_i |w_i| min(eps, room_i)."""
    x, y = data.batch(slice(None))
    x = x.flatten(1).double().numpy()
    weight, bias = net[1].weight.detach().double().numpy(), net[1].bias.detach().double().numpy()  # type: ignore[index]
    logits = x @ weight.T + bias
    stands = np.ones(len(x), dtype=bool)
    for row, label in enumerate(y.tolist()):
        for k in range(10):
            w = weight[k] - weight[label]
            room = np.where(w > 0, 1 - x[row], x[row])
            gain = np.sum(np.abs(w) * np.minimum(eps, room))
            stands[row] &= k == label or logits[row, label] - logits[row, k] > gain
    return stands


@pytest.mark.parametrize("curve", ["exact", "fast"])
def test_autoattack_gives_the_closed_form(linear: nn.Module, digits: Dataset, curve: str) -> None:
    result = evaluate(
        linear, digits, Settings(attack=["apgd-ce", "apgd-t"], eps=EPS, curve=curve, attack_settings={"steps": 40})
    )
    for place, text in enumerate(EPS):
        assert result.fates.standing(place).tolist() == closed_form(linear, digits, float(text)).tolist(), text
    point = result.record.curve[0]
    assert point.accuracy == result.record.clean == closed_form(linear, digits, 0).mean()


def test_verdicts_do_not_depend_on_order_or_sharding(linear: nn.Module, digits: Dataset) -> None:
    def fates(rows: list[int]) -> dict[int, tuple[int, int]]:
        part = digits.subset(rows)
        made = evaluate(linear, part, Settings(attack="pgd", eps=EPS, attack_settings={"steps": 3}, slots=16)).fates
        return dict(zip(rows, zip(made.fell.tolist(), made.by.tolist(), strict=True), strict=True))

    whole = fates(list(range(N)))
    assert fates(list(reversed(range(N)))) == whole
    assert fates(list(range(0, N, 3))) | fates(list(range(1, N, 3))) | fates(list(range(2, N, 3))) == whole


@pytest.mark.parametrize("curve", ["exact", "fast"])
def test_which_item_of_a_sample_hits_first_does_not_change_the_curve(
    digits: Dataset, linear: nn.Module, curve: str
) -> None:
    """Which target of a sample is verified first depends on the other samples: the curve must not."""
    eps = [f"{size:.3f}" for size in np.linspace(0.02, 0.4, 20)]
    settings = {"steps": 10, "rel_step": 0.3, "n_targets": 5, "random_start": False}

    def fell(rows: list[int]) -> list[int]:
        part = digits.subset(rows)
        made = evaluate(
            linear, part, Settings(attack="pgd", norm="l2", eps=eps, attack_settings=settings, slots=16, curve=curve)
        )
        return made.fates.fell.tolist()

    assert [fell([row])[0] for row in range(0, N, 8)] == fell(list(range(N)))[::8]


def test_nearest_points_are_the_nearest_of_all_attacks_and_in_the_balls_they_count_for(
    digits: Dataset, linear: nn.Module
) -> None:
    some = digits.subset(range(40))
    x, _ = some.batch(slice(None))
    for order in (["fab", "deepfool"], ["deepfool", "fab"]):
        found = evaluate(linear, some, Settings(attack=order, eps=EPS, attack_settings={"steps": 5}, keep_points=True))
        norm = found.fates.norm
        assert norm is not None and len(found.points) > 30
        for row, point in found.points.items():
            assert float((point.double() - x[row].double()).abs().max()) == norm[row]
        # As for other attacks, the bounds are computed in float32.
        for row, place in enumerate(found.fates.fell.tolist()):
            if row in found.points and place >= 0:
                e = torch.tensor(float(EPS[place]))
                assert bool(((x[row] - e) <= found.points[row]).all() and (found.points[row] <= (x[row] + e)).all())


def test_a_nearest_point_past_a_linf_ball_by_a_rounding_is_not_in_it(digits: Dataset, linear: nn.Module) -> None:
    some = digits.subset(range(40))
    found = evaluate(linear, some, Settings(attack="fab", eps=["0.5"], attack_settings={"steps": 5})).fates.norm
    assert found is not None
    size = float(np.sort(found[found > 0])[3])
    for eps, inside in ((size, True), (float(np.nextafter(np.float32(size), np.float32(0))), False)):
        place = evaluate(linear, some, Settings(attack="fab", eps=[repr(eps)], attack_settings={"steps": 5})).fates.fell
        assert ((place == 0) & (found == size)).any() == inside


def test_an_interrupted_evaluation_resumes_to_the_same_verdicts(
    linear: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    def run(stop: Callable[[], bool], resume: bool) -> list[int]:
        journal = Journal(tmp_path / "journal", stop=stop)
        result = evaluate(
            linear,
            digits,
            Settings(attack=["pgd", "apgd-t"], eps=EPS, attack_settings={"steps": 5}),
            journal=journal,
            resume=resume,
        )
        return [*result.fates.fell.tolist(), result.record.id]

    whole = run(lambda: False, False)
    # Every run repeats the probes at the end of an evaluation, so the last run is not stopped.
    rounds = [*np.random.default_rng(0).integers(1, 30, size=15).tolist(), 10**6]
    for number, allowed in enumerate(rounds):
        left = iter(range(allowed))
        try:
            resumed = run(lambda left=left: next(left, None) is None, number > 0)  # type: ignore[misc]
        except Interrupted:
            continue
        break
    assert number > 3
    assert resumed == whole


def test_a_journal_of_another_question_is_refused_with_the_difference(
    linear: nn.Module, digits: Dataset, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    with pytest.raises(Interrupted):
        evaluate(linear, digits, Settings(attack="pgd", eps=EPS), journal=Journal(journal, stop=lambda: True))
    for change in ({"seed": 1}, {"eps": ["0.1"]}, {"attack": "fgsm"}):
        with pytest.raises(UserError, match=next(iter(change))):
            settings = Settings(**{"attack": "pgd", "eps": EPS, **change})  # type: ignore[arg-type]
            evaluate(linear, digits, settings, journal=Journal(journal), resume=True)
    content = bytearray(journal.read_bytes())
    content[200] ^= 1
    journal.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        evaluate(linear, digits, Settings(attack="pgd", eps=EPS), journal=Journal(journal), resume=True)


def test_the_model_and_global_state_are_left_unchanged(digits: Dataset) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    net.train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    needs = [p.requires_grad for p in net.parameters()]
    random = torch.get_rng_state()
    evaluate(net, digits, Settings(attack=["pgd", "apgd-ce"], eps=["0.1"], attack_settings={"steps": 2}))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == needs
    assert all(p.grad is None for p in net.parameters())
    assert net.training and not net[1].training
    assert torch.equal(torch.get_rng_state(), random)


def test_adversarial_examples_are_inside_the_ball_and_misclassified(linear: nn.Module, digits: Dataset) -> None:
    result = evaluate(
        linear, digits, Settings(attack="apgd-ce", eps=["0.1"], attack_settings={"steps": 10}, keep_points=True)
    )
    fallen = np.flatnonzero((result.fates.fell == 0) & (result.fates.by >= 0))
    assert sorted(result.points) == fallen.tolist() and len(fallen) > 10
    x, y = digits.batch(torch.from_numpy(fallen))
    z = torch.stack([result.points[row] for row in fallen.tolist()])
    assert bool((z >= (x - 0.1).clamp(0)).all() and (z <= (x + 0.1).clamp(max=1)).all())
    assert bool((linear(z).argmax(1) != y).all())


def test_the_curve_of_the_reference_agrees(linear: nn.Module, digits: Dataset) -> None:
    part = digits.subset(range(40))
    reference = evaluate(linear, part, Settings(attack="apgd-t", eps=["0", "0.05", "0.2"], engine="reference"))
    for place, eps in enumerate((0, 0.05, 0.2)):
        assert abs(reference.fates.standing(place).mean() - closed_form(linear, part, eps).mean()) <= 1 / 40
    assert reference.record.engine.name == "pyautoattack"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": "pdg"}, "pgd"),
        ({"attack_settings": {"stepz": 3}}, "steps"),
        ({"attack_settings": {"steps": "many"}}, "steps"),
        ({"curve": "slow"}, "fast"),
        ({"engine": "theirs"}, "reference"),
        ({"precision": "fp8"}, "bf16"),
        ({"norm": "l3"}, "linf"),
        ({"eps": []}, "eps"),
        ({"eps": ["8"]}, "8/255"),
        ({"engine": "reference", "attack": "pgd"}, "apgd-ce"),
    ],
)
def test_bad_input_is_one_line_that_helps(
    linear: nn.Module, digits: Dataset, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluate(linear, digits, Settings(**{"attack": "pgd", "eps": EPS, **change}))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_model_of_other_classes_or_channels_is_refused(digits: Dataset) -> None:
    with pytest.raises(UserError, match="7 classes, digits has 10"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), digits, Settings(attack="pgd", eps=["0.1"]))
    with pytest.raises(UserError, match="1x8x8"):
        evaluate(nn.Conv2d(3, 10, 3), digits, Settings(attack="pgd", eps=["0.1"]))


@pytest.mark.parametrize("order", [("deepfool", "fab"), ("fab", "deepfool")])
def test_the_nearest_point_over_all_attacks_counts(linear: nn.Module, digits: Dataset, order: tuple[str, ...]) -> None:
    few = digits.subset(range(40))

    def measured(*attacks: str) -> Fates:
        grid = ["0", "0.5", "1", "2"]
        return evaluate(
            linear, few, Settings(attack=list(attacks), eps=grid, norm="l2", attack_settings={"steps": 4})
        ).fates

    def far(fates: Fates) -> np.ndarray:
        assert fates.norm is not None
        return np.nan_to_num(fates.norm, nan=np.inf)

    one, other, both = far(measured(order[0])), far(measured(order[1])), measured(*order)
    assert (one < other).any() and (other < one).any()
    assert far(both).tolist() == np.minimum(one, other).tolist()
    fell = both.by >= 0
    assert fell.sum() > 20 and (both.by[fell] == (other < one)[fell]).all()


def test_a_search_copy_that_fails_is_noted(linear: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(attack="fgsm", eps=["0.1"])
    plain = evaluate(linear, digits, settings).record
    monkeypatch.setattr("advbench.engine.search_copy.copy._fault", lambda net, twin, x: "no kernel")
    record = evaluate(linear, digits, settings).record
    (flag,) = [flag for flag in record.flags if flag.name == "search-copy"]
    assert flag.severity == "note" and flag.detail.endswith("a faster copy fails (no kernel)")
    assert record.id == plain.id and "search-copy" not in {flag.name for flag in plain.flags}
