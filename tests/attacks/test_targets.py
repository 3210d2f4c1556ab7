"""Targets of a class for each image: random, the least likely, and a file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_classifiers import least_squares
from torch import nn

from advbench.attacks.aimed import least_likely
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import UserError
from advbench.evaluator import Evaluation, Settings, evaluate

N = 40


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(range(N))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return least_squares()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The targets (n, T) of each search."""
    from advbench.engine.search import Search

    found: list[Any] = []
    begin = Search.__init__

    def noted(self: Search, *given: Any, **how: Any) -> None:
        begin(self, *given, **how)
        found.append((self.samples, self.targets))

    monkeypatch.setattr(Search, "__init__", noted)
    return found


def run(net: nn.Module, data: Dataset, attack: str = "pgd", *, seed: int = 0, **settings: Any) -> Evaluation:
    how = Settings(
        attack=attack, attack_settings=settings, eps=["0.3"], seed=seed, probes=False, keep_points=True, processes=1
    )
    return evaluate(net, data, how)


@pytest.mark.parametrize("attack", ["pgd", "apgd-dlr", "square"])
def test_random_targets_are_wrong_classes_and_hang_on_seed_and_place_alone(
    net: nn.Module, digits: Dataset, seen: list[Any], attack: str
) -> None:
    short = {"n_queries": 3} if attack == "square" else {"steps": 2}
    for seed, rows in ((0, range(N)), (0, range(5, 20)), (1, range(N))):
        run(net, digits.subset(list(rows)), attack, seed=seed, target="random", **short)
    tables = [dict(zip(s.index.tolist(), t[:, 0].tolist(), strict=True)) for s, t in seen]
    y = dict(zip(digits.indices.tolist(), digits.labels.tolist(), strict=True))
    assert all(0 <= target < 10 and target != y[place] for table in tables for place, target in table.items())
    assert len(set(tables[0].values())) > 3
    shared = tables[0].keys() & tables[1].keys()
    assert all(tables[0][place] == tables[1][place] for place in shared)
    assert any(tables[0][place] != tables[2][place] for place in tables[0].keys() & tables[2].keys())


def test_the_least_likely_class_is_that_of_the_least_logit(net: nn.Module, digits: Dataset, seen: list[Any]) -> None:
    result = run(net, digits, target="least-likely", steps=20, rel_step=0.1)
    ((samples, targets),) = seen
    logits = samples.logits.numpy().copy()
    logits[np.arange(len(logits)), samples.y.numpy()] = np.inf
    assert targets[:, 0].tolist() == logits.argmin(1).tolist()
    assert result.record.attack[0].settings["target"] == "least-likely"
    tied = least_likely(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 2]))
    assert tied.tolist() == [1, 0]


def test_points_reach_the_targets_of_a_file(
    net: nn.Module, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = [(label + 1 + place % 3) % 10 for place, label in enumerate(digits.labels.tolist())]
    Path("lines.txt").write_text("\n".join(map(str, wanted)) + "\n")
    Path("list.json").write_text(json.dumps(wanted))
    lines, listed = (
        run(net, digits, target=name, steps=40, rel_step=0.1) for name in ("lines.txt", str(tmp_path / "list.json"))
    )
    plain = run(net, digits, steps=40, rel_step=0.1)
    with torch.no_grad():
        after, without = (net(one.adversarials).argmax(1) == torch.tensor(wanted) for one in (lines, plain))
    assert lines.found.sum() > N / 2
    assert after.sum() > 1.5 * without.sum() > 0  # any misclassification ends the attack
    assert torch.equal(lines.adversarials, listed.adversarials)
    ours, theirs = (one.record.attack[0].settings for one in (lines, listed))
    assert ours["target"] == "lines.txt" and theirs["target"] == "list.json"  # spelt below the current folder
    assert ours["target_sha256"] == theirs["target_sha256"] != ""
    assert "target_sha256" not in plain.record.attack[0].settings  # such records stay as they are
    Path("list.json").write_text(", ".join(map(str, wanted)))
    again = run(net, digits, target="list.json", steps=40, rel_step=0.1)
    assert again.record.attack[0].settings["target_sha256"] == ours["target_sha256"]
    changed = [*wanted[:-1], (wanted[-1] + 1) % 10]
    Path("lines.txt").write_text("\n".join(map(str, changed)))
    assert run(net, digits, target="lines.txt").record.question != lines.record.question
    with pytest.raises(UserError, match="was meant"):  # as a repetition of the record would ask
        run(net, digits, target="lines.txt", target_sha256=ours["target_sha256"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 2 3", "it lists 3, but 40 images"),
        (json.dumps([1] * 39 + [10]), "number 40 is 10"),
        (json.dumps([1] * 39 + [True]), "number 40 is True"),
        (json.dumps([1] * 39 + [1.0]), "number 40 is 1.0"),
        ("one", "cannot read the targets"),
        ("[1", "cannot read the targets"),
    ],
)
def test_a_file_that_does_not_fit(net: nn.Module, digits: Dataset, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "targets.txt"
    file.write_text(content)
    with pytest.raises(UserError, match="targets") as raised:
        run(net, digits, target=str(file))
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("how", [{}, {"target": 3}, {"target": "random"}, {"target": "least-likely"}])
def test_a_hash_of_targets_without_their_file(net: nn.Module, digits: Dataset, how: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="write target=FILE too"):
        run(net, digits, target_sha256="ab", **how)
