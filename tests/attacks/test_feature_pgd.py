"""Feature PGD: the class centres, and models without features."""

from __future__ import annotations

import pytest
import torch

from advbench.attacks.feature_pgd import FeaturePGD, class_centres
from advbench.data import load
from advbench.engine.attack import Context
from advbench.errors import UserError
from advbench.evaluator import Settings, bare, evaluate
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


def test_large_logits_are_held_against_attacks_that_climb_their_cross_entropy_alone() -> None:
    """On the zoo's net with the last layer 1000 times as large, whose cross-entropy has no gradient."""
    digits = load("digits", "test").subset(range(64))
    net = build("mlp", num_classes=10, in_channels=1, image_size=8, seed=0)
    x, y = load("digits", "train").batch(slice(None))
    optim = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(60):
        optim.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optim.step()
    with torch.no_grad():
        net.linear.weight.mul_(1000)
        net.linear.bias.mul_(1000)
    flags = {
        name: {
            flag.name: flag.severity
            for flag in evaluate(net.eval(), digits, Settings(attack=name, eps=["0", "0.1"], slots=64)).record.flags
        }
        for name in ("feature-pgd", "pgd")
    }
    assert flags["pgd"]["saturated"] == "broken" and "saturated" not in flags["feature-pgd"]


def test_a_model_without_features_is_refused() -> None:
    digits = load("digits", "test")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(UserError, match="reads features, which this model does not show"):
        FeaturePGD(name="feature-pgd").prepare(Context(bare(net, digits), digits, "linf", 0))
