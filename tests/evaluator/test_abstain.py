"""Models that may reject: a rejected clean image is wrong, a rejected attacked one withstood, and attacks know both."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.checkpoint import Loaded
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.engine.losses import margin, wrong
from advbench.engine.rejection import accepted, in_8_bit, never_rejecting
from advbench.engine.whole_batch import WholeBatch
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, bare, evaluate
from advbench.models import build
from advbench.threat import around

N, EPS = 60, 0.15


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def linear() -> nn.Linear:
    """The likeliest class by its mean image, on 8x8 digits: 10 logits."""
    x, y = load("digits", "train").batch(slice(None))
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    net = nn.Linear(64, 10)
    with torch.no_grad():
        net.weight.copy_(10 * means)
        net.bias.copy_(-5 * means.square().sum(1))
    return net


def with_rejection(linear: nn.Linear, weight: Tensor, bias: float) -> Any:
    """The linear net with an 11th logit, linear too."""
    net = build("linear", num_classes=11, in_channels=1, image_size=8).eval()
    with torch.no_grad():
        net.linear.weight.copy_(torch.cat([linear.weight, weight[None]]))
        net.linear.bias.copy_(torch.cat([linear.bias, torch.tensor([bias])]))
    return net


def loaded(net: nn.Module, data: Dataset) -> Loaded:
    return bare(net, data).read_as(abstain="last")


def measured(net: nn.Module, data: Dataset, *attacks: Any, eps: Any = ("0", str(EPS)), **given: Any) -> Evaluation:
    model = loaded(net, data) if given.pop("abstain", True) else net
    settings = {"slots": 32, "processes": 1, "probes": False, **given}
    return evaluate(model, data, Settings(attack=attacks, eps=eps, **settings))


def largest_margin(net: Any, data: Dataset, eps: float) -> NDArray[np.float64]:
    """By closed form, the largest margin of a wrong class over the label and the rejection in each Linf ball, (n,).

    For a class c it is the maximum over x' of min(z_c - z_y, z_c - z_r), both linear in x', and so by duality the
    minimum over weights w in [0, 1] of the maximum of z_c - w z_y - (1 - w) z_r, which is convex in w.
    """
    x, y = (part.numpy() for part in data.batch(slice(None)))
    x = x.reshape(len(x), -1).astype(float)
    weight, bias = (value.detach().double().numpy() for value in (net.linear.weight, net.linear.bias))
    low, high = np.maximum(x - eps, 0), np.minimum(x + eps, 1)
    found = np.full(len(x), -np.inf)
    for place, label in enumerate(y):
        for c in set(range(10)) - {int(label)}:

            def value(w: float, c: int = c, label: int = int(label), place: int = place) -> float:
                slope = weight[c] - w * weight[label] - (1 - w) * weight[10]
                level = bias[c] - w * bias[label] - (1 - w) * bias[10]
                return float(np.where(slope > 0, slope * high[place], slope * low[place]).sum() + level)

            a, b = 0.0, 1.0
            for _ in range(40):
                one, two = a + (b - a) / 3, b - (b - a) / 3
                a, b = (a, two) if value(one) < value(two) else (one, b)
            found[place] = max(found[place], value((a + b) / 2))
    return found


@pytest.fixture(scope="module")
def doubtful(linear: nn.Linear, digits: Dataset) -> nn.Module:
    """It rejects what is bright at the border and has no high score."""
    border = torch.ones(8, 8)
    border[1:-1, 1:-1] = 0
    x, _ = digits.batch(slice(None))
    best = nn.functional.linear(x.flatten(1), linear.weight, linear.bias).amax(1)
    return with_rejection(linear, 0.5 * border.flatten(), float(best.detach().quantile(0.05)))


@pytest.fixture(scope="module")
def largest(doubtful: nn.Module, digits: Dataset) -> NDArray[np.float64]:
    return largest_margin(doubtful, digits, EPS)


# --- the K logits that attacks see --------------------------------------------------------------------------------


def test_a_hit_is_an_answer_that_is_neither_the_label_nor_the_rejection() -> None:
    drawn = torch.Generator().manual_seed(0)
    logits, y = torch.randn(2000, 6, generator=drawn), torch.randint(0, 5, (2000,), generator=drawn)
    answer = logits.argmax(1)
    assert torch.equal(wrong(accepted(logits, y), y), (answer != y) & (answer != 5))
    assert accepted(torch.tensor([[1.0, 2, 3, 7]]), torch.tensor([1])).tolist() == [[1, 7, 3]]
    assert torch.equal(accepted(never_rejecting(logits[:, :5]), y), logits[:, :5])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_rejection_that_is_no_number_is_a_wrong_answer(value: float) -> None:
    logits, y = torch.tensor([[1.0, 2.0, value]]), torch.tensor([1])
    assert bool(wrong(accepted(logits, y), y))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_whole_8_bit_steps_stay_in_the_ball(norm: str) -> None:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (50, 1, 6, 6), generator=drawn).float() / 255
    eps = torch.tensor({"linf": [8 / 255, 0.03], "l2": [0.5, 0.2], "l1": [2.0, 0.7]}[norm]).repeat(25).double()
    region = around(norm, x, eps)
    z = region.project(x + 0.2 * torch.randn(x.shape, generator=drawn))
    rounded = in_8_bit(region, z)
    assert bool(region.contains(rounded).all())
    assert float((255 * rounded - (255 * rounded).round()).abs().max()) < 1e-3
    assert float((rounded - z).abs().max()) <= 1 / 255 + 1e-6
    corner = region.high if norm == "linf" else x
    assert torch.allclose(in_8_bit(region, corner)[::2], corner[::2], atol=1e-6)  # eps 8/255 is on the grid


# --- attacks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "least", "settings"),
    [
        ("pgd", 0.9, {"steps": 40, "loss": "cw"}),
        ("apgd-ce", 0.9, {"steps": 40}),
        ("apgd-t", 0.97, {"steps": 40}),
        ("fab-t", 0.9, {"steps": 40}),
        ("square", 0.5, {"n_queries": 500}),
        ("apgd-dlr", 0.9, {"steps": 40}),
        ("fmn", 0.8, {"steps": 100}),
        ("deepfool", 0.5, {}),
        ("rays", 0.3, {"n_queries": 300}),
        ("pgd", 0.0, {"steps": 20, "loss": "kl"}),
        ("feature-pgd", 0.0, {"steps": 20}),
    ],
)
def test_attacks_on_a_linear_model_reach_its_closed_form(
    doubtful: nn.Module,
    digits: Dataset,
    largest: NDArray[np.float64],
    attack: str,
    least: float,
    settings: dict[str, Any],
) -> None:
    found = measured(doubtful, digits, attack, attack_settings=settings)
    correct, fell = found.fates.clean, found.fates.fell == 1
    assert not fell[correct & (largest < -1e-4)].any()
    can_fall = correct & (largest > 0.05)
    assert found.record.model.abstain == "last" and can_fall.sum() >= 15 and fell[can_fall].mean() >= least


def test_a_rejection_that_never_speaks_changes_nothing(linear: nn.Linear, digits: Dataset) -> None:
    attacks, short = ("apgd-ce", "apgd-t", "fab-t", "square"), {"steps": 20, "n_queries": 200, "n_targets": 3}
    ours = measured(with_rejection(linear, torch.zeros(64), -1e9), digits, *attacks, attack_settings=short)
    plain = nn.Sequential(nn.Flatten(), linear).eval()
    theirs = measured(plain, digits, *attacks, attack_settings=short, abstain=False)
    assert (ours.fates.fell == theirs.fates.fell).all() and ours.record.curve == theirs.record.curve
    assert ours.record.question != theirs.record.question


def test_where_all_is_rejected_nothing_is_right_and_nothing_falls(linear: nn.Linear, digits: Dataset) -> None:
    found = measured(with_rejection(linear, torch.zeros(64), 1e9), digits, "pgd", "square", probes=True)
    assert found.record.clean == 0 and (found.fates.fell == 0).all() and (found.fates.by == -1).all()
    flags = {flag.name: flag for flag in found.record.flags}
    assert flags["constant"].severity == "broken" and flags["abstain"].k == N


class Unsure(nn.Module):
    """It rejects where its best class is less than 1 above the next."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return torch.cat([z, z.topk(2, 1).values[:, 1:] + 1], 1)


