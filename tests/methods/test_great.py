"""Gradient adversarial training: its limits, GREACE against plain numpy, the reversal, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn
from torch.nn import functional

from advbench.errors import UserError
from advbench.methods.base import Nets
from advbench.methods.great import GREAT, Alignment
from advbench.models.tasks import Rotation
from advbench.recipe import Recipe
from advbench.trainer import train
from advbench.trainer.session import Session

Make = Callable[..., Recipe]
Trained = Callable[..., Session]
Same = Callable[[nn.Module, nn.Module], bool]
CPU = torch.device("cpu")
SMOOTH = "model.activation=softplus"
AS_STANDARD = ("method.ramp=0", "optim.name=sgd", "optim.weight_decay=5e-4")


@pytest.fixture
def teacher(recipe: Make, tmp_path: Path) -> Path:
    return train(recipe("standard", "model.width=16", arch="mlp"), tmp_path / "teacher", device="cpu")


def test_without_alpha_and_beta_the_defence_is_standard_training_to_the_bit(
    recipe: Make, trained: Trained, same: Same
) -> None:
    none = ("method.alpha=0", "method.beta=0", *AS_STANDARD)
    standard = trained(recipe("standard", SMOOTH)).nets.f
    session = trained(recipe("great", *none))
    assert same(session.nets.f, standard)
    assert not same(session.nets.parts["auxiliary"], trained(recipe("great", *none), 0).nets.parts["auxiliary"])
    assert not same(trained(recipe("great", *AS_STANDARD)).nets.f, standard)


def test_without_alpha_distillation_is_standard_training_to_the_bit(
    recipe: Make, trained: Trained, same: Same, teacher: Path
) -> None:
    form = ("method.form=distillation", f"method.teacher={teacher}", *AS_STANDARD)
    standard = trained(recipe("standard", SMOOTH)).nets.f
    assert same(trained(recipe("great", "method.alpha=0", *form)).nets.f, standard)
    assert not same(trained(recipe("great", *form)).nets.f, standard)


@pytest.mark.parametrize("greace", ["bounded", "literal"])
def test_the_gradient_of_greace_by_a_logit(greace: str, recipe: Make) -> None:
    session = Session(recipe("great"), CPU)
    x, y = session.data.batch(slice(6))
    nets = session.nets
    nets.f.eval()
    beta = 2.0
    logits = nets.f(x).detach().double().numpy()
    leaf: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        leaf.append(session.nets.f(z))
        return leaf[-1]

    g = _gradient(session, x, y)
    a = softmax(nets.parts["auxiliary"](g).detach().double().numpy(), 1)
    method = GREAT(alpha=0.0, beta=beta, ramp=0.0, greace=greace)  # type: ignore[arg-type]
    terms = method.defended(Nets(f=f, parts=nets.parts), x, y)  # type: ignore[arg-type]
    loss = torch.stack([value for name, value in terms.items() if name != "auxiliary"]).sum()
    (found,) = torch.autograd.grad(loss, leaf[0])
    other = 1 - np.eye(10)[y.numpy()]
    if greace == "literal":
        expected = softmax(logits, 1) - (1 - other) + beta * a * other
    else:
        lifted = logits + np.log(1 + beta * a * other)
        expected = softmax(lifted, 1) - (1 - other)
        value = -log_softmax(lifted, 1)[np.arange(6), y.numpy()].mean()
        assert float(terms["ce"].detach()) == pytest.approx(value, rel=1e-5)
    assert np.allclose(found.numpy() * 6, expected, atol=1e-5)


def test_the_bounded_form_has_a_lower_bound_and_the_literal_one_none() -> None:
    y = torch.tensor([0])
    for scale in (10.0, 1000.0):
        logits = torch.tensor([[scale, -scale, -scale]])
        nets = Nets(
            f=lambda x, logits=logits: logits + 0 * x.sum(),  # type: ignore[arg-type, misc]
            parts={"auxiliary": _Constant()},
        )
        x = torch.zeros(1, 1, 2, 2)
        bounded = GREAT(alpha=0, ramp=0).defended(nets, x, y)
        literal = GREAT(alpha=0, ramp=0, greace="literal").defended(nets, x, y)
        assert float(bounded["ce"].detach()) >= 0
        assert float(literal["greace"].detach()) == pytest.approx(-scale * 2 / 3, rel=1e-5)


def test_the_main_net_receives_the_reverse_of_what_would_help_the_auxiliary(recipe: Make) -> None:
    session = Session(recipe("great"), CPU)
    x, y = session.data.batch(slice(6))
    nets = session.nets
    f, auxiliary = list(nets.f.parameters()), list(nets.parts["auxiliary"].parameters())
    nets.f.eval()
    plain = functional.cross_entropy(nets.parts["auxiliary"](_gradient(session, x, y)), y)
    term = GREAT(alpha=0.5, ramp=0).defended(nets, x, y)["auxiliary"]
    for weights, factor in ((f, -0.5), (auxiliary, 1.0)):
        mine, theirs = (torch.autograd.grad(v, weights, retain_graph=True, allow_unused=True) for v in (term, plain))
        pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
        assert pairs and all(torch.allclose(a, factor * b, rtol=1e-3, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-25, 0.0])
def test_relative_gradients_are_divided_by_their_size_in_the_batch(size: float) -> None:
    g = size * torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    g[0] *= 10
    g.requires_grad_()
    shown = GREAT(relative=True, scale=3.0)._seen_by_auxiliary(g)
    assert float(shown.detach().square().mean().sqrt()) == pytest.approx(3.0 if size else 0.0, rel=1e-5)
    if size:
        assert torch.allclose(shown * float(g.detach()[0, 0, 0, 0]), g * float(shown.detach()[0, 0, 0, 0]), rtol=1e-4)
    (back,) = torch.autograd.grad(functional.softplus(shown).sum(), g)
    assert bool(back.isfinite().all())
    assert torch.equal(GREAT(scale=3.0)._seen_by_auxiliary(g), 3 * g)


def test_relative_to_the_sample_every_gradient_has_the_same_size() -> None:
    g = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    g = (g * torch.logspace(-25, 5, 8)[:, None, None, None]).requires_grad_()
    shown = GREAT(relative=True, per="sample", scale=3.0)._seen_by_auxiliary(g)
    assert np.allclose(shown.detach().square().mean((1, 2, 3)).sqrt(), 3.0, rtol=1e-5)
    directions = (functional.normalize(tensor.detach().flatten(1).double(), eps=1e-40) for tensor in (shown, g))
    assert torch.allclose(*directions, atol=1e-6)


def test_relative_to_the_sample_the_gradient_is_that_of_the_cross_entropy_and_never_vanishes(recipe: Make) -> None:
    session = Session(recipe("great"), CPU)
    x, y = session.data.batch(slice(6))
    net = session.nets.f.eval()
    method = GREAT(relative=True, per="sample", scale=1.0)
    (exact,) = torch.autograd.grad(functional.cross_entropy(net(z := x.clone().requires_grad_()), y), z)
    shown = method._seen_by_auxiliary(method._with_gradient(session.nets, x, y)[1])
    assert torch.allclose(functional.normalize(shown.flatten(1)), functional.normalize(exact.flatten(1)), atol=1e-5)

    last = net.linear  # type: ignore[union-attr]
    with torch.no_grad():  # all right by thousands: float32's cross-entropy has no gradient
        right = functional.one_hot(y, 10).float().T
        last.weight.copy_(2000 * right @ torch.linalg.pinv(net.features(x)).T)  # type: ignore[operator, union-attr]
        last.bias.zero_()  # type: ignore[operator, union-attr]
    (vanished,) = torch.autograd.grad(functional.cross_entropy(net(z := x.clone().requires_grad_()), y), z)
    assert not vanished.any()
    shown = method._seen_by_auxiliary(method._with_gradient(session.nets, x, y)[1])
    assert np.allclose(shown.detach().square().mean((1, 2, 3)).sqrt(), 1.0, rtol=1e-5)
    terms = method.defended(session.nets, x, y)
    for g in torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(net.parameters())):
        assert bool(g.isfinite().all())


@pytest.mark.parametrize("starts", [{}, {"alpha_from": 0.5}, {"beta_from": 0.5}])
def test_what_begins_at_a_share_of_the_epochs_follows_their_number(starts: dict[str, float]) -> None:
    assert GREAT(ramp=0.0, **starts).is_paced == bool(starts)  # type: ignore[arg-type]
    assert GREAT(ramp=0.5, **starts).is_paced  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ramp", "start", "grown"),
    [
        (0.5, 0.0, {0.0: 0.0, 0.25: 0.5, 0.5: 1.0, 1.0: 1.0}),
        (0.25, 0.5, {0.0: 0.0, 0.5: 0.0, 0.625: 0.5, 0.75: 1.0, 1.0: 1.0}),
        (0.0, 0.5, {0.0: 0.0, 0.49: 0.0, 0.5: 1.0, 1.0: 1.0}),
    ],
)
def test_alpha_and_beta_grow_linearly_each_from_its_own_start(
    ramp: float, start: float, grown: dict[float, float]
) -> None:
    for progress, share in grown.items():
        nets = Nets(f=nn.Identity(), progress=progress)  # type: ignore[arg-type]
        later = min(1.0, progress / ramp) if ramp else 1.0
        assert GREAT(alpha=2.0, beta=4.0, ramp=ramp, alpha_from=start)._ramped(nets) == (2 * share, 4 * later)
        assert GREAT(alpha=2.0, beta=4.0, ramp=ramp, beta_from=start)._ramped(nets) == (2 * later, 4 * share)


def test_the_literal_form_with_a_small_beta_learns_labels_and_hides_their_gradients() -> None:
    """Free logits, wrong at first, and an A that knows nothing: after the same steps."""
    y = torch.tensor([0, 1, 2])
    gradient = {}
    for greace in ("literal", "bounded"):
        logits = (3 * functional.one_hot(y.roll(1)).float()).requires_grad_()
        nets = Nets(f=lambda x, logits=logits: logits + 0 * x.sum(), parts={"auxiliary": _Constant()})  # type: ignore[arg-type, misc]
        method = GREAT(alpha=0, beta=0.1, ramp=0, greace=greace)  # type: ignore[arg-type]
        for _ in range(400):
            terms = method.defended(nets, torch.zeros(3, 1, 2, 2), y)
            (g,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), logits)
            logits.data -= 10 * len(y) * g
        assert torch.equal(logits.argmax(1), y)
        (gradient[greace],) = torch.autograd.grad(functional.cross_entropy(logits, y), logits)
    assert not gradient["literal"].any() and bool((gradient["bounded"] != 0).all())


def test_distillation_leaves_the_teacher_as_it_was(recipe: Make, teacher: Path) -> None:
    session = Session(recipe("great", "method.form=distillation", f"method.teacher={teacher}"), CPU)
    loaded = session.nets.parts["teacher"]
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    for _ in range(3):
        session.step(session.order())
    assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())
    assert set(session.tools.optimizers) == {"f", "auxiliary"}


def test_soft_targets_are_the_control_of_distillation(recipe: Make, teacher: Path) -> None:
    form = ("method.form=distillation", f"method.teacher={teacher}", "method.alpha=0")
    session = Session(recipe("great", *form, "method.soft=0.5", "method.T=3"), CPU)
    x, y = session.data.batch(slice(6))
    nets = session.nets
    for net in (nets.f, nets.parts["teacher"]):
        net.eval()
    taught = nets.parts["teacher"](x).detach()
    terms = session.method.distilled(nets, x, y, taught, torch.zeros_like(x))  # type: ignore[attr-defined]
    p, q = (log_softmax(logits.double().numpy() / 3, 1) for logits in (taught, nets.f(x).detach()))
    assert float(terms["soft"].detach()) == pytest.approx(0.5 * 9 * (np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    without = Session(recipe("great", *form), CPU).method.distilled(nets, x, y, taught, torch.zeros_like(x))  # type: ignore[attr-defined]
    assert set(without) == {"ce", "auxiliary"}


def test_without_alpha_the_tasks_share_the_encoder_as_their_sum_would(recipe: Make) -> None:
    session = Session(recipe("great", "method.form=multi-task", "method.alpha=0"), CPU)
    x, y = session.data.batch(slice(12))
    nets = session.nets
    nets.f.eval()
    nets.key = torch.arange(12)
    terms = session.method.outer(nets, x, x, y)
    assert float(terms["encoder"].detach()) == 0
    encoder = [weight for name, weight in nets.f.named_parameters() if not name.startswith("linear")]
    mine = torch.autograd.grad(torch.stack(list(terms.values())).sum(), encoder)
    by = Rotation().target(x, y, nets.key)
    turned = torch.stack([torch.rot90(image, int(turns), (1, 2)) for image, turns in zip(x, by, strict=True)])
    whole = functional.cross_entropy(nets.f(x), y)
    whole = whole + functional.cross_entropy(nets.parts["turns"](nets.f.features(turned)), by)
    for a, b in zip(mine, torch.autograd.grad(whole, encoder), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_alignment_is_trained_against_the_auxiliary_and_scales_what_the_encoder_learns(recipe: Make) -> None:
    session = Session(recipe("great", "method.form=multi-task", "method.ramp=0"), CPU)
    x, y = session.data.batch(slice(12))
    nets, alignment = session.nets, session.nets.parts["alignment"]
    assert isinstance(alignment, Alignment)
    nets.f.eval()
    nets.key = torch.arange(12)
    encoder = [weight for name, weight in nets.f.named_parameters() if not name.startswith("linear")]
    found = []
    for scale in (1.0, 3.0):
        nn.init.constant_(alignment.w, scale)
        terms = session.method.outer(nets, x, x, y)
        (to_w,) = torch.autograd.grad(terms["auxiliary"], alignment.w, retain_graph=True)
        assert float(to_w.abs().max()) > 0
        assert torch.autograd.grad(terms["auxiliary"], encoder, allow_unused=True, retain_graph=True) == (None,) * len(
            encoder
        )
        found.append(torch.autograd.grad(terms["encoder"], encoder))
    assert all(torch.allclose(3 * a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_multi_task_runs_and_deploys_the_net_alone(recipe: Make, tmp_path: Path) -> None:
    out = train(recipe("great", "method.form=multi-task"), tmp_path / "run", device="cpu")
    parts = {file.stem for file in (out / "parts").iterdir()}
    assert parts == {"auxiliary", "turns", "alignment"}


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (("model.activation=relu",), "set model.activation to one of softplus, silu"),
        (("method.form=distillation",), r"set method\.teacher=RUN"),
        (("method.teacher=runs/other",), r"set method\.teacher=RUN"),
        (("method.ramp=2",), "method.ramp is .*: it must be at most 1"),
    ],
)
def test_what_cannot_work_is_refused_before_training(sets: tuple[str, ...], says: str, recipe: Make) -> None:
    with pytest.raises(UserError, match=says) as refused:
        Session(recipe("great", *sets), CPU)
    assert "\n" not in str(refused.value)


class _Constant(nn.Module):
    """The same answer to all gradients: 1/3 for each of 3 classes."""

    def forward(self, g: Tensor) -> Tensor:
        return torch.zeros(len(g), 3)


def _gradient(session: Session, x: Tensor, y: Tensor) -> Tensor:
    """The gradient that A receives, dCE/dx times the scale, which can be differentiated again."""
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(functional.cross_entropy(session.nets.f(z), y, reduction="sum"), z, create_graph=True)
    return 8 * g


def test_the_form_of_two_tasks_needs_square_images(tmp_path: Path) -> None:
    file = tmp_path / "wide.npz"
    np.savez(file, x_train=np.random.default_rng(0).random((40, 6, 4)), y_train=np.arange(40) % 2)
    sets = ["method.form=multi-task", "epochs=1", "validation.fraction=0.2"]
    wide = Recipe.resolve(method="great", dataset=f"npz:{file}", arch="mlp", sets=sets)
    with pytest.raises(UserError, match="needs square images, not 6x4"):
        train(wide, tmp_path / "run", device="cpu")
