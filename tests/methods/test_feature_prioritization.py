"""Feature prioritisation: the limit that is adversarial training, its penalty, and its attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from advbench.errors import UserError
from advbench.methods.feature_prioritization import FeaturePrioritization
from advbench.models.attention import Attention
from advbench.recipe import Recipe
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
Trained = Callable[..., Session]
Same = Callable[[nn.Module, nn.Module], bool]
CPU = torch.device("cpu")
NAME = "feature-prioritization"


def test_without_attention_and_lambda_it_is_adversarial_training_to_the_bit(
    recipe: Make, trained: Trained, same: Same
) -> None:
    at = trained(recipe("pgd-at")).nets.f
    assert same(trained(recipe(NAME, "method.attention=false", "method.lam=0")).nets.f, at)
    assert not same(trained(recipe(NAME, "method.attention=false")).nets.f, at)


def test_attention_alone_is_adversarial_training_of_the_wrapped_net(recipe: Make, trained: Trained, same: Same) -> None:
    mine = trained(recipe(NAME, "method.lam=0", "method.width=8")).nets.f
    assert isinstance(mine, Attention)
    assert same(trained(recipe("pgd-at", "model.attention=8")).nets.f, mine)


@pytest.mark.parametrize("attention", [True, False])
def test_the_penalty_is_the_mean_squared_distance_in_one_train_mode_pass(attention: bool, recipe: Make) -> None:
    session = Session(recipe(NAME, f"method.attention={str(attention).lower()}"), CPU)
    nets, passes = session.nets, []
    first = next(module for module in nets.f.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda module, given, out: passes.append((len(out), module.training)))
    x, y = session.data.batch(slice(8))
    x_adv = (x + 0.1).clamp(0, 1)
    terms = FeaturePrioritization(lam=0.3).outer(nets, x, x_adv, y)
    assert passes == [(16, True)]
    z = nets.f.features(torch.cat([x, x_adv])).detach().numpy()  # the same batch, so the same BatchNorm
    assert float(terms["penalty"].detach()) == pytest.approx(0.3 * np.mean(((z[:8] - z[8:]) ** 2).sum(1)), rel=1e-5)
    logits = nets.f.head(torch.tensor(z[8:]))
    assert torch.allclose(terms["ce"], nn.functional.cross_entropy(logits, y), atol=1e-6)


def test_the_distance_falls_with_lambda(recipe: Make) -> None:
    distance = []
    for lam in (0.0, 0.1, 1.0):
        session = Session(recipe(NAME, f"method.lam={lam}"), CPU)
        x, y = session.data.batch(slice(64))
        x_adv = (x + 0.2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        for _ in range(40):
            session.tools.update(lambda: session.method.outer(session.nets, x, x_adv, y))  # noqa: B023
        with torch.no_grad():
            moved = session.nets.f.features(x) - session.nets.f.features(x_adv)
        distance.append(float(moved.square().sum(1).mean()))
    assert distance[0] > distance[1] > distance[2]


def test_a_net_without_maps_is_refused_before_training_unless_attention_is_off(recipe: Make) -> None:
    with pytest.raises(UserError, match=r"mlp has no feature maps: choose from .*resnet18") as refused:
        Session(recipe(NAME, arch="mlp"), CPU)
    assert "\n" not in str(refused.value)
    Session(recipe(NAME, "method.attention=false", arch="mlp"), CPU).step(torch.arange(16))
