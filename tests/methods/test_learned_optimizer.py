"""The learned optimiser: its pieces by hand, what is trained when, and that only clean images train f."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from advbench.errors import UserError
from advbench.methods.learned_optimizer import (
    PART,
    CoordinateLSTM,
    LearnedOptimizer,
    Memory,
    OptimizerState,
    add_updates,
    preprocess,
    reinitialised,
)
from advbench.models import build, wrap
from advbench.models.state_files import read_state
from advbench.recipe import Recipe
from advbench.trainer import train
from advbench.trainer.session import Session

Recipes = Callable[..., Recipe]
SHORT = ("method.T_first=3", "method.T=5", "method.units=4", "model.width=8", "model.depth=1")


@pytest.fixture
def short(recipe: Recipes) -> Callable[..., Recipe]:
    return lambda *sets, arch="mlp": recipe("learned-optimizer", *SHORT, *sets, arch=arch)


def steps(recipe: Recipe, n: int) -> Session:
    torch.manual_seed(0)  # as the trainer's loop does
    session = Session(recipe, torch.device("cpu"))
    for _ in range(n):
        if session.position == session.steps:
            session.end_epoch()
        session.step(session.order())
    return session


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in net.parameters()]).clone()


def test_preprocessing_by_hand() -> None:
    found = preprocess(torch.tensor([1.0, -1.0, torch.tensor(-10.0).exp().item() / 2, 0.0]))
    assert found[0].tolist() == [0.0, 1.0] and found[1].tolist() == [0.0, -1.0]
    assert found[2].tolist() == pytest.approx([-1.0, 0.5], rel=1e-4) and found[3].tolist() == [-1.0, 0.0]


def test_each_coordinate_is_updated_independently() -> None:
    m = CoordinateLSTM(4, 0.05)
    g, state = torch.randn(6), torch.randn(4, 6, 4)
    moves, after = m(g, state)
    one, one_after = m(g[2:3], state[:, 2:3])
    assert torch.allclose(moves[2:3], one, atol=1e-7) and torch.allclose(after[:, 2:3], one_after, atol=1e-7)
    assert after.shape == state.shape


def test_updates_reach_the_weights_they_belong_to() -> None:
    net = nn.Linear(3, 2)
    theta = reinitialised(net)
    after = add_updates(theta, torch.arange(8.0))
    assert torch.allclose(after["weight"] - theta["weight"], torch.arange(6.0).view(2, 3), atol=1e-6)
    assert torch.allclose(after["bias"] - theta["bias"], torch.tensor([6.0, 7.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("mlp", {}),
        ("small_cnn", {}),
        ("small_cnn_16_32_100", {}),
        ("wrn-28-10", {"depth": 10, "widen": 1}),
        ("conv_linear", {"depth": 3}),
    ],
)
def test_the_nets_of_unrolls_begin_as_new_nets_do(arch: str, settings: dict[str, Any]) -> None:
    def net(seed: int) -> nn.Module:
        return build(arch, num_classes=10, in_channels=1, image_size=8, seed=seed, **settings)

    new, old = net(3), net(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theta = reinitialised(old)
    assert all(torch.equal(theta[name], weight) for name, weight in new.named_parameters())


def test_a_net_of_an_unroll_with_attention_begins_without_it() -> None:
    net = wrap(build("small_cnn_16_32_100", num_classes=10, in_channels=1, image_size=8, seed=0), "attention", seed=1)
    nn.init.ones_(net.extra.weight)  # type: ignore[arg-type, union-attr]
    before = net.local.weight.detach().clone()  # type: ignore[operator, union-attr]
    theta = reinitialised(net)
    assert not theta["extra.weight"].any() and not torch.equal(theta["local.weight"], before)


def test_the_meta_loss_reaches_the_optimiser_through_the_unroll() -> None:
    m, net, x = CoordinateLSTM(4, 0.05), nn.Linear(3, 2), torch.randn(5, 3)
    theta = reinitialised(net)
    moves, _ = m(torch.randn(8), torch.zeros(4, 8, 4))
    functional_call(net, add_updates(theta, moves), (x,)).square().mean().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in (m.out.weight, m.second.weight_ih))


def test_only_the_optimiser_learns_during_meta_training_and_only_f_after(short: Callable[..., Recipe]) -> None:
    settings = short("method.meta=0.5", "method.clean_phase=0")
    start, half, end = (steps(settings, n) for n in (0, 6, 12))
    assert torch.equal(weights(start.nets.f), weights(half.nets.f))
    assert not torch.equal(weights(start.nets.parts[PART]), weights(half.nets.parts[PART]))
    assert torch.equal(weights(half.nets.parts[PART]), weights(end.nets.parts[PART]))
    assert not torch.equal(weights(half.nets.f), weights(end.nets.f))
    kept = end.nets.parts["state"]
    assert isinstance(kept, OptimizerState) and kept.state.abs().sum() > 0


def test_f_is_trained_without_adversarial_examples(short: Callable[..., Recipe]) -> None:
    """Of six steps with f, each is one pass forward and back for each image."""
    session = steps(short("method.meta=0.5"), 6)
    before = session.counter.forwards, session.counter.backwards
    for _ in range(6):
        if session.position == session.steps:
            session.end_epoch()
        session.step(session.order())
    passes = 6 * session.batch_size
    assert (session.counter.forwards - before[0], session.counter.backwards - before[1]) == (passes, passes)


def test_gamma_one_never_attacks(short: Callable[..., Recipe]) -> None:
    session = steps(short("method.meta=0.5", "method.clean_phase=0", "method.gamma=1"), 6)
    terms, _ = session.means()
    assert terms["adversarial"] == 0 and terms["clean"] > 0


def test_unrolls_smooth_labels_as_the_training_of_f_does(short: Callable[..., Recipe]) -> None:
    session = Session(short("label_smoothing=0.4", "method.gamma=1", "method.T_first=1"), torch.device("cpu"))
    x, y = session._batch(session.order()[: session.batch_size])
    method, memory, optimisee = session.method, session.nets.parts["memory"], session.nets.parts["optimisee"]
    assert isinstance(method, LearnedOptimizer) and isinstance(memory, Memory)
    memory.add(x, y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        clean = method.unroll(session.nets, session.tools)["clean"].item()  # of one step: progress is 0
        torch.manual_seed(5)
        logits = functional_call(optimisee, reinitialised(optimisee), (x,))
    assert clean == pytest.approx(functional.cross_entropy(logits, y, label_smoothing=0.4).item(), rel=1e-5)
    assert clean != pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-3)


def test_resuming_gives_the_same_run(short: Callable[..., Recipe]) -> None:
    settings = short("method.meta=0.5", "method.clean_phase=0")
    whole, first = steps(settings, 8), steps(settings, 4)
    second = Session(settings, torch.device("cpu"))
    second.restore(first.state())
    for _ in range(4):
        if second.position == second.steps:
            second.end_epoch()
        second.step(second.order())
    assert torch.equal(weights(whole.nets.f), weights(second.nets.f))
    assert torch.equal(weights(whole.nets.parts[PART]), weights(second.nets.parts[PART]))


def test_a_learned_optimiser_trains_a_wider_net(short: Callable[..., Recipe], tmp_path: Path) -> None:
    source = train(short("method.meta=0.5"), tmp_path / "source", device="cpu")
    session = steps(short(f"method.source={source}", "model.width=20"), 0)
    m = session.nets.parts[PART]
    assert set(session.tools.optimizers) == {"f"} and not any(w.requires_grad for w in m.parameters())
    before_m, before_f = weights(m), weights(session.nets.f)
    session.step(session.order())
    assert torch.equal(before_m, weights(m)) and not torch.equal(before_f, weights(session.nets.f))


def test_an_optimiser_moves_from_a_convolutional_net_to_other_images_and_another_net(
    recipe: Recipes, tmp_path: Path
) -> None:
    """From grey 8x8 images of ten classes to coloured 12x12 ones of three."""
    rng = np.random.default_rng(0)
    images = {f"x_{split}": rng.integers(0, 256, (60, 12, 12, 3), np.uint8) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(60) % 3 for split in ("train", "test")}
    np.savez(tmp_path / "colours.npz", **images, **labels)  # type: ignore[arg-type]
    source = train(
        recipe("learned-optimizer", "method.units=4", "method.meta=0.5", arch="small_cnn_16_32_100"),
        tmp_path / "source",
        device="cpu",
    )
    sets = ("method.units=4", f"method.source={source}", f"dataset=npz:{tmp_path / 'colours.npz'}", "train_n=0")
    moved = steps(recipe("learned-optimizer", *sets, arch="small_cnn"), 3)
    taken, _ = read_state(source / "parts" / f"{PART}.safetensors")
    assert isinstance(taken, dict)
    assert all(torch.equal(weight, taken[name]) for name, weight in moved.nets.parts[PART].named_parameters())
    start = Session(moved.recipe, torch.device("cpu")).nets.f
    assert all((a != b).any() for a, b in zip(start.parameters(), moved.nets.f.parameters(), strict=True))


@pytest.mark.parametrize("setting", ["units=5", "scale=0.1"])
def test_an_optimiser_of_another_form_is_refused(setting: str, short: Callable[..., Recipe], tmp_path: Path) -> None:
    source = train(short("method.meta=0.5"), tmp_path / "source", device="cpu")
    name, value = setting.split("=")
    known = {"units": "4", "scale": "0.05"}[name]
    with pytest.raises(UserError, match=rf"method\.{name} is {value}, .* set method\.{name}={known}$"):
        Session(short(f"method.source={source}", f"method.{setting}"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("awp.gamma=0.01", "awp"),
        ("method.meta=1", "meta"),
        ("method.gamma=2", "gamma"),
        ("method.T=2", "T_first"),
        ("method.source=nowhere", "not a run of learned-optimizer"),
    ],
)
def test_bad_settings_are_refused_before_training(short: Callable[..., Recipe], setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Session(short(setting), torch.device("cpu"))


def test_defaults_are_those_of_the_docstring() -> None:
    method = LearnedOptimizer()
    assert (method.scale, method.T_first, method.T, method.clean_phase) == (0.05, 20, 40, 0.35)
