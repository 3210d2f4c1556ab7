"""ADR: its bases, its terms against plain numpy, which side receives gradients, and the alarm on the feature norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from advbench.errors import UserError
from advbench.methods.compactness import Compactness, compact
from advbench.recipe import Recipe
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
Trained = Callable[..., Session]
Same = Callable[[nn.Module, nn.Module], bool]
NONE = ("method.lc=0", "method.ls=0", "method.gc=0", "method.conf=0")
WEIGHTS = ("lc", "ls", "gc", "gs", "conf")
CPU = torch.device("cpu")


def test_terms_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    z, z_adv = rng.normal(size=(2, 7, 12))
    logits, logits_adv = rng.normal(size=(2, 7, 5)) * 3
    y = np.array([0, 1, 0, 2, 4, 1, 0])
    p, log_q = softmax(logits, 1), log_softmax(logits_adv, 1)
    w = np.where(y[:, None] == y, 1.0, 1 - 1 / 0.99)
    pairs = [[np.abs(a - b).mean() for b in z_adv] for a in z]
    answers = [[-(a * b).sum() for b in log_q] for a in p]
    expected = {
        "lc": np.abs(z - z_adv).mean(),
        "ls": np.mean([-(a * b).sum() for a, b in zip(p, log_q, strict=True)]),
        "gc": (w * pairs).mean(),
        "gs": (w * answers).mean(),
        "conf": -(np.exp(log_q) * log_q).sum(1).mean(),
    }
    found = compact(*(torch.tensor(v) for v in (z, logits, z_adv, logits_adv)), torch.tensor(y))
    assert set(found) == set(WEIGHTS)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(("name", "base"), [("compactness", "pgd-at"), ("compactness-trades", "trades")])
def test_with_weights_0_it_is_its_base_to_the_bit(
    name: str, base: str, recipe: Make, trained: Trained, same: Same
) -> None:
    plain = trained(recipe(base)).nets.f
    assert same(trained(recipe(name, *NONE)).nets.f, plain)
    assert not same(trained(recipe(name)).nets.f, plain)


def test_it_attacks_as_its_base_does_whatever_the_weights(recipe: Make) -> None:
    for name, base in (("compactness", "pgd-at"), ("compactness-trades", "trades")):
        runs = [Session(recipe(method), CPU) for method in (name, base)]
        x, y = runs[0].data.batch(slice(16))
        found = []
        for run in runs:
            run.nets.key = torch.arange(16)
            with run.tools.attack_mode():
                found.append(run.method.perturb(run.nets, x, y, run.tools))
        assert torch.equal(*found)


@pytest.mark.parametrize("term", WEIGHTS)
def test_only_the_adversarial_side_receives_gradient(term: str) -> None:
    leaves = [torch.randn(6, size, requires_grad=True) for size in (8, 5, 8, 5)]
    z, logits, z_adv, logits_adv = leaves
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    value = compact(z.detach(), logits.detach(), z_adv, logits_adv, y)[term]
    gradients = torch.autograd.grad(value, (z_adv, logits_adv), allow_unused=True)
    assert [g is not None for g in gradients] == [term in ("lc", "gc"), term not in ("lc", "gc")]


def test_without_the_natural_term_the_clean_side_teaches_nothing(recipe: Make) -> None:
    session = Session(recipe("compactness"), CPU)
    x, y = session.data.batch(slice(8))
    nets = session.nets
    nets.f.eval()
    x_adv = (x + 0.1).clamp(0, 1)
    terms = Compactness().outer(nets, x, x_adv, y)
    z, z_adv = nets.f.features(x).detach(), nets.f.features(x_adv)
    expected = compact(z, nets.f.head(z).detach(), z_adv, nets.f.head(z_adv), y)
    for name in ("lc", "ls", "gc", "conf"):
        weights = list(nets.f.parameters())
        mine, theirs = (
            torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            for value in (terms[name], expected[name])
        )
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize(
    ("setting", "attacked", "natural"),
    [({"natural": True}, 1, 1), ({"natural_share": 0.5}, 0.5, 0.5), ({"natural_share": 0.2}, 0.8, 0.2)],
)
def test_the_natural_term_is_the_clean_cross_entropy(
    setting: dict[str, Any], attacked: float, natural: float, recipe: Make
) -> None:
    session = Session(recipe("compactness"), CPU)
    x, y = session.data.batch(slice(8))
    x_adv = (x + 0.1).clamp(0, 1)
    f = session.nets.f.eval()
    terms = Compactness(**setting, lc=0, ls=0, gc=0, conf=0).outer(session.nets, x, x_adv, y)
    assert set(terms) == {"ce", "natural_ce"}
    assert torch.allclose(terms["natural_ce"], natural * nn.functional.cross_entropy(f(x), y))
    assert torch.allclose(terms["ce"], attacked * nn.functional.cross_entropy(f(x_adv), y))
    weights = list(f.parameters())
    ours = torch.autograd.grad(terms["natural_ce"], weights)
    expected = torch.autograd.grad(natural * nn.functional.cross_entropy(f(x), y), weights)
    assert all(map(torch.allclose, ours, expected))


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("compactness-trades", ["natural=true"], r"method\.natural is for the base at"),
        ("compactness-trades", ["natural_share=0.5"], r"method\.natural_share is for the base at"),
        ("compactness", ["natural=true", "natural_share=0.5"], "set one"),
        ("compactness", ["natural_share=2"], "at most 1"),
    ],
)
def test_natural_terms_that_do_not_fit_are_refused(method: str, settings: list[str], says: str, recipe: Make) -> None:
    with pytest.raises(UserError, match=says):
        Session(recipe(method, *(f"method.{text}" for text in settings)), CPU)


def test_the_alarm_is_noted_when_the_feature_norm_grows(recipe: Make) -> None:
    session = Session(recipe("compactness"), CPU)
    nets, (x, y) = session.nets, session.data.batch(slice(16))
    rang = []
    with torch.no_grad():
        # However far the norm grew in the first half, its doubling in the second one rings.
        # More epochs are a new half: the norm then counts from its end.
        steps = ((0.0, 1.0), (0.49, 50.0), (0.5, 1.0), (0.6, 1.9), (0.7, 2.1 / 1.9), (1.0, 1.9 / 2.1))
        for progress, factor in (*steps, (0.4, 3.0), (0.5, 1.0), (0.6, 1.9)):
            nets.progress = progress
            nets.f.bn.weight *= factor  # type: ignore[operator, union-attr]
            nets.f.bn.bias *= factor  # type: ignore[operator, union-attr]
            session.method.outer(nets, x, x, y)
            rang.append(float(nets.notes["norm_alarm"]))
    assert rang == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    z = nets.f.features(x).detach()
    assert float(nets.notes["feature_norm"]) == pytest.approx(float(z.norm(dim=1).mean()), rel=1e-4)
    assert float(nets.notes["divergence"]) == 0


@pytest.mark.parametrize("term", WEIGHTS)
def test_each_term_falls_when_its_weight_is_positive(term: str, recipe: Make) -> None:
    start, final = {}, {}
    for weight in (0, 3):
        weights = [f"method.{name}={weight if name == term else 0}" for name in WEIGHTS]
        session = Session(recipe("compactness", *weights), CPU)
        x, y = session.data.batch(slice(64))
        x_adv = (x + 0.2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        start[weight] = _term(term, session, x, x_adv, y)
        for _ in range(40):
            session.tools.update(lambda: session.method.outer(session.nets, x, x_adv, y))  # noqa: B023
        final[weight] = _term(term, session, x, x_adv, y)
    # LS holds the entropy of p, which the base alone drives to 0; LC and GC begin low, at features that are not used.
    assert final[3] < (start[3] if term == "ls" else final[0])


@torch.no_grad()
def _term(name: str, session: Session, x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    f = session.nets.f
    z, z_adv = f.features(x), f.features(x_adv)
    return float(compact(z, f.head(z), z_adv, f.head(z_adv), y)[name])
