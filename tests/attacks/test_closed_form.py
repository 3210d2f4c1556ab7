"""Every registered attack, in every norm it has a form for, on models whose distances are known exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import proofs
import pytest
import torch

from advbench.engine.attack import Attack, Problem, solve
from advbench.engine.losses import kl
from advbench.errors import UserError
from advbench.registry import entries, find
from advbench.threat import around

FREE, BOUND = False, True  # whether the borders of [0, 1] cut the balls


def made(name: str) -> Attack:
    return proofs.made(name, "settings")


def registered(minimum_norm: bool) -> list[tuple[str, str, bool]]:
    """(entry, norm, bound) for every single attack and every norm it has a form for."""
    found = []
    for name in entries("attacks"):
        attack = made(name)
        if isinstance(attack, tuple) or attack.minimum_norm != minimum_norm:
            continue
        for norm in proofs.NORMS:
            try:
                attack.for_model(norm, 4)
            except UserError:
                continue
            # The closed form of the Fourier norm holds without the box only.
            found += [(name, norm, bound) for bound in (FREE, BOUND) if not (bound and norm == "fourier-linf")]
    return found


@pytest.mark.parametrize(("name", "norm", "bound"), registered(minimum_norm=False))
def test_fells_all_that_can_fall_and_none_other(cases, name, norm, bound):
    case = cases["two-sided"](bound)
    exact = case.distance(norm)
    factor = proofs.factor(name, "needs", norm, bound)
    label, count = f"{name}, {norm}, {proofs.SIDES[bound]}", len(case.y)
    if factor < np.inf:
        standing = int((~case.strike(made(name), norm, exact * factor).fell).sum())
        assert not standing, (
            f"{label}: {standing} of {count} samples stand at {factor:g} times the exact eps; if this is the attack's "
            f"nature, say by how much in {proofs.place(name, 'needs', norm, bound)}"
        )
    fell = int(case.strike(made(name), norm, exact * 0.999).fell.sum())
    assert not fell, (
        f"{label}: {fell} of {count} samples fell at 0.999 times the exact eps, where none can: the region of "
        "advbench/threat.py is too large, or the search counts points that are no hits"
    )


@pytest.mark.parametrize(("name", "norm", "bound"), registered(minimum_norm=True))
def test_nearest_point_is_at_the_exact_distance(cases, name, norm, bound):
    case = cases["two-sided"](bound)
    ratio = case.strike(made(name), norm, np.inf).distance.numpy() / case.distance(norm)
    label, limit = f"{name}, {norm}, {proofs.SIDES[bound]}", proofs.factor(name, "nearest", norm, bound)
    assert ratio.min() > 0.9999, (
        f"{label}: a distance is {ratio.min():.5f} times the exact one, below which there is no hit: the size of "
        "advbench/threat.py is too small, or the search counts points that are no hits"
    )
    far = int((ratio >= limit).sum())
    assert not far, (
        f"{label}: {far} of {len(ratio)} points are {limit:g} times the exact distance away or more, up to "
        f"{ratio.max():.5f} times (inf: no point found); if this is the attack's nature, say by how much in "
        f"{proofs.place(name, 'nearest', norm, bound)}"
    )


@pytest.mark.parametrize("name", ["apgd-t", "fab", "fab-t", "deepfool"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_nearest_of_several_classes_is_found(cases, name, norm):
    if name == "deepfool" and norm == "l1":
        pytest.skip("deepfool has no form for l1")
    case = cases["several"](FREE)
    exact = case.distance(norm)
    if made(name).minimum_norm:
        ratio = case.strike(made(name), norm, np.inf).distance.numpy() / exact
        assert ratio.min() > 0.9999 and ratio.max() < (1.06 if name == "deepfool" else 1.01)
    else:
        factor = 1.2 if norm == "l1" else 1.003
        assert case.strike(made(name), norm, exact * factor).fell.all()
        assert not case.strike(made(name), norm, exact * 0.999).fell.any()


@pytest.mark.parametrize(
    ("name", "norm", "share"),
    [
        ("fgsm", "linf", 0.9999),
        ("pgd", "linf", 0.999),
        ("apgd-ce", "linf", 0.9999),
        ("fgsm", "l2", 0.999),
        ("mi-fgsm", "l2", 0.999),
        ("apgd-ce", "l2", 0.999),
        ("fgsm", "l1", 0.999),
        ("apgd-ce", "l1", 0.9),
        ("fgsm", "fourier-linf", 0.999),
        ("pgd", "fourier-linf", 0.97),
        ("apgd-ce", "fourier-linf", 0.999),
    ],
)
def test_solve_reaches_the_attainable_gain(cases, exact_gain, name, norm, share):
    """The inner maximisation of training, on a linear score: the gain is eps times the dual norm."""
    case = cases["two-sided"](FREE)
    w = torch.from_numpy(case.weight[0]).float()
    region = around(norm, case.x, torch.full((len(case.y),), 0.05, dtype=torch.float64))
    p = Problem(region, case.y, torch.full_like(case.y, -1), torch.arange(len(case.y)))
    attack = made(name).for_model(norm, 4)
    z = solve(attack, lambda query: (query.flatten(1) * w).sum(1), p)
    assert region.contains(z).all()
    reached = ((z - case.x).flatten(1) * w).sum(1).double().numpy()
    best = np.array(
        [exact_gain(norm, case.weight[0], np.where(w > 0, 1 - x, x), 0.05) for x in case.x.flatten(1).numpy()]
    )
    assert (reached >= share * best).all(), (reached / best).min()
    assert (reached <= best * (1 + 1e-4)).all()


@pytest.mark.parametrize("band", [(0.0, 0.3), (0.3, 0.6)])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce"])
def test_solve_reaches_what_a_band_allows_and_no_more(cases, name, band):
    """The gain is eps times the sum of the moduli of the score's Fourier coefficients in the band."""
    case = cases["two-sided"](FREE)
    w = case.weight[0].reshape(case.x[0, 0].shape)
    line = np.fft.fftfreq(len(w))
    radius = np.hypot(line[:, None], line[None])
    best = 0.05 * np.abs(np.fft.fft2(w, norm="ortho"))[(radius >= band[0]) & (radius <= band[1])].sum()
    region = around("fourier-linf", case.x, torch.full((len(case.y),), 0.05, dtype=torch.float64))
    p = Problem(region, case.y, torch.full_like(case.y, -1), torch.arange(len(case.y)))
    attack = dataclasses.replace(made(name), band=band).for_model("fourier-linf", 4)
    z = solve(attack, lambda query: (query * torch.from_numpy(w).float()).sum((1, 2, 3)), p)
    assert region.contains(z).all()
    reached = ((z - case.x).double().numpy() * w).sum((1, 2, 3))
    assert (reached >= 0.97 * best).all() and (reached <= best * (1 + 1e-4)).all(), reached / best


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "deepfool"])
def test_models_of_two_and_three_classes(cases, name, classes):
    case = cases["two-sided"](FREE, classes)
    exact = case.distance("linf")
    attack = made(name)
    logits = case.net(case.x)
    asked = attack.for_model("linf", classes).target_classes(logits, case.y)
    assert asked.shape[1] <= classes - 1
    assert not (asked == case.y[:, None]).any()
    assert case.strike(attack, "linf", exact * 1.05).fell.all()
    assert not case.strike(attack, "linf", exact * 0.999).fell.any() if name != "square" else True


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square"])
def test_a_chosen_target_is_reached(cases, name):
    """On classes in random directions, points move towards the chosen class, even if another one is nearer."""
    case = cases["several"](FREE)
    own = case.y == 2
    aimed = dataclasses.replace(made(name), target=2, loss="cw").for_model("linf", 4)
    goals = aimed.target_classes(case.net(case.x), case.y)
    assert (goals[~own] == 2).all() and (goals[own] == -1).all()
    with torch.no_grad():
        logits = case.net.double()(case.x.double()).numpy()
    case.net.float()
    away = np.abs(case.weight[2] - case.weight[case.y.numpy()]).sum(1)
    towards = (logits[np.arange(len(case.y)), case.y] - logits[:, 2])[~own] / away[~own]  # without the box
    eps = np.full(len(case.y), 0.9)
    eps[~own.numpy()] = towards * (1.3 if name == "square" else 1.01)
    verdicts = case.strike(aimed, "linf", eps)
    assert verdicts.fell[~own].all()
    reached = case.net(torch.stack([verdicts.points[row] for row in (~own).nonzero()[:, 0].tolist()])).argmax(1)
    assert (reached == 2).any()


