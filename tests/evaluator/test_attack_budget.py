"""A budget of passes: what every attack makes of it, how a set shares it, what has no form with one, and its record."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from advbench.attacks import multi_task, transfer
from advbench.attacks.base import make
from advbench.attacks.corruptions import Corruption
from advbench.attacks.pgd import PGD
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.engine.attack import Attack
from advbench.errors import UserError
from advbench.evaluator import Settings, bare, evaluate
from advbench.evaluator.attack_budget import within_budget
from advbench.evaluator.evaluate import planned
from advbench.leaderboard.protocol import protocol
from advbench.models import build
from advbench.models.base import Model
from advbench.models.tasks import make_heads, make_tasks
from advbench.record import Record
from advbench.registry import entries

N, K = 8, 10
SINGLE_STEPS = ("fgsm", "rfgsm", "fgsm-rs", "n-fgsm")
EPS = {"linf": "0.1", "l2": "1", "l1": "5", "l0": "5", "fourier-linf": "0.1"}


@pytest.fixture(scope="module")
def steady() -> Model:
    """A linear model that nothing in [0, 1] moves away from class 0, though it has gradients."""
    net = build("linear", num_classes=K, image_size=8, in_channels=1)
    with torch.no_grad():
        net.linear.weight.copy_(1e-3 * torch.randn(K, 64, generator=torch.Generator().manual_seed(0)))
        net.linear.bias.copy_(5.0 * (torch.arange(K) == 0))
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Dataset:
    return replace(load("digits", "test").subset(range(N)), labels=torch.zeros(N, dtype=torch.int64))


def settings(attack: Any, budget: int | None, norm: str = "linf", **how: Any) -> Settings:
    how = {"eps": [EPS[norm]], "slots": N, "processes": 1, "probes": False, **how}
    return Settings(attack=attack, attack_budget=budget, norm=norm, **how)


def spent(record: Record) -> int:
    assert record.forwards is not None and record.backwards is not None
    return record.forwards + record.backwards


def several_steps() -> list[tuple[str, str]]:
    """Every single attack of more than a step, in the first norm that it has and in L1, whose steps are others."""
    found = []
    for name in entries("attacks"):
        members = make(name, "linf")
        if name not in SINGLE_STEPS and len(members) == 1:
            found += [(name, norm) for norm in dict.fromkeys((members[0].norms[0], "l1")) if norm in members[0].norms]
    return found


@pytest.mark.parametrize(("name", "norm"), several_steps())
def test_an_attack_makes_as_many_passes_as_fit(
    name: str, norm: str, steady: Model, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = make_heads(make_tasks(["rotation", "macro"], "digits", K), 64, (1, 8, 8), seed=0)
    monkeypatch.setattr(multi_task, "heads_of", lambda loaded: heads)
    monkeypatch.setattr(transfer, "load_model", lambda *args, **how: bare(steady, images))
    more = {"source": "itself"} if name == "transfer" else {}
    asked = settings(name, 1000, norm, attack_settings=more)
    record = evaluate(steady, images, asked).record
    assert record.curve[0].robust == N and record.attack_budget == 1000
    assert spent(record) <= N * 1000
    if name != "rays":  # which ends where no flip helps
        (attack,) = planned(steady, images, asked)[0].attacks
        assert spent(record) == N * sum(attack.passes(K))
        assert sum(attack.with_count(count(attack) + 1).passes(K)) > 1000


def count(attack: Attack) -> int:
    return int(getattr(attack, attack.main_count))


@pytest.mark.parametrize(
    ("name", "norm", "more"),
    [
        ("apgd-t", "linf", {"targets": "malt", "n_targets": 3}),
        ("apgd-ce", "l1", {"larger_eps": True, "restarts": 2}),
        ("apgd-dlr", "linf", {"eot": 3}),
        ("fab", "linf", {"restarts": 2}),
        ("square", "linf", {"restarts": 3}),
        ("transfer", "linf", {"source": "itself", "targets": "malt", "n_targets": 2, "eot": 2}),
        ("multi-task", "linf", {"attacked": "rotation", "eot": 2}),
    ],
)
def test_settings_that_cost_passes_are_counted(
    name: str, norm: str, more: dict[str, Any], steady: Model, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = make_heads(make_tasks(["rotation"], "digits", K), 64, (1, 8, 8), seed=0)
    monkeypatch.setattr(multi_task, "heads_of", lambda loaded: heads)
    monkeypatch.setattr(transfer, "load_model", lambda *args, **how: bare(steady, images))
    asked = settings(name, 500, norm, attack_settings=more)
    record = evaluate(steady, images, asked).record
    (attack,) = planned(steady, images, asked)[0].attacks
    assert spent(record) == N * sum(attack.passes(K)) <= N * 500
    assert sum(attack.with_count(count(attack) + 1).passes(K)) > 500
    assert {name: record.attack[0].settings[name] for name in more if name != "source"} == {
        name: value for name, value in more.items() if name != "source"
    }


def test_a_set_shares_it_in_proportion_to_the_usual_passes(steady: Model, images: Dataset) -> None:
    usual = [sum(one.passes(K)) for one in planned(steady, images, settings("autoattack", None))[0].attacks]
    assert usual == [202, 9 * 202, 9 * 300, 5001]
    record = evaluate(steady, images, settings("autoattack", 1000)).record
    chosen = [{k: v for k, v in one.settings.items() if k in ("steps", "n_queries")} for one in record.attack]
    # 20, 187, 277 and 514 of 1,000 passes, an APGD step costs 2, one of FAB 3, and the first query one more.
    assert chosen == [{"steps": 9}, {"steps": 9}, {"steps": 10}, {"n_queries": 513}]
    assert [one.settings["attack_budget"] for one in record.attack] == [1000] * 4
    assert spent(record) == N * (20 + 9 * 20 + 9 * 30 + 514)
    assert protocol(record).strength < float("inf")


def test_it_is_that_of_each_eps(steady: Model, images: Dataset) -> None:
    """A bisection of three sizes asks at two of them; an attack for the nearest example is run once."""
    grid = ["0", "0.05", "0.1", "0.2"]
    assert spent(evaluate(steady, images, settings("pgd", 100, eps=grid)).record) == N * 2 * 100
    assert spent(evaluate(steady, images, settings("pgd", 100, eps=grid, curve="exact")).record) == N * 3 * 100
    assert spent(evaluate(steady, images, settings("fmn", 100, eps=grid)).record) == N * 100


def test_another_budget_is_another_question_and_protocol(steady: Model, images: Dataset) -> None:
    records = [evaluate(steady, images, settings("pgd", budget)).record for budget in (None, 22, 40)]
    assert len({record.question for record in records}) == 3 == len({protocol(record).key for record in records})
    assert [record.attack[0].settings["steps"] for record in records] == [10, 10, 19]
    assert [record.attack_budget for record in records] == [None, 22, 40]


@pytest.mark.parametrize(
    ("attack", "budget", "least"), [("pgd", 3, 4), ("apgd-t", 20, 36), ("fab", 11, 12), ("autoattack", 192, 193)]
)
def test_one_that_is_too_small_names_the_least(
    attack: str, budget: int, least: int, steady: Model, images: Dataset
) -> None:
    with pytest.raises(UserError, match=f"is less than one step of .* takes: choose at least {least}$"):
        planned(steady, images, settings(attack, budget))
    run, _ = planned(steady, images, settings(attack, least))
    assert min(map(count, run.attacks)) == 1
    assert sum(sum(one.passes(K)) for one in run.attacks) <= least


def stands(model: Any, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    return x


@pytest.mark.parametrize(
    ("attack", "how", "text"),
    [
        ("pgd", {"attack_settings": {"steps": 5}}, "decides steps: leave out --set steps"),
        ("autoattack", {"attack_settings": {"n_queries": 5}}, "decides n_queries: leave out --set n_queries"),
        ("fgsm", {}, "fgsm is a single step"),
        (PGD(name="mine", steps=1), {}, "mine is a single step"),
        (stands, {}, "runs the model itself"),
        ("autoattack", {"engine": "reference"}, "--engine reference runs its attacks as published"),
        ("apgd-t", {"precision": "bf16"}, "--precision bf16 attacks once more in fp32"),
    ],
)
def test_what_has_no_form_with_one_is_refused(
    attack: Any, how: dict[str, Any], text: str, steady: Model, images: Dataset
) -> None:
    with pytest.raises(UserError, match=text):
        planned(steady, images, Settings(attack=attack, attack_budget=1000, **{"eps": ["0.1"], **how}))


@pytest.mark.parametrize("budget", [0, -3, 2.5, True, 2**62])
def test_what_is_no_budget(budget: Any) -> None:
    with pytest.raises(UserError, match="attack budget is"):
        settings("pgd", budget)


def test_corruptions_and_models_that_may_reject_have_none() -> None:
    with pytest.raises(UserError, match="fog is a single step"):
        within_budget([Corruption(name="fog")], settings("corruptions", 100), K, None)
    with pytest.raises(UserError, match="leave out --abstain"):
        within_budget(make("pgd", "linf"), settings("pgd", 100), K, "last")


def test_a_set_that_may_go_on_to_another_has_none(
    steady: Model, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("my_sets")
    module.two = lambda: make("pgd", "linf") + make("square", "linf")  # type: ignore[attr-defined]
    module.ENTRIES = {"two": {"make": "two", "escalates": "autoattack"}}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_sets", module)
    with pytest.raises(UserError, match="my_sets:two decides by itself how many passes it makes"):
        planned(steady, images, settings("my_sets:two", 1000))


def test_bf16_is_not_chosen_where_it_would_attack_once_more(
    steady: Model, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[planned.__module__], "bf16_pays", lambda *given: True)
    assert planned(steady, images, settings("autoattack", None))[0].recheck
    assert not planned(steady, images, settings("autoattack", 1000))[0].recheck
