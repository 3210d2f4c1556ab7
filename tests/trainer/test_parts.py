"""The trainer's pieces: schedules, averages, weight perturbation, modes, scores, flags, batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench.data import load
from advbench.engine.losses import wrong
from advbench.models import build
from advbench.models.base import Model
from advbench.recipe import Average, Optim, Recipe, Schedule
from advbench.trainer.averaging import Averaged
from advbench.trainer.awp import perturbed
from advbench.trainer.history import History
from advbench.trainer.modes import attack_mode
from advbench.trainer.optim import factor, optimizer
from advbench.trainer.prepare import images, split
from advbench.trainer.session import Session
from advbench.trainer.validation import Scores, catastrophic_overfitting, score

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


def linear(seed: int = 0) -> Model:
    return build("linear", num_classes=3, in_channels=1, image_size=4, seed=seed)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"name": "piecewise", "milestones": (0.5, 0.75), "factor": 0.1},
            {0: 1, 0.49: 1, 0.5: 0.1, 0.75: 0.01, 1: 0.01},
        ),
        ({"name": "piecewise", "milestones": ()}, {0: 1, 1: 1}),
        ({"name": "onecycle", "peak": 0.4}, {0: 0, 0.2: 0.5, 0.4: 1, 0.7: 0.5, 1: 0}),
        ({"name": "cosine"}, {0: 1, 1 / 3: 0.75, 0.5: 0.5, 1: 0}),
        ({"name": "constant", "warmup": 0.2}, {0: 0, 0.1: 0.5, 0.2: 1, 1: 1}),
    ],
)
def test_schedules_have_their_closed_forms(settings: dict[str, object], expected: dict[float, float]) -> None:
    schedule = Schedule.model_validate(settings)
    assert {at: factor(schedule, at) for at in expected} == pytest.approx(expected)


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 399))
def test_a_milestone_falls_on_its_own_epoch(epochs: int, steps: int, milestone: int) -> None:
    milestone = min(milestone, epochs)
    schedule = Schedule(milestones=(milestone / epochs,))
    at = milestone * steps
    assert factor(schedule, at / (epochs * steps)) == schedule.factor
    assert factor(schedule, (at - 1) / (epochs * steps)) == 1.0


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimisers_take_the_recipes_settings(name: str) -> None:
    weight = nn.Parameter(torch.ones(2))
    made = optimizer(
        Optim.model_validate({"name": name, "lr": 0.5, "weight_decay": 0.25, "momentum": 0.8}), [weight], CPU
    )
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)
    assert (group["momentum"] if name == "sgd" else group["betas"][0]) == 0.8


def test_ema_follows_its_recurrence_after_the_start() -> None:
    net = linear()
    averaged = Averaged(Average(name="ema", decay=0.9, start=0.5), net)
    expected = net.linear.weight.detach().clone()  # type: ignore[union-attr, operator]
    for t, progress in enumerate((0.1, 0.6, 0.7, 0.8)):
        with torch.no_grad():
            net.linear.weight.add_(1.0)  # type: ignore[union-attr, operator]
        averaged.after_step(net, progress)
        keep = min(0.9, t / (9 + t)) if progress >= 0.5 else 0.0  # (1 + count) / (10 + count), count from 0
        expected = keep * expected + (1 - keep) * net.linear.weight.detach()  # type: ignore[union-attr, operator]
    assert torch.allclose(averaged.net.linear.weight, expected)  # type: ignore[union-attr, arg-type]
    assert not any(weight.requires_grad for weight in averaged.net.parameters())


def test_swa_is_the_mean_over_epochs() -> None:
    net = linear()
    averaged = Averaged(Average(name="swa", start=0.5), net)
    seen: list[Tensor] = []
    for epoch in range(1, 6):
        with torch.no_grad():
            net.linear.weight.add_(epoch)  # type: ignore[union-attr, operator]
        averaged.after_step(net, epoch / 5)  # steps do not move it
        averaged.after_epoch(net, epoch / 5)
        if epoch / 5 >= 0.5:
            seen.append(net.linear.weight.detach().clone())  # type: ignore[union-attr, operator]
    assert torch.allclose(averaged.net.linear.weight, torch.stack(seen).mean(0))  # type: ignore[union-attr, arg-type]


def test_ema_copies_batch_norms_statistics(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "average.name=ema", "average.start=0"), CPU)
    for _ in range(3):
        session.step(session.order())
    mine, theirs = session.averaged.net, session.nets.f  # type: ignore[union-attr]
    assert torch.equal(mine.bn.running_var, theirs.bn.running_var)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(mine.linear.weight, theirs.linear.weight)  # type: ignore[union-attr, arg-type]


def test_awp_moves_each_matrix_by_gamma_of_its_norm_up_the_loss_and_back() -> None:
    net, x, y = linear(), torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    loss = lambda: nn.functional.cross_entropy(net(x), y)  # noqa: E731
    before = {name: value.clone() for name, value in net.state_dict().items()}
    (g,) = torch.autograd.grad(loss(), net.linear.weight)  # type: ignore[union-attr, arg-type]
    with perturbed(net, loss, 0.1):
        moved = net.linear.weight.detach() - before["linear.weight"]  # type: ignore[union-attr, operator]
        assert torch.allclose(moved, 0.1 * before["linear.weight"].norm() * g / g.norm(), atol=1e-7)
        assert torch.equal(net.linear.bias, before["linear.bias"])  # type: ignore[union-attr, arg-type]
        raised = float(loss().detach())
    assert raised > float(loss().detach())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_awp_waits_for_its_warm_up_and_leaves_statistics_alone(recipe: Make) -> None:
    plain, waiting, on = (
        Session(recipe("pgd-at", *sets), CPU) for sets in ([], ["awp.gamma=0.05", "awp.warmup=1"], ["awp.gamma=0.05"])
    )
    for session in (plain, waiting, on):
        session.step(session.order())
    a, b, c = (session.nets.f.state_dict() for session in (plain, waiting, on))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert int(c["bn.num_batches_tracked"]) == 1
    assert not torch.equal(a["linear.weight"], c["linear.weight"])


def test_gradients_are_clipped_to_the_norm(recipe: Make) -> None:
    sets = ["optim.clip=0.001", "optim.weight_decay=0", "optim.momentum=0", "optim.lr=1"]
    session = Session(recipe("standard", *sets), CPU)
    before = nn.utils.parameters_to_vector(session.nets.f.parameters()).detach().clone()
    session.step(session.order())
    moved = nn.utils.parameters_to_vector(session.nets.f.parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(0.001, rel=1e-3)


def test_label_smoothing_is_pytorchs(recipe: Make) -> None:
    session = Session(recipe("standard", "label_smoothing=0.4"), CPU)
    x, y = session.data.batch(slice(16))
    logits = session.nets.f(x)
    expected = 0.6 * nn.functional.cross_entropy(logits, y) + 0.4 * -logits.log_softmax(1).mean()
    assert torch.allclose(session.nets.ce(logits, y), expected)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_attack_mode_is_what_it_says_and_is_undone(bn_mode: str, recipe: Make) -> None:
    net = Session(recipe("pgd-at", "model.dropout=0.9"), CPU).nets.f
    net.bn.eval()  # type: ignore[union-attr, operator]
    before = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.rand(16, 1, 8, 8)
    with attack_mode([net], bn_mode):  # type: ignore[arg-type]
        assert net.bn.training == (bn_mode == "train")  # type: ignore[union-attr]
        assert not net.drop.training  # type: ignore[union-attr]
        h = net.bn(net.conv(x)).detach()  # type: ignore[operator]
        centred = float(h.mean((0, 2, 3)).abs().max()) < 1e-5  # type: ignore[union-attr]
        assert centred == (bn_mode == "train")
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.bn.track_running_stats  # type: ignore[union-attr]


def test_scores_of_a_linear_net_are_its_closed_form(recipe: Make) -> None:
    made = recipe("pgd-at", "validation.steps=20", arch="linear", eps="0.02")
    session = Session(made, CPU)
    for _ in range(6):
        session.step(session.order())
    data, net = session.held_out, session.nets.f
    assert data is not None
    x, y = data.batch(slice(None))
    weight = net.linear.weight.detach()  # type: ignore[union-attr, operator]
    scores = score(net, data, made, batch_size=7)
    assert scores.clean == pytest.approx(float((~wrong(net(x), y)).float().mean()))
    assert scores.robust <= scores.clean and scores.robust <= scores.fgsm <= scores.clean
    # No point of the ball turns logit k above y when z_y - z_k exceeds what each pixel can add.
    room_up, room_down = (1 - x).clamp_max(0.02).flatten(1), x.clamp_max(0.02).flatten(1)
    d = weight[None] - weight[y][:, None]
    gain = (d.clamp_min(0) * room_up[:, None]).sum(2) + (-d.clamp_max(0) * room_down[:, None]).sum(2)
    z = net(x)
    safe = ((z - z.gather(1, y[:, None]) + gain).scatter(1, y[:, None], -1.0) < 0).all(1)
    assert scores.robust >= float(safe.float().mean()) - 1e-6
    assert scores.robust <= float(safe.float().mean()) + 0.1


def test_scores_do_not_depend_on_the_batches(recipe: Make) -> None:
    made = recipe("pgd-at")
    session = Session(made, CPU)
    session.step(session.order())
    assert session.held_out is not None
    assert score(session.nets.f, session.held_out, made, batch_size=5) == score(
        session.nets.f, session.held_out, made, batch_size=100
    )


def at(robust: float, fgsm: float) -> Scores:
    return Scores(0.9, robust, fgsm)


def test_catastrophic_overfitting_is_flagged_and_robust_overfitting_is_not() -> None:
    collapsed = [at(0.2, 0.3), at(0.4, 0.5), at(0.01, 0.8)]
    flag = catastrophic_overfitting(collapsed, 10, deployed=3)
    assert flag is not None and (flag.name, flag.severity) == ("catastrophic-overfitting", "suspect")
    assert "epoch 3: PGD 1.0%, FGSM 80.0%" in flag.detail
    before = catastrophic_overfitting(collapsed, 10, deployed=2)
    assert before is not None and before.severity == "note"
    recovered = catastrophic_overfitting([*collapsed, at(0.6, 0.7), at(0.1, 0.9)], 10, deployed=4)
    assert recovered is not None and (recovered.severity, recovered.detail) == ("note", flag.detail)
    slow = [at(0.45, 0.5), at(0.4, 0.5), at(0.35, 0.52)]
    never = [at(0.02, 0.3), at(0.0, 0.5)]  # standard training was never robust
    untrained = [at(0.4, 0.5), at(0.05, 0.06)]  # diverged: FGSM fell as well
    for scores in (slow, never, untrained, []):
        assert catastrophic_overfitting(scores, 10, deployed=1) is None


def test_the_best_is_the_latest_that_none_beats() -> None:
    history = History()
    best = [
        history.add({}, Scores(c, r, r), "robust")
        for c, r in ((0.5, 0.3), (0.4, 0.2), (0.6, 0.3), (0.6, 0.3), (0.9, 0.2))
    ]
    assert best == [True, False, True, True, False]
    assert history.best_epoch == 4
    last = History()
    assert [last.add({}, Scores(0.1, 0.1, 0.1), "last"), last.add({}, Scores(0.0, 0.0, 0.0), "last")] == [True, True]


def test_two_views_are_two_draws_with_keys_of_their_own(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(recipe("pgd-at", "augment.crop=2"), CPU)
    monkeypatch.setattr(type(session.method), "views", 2, raising=False)
    rows = torch.arange(10)
    x, y = session._batch(rows)
    assert x.shape == (20, 1, 8, 8) and torch.equal(y[:10], y[10:])
    assert not torch.equal(x[:10], x[10:])
    assert len(set(session.nets.key.tolist())) == 20
    alone, _ = session._batch(rows[:1])
    assert torch.equal(alone[0], x[0])  # a sample's draw does not depend on its batch


def test_noise_differs_between_epochs_and_seeds(recipe: Make) -> None:
    keys = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        session = Session(recipe("pgd-at", f"seed={seed}"), CPU)
        session.epoch = epoch
        session._batch(torch.arange(5))
        keys += session.nets.key.tolist()
    assert len(set(keys)) == 15


def test_the_inner_attack_stays_in_the_ball_as_it_grows(recipe: Make) -> None:
    session = Session(recipe("pgd-at", "inner.warmup=0.5", "inner.steps=5"), CPU)
    x, y = session._batch(torch.arange(16))
    for progress, share in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        session.nets.progress = progress
        far = (session.method.perturb(session.nets, x, y, session.tools) - x).abs().max()
        assert float(far) == pytest.approx(0.1 * share, abs=1e-6)
        assert session.tools.step_size() == pytest.approx(0.025 * share)


def test_bf16_on_a_cpu_trains_fp32_weights(recipe: Make) -> None:
    session = Session(recipe("trades", "precision=bf16"), CPU)
    assert session.precision == "bf16"
    for _ in range(2):
        session.step(session.order())
    assert all(weight.dtype == torch.float32 for weight in session.nets.f.parameters())
    terms, _ = session.means()
    assert all(math.isfinite(value) for value in terms.values())


@pytest.mark.parametrize(("n", "count"), [(300, 997), (300, 40), (0, 40)])
def test_held_out_images_are_a_number_and_none_is_trained_on(recipe: Make, n: int, count: int) -> None:
    made = recipe("pgd-at", f"train_n={n}", f"validation.held_out={count}", "validation.n=30")
    train, held_out, sha256 = split(made)
    assert held_out is not None and len(held_out) == count
    assert len(train) == (n or 1297 - count) and not {*train.indices.tolist()} & {*held_out.indices.tolist()}
    assert n == 0 or train.indices.tolist() == list(range(n))
    again = split(recipe("trades", f"train_n={n}", f"validation.held_out={count}", "seed=5"))[1]
    assert again is not None and torch.equal(again.indices, held_out.indices)  # of another method and seed
    seen, scored, _ = images(made, CPU)
    assert torch.equal(seen.indices, train.indices) and scored is not None
    ordered, drawn = held_out.indices.tolist(), scored.indices.tolist()
    assert len({*drawn} & {*ordered}) == len(drawn) == 30 and drawn != ordered[:30]  # which may be of one class alone
    longer = images(recipe("pgd-at", f"train_n={n}", f"validation.held_out={count}", "validation.n=35"), CPU)[1]
    assert longer is not None and {*drawn} < {*longer.indices.tolist()}
    assert sha256 == load("digits", "train").images_sha256


def test_a_recipe_that_does_not_say_how_many_are_held_out_is_the_recipe_that_it_was(recipe: Make) -> None:
    assert "held_out" not in recipe("pgd-at").tree()["validation"]  # so that its hash in records still fits
