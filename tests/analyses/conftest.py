"""Small runs on real digits, trained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from advbench.recipe import Recipe
from advbench.trainer import train

SHORT = ["epochs=4", "optim.lr=0.1", "inner.steps=3", "inner.warmup=0.3", "validation.steps=2", "train_n=600"]
Trained = Callable[..., Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a run by method, eps and further settings; the same call gives the same run."""
    root, kept = tmp_path_factory.mktemp("runs"), dict[tuple[str, ...], Path]()

    def make(method: str, *sets: str, eps: str = "0.1", arch: str = "mlp", seed: int = 0) -> Path:
        asked = (method, *sets, eps, arch, str(seed))
        if asked not in kept:
            flags = {"seed": seed}
            recipe = Recipe.resolve(method=method, arch=arch, eps=eps, flags=flags, sets=[*SHORT, *sets])
            kept[asked] = train(recipe, root / f"{len(kept)}-{method}-{eps}", device="cpu")
        return kept[asked]

    return make
