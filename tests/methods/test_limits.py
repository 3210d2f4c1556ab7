"""Limits in which a method is another one, closed forms of its losses, and which nets receive gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor
from torch.nn import functional

from advbench.methods.act import ACT
from advbench.methods.base import Method, Nets
from advbench.methods.mart import MART
from advbench.methods.terms import ce, kl, weighted_kl
from advbench.methods.trades import TRADES
from advbench.models.base import Model
from advbench.recipe import Recipe
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


def trained(recipe: Recipe, steps: int = 4) -> Session:
    session = Session(recipe, CPU)
    for _ in range(steps):
        session.step(session.order())
    return session


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[key], b.state_dict()[key]) for key in a.state_dict())


def test_act_without_alignment_is_adversarial_training_to_the_bit(recipe: Make) -> None:
    start = ("inner.init=uniform", "inner.rel_step=0.25")
    at = trained(recipe("pgd-at", *start))
    act = trained(recipe("act", "method.a=0", "method.b=0", *start))
    assert same_weights(act.nets.f, at.nets.f)
    assert not same_weights(trained(recipe("act", "method.a=0", "method.b=0.5", *start)).nets.f, at.nets.f)
    assert not same_weights(trained(recipe("act", "method.b=0", *start)).nets.f, at.nets.f)


def test_act_without_alignment_trains_the_natural_net_as_standard_training_does(recipe: Make) -> None:
    act = Session(recipe("act", "method.b=0"), CPU)
    standard = Session(recipe("standard"), CPU)
    standard.nets.f.load_state_dict(act.nets.parts["natural"].state_dict())
    for _ in range(3):
        act.step(act.order())
        standard.step(standard.order())
    assert same_weights(act.nets.parts["natural"], standard.nets.f)


def test_acts_nets_begin_differently_and_have_their_own_optimisers(recipe: Make) -> None:
    session = Session(recipe("act"), CPU)
    f, natural = session.nets.f, session.nets.parts["natural"]
    assert not torch.equal(f.linear.weight, natural.linear.weight)  # type: ignore[arg-type, union-attr]
    owned = {name: {id(w) for g in o.param_groups for w in g["params"]} for name, o in session.tools.optimizers.items()}
    assert owned == {"f": {id(w) for w in f.parameters()}, "natural": {id(w) for w in natural.parameters()}}


def test_no_gradient_crosses_acts_nets() -> None:
    y = torch.tensor([0, 1, 2])
    za, zn = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    method, nets = ACT(), _bare()
    terms = method.losses(nets, zn, za, y)
    assert set(terms) == {"ce", "kl", "natural_ce", "natural_kl"}
    for name, term in terms.items():
        to_f, to_g = torch.autograd.grad(term, (za, zn), allow_unused=True, retain_graph=True)
        assert (to_f is None) == name.startswith("natural")
        assert (to_g is None) == (not name.startswith("natural"))


def test_acts_losses_are_those_of_the_paper() -> None:
    y, b, T = torch.tensor([0, 3]), 0.7, 3.0
    za, zn = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    terms = ACT(b=b, T=T).losses(_bare(), zn, za, y)
    soft = lambda z: scipy.special.softmax(z.numpy() / T, axis=1)  # noqa: E731
    assert float(terms["kl"]) == pytest.approx(
        b * T**2 * scipy.stats.entropy(soft(zn), soft(za), axis=1).mean(), rel=1e-5
    )
    expected = b * T**2 * scipy.stats.entropy(soft(za), soft(zn), axis=1).mean()
    assert float(terms["natural_kl"]) == pytest.approx(expected, rel=1e-5)
    assert float(terms["ce"]) == pytest.approx((1 - b) * float(functional.cross_entropy(za, y)), rel=1e-5)
    assert float(terms["natural_ce"]) == pytest.approx((1 - b) * float(functional.cross_entropy(zn, y)), rel=1e-5)


def test_act_may_align_its_nets_by_weights_of_their_own(recipe: Make) -> None:
    y, za, zn = torch.tensor([0, 3]), torch.randn(2, 5), torch.randn(2, 5)
    apart, robust, natural = (
        ACT(**weights).losses(_bare(), zn, za, y) for weights in ({"b": 0.7, "b_natural": 0.2}, {"b": 0.7}, {"b": 0.2})
    )
    assert apart == {name: (natural if name.startswith("natural") else robust)[name] for name in robust}
    assert list(apart) == list(robust)  # the order in which they are added
    halfway = ACT(b_natural=0.4, b_warmup=0.5).losses(_bare(0.25), zn, za, y)
    assert float(halfway["natural_ce"]) == pytest.approx(0.8 * float(ce(zn, y).mean()), rel=1e-5)
    assert float(halfway["ce"]) == pytest.approx(0.55 * float(ce(za, y).mean()), rel=1e-5)
    same = trained(recipe("act", "method.b_natural=0.9"))
    assert same_weights(same.nets.f, trained(recipe("act")).nets.f)
    act, standard = Session(recipe("act", "method.b_natural=0"), CPU), Session(recipe("standard"), CPU)
    standard.nets.f.load_state_dict(act.nets.parts["natural"].state_dict())
    act.step(act.order())
    standard.step(standard.order())
    assert same_weights(act.nets.parts["natural"], standard.nets.f)  # G alone is as in standard training


def test_acts_natural_net_may_have_another_architecture(recipe: Make) -> None:
    sets = ("method.natural_arch=lenet5", "model.normalize=digits", "model.activation=silu")
    session = Session(recipe("act", *sets, arch="mlp"), CPU)
    natural = session.nets.parts["natural"]
    assert isinstance(natural, Model) and isinstance(session.nets.f.act, torch.nn.SiLU)
    assert natural.arch == "lenet5" and natural.settings == {"normalize": "digits"}  # the data's, not F's own settings
    before = copy.deepcopy(natural.state_dict())
    session.step(session.order())
    assert not any(torch.equal(value, before[name]) for name, value in natural.state_dict().items())


@pytest.mark.parametrize("reduction", ["released", "mean"])
def test_acts_attack_weighs_cross_entropy_and_divergence_as_said(reduction: str) -> None:
    y, a = torch.tensor([0, 3, 1, 1]), 0.8
    zn, x = torch.randn(4, 5), torch.randn(4, 5)
    value = ACT(a=a, reduction=reduction).objective(_bare(), zn, y)(x)  # type: ignore[arg-type]
    # The batch's value as released: (1 - a) mean(CE) + a sum(KL); else both are sums.
    first = ce(x, y).mean() if reduction == "released" else ce(x, y).sum()
    assert float(value.sum()) == pytest.approx(float((1 - a) * first + a * kl(zn, x).sum()), rel=1e-5)


def test_acts_warm_up_of_b_is_linear() -> None:
    y, za, zn = torch.tensor([0]), torch.randn(1, 3), torch.randn(1, 3)
    method, whole = ACT(b_warmup=0.5), ACT().losses(_bare(), zn, za, y)
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        terms = method.losses(_bare(progress), zn, za, y)
        assert float(terms.get("kl", torch.zeros(()))) == pytest.approx(share * float(whole["kl"]), abs=1e-6)
        assert float(terms["ce"]) == pytest.approx((1 - 0.9 * share) * float(ce(za, y).mean()), rel=1e-5)


def test_acts_attack_leaves_the_natural_net_alone(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(recipe("act"), CPU)
    natural, calls = session.nets.parts["natural"], []
    natural.register_forward_hook(lambda module, given, out: calls.append(module.training))
    inside: list[int] = []
    attack = session.tools.attack

    def spied(*given: Any) -> Tensor:
        before = {key: value.clone() for key, value in natural.state_dict().items()}
        x_adv = attack(*given)
        inside.append(len(calls))
        assert all(torch.equal(value, before[key]) for key, value in natural.state_dict().items())
        assert all(weight.grad is None for weight in natural.parameters())
        return x_adv

    monkeypatch.setattr(session.tools, "attack", spied)
    session.step(session.order())
    assert inside == [1] and calls == [True]  # G answers once a batch, before the attack, in train mode


def test_trades_without_beta_is_standard_training_to_the_bit(recipe: Make) -> None:
    assert same_weights(trained(recipe("trades", "method.beta=0")).nets.f, trained(recipe("standard")).nets.f)
    assert not same_weights(trained(recipe("trades")).nets.f, trained(recipe("standard")).nets.f)


def test_trades_sends_gradients_through_both_sides_of_the_divergence(recipe: Make) -> None:
    session = Session(recipe("trades"), CPU)
    x, y = session.data.batch(slice(8))
    f = session.nets.f.eval()
    x_adv = (x + 0.1).clamp(0, 1)
    term = session.method.outer(session.nets, x, x_adv, y)["kl"]
    clean, adversarial = f(x), f(x_adv)
    expected = 6.0 * kl(clean, adversarial).mean()
    held = 6.0 * kl(clean.detach(), adversarial).mean()
    weight = f.linear.weight
    (whole,), (both,), (one,) = (torch.autograd.grad(v, weight, retain_graph=True) for v in (term, expected, held))  # type: ignore[arg-type]
    assert torch.allclose(whole, both)
    assert not torch.allclose(whole, one)


def test_fast_at_is_adversarial_training_of_one_step(recipe: Make) -> None:
    at = trained(recipe("pgd-at", "inner.steps=1", "inner.rel_step=1.25"))
    assert same_weights(trained(recipe("fast-at")).nets.f, at.nets.f)


def test_n_fgsm_leaves_the_ball_by_no_more_than_its_noise(recipe: Make) -> None:
    session = Session(recipe("n-fgsm", eps="0.05"), CPU)
    session.step(session.order())
    x, y = session.data.batch(slice(16))
    with session.tools.attack_mode():
        x_adv = session.method.perturb(session.nets, x, y, session.tools)
    far = (x_adv - x).abs().max()
    assert 0.05 + 1e-6 < float(far) <= 0.15 + 1e-6


def test_n_fgsm_without_noise_is_fgsm(recipe: Make) -> None:
    fgsm = recipe("pgd-at", "inner.steps=1", "inner.rel_step=1", "inner.init=none")
    assert same_weights(trained(recipe("n-fgsm", "method.k=0")).nets.f, trained(fgsm).nets.f)


def test_free_at_replays_each_batch_and_keeps_its_perturbation(recipe: Make) -> None:
    session = Session(recipe("free-at", "method.m=3"), CPU)
    session.step(session.order())
    d = session.nets.parts["perturbation"].d
    assert session.counter.forwards == session.counter.backwards == 3 * 16 and session.updates == 3
    assert 0 < float(d.abs().max()) <= 0.1 + 1e-6  # type: ignore[operator, union-attr]
    before = d.clone()  # type: ignore[operator]
    session.step(session.order())
    assert not torch.equal(session.nets.parts["perturbation"].d, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_free_at_keeps_a_perturbation_that_is_not_cut_by_the_images(recipe: Make, norm: str) -> None:
    session = Session(recipe("free-at", "method.m=3", f"threat.norm={norm}"), CPU)
    session.step(session.order())
    d = session.nets.parts["perturbation"].d
    assert isinstance(d, Tensor)
    sizes = torch.linalg.vector_norm(d.flatten(1), torch.inf if norm == "linf" else 2, dim=1)
    assert torch.allclose(sizes, torch.full_like(sizes, 0.1))
    x = session.data.pixels(session.data.images)
    always_black = (x == 0).all(0)
    assert bool(always_black.any()) and bool((d[:, always_black] < 0).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_free_at_begins_with_an_eps_of_0_where_it_is_warmed_up(recipe: Make, norm: str) -> None:
    session = Session(recipe("free-at", "method.m=3", f"threat.norm={norm}", "inner.warmup=0.5"), CPU)
    for _ in range(2):
        session.step(session.order())
        d = session.nets.parts["perturbation"].d
        assert isinstance(d, Tensor) and bool(d.isfinite().all())
    assert d.any() and session.means()[0]["loss"] > 0


def test_free_at_of_one_replay_first_descends_at_the_clean_images(recipe: Make) -> None:
    free = trained(recipe("free-at", "method.m=1"), steps=1)
    assert same_weights(free.nets.f, trained(recipe("standard"), steps=1).nets.f)


def test_marts_terms_have_their_closed_forms() -> None:
    y = torch.tensor([1])
    clean, adversarial = torch.log(torch.tensor([[0.2, 0.7, 0.1]])), torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    answers = iter((clean, adversarial))
    terms = MART(beta=2.0).outer(_bare(f=lambda x: next(answers)), clean, adversarial, y)
    assert float(terms["ce"]) == pytest.approx(-math.log(0.3), rel=1e-5)
    assert float(terms["margin"]) == pytest.approx(-math.log(1.0001 - 0.5), rel=1e-5)
    divergence = sum(p * math.log(p / q) for p, q in zip((0.2, 0.7, 0.1), (0.5, 0.3, 0.2), strict=True))
    assert float(terms["kl"]) == pytest.approx(2 * divergence * (1.0000001 - 0.7), rel=1e-5)


@pytest.mark.parametrize("method", [TRADES(), MART()])
def test_label_smoothing_changes_the_cross_entropy_alone(method: Method) -> None:
    s, classes, y = 0.4, 10, torch.tensor([2, 7])
    clean, adversarial = torch.randn(2, classes), torch.randn(2, classes)

    def terms(smoothing: float) -> dict[str, Tensor]:
        answers = iter((clean, adversarial))
        return method.outer(Nets(f=lambda x: next(answers), label_smoothing=smoothing), clean, adversarial, y)  # type: ignore[arg-type]

    plain, smoothed = terms(0.0), terms(s)
    logits = clean if isinstance(method, TRADES) else adversarial
    expected = (1 - s) * plain["ce"] - s * functional.log_softmax(logits, 1).mean()
    assert torch.allclose(smoothed.pop("ce"), expected)
    assert smoothed and all(torch.equal(value, plain[name]) for name, value in smoothed.items())


def test_what_is_said_of_label_smoothing_in_trades_and_mart() -> None:
    """At the least smoothed cross-entropy: p_y, the curvature of the KL in z_y, and MART's weight."""
    s, classes, y = 0.4, 10, torch.tensor([2])
    p = torch.full((1, classes), s / classes, dtype=torch.float64)
    p[0, 2] += 1 - s
    logits = p.log().requires_grad_()
    (g,) = torch.autograd.grad(functional.cross_entropy(logits, y, label_smoothing=s), logits)
    assert g.abs().max() < 1e-12
    d = torch.zeros_like(p)
    d[0, 2] = 1e-2
    cost = float(kl(logits.detach(), logits.detach() + d)) * 2 / 1e-4
    assert cost == pytest.approx(float(p[0, 2] * (1 - p[0, 2])), rel=2e-2) and cost == pytest.approx(0.23, abs=0.01)
    flipped = torch.zeros_like(p)
    weight = weighted_kl(logits.detach(), flipped, y) / kl(logits.detach(), flipped)
    assert float(weight) == pytest.approx(s * (1 - 1 / classes), rel=1e-5) == pytest.approx(0.36)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_scipys(temperature: float) -> None:
    p, q = np.random.default_rng(0).normal(size=(2, 6, 10)) * 5
    soft = [scipy.special.softmax(z / temperature, axis=1) for z in (p, q)]
    ours = kl(torch.tensor(p), torch.tensor(q), temperature)
    assert np.allclose(ours.numpy(), scipy.stats.entropy(*soft, axis=1), rtol=1e-4, atol=1e-6)
    assert torch.allclose(kl(torch.tensor(p), torch.tensor(p)), torch.zeros(6), atol=1e-6)


def _bare(progress: float = 0.0, f: Any = lambda x: x) -> Nets:
    return Nets(f=f, progress=progress)
