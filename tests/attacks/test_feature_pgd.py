"""Feature PGD: the class centres, and models without features."""

from __future__ import annotations

import pytest
import torch

from advbench.attacks.feature_pgd import FeaturePGD, class_centres
from advbench.data import load
from advbench.engine.attack import Context
from advbench.errors import UserError
from advbench.evaluator import bare
from advbench.models import build


def test_a_class_is_centred_at_the_mean_features_of_its_clean_images() -> None:
    digits = load("digits", "test")
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0).eval()
    x, y = digits.batch(slice(None))
    with torch.no_grad():
        features = net.features(x)
    wanted = torch.stack([features[y == k].mean(0) for k in range(10)])
    assert torch.allclose(class_centres(net, digits), wanted, atol=1e-5) and bool(wanted.any())
    part = digits.subset(torch.nonzero(y != 3)[:, 0].tolist())
    wanted[3] = 0
    assert torch.allclose(class_centres(net, part), wanted, atol=1e-5)


def test_a_model_without_features_is_refused() -> None:
    digits = load("digits", "test")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(UserError, match="reads features, which this model does not show"):
        FeaturePGD(name="feature-pgd").prepare(Context(bare(net, digits), digits, "linf", 0))
