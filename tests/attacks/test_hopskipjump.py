"""HopSkipJump, query by query against a plain loop over its algorithm, and its end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from advbench import rng
from advbench.attacks.hopskipjump import LEAP, HopSkipJump
from advbench.engine.attack import Answer, Problem
from advbench.threat import around

SHAPE = (1, 3, 3)
N = math.prod(SHAPE)


def by_the_paper(norm: str, x: Tensor, key: Tensor, first_samples: int) -> Iterator[Tensor]:
    """The queries for one image, each answered by `send(misled)`. The random numbers are the attack's."""
    asked = 0

    def drawn(kind: str) -> Tensor:
        at = key if asked == 0 else rng.fold(key, asked)
        if kind == "image":
            return rng.uniform(at, SHAPE)[0]
        u = rng.normal(at, SHAPE)[0] if norm == "l2" else 2 * rng.uniform(at, SHAPE)[0] - 1
        return u / u.norm()

    def size(d: Tensor) -> float:
        return float(d.norm() if norm == "l2" else d.abs().max())

    theta = N**-1.5 if norm == "l2" else N**-2.0
    while True:
        point = drawn("image")
        misled = yield point
        asked += 1
        if misled:
            break
    t = 1
    while True:
        low, high = 0.0, 1.0 if norm == "l2" else float((point - x).double().abs().max())
        limit = theta if norm == "l2" else None

        def between(at: float, end: Tensor) -> Tensor:
            return (x + at * (end - x) if norm == "l2" else torch.clamp(end, x - at, x + at)).clamp(0, 1)

        while True:
            misled = yield between((low + high) / 2, point)
            asked += 1
            low, high = (low, (low + high) / 2) if misled else ((low + high) / 2, high)
            if high - low <= (limit if limit is not None else theta * min(high, 1)):
                break
        point = between(high, point)
        distance = size(point - x)
        delta = 0.1 if t == 1 else (math.sqrt(N) if norm == "l2" else N) * theta * distance
        labels, steps = [], []
        for _ in range(int(first_samples * math.sqrt(t))):
            beside = (point + delta * drawn("direction")).clamp(0, 1)
            misled = yield beside
            asked += 1
            labels.append(1.0 if misled else -1.0)
            steps.append((beside - point) / delta)
        mean = sum(labels) / len(labels)
        baseline = 0.0 if abs(mean) == 1 else mean  # where all labels agree, their own mean says nothing
        v = sum((phi - baseline) * u for phi, u in zip(labels, steps, strict=True))
        direction = v / v.norm() if norm == "l2" else v.sign()
        length = distance / math.sqrt(t)
        while True:
            beyond = (point + length * direction).clamp(0, 1)
            misled = yield beyond
            asked += 1
            if misled:
                break
            length /= 2
        point, t = beyond, t + 1


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_query_is_that_of_the_algorithm(norm: str) -> None:
    rows, queries = 3, 150
    index = torch.arange(rows)
    key = rng.keys(0, "hopskipjump", index)
    x = 0.4 + 0.2 * rng.uniform(rng.fold(key, 9), SHAPE)
    w = torch.randn(N, generator=torch.Generator().manual_seed(0))
    level = x.flatten(1) @ w + 0.2

    def misled(z: Tensor, row: int) -> bool:
        """Beyond a plane; for the first image up to a second plane only, so that long steps fail."""
        beyond = float(z.flatten() @ w - level[row])
        return 0 < beyond < (0.3 if row == 0 else torch.inf)

    infinite = torch.full((rows,), torch.inf, dtype=torch.float64)
    p = Problem(around(norm, x, infinite), index, torch.full_like(index, -1), key)
    attack: Any = HopSkipJump(name="hopskipjump", n_queries=queries, first_samples=12).for_model(norm, 3)
    loops = [by_the_paper(norm, x[row], key[row : row + 1], 12) for row in range(rows)]
    wanted = [next(loop) for loop in loops]
    state, rounds, failed = attack.start(p), 0, 0
    for _ in range(queries):
        for row in range(rows):
            assert torch.allclose(state.query[row], wanted[row], atol=1e-5), (int(state.i[row]), int(state.phase[row]))
        found = torch.tensor([misled(state.query[row], row) for row in range(rows)])
        failed += int(((state.phase == LEAP) & ~found).sum())
        wanted = [loop.send(bool(hit)) for loop, hit in zip(loops, found, strict=True)]
        state = attack.step(p, state, Answer(torch.zeros(rows, 3), found, torch.zeros(rows)))
        rounds = int(state.round.min())
    assert rounds >= 3 and failed >= 3 and attack.done(state).all()


def test_an_item_that_never_misleads_draws_images_to_its_end() -> None:
    index = torch.arange(2)
    x = torch.full((2, *SHAPE), 0.5)
    region = around("l2", x, torch.full((2,), torch.inf, dtype=torch.float64))
    p = Problem(region, index, torch.full_like(index, -1), rng.keys(0, "hopskipjump", index))
    attack, seen = HopSkipJump(name="hopskipjump", n_queries=5), []
    state = attack.start(p)
    while not attack.done(state).all():
        seen.append(state.query)
        never = torch.zeros(2, dtype=torch.bool)
        state = attack.step(p, state, Answer(torch.zeros(2, 3), never, torch.zeros(2)))
    images = torch.stack(seen)
    assert len(images) == 5 and ((images >= 0) & (images < 1)).all()
    assert len({tuple(image.flatten().tolist()) for image in images.flatten(0, 1)}) == 10
