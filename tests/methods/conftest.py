"""Runs of a method in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from advbench.recipe import Recipe
from advbench.trainer.session import Session


@pytest.fixture
def trained() -> Callable[..., Session]:
    """A run of a recipe after some steps of its first epoch."""

    def make(recipe: Recipe, steps: int = 4) -> Session:
        session = Session(recipe, torch.device("cpu"))
        for _ in range(steps):
            session.step(session.order())
        return session

    return make


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether two nets have equal weights and buffers, to the bit."""

    def equal(a: nn.Module, b: nn.Module) -> bool:
        mine, theirs = a.state_dict(), b.state_dict()
        return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)

    return equal
