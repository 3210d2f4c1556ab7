"""The attention wrapper: its formula against numpy, and that it can be rebuilt, searched and saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import softmax

from advbench.checkpoint import load_model
from advbench.engine.search_copy import search_copy
from advbench.errors import UserError
from advbench.models import build, describe, parse_wrapper, rebuild, wrap
from advbench.models.attention import Attention
from advbench.models.base import Model
from advbench.recipe import Recipe

SIZE = {"num_classes": 10, "in_channels": 1, "image_size": 8}


def made(arch: str = "small_cnn", width: int = 6) -> Attention:
    net = wrap(build(arch, seed=0, **SIZE), "attention", seed=1, width=width)
    assert isinstance(net, Attention)
    return net.eval()


def test_beside_g_the_head_receives_the_mean_of_local_features_by_softmax_weights() -> None:
    net, x = made(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        net.extra.weight.normal_()  # type: ignore[operator, union-attr]
        maps, g = net.net.maps_and_features(x)
        a, z, logits = net.weights(maps, g), net.features(x), net(x)
    local = maps.flatten(2).numpy().transpose(0, 2, 1)  # (B, places, C)
    w, bias = net.local.weight.detach().numpy()[:, :, 0, 0], net.local.bias.detach().numpy()  # type: ignore[union-attr]
    v, u = net.whole.weight.detach().numpy(), net.score.weight.detach().numpy()[0, :, 0, 0]
    c = np.tanh(local @ w.T + bias + (g.numpy() @ v.T)[:, None]) @ u
    assert np.allclose(a.flatten(1).numpy(), softmax(c, 1), atol=1e-6)
    phi = (softmax(c, 1)[:, :, None] * local).sum(1)
    assert torch.equal(z[:, :200], g) and np.allclose(z[:, 200:].numpy(), phi, atol=1e-5)
    plain, added = net.net.head(g).detach(), net.extra.weight.detach()  # type: ignore[operator, union-attr]
    expected = plain.numpy() + phi @ added.numpy().T
    assert np.allclose(logits.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["small_cnn", "lenet5"])
def test_untrained_it_is_the_plain_net_and_its_new_parts_learn(arch: str) -> None:
    inner, x = build(arch, seed=0, **SIZE), torch.rand(4, 1, 8, 8)
    net = wrap(inner, "attention", seed=1)
    assert torch.equal(net(x), inner(x))
    optimizer, before = torch.optim.SGD(net.parameters(), lr=0.1), copy.deepcopy(net.state_dict())
    for _ in range(2):  # in the first step E alone, since it is 0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), torch.arange(4)).backward()
        optimizer.step()
    new = [key for key in before if not key.startswith("net.")]
    assert len(new) == 5 and not any(torch.equal(net.state_dict()[key], before[key]) for key in new)


def test_equal_scores_are_the_plain_mean_over_places() -> None:
    net, x = made(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        net.score.weight.zero_()
        maps, z = net.maps_and_features(x)
    assert torch.allclose(z[:, 200:], maps.mean((2, 3)), atol=1e-6)


def test_weights_of_the_form_before_are_refused_in_one_line(tmp_path: Path) -> None:
    """That form had no global feature beside phi, and a projection of phi."""
    net, file = made(), tmp_path / "before.safetensors"
    state = {key: value for key, value in net.state_dict().items() if key != "extra.weight"}
    save_file({**state, "project.weight": torch.zeros(200, 64)}, file, {"advbench": json.dumps(describe(net))})
    with pytest.raises(UserError, match=r"1 missing keys \(extra.weight\); 1 unknown keys \(project.weight\)") as no:
        load_model(str(file))
    assert "\n" not in str(no.value)


def test_it_is_rebuilt_from_its_description() -> None:
    net, x = made(width=5), torch.rand(2, 1, 8, 8)
    again = rebuild(describe(net)).eval()
    again.load_state_dict(net.state_dict())
    assert describe(net)["wrappers"] == [{"name": "attention", "settings": {"width": 5}}]
    assert torch.equal(net(x), again(x))
    assert net.feature_dim == net.features(x).shape[1] == 200 + 64


def test_making_it_leaves_the_inner_net_as_it_was() -> None:
    inner = build("resnet18", seed=0, width=4, num_classes=10, in_channels=3, image_size=16)
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    net = wrap(inner, "attention", seed=1)
    assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in net.net.state_dict().items())
    assert inner.training and net.training and all(module.training for module in net.net.modules())


def test_the_search_copy_folds_its_batch_norm() -> None:
    inner: Model = build("resnet18", seed=0, width=4, num_classes=10, in_channels=3, image_size=16)
    net = wrap(inner, "attention", seed=1).eval()
    copied, notes = search_copy(net)
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(copied(x), net(x), atol=1e-4)
    assert any("folded into convolutions" in note for note in notes)


def test_its_short_form_is_a_width() -> None:
    assert parse_wrapper("attention", "16") == {"width": 16}
    recipe = Recipe.resolve(method="pgd-at", sets=["model.attention=16"])
    assert recipe.model.settings["attention"] == 16


@pytest.mark.parametrize("arch", ["mlp", "linear"])
def test_a_net_without_maps_is_refused(arch: str) -> None:
    with pytest.raises(UserError, match=f"{arch} has no feature maps"):
        made(arch)


def test_a_width_that_is_no_count_is_refused() -> None:
    with pytest.raises(UserError, match="width is 0"):
        made(width=0)