def test_what_is_unsure_is_wrong_when_clean_and_withstands_an_attack(linear: nn.Linear, digits: Dataset) -> None:
    plain = nn.Sequential(nn.Flatten(), linear).eval()
    net, (x, y) = Unsure(plain), digits.batch(slice(None))
    with torch.no_grad():
        first, second = plain(x).topk(2, 1).values.unbind(1)
        right = (plain(x).argmax(1) == y) & (first > second + 1)
    found = measured(net, digits, "apgd-ce", keep_points=True, probes=True)
    assert 0 < right.sum() < N and found.record.curve[0].robust == int(right.sum())
    assert found.points
    for row, point in found.points.items():
        assert int(net(point[None]).argmax(1)) not in (int(y[row]), 10)
    without = measured(plain, digits, "apgd-ce", abstain=False)
    fell, fell_without = (one.fates.fell == 1 for one in (found, without))
    assert fell.sum() < fell_without[found.fates.clean].sum()  # a small margin does not fool it
    flags = {flag.name: flag.severity for flag in found.record.flags if flag.severity != "note"}
    assert flags == {}


# --- 8 bit --------------------------------------------------------------------------------------------------------


class OnlyBytes(nn.Module):
    """It rejects every image that is not of 8 bit, by a logit 1 above all others."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        off = (255 * x - (255 * x).round()).abs().flatten(1).amax(1, keepdim=True) > 1e-2
        z: Tensor = self.net(x)
        return torch.cat([z, z.amax(1, keepdim=True) + torch.where(off, 1.0, -100.0)], 1)


@dataclass(frozen=True, kw_only=True)
class OffGrid(WholeBatch):
    """One step up the margin, to a point that is no 8-bit image."""

    def points(self, net: nn.Module, x: Tensor, y: Tensor, eps: float, *, norm: str, seed: int) -> Tensor:
        query = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(margin(net.net(query), y).sum(), query)  # type: ignore[operator]
        return (x + (eps - 0.4 / 255) * slope.sign()).clamp(0, 1)


def test_candidates_are_tried_rounded_to_8_bit(linear: nn.Linear, digits: Dataset) -> None:
    images = (digits.images.float() / 16 * 255).round().byte()
    data = replace(digits, images=images, scale=255.0)
    plain = nn.Sequential(nn.Flatten(), linear).eval()
    off_grid = OffGrid(name="off-grid")
    attacks: dict[str | Attack, dict[str, Any]] = {"pgd": {}, "square": {"n_queries": 300}, off_grid: {}}
    for attack, settings in attacks.items():
        given = {"eps": ("0", "30/255"), "attack_settings": settings}
        with_bytes = measured(OnlyBytes(plain), data, attack, **given).fates.fell == 1
        without = measured(plain, data, attack if settings else "pgd", abstain=False, **given).fates.fell == 1
        assert with_bytes.sum() >= 0.7 * without.sum() > 5


# --- what does not go together, and how it is shared --------------------------------------------------------------


@pytest.mark.parametrize("outputs", [10, 12])
def test_another_number_of_logits_is_one_line(digits: Dataset, outputs: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    with pytest.raises(UserError, match=f"{outputs} logits: --abstain last needs 11, one for each of the 10 classes"):
        measured(net, digits, "pgd")


def test_a_further_logit_without_abstain_says_what_to_do(doubtful: nn.Module, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"11 classes, digits has 10: .* use --abstain last"):
        measured(doubtful, digits, "pgd", abstain=False)


def test_only_last_and_only_our_engine(doubtful: nn.Module, digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"unknown value of --abstain 'first': .*choose from last"):
        bare(doubtful, digits).read_as(abstain="first")
    with pytest.raises(UserError, match="reference has no form for models that may reject"):
        measured(doubtful, digits, "square", engine="reference")


@pytest.mark.usefixtures("started_by_fork")
@pytest.mark.parametrize(("attack", "precision"), [("fmn", "fp32"), ("apgd-ce", "bf16")])
def test_sharing_order_and_interruption_change_nothing(
    doubtful: nn.Module, digits: Dataset, tmp_path: Path, attack: str, precision: str
) -> None:
    how: dict[str, Any] = {"attack_settings": {"steps": 20}, "precision": precision}

    def run(data: Dataset = digits, **more: Any) -> Evaluation:
        resumed = {key: more.pop(key) for key in ("journal", "resume") if key in more}
        settings = Settings(attack=attack, eps=("0", "0.1", str(EPS)), slots=16, probes=False, **how, **more)
        return evaluate(loaded(doubtful, data), data, settings, **resumed)

    whole = run(processes=1)
    assert 0 < (whole.fates.fell > 0).sum() < N
    assert run(processes=2).record.id == whole.record.id
    backwards = run(digits.subset(list(reversed(range(N)))), processes=1)
    assert backwards.fates.fell.tolist() == whole.fates.fell.tolist()[::-1]
    for number, allowed in enumerate([2, 9, 10**9]):
        left = iter(range(allowed))
        journal = Journal(tmp_path / "journal", stop=lambda left=left: next(left, None) is None)  # type: ignore[misc]
        with suppress(Interrupted):
            resumed = run(processes=1, journal=journal, resume=number > 0)
    assert resumed.record.id == whole.record.id
