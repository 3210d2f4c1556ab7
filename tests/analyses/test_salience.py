"""The shares of gradients and attention on salient pixels: by hand, in their limits, and on real digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from advbench.analyses import salience
from advbench.analyses.salience import attention_share, gradient_share, run
from advbench.data.dataset import Dataset
from advbench.errors import UserError

Trained = Callable[..., Path]
CNN = "small_cnn_16_32_100"


def test_the_share_of_a_gradient_by_hand() -> None:
    g = torch.tensor([[3.0, -1.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    salient = torch.tensor([[[True, False], [False, True]]]).expand(3, 2, 2)
    found = gradient_share(g, salient)
    assert found[0] == 7 / 8 and found[1].isnan() and found[2] == 1 / 2


def test_the_share_of_attention_by_hand() -> None:
    salient = torch.zeros(1, 4, 4, dtype=torch.bool)
    salient[0, :2, :2] = True  # all of the first cell
    salient[0, 0, 3] = True  # a quarter of the one to its right
    weights = torch.tensor([[[[0.5, 0.2], [0.1, 0.2]]]])
    share, most = attention_share(weights, salient)
    assert share.tolist() == pytest.approx([0.5 + 0.2 / 4]) and most.tolist() == [1.0]


def test_equal_attention_has_the_share_of_ink() -> None:
    salient = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.6
    share, most = attention_share(torch.full((5, 1, 2, 4), 1 / 8), salient)
    assert torch.allclose(share, salient.double().mean((1, 2))) and (most >= share).all()
    share, most = attention_share(torch.full((5, 1, 3, 5), 1 / 15), salient)  # of cells that end inside of pixels
    assert torch.allclose(share, salient.double().mean((1, 2))) and (most >= share).all()


def test_runs_with_and_without_attention(trained: Trained) -> None:
    plain, focused = trained("pgd-at", arch=CNN), trained("feature-prioritization", arch=CNN)
    found = run([plain, focused], n=60)
    table = found.tables["salience"]
    assert table.loc[plain.name, ["attention", "attention_most"]].isna().all() and found.notes == ()
    assert table["ink"].nunique() == 1 and 0 < table["ink"].iloc[0] < 1
    row = table.loc[focused.name]
    assert 0 < row["gradient"] < 1 and 0 < row["attention"] <= row["attention_most"] <= 1
    assert list(run([plain], n=20).tables["salience"]) == ["ink", "gradient"]


def test_all_pixels_or_none(trained: Trained) -> None:
    none = run([trained("feature-prioritization", arch=CNN)], n=20, ink=1).tables["salience"]
    assert (none == 0).all(axis=None)
    every = run([trained("feature-prioritization", arch=CNN)], n=20, ink=0)
    assert 0.3 < every.tables["salience"]["ink"].iloc[0] < 0.9  # black is not above 0


def test_images_in_colour_are_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    colour = Dataset.whole(torch.zeros(4, 3, 8, 8), labels, name="cifar10", split="test", num_classes=10)
    monkeypatch.setattr(salience, "images", lambda *asked: colour)
    with pytest.raises(UserError, match=r"cifar10 has images in colour.*: name runs on digits, mnist") as caught:
        salience.run([trained("pgd-at", arch=CNN)])
    assert "\n" not in str(caught.value)
