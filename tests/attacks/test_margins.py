"""ODI-margin and PMA, query by query against the formulas of their papers, and MALT's order against exact distances."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advbench import rng
from advbench.attacks.malt import nearest_classes
from advbench.attacks.odi import ODIMargin
from advbench.attacks.pma import PMA
from advbench.engine.attack import Answer, Problem, Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.errors import Interrupted, UserError
from advbench.evaluator.journal import Journal
from advbench.registry import find
from advbench.threat import around

N, K, EPS = 6, 4, 0.05


def problem(norm: str = "linf", restart: int = 0) -> Problem:
    """On grey images, whose balls [0, 1] does not cut."""
    index = torch.arange(N)
    x = 0.5 + 0.1 * (rng.uniform(index, (1, 5, 5)) - 0.5)
    restarts = torch.full((N,), restart)
    key = rng.keys(0, "margins", index, restarts)
    eps = torch.full((N,), EPS, dtype=torch.float64)
    return Problem(around(norm, x, eps), index % K, torch.full((N,), -1), key, restarts)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def walk(attack: Any, p: Problem) -> list[float]:
    """The sizes, in shares of eps, of the steps of an item that starts at x, in a ball that holds none of them back."""
    wide = Problem(around(p.region.norm, p.region.x, 100 * p.region.eps), p.y, p.target, p.key, p.restart)
    narrow = Problem(p.region, p.y, p.target, p.key, p.restart)
    s, sizes = attack.start(narrow), []
    g = torch.randn(N, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    direction = p.region.steepest(g)
    while not attack.done(s).all():
        s.query = wide.region.x
        moved = attack.step(narrow, s, Answer(logits(0), torch.zeros(N, dtype=torch.bool), torch.zeros(N), g))
        # One step from x leaves the ball only if it is longer than eps: then it ends on the border.
        along = ((moved.query - wide.region.x) * direction).flatten(1).sum(1) / (direction**2).flatten(1).sum(1)
        sizes.append(float(along.mean()) / EPS)
        s = moved
    return sizes


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [8, 20])
def test_the_steps_of_odi_margin_follow_its_cosine(norm: str, steps: int) -> None:
    attack = ODIMargin(name="odi-margin", steps=steps).for_model(norm, K)
    a = 0.1 if steps <= 10 else 0.001
    wanted = [a + (1 - a) * (1 + math.cos(math.pi * s / (steps + 1))) / 2 for s in range(steps)]
    assert walk(attack, problem(norm))[:-1] == pytest.approx(wanted, abs=1e-4)
    assert walk(attack, problem(norm, restart=3))[:-1] == pytest.approx([1.0] * 7 + wanted, abs=1e-4)


def test_odi_margin_climbs_random_outputs_first_and_then_the_margin() -> None:
    attack, z = ODIMargin(name="odi-margin"), logits(2)
    for restart, i, odi in ((0, 0, False), (0, 5, False), (1, 0, True), (1, 6, True), (1, 7, False), (4, 0, True)):
        p = problem(restart=restart)
        p.i = torch.full((N,), i)
        value = attack.objective(p, z)
        others = z.scatter(1, p.y[:, None], -torch.inf).amax(1)
        margin = others - z[torch.arange(N), p.y]
        if not odi:
            assert torch.allclose(value, margin)
            continue
        unit = torch.stack([attack.objective(p, row.expand(N, K)) for row in torch.eye(K)], 1)  # w itself
        assert ((unit >= -1) & (unit < 1)).all() and unit.std() > 0.3
        assert torch.allclose(value, (unit * z).sum(1), atol=1e-6)
    one, other = (problem(restart=r) for r in (1, 2))
    assert not torch.allclose(attack.objective(one, z), attack.objective(other, z))  # w is drawn anew


@pytest.mark.parametrize(("odi_steps", "updates"), [(7, 263), (0, 200)])
def test_odi_margin_takes_as_many_updates_as_it_says(odi_steps: int, updates: int) -> None:
    attack = ODIMargin(name="odi-margin", odi_steps=odi_steps)
    assert attack.updates(K) == updates
    assert attack.passes(K) == (updates + 10, updates + 10)  # the last point of each restart is asked about too
    assert sum(len(walk(attack, problem(restart=r))) - 1 for r in range(10)) == updates


def test_the_steps_of_pma_fall_twice_from_two_eps_to_nothing() -> None:
    sizes = walk(PMA(name="pma"), problem())[:-1]
    wanted = [1 + math.cos(math.pi * (k - 1) / 50) for k in range(51)]
    wanted += [1 + math.cos(math.pi * (k - 51) / 50) for k in range(51, 100)]
    assert sizes == pytest.approx([min(size, 1.0) for size in wanted], abs=1e-4)  # the ball ends at eps


@pytest.mark.parametrize("restart", [0, 1, 2])
def test_pma_climbs_one_probability_and_then_their_margin(restart: int) -> None:
    attack, z, p = PMA(name="pma"), logits(3), problem(restart=restart)
    q = z.double().softmax(1)
    own = q[torch.arange(N), p.y]
    rival = q.scatter(1, p.y[:, None], -1).amax(1)
    for i in (0, 49, 50, 99):
        p.i = torch.full((N,), i)
        wanted = rival - own if i >= 50 else (-own if restart % 2 == 0 else rival)
        assert torch.allclose(attack.objective(p, z).double(), wanted, atol=1e-6)


def linear(case: Any) -> tuple[Oracle, Samples]:
    """Of a linear model of 6 classes."""
    index = torch.arange(len(case.y))
    oracle = Oracle(case.net, slots=5)
    eps = torch.full((len(case.y),), 0.1, dtype=torch.float64)
    return oracle, Samples(lambda rows: case.x[rows], case.y, index, eps, oracle.logits(case.x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_order_of_malt_is_that_of_the_exact_distances_of_a_linear_model(cases: Any, norm: str) -> None:
    case = cases["several"](False, 6)
    oracle, samples = linear(case)
    attack = find("attacks", "apgd-t").create(targets="malt", n_targets=5)
    found = attack.target_classes_of(samples, oracle, norm)
    assert torch.equal(found, nearest_classes(attack, oracle, samples, norm, 9))
    z = samples.logits.double().numpy()
    for row, own in enumerate(case.y.tolist()):
        others = [c for c in range(6) if c != own]
        dual = [np.linalg.norm(case.weight[own] - case.weight[c], 1 if norm == "linf" else 2) for c in others]
        away = [(z[row, own] - z[row, c]) / w for c, w in zip(others, dual, strict=True)]
        assert found[row].tolist() == [others[k] for k in np.argsort(away)]
    assert oracle.backwards == 2 * 5 * 20  # twice, 5 classes, 4 passes of 5 rows for 16 samples


def test_settings_of_targets_that_say_nothing_are_refused() -> None:
    make = find("attacks", "apgd-t").create
    for given, words in (
        ({"targets": "nearest"}, "choose from all, likeliest, malt"),
        ({"targets": "all", "target": 1}, "leave out targets=all"),
    ):
        with pytest.raises(UserError, match=words):
            make(**given)
    assert "targets" not in make().settings() and make(targets="malt").settings()["targets"] == "malt"
    assert "targets" not in find("attacks", "apgd-ce").create(targets="malt").settings()
    y = torch.zeros(2, dtype=torch.long)
    samples = Samples(lambda rows: torch.zeros(len(rows), 1, 2, 2), y, y, y.double(), torch.eye(5)[:2])
    untargeted = find("attacks", "apgd-ce").create(targets="malt")  # such as the first member of autoattack
    assert untargeted.target_classes_of(samples, Oracle(torch.nn.Identity(), slots=2), "linf").shape == (2, 1)
    assert find("attacks", "multi-targeted").create().for_model("linf", 7).n_targets == 6


def test_an_untargeted_attack_beside_apgd_t_gets_its_setting_malt_and_stays_untargeted(cases: Any) -> None:
    oracle, samples = linear(cases["several"](False, 6))
    attack = find("attacks", "apgd-ce").create(targets="malt")
    assert attack.target_classes_of(samples, oracle, "linf").tolist() == [[-1]] * len(samples.y)


def test_the_passes_of_malts_order_are_counted_once(cases: Any, tmp_path: Path) -> None:
    """Also where the search was stopped and resumed."""
    attack = find("attacks", "apgd-t").create(targets="malt", n_targets=2, steps=3).for_model("linf", 6)
    counts = []
    for turns in (0, 3):
        stopping = [False] * turns + [bool(turns)]
        path = tmp_path / str(turns)
        for resume in (False, True)[: 1 + bool(turns)]:
            journal = Journal(path, stop=lambda left=stopping: bool(left) and left.pop(0))  # type: ignore[misc]
            journal.begin({}, resume=resume)
            oracle, samples = linear(cases["several"](False, 6))
            clean = oracle.forwards
            with pytest.raises(Interrupted) if turns and not resume else nullcontext():
                journal.run("apgd-t", Search(attack, samples, oracle, norm="linf", seed=0))
        counts.append((journal.forwards, journal.backwards))
        if not turns:
            assert counts == [(oracle.forwards - clean, oracle.backwards)]
    assert counts[0] == counts[1] and counts[0][1] > 5 * 20  # 5 classes, 4 passes of 5 rows for 16 samples
