"""Consistency: its limits, its divergence, and what it needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from torch import nn

from advbench.errors import UserError
from advbench.methods.base import Method, Nets
from advbench.methods.consistency import Consistency
from advbench.methods.mart import MART
from advbench.methods.pgd_at import PGDAT
from advbench.methods.terms import js
from advbench.methods.trades import TRADES
from advbench.recipe import Recipe
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
Trained = Callable[..., Session]
Same = Callable[[nn.Module, nn.Module], bool]
ENTRIES = {"at": "consistency", "trades": "consistency-trades", "mart": "consistency-mart"}
CPU = torch.device("cpu")


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_js_is_scipys(temperature: float) -> None:
    p, q = np.random.default_rng(0).normal(size=(2, 6, 10)) * 8
    expected = jensenshannon(softmax(p / temperature, 1), softmax(q / temperature, 1), axis=1) ** 2
    ours = js(torch.tensor(p), torch.tensor(q), temperature)
    assert np.allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours, js(torch.tensor(q), torch.tensor(p), temperature))


def test_js_is_at_most_log_2_and_has_finite_gradients_where_answers_share_no_class() -> None:
    p = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    value = js(p, torch.tensor([[0.0, 200.0, 0.0]]), 0.5)
    (g,) = torch.autograd.grad(value.sum(), p)
    assert float(value.detach()) == pytest.approx(np.log(2), rel=1e-6)
    assert bool(g.isfinite().all())


@pytest.mark.parametrize("base", list(ENTRIES))
def test_without_lambda_the_loss_is_the_bases_on_both_views(base: str, recipe: Make) -> None:
    plain: dict[str, Method] = {"at": PGDAT(), "trades": TRADES(beta=4.0), "mart": MART(beta=4.0)}
    session = Session(recipe(ENTRIES[base]), CPU)
    x, y = session.data.batch(slice(8))
    x, y, nets = x.repeat(2, 1, 1, 1), y.repeat(2), session.nets
    nets.f.eval()
    x_adv = (x + 0.1 * torch.rand_like(x)).clamp(0, 1)
    mine = Consistency(base=base, lam=0.0, beta=4.0).outer(nets, x, x_adv, y)  # type: ignore[arg-type]
    theirs = plain[base].outer(nets, x, x_adv, y)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    whole = Consistency(base=base, beta=4.0).outer(nets, x, x_adv, y)  # type: ignore[arg-type]
    expected = js(nets.f(x_adv[:8]), nets.f(x_adv[8:]), 0.5).mean()
    assert set(whole) == {*mine, "js"} and torch.allclose(whole["js"], expected)


@pytest.mark.parametrize("base", list(ENTRIES))
def test_without_lambda_it_attacks_as_its_base_does(base: str, recipe: Make) -> None:
    plain: dict[str, Method] = {"at": PGDAT(), "trades": TRADES(), "mart": MART()}
    session = Session(recipe(ENTRIES[base]), CPU)
    session.step(session.order())
    x, y = session.data.batch(slice(16))
    x, y, nets, tools = x.repeat(2, 1, 1, 1), y.repeat(2), session.nets, session.tools
    with tools.attack_mode():
        mine, theirs = (method.perturb(nets, x, y, tools) for method in (session.method, plain[base]))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine[:16], mine[16:])  # each view has noise of its own


def test_at_without_lambda_on_one_view_twice_is_adversarial_training(recipe: Make, trained: Trained) -> None:
    # Nothing random: both views are the image itself, so the mean over 2B is that over B.
    still = ("inner.init=none", "augment.cutout=0", "augment.crop=0", "augment.flip=true", "method.lam=0")
    made = recipe("consistency", *still)
    session, at = Session(made, CPU), trained(recipe("pgd-at", "inner.init=none"), 0)
    x, y = at.data.batch(slice(16))
    for run, views in ((session, 2), (at, 1)):
        run.nets.key = torch.zeros(16 * views, dtype=torch.int64)
        run.method.step(run.nets, x.repeat(views, 1, 1, 1), y.repeat(views), run.tools)
    for mine, theirs in zip(session.nets.f.parameters(), at.nets.f.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_both_views_receive_gradient() -> None:
    first, second = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    both = torch.cat([first, second])
    nets = Nets(f=lambda x: x)  # type: ignore[arg-type]
    term = Consistency().outer(nets, both, both, torch.tensor([0, 1, 2] * 2))["js"]
    assert all(float(g.abs().max()) > 0 for g in torch.autograd.grad(term, (first, second)))


def test_the_views_differ_and_their_divergence_falls(recipe: Make) -> None:
    sets = ("epochs=6", "augment.flip=true", "validation.fraction=0", "optim.lr=0.1")
    final = {}
    for lam in ("0", "5"):
        session = Session(recipe("consistency", f"method.lam={lam}", *sets), CPU)
        for _ in range(30):
            session.step(session.order())
            session.position = 0 if session.position == session.steps else session.position
        x, y = session._batch(torch.arange(96))
        assert not torch.equal(x[:96], x[96:])
        with torch.no_grad(), session.tools.attack_mode():
            x_adv = session.method.perturb(session.nets, x, y, session.tools)
            first, second = session.nets.f(x_adv).chunk(2)
        final[lam] = float(js(first, second, 0.5).mean())
    assert final["5"] < 0.7 * final["0"]


@pytest.mark.parametrize("name", ENTRIES.values())
def test_without_augmentation_it_refuses_before_training(name: str, recipe: Make) -> None:
    with pytest.raises(UserError, match=r"set augment\.crop, augment\.flip") as refused:
        Session(recipe(name, "augment.crop=0"), CPU)
    assert "\n" not in str(refused.value)


def test_the_entries_have_their_bases(recipe: Make) -> None:
    for base, name in ENTRIES.items():
        method = Session(recipe(name), CPU).method
        assert isinstance(method, Consistency) and method.base == base and method.views == 2


def test_on_cifar10_the_shipped_recipe_has_the_papers_augmentation() -> None:
    for name in ENTRIES.values():
        augment = Recipe.resolve(method=name, dataset="cifar10", arch="resnet18").augment
        assert (augment.crop, augment.flip, augment.policy, augment.cutout) == (4, True, "autoaugment", 16)


def test_a_control_of_twice_the_epochs_and_batch_size_has_equal_compute_and_updates(recipe: Make) -> None:
    spent = {}
    for name, batch, epochs in (("consistency", 16, 1), ("pgd-at", 32, 2), ("pgd-at", 16, 2)):
        session = Session(recipe(name, f"batch_size={batch}"), CPU)
        for _ in range(epochs):
            for _ in range(session.steps):
                session.step(session.order())
            session.end_epoch()
        spent[name, batch] = session.counter.forwards, session.counter.backwards, epochs * session.steps
    assert spent["consistency", 16] == spent["pgd-at", 32]
    assert spent["pgd-at", 16][2] == 2 * spent["pgd-at", 32][2]
