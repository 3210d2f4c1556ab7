"""When `--precision auto` searches in bf16: decided by the device and the network's operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.kernels import has_bf16
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Journal, Settings, evaluate, precision
from advbench.evaluator.attack_set import resolve
from advbench.evaluator.fp32_recheck import recheck_attacks
from advbench.models import build
from advbench.recipe import Recipe
from advbench.trainer.prepare import precision as trained_in


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(12))


def has(monkeypatch: pytest.MonkeyPatch, **capabilities: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


def test_multiply_adds_of_a_pass(digits: Dataset) -> None:
    net = build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=8, seed=0)
    maps = [(module.out_channels * module.weight[0].numel(), side) for module, side in ((net.conv1, 4), (net.conv2, 2))]
    layers = [module.weight.numel() for module in net.modules() if isinstance(module, torch.nn.Linear)]
    assert precision.multiply_adds(net, digits) == sum(each * side**2 for each, side in maps) + sum(layers)


def test_bf16_instructions_are_read_from_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    has(monkeypatch, avx512_bf16=True)
    assert has_bf16(cpu)
    has(monkeypatch, amx_bf16=True, avx512_bf16=False)
    assert has_bf16(cpu)
    has(monkeypatch, avx512_f=True, avx512_bf16=False)
    assert not has_bf16(cpu)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_bf16(cpu)  # an older PyTorch


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_before_compute_capability_8_search_and_train_in_fp32(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    card = torch.device("cuda")
    assert has_bf16(card) == there
    recipe = Recipe.resolve(method="pgd-at", dataset="digits", arch="mlp")
    assert trained_in(recipe, card)[1] == ("bf16" if there else "fp32")
    on_card = SimpleNamespace(device=card, num_classes=10)
    monkeypatch.setattr(precision, "bf16_failure", lambda net, data: "")
    for steps, worth in ((2, False), (100, there)):
        attacks, _ = resolve(["apgd-t"], {"steps": steps}, norm="linf", classes=10)
        recheck, _ = recheck_attacks(attacks, norm="linf", classes=10)
        assert precision.bf16_pays(torch.nn.Identity(), on_card, attacks, recheck) == worth  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "settings", "doubt", "fp32", "fewer"),
    [
        (["autoattack"], {}, 0.25, 2, True),
        (["autoattack"], {}, 0.25, 8, True),
        (["autoattack"], {}, 0.9, 2, False),  # Square once more on most images
        (["apgd-t"], {"steps": 99}, 0.25, 2, True),  # 1,800 passes, and 808 of the recheck
        (["apgd-t"], {"steps": 21}, 0.25, 2, False),  # 396 < 2 x 0.25 x 808
        (["apgd-t"], {"steps": 22}, 0.25, 2, True),  # 414 > 404
        (["apgd-t"], {"steps": 11}, 0.25, 8, False),  # 7 x 216 < 8 x 0.25 x 808
        (["apgd-t"], {"steps": 12}, 0.25, 8, True),  # 7 x 234 > 1,616
    ],
)
def test_passes_are_weighed_by_what_they_take(
    names: list[str], settings: dict[str, Any], doubt: float, fp32: float, fewer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks, _ = resolve(names, settings, norm="linf", classes=10)
    recheck, _ = recheck_attacks(attacks, norm="linf", classes=10)
    monkeypatch.setattr(precision, "IN_DOUBT", doubt)
    assert precision.fewer_passes(attacks, recheck, classes=10, fp32=fp32) == fewer


def test_auto_is_bf16_only_where_it_pays(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)

    def used(attack: list[str], asked: str = "auto") -> str:
        record = evaluate(
            net, digits, Settings(attack=attack, attack_settings={"steps": 2}, eps=["0.1"], precision=asked)
        ).record
        return record.engine.precision

    has(monkeypatch, avx512_bf16=True)
    assert used(["apgd-t"]) == "fp32"  # a small network
    monkeypatch.setattr(precision, "HEAVY_MULTIPLY_ADDS", 10.0)
    assert used(["apgd-t"]) == "fp32"  # 54 passes, and the recheck has 808
    monkeypatch.setattr(precision, "IN_DOUBT", 0.01)
    assert used(["apgd-t"]) == "bf16"
    assert used(["apgd-t"], "fp32") == "fp32"
    assert used(["pgd"]) == "fp32"  # the recheck would make it stronger
    has(monkeypatch)
    assert used(["apgd-t"]) == "fp32"
    assert used(["apgd-t"], "bf16") == "bf16"


def test_a_resumed_evaluation_keeps_its_precision(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)

    def run(stop: Callable[[], bool], resume: bool) -> str:
        journal = Journal(tmp_path / "journal", stop=stop)
        return evaluate(
            net, digits, Settings(attack="apgd-t", eps=["0.1"]), journal=journal, resume=resume
        ).record.engine.precision

    has(monkeypatch)
    left = iter(range(5))
    with pytest.raises(Interrupted):
        run(lambda: next(left, None) is None, False)
    has(monkeypatch, avx512_bf16=True)  # another machine
    monkeypatch.setattr(precision, "HEAVY_MULTIPLY_ADDS", 10.0)
    monkeypatch.setattr(precision, "IN_DOUBT", 0.01)
    assert run(lambda: False, True) == "fp32"


def test_a_network_that_cannot_be_counted_is_not_heavy(digits: Dataset) -> None:
    class Refuses(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise IndexError("not so few images")

    assert precision.multiply_adds(Refuses(), digits) == 0


def test_a_model_that_does_not_work_in_bf16(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 10, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv((x - torch.tensor([0.5]).view(1, 1, 1, 1)) / 0.25).flatten(1)

    net = Normalised()
    assert "BFloat16" in precision.bf16_failure(net, digits) or "bias type" in precision.bf16_failure(net, digits)
    with pytest.raises(UserError, match=r"does not work in bf16 .*: choose --precision fp32"):
        evaluate(net, digits, Settings(attack="apgd-t", attack_settings={"steps": 2}, eps=["0.1"], precision="bf16"))
    has(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr(precision, "HEAVY_MULTIPLY_ADDS", 10.0)
    monkeypatch.setattr(precision, "IN_DOUBT", 0.01)
    record = evaluate(net, digits, Settings(attack="apgd-t", attack_settings={"steps": 2}, eps=["0.1"])).record
    assert record.engine.precision == "fp32"