def test_kl_is_that_of_the_clean_answer(cases):
    case = cases["two-sided"](FREE)
    exact = case.distance("linf")
    attack = dataclasses.replace(made("pgd"), loss="kl")
    # The loss rises on both sides of the image, so some starts lead to a surer right answer.
    assert 0 < case.strike(attack, "linf", exact * 1.001).fell.sum() < len(case.y)
    assert case.strike(dataclasses.replace(attack, restarts=20), "linf", exact * 1.001).fell.all()
    assert not case.strike(attack, "linf", exact * 0.999).fell.any()
    logits, clean = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    by_hand = 0.5 * np.log(0.5 / (np.e / (np.e + 1))) + 0.5 * np.log(0.5 / (1 / (np.e + 1)))
    assert float(kl(logits, clean)) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "classes", "words"),
    [
        ("pgd", {"target": 4}, 4, "target is 4, but the classes are 0 to 3"),
        ("apgd-ce", {"target": -1}, 4, "target is -1"),
        ("square", {"target": 9}, 4, "target is 9"),
        ("pgd", {"target": 1, "loss": "kl"}, 4, "no targeted form"),
        ("mi-fgsm", {"loss": "kl"}, 4, "set random_start=true"),
        ("pgd", {"loss": "hinge"}, 4, "choose from ce, cw, dlr, kl"),
    ],
)
def test_invalid_losses_and_targets_are_refused_in_one_line(name, settings, classes, words):
    with pytest.raises(UserError, match=words) as raised:
        find("attacks", name).create(**settings).for_model("linf", classes)
    assert "\n" not in str(raised.value)
