"""AutoAttack's sets have the papers' attacks, order and budgets."""

from __future__ import annotations

import pytest

from advbench.data.corruptions import COMMON
from advbench.engine.attack import members
from advbench.errors import UserError
from advbench.registry import entries, find


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_standard_is_the_papers_set(norm):
    ce, t, fab, square = members(find("attacks", "autoattack").create(norm=norm))
    assert [m.name for m in (ce, t, fab, square)] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (ce.steps, ce.loss, ce.rho) == (100, "ce", 0.75)
    assert (t.steps, t.loss, t.rho, t.restarts) == (100, "dlr", 0.75, 1)
    assert (ce.restarts, t.n_targets) == ((5, 5) if norm == "l1" else (1, 9))
    assert ce.larger_eps is t.larger_eps is (norm == "l1")
    assert (fab.steps, fab.n_targets, fab.restarts, fab.alpha_max, fab.eta, fab.beta) == (100, 9, 1, 0.1, 1.05, 0.9)
    assert (square.n_queries, square.p_init, square.rescale_schedule, square.loss) == (5000, 0.8, False, "cw")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_plus_and_rand_are_the_papers_sets(norm):
    plus = members(find("attacks", "autoattack-plus").create(norm=norm))
    assert [m.name for m in plus] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [m.restarts for m in plus] == [5, 5, 5, 1, 1, 1]
    assert [m.loss for m in plus] == ["ce", "dlr", "cw", "cw", "dlr", "cw"]
    assert [m.steps for m in plus] == [100, 100, 100, 5000, 100, 100]
    assert [getattr(m, "n_targets", None) for m in plus] == [0, 0, None, None, 9, 9]
    rand = members(find("attacks", "autoattack-rand").create(norm=norm))
    assert [(m.name, m.loss, m.steps, m.eot) for m in rand] == [
        ("apgd-ce", "ce", 100, 20),
        ("apgd-dlr", "dlr", 100, 20),
    ]
    assert {m.larger_eps for m in (plus[0], plus[1], plus[4], *rand)} == {norm == "l1"}


def test_the_registered_attacks_have_the_papers_budgets():
    """For attacks that are in no set."""
    made = {name: find("attacks", name).create() for name in ("cw-l2", "ddn", "fmn", "deepfool", "rays", "transfer")}
    assert (made["cw-l2"].searches, made["cw-l2"].iterations, made["cw-l2"].c_init) == (9, 1000, 1e-3)
    assert (made["ddn"].steps, made["ddn"].gamma, made["ddn"].init_norm) == (1000, 0.05, 1.0)
    assert (made["fmn"].steps, made["fmn"].alpha_init, made["fmn"].gamma_init, made["fmn"].gamma_final) == (
        1000, 1.0, 0.05, 0.001,
    )  # fmt: skip
    assert (made["deepfool"].steps, made["deepfool"].overshoot) == (50, 0.02)
    assert (made["rays"].n_queries, made["rays"].tolerance, made["rays"].restarts) == (10000, 1e-3, 1)
    assert (made["transfer"].steps, made["transfer"].loss, made["transfer"].n_targets) == (100, "dlr", 0)


def test_members_are_the_registered_attacks_of_their_names():
    """A member and the registered attack of the same name draw the same noise; only settings may differ."""
    for name, entry in entries("attacks").items():
        made = entry.create()
        if name == "corruptions":  # its members are kinds of noise, not attacks of their own
            assert [m.name for m in made] == list(COMMON)
        elif isinstance(made, tuple):
            assert [m.name for m in made] == entry.about["members"]
            assert all(type(m) is type(find("attacks", m.name).create()) for m in made)
        else:
            assert made.name == name


def test_every_entry_has_a_summary_of_one_line():
    for entry in entries("attacks").values():
        assert entry.summary and "\n" not in entry.summary


@pytest.mark.parametrize(
    ("name", "settings", "norm", "reason"),
    [
        ("pgd", {"init": "middle"}, "linf", "uniform"),
        ("pgd", {"loss": "hinge"}, "linf", "ce"),
        ("pgd", {"steps": 0}, "linf", "steps"),
        ("pgd", {"sparsity": 1.0}, "l1", "sparsity"),
        ("pgd", {"queries": 3}, "linf", "queries"),
        ("n-fgsm", {}, "l2", "linf"),
        ("apgd-ce", {"larger_eps": True}, "l2", "l1"),
        ("apgd-ce", {"band": (0.0, 0.2)}, "linf", "fourier-linf"),
        ("square", {"p_init": 0.0}, "linf", "p_init"),
        ("square", {"steps": 10}, "linf", "n_queries"),
        ("fab", {}, "fourier-linf", "linf, l2, l1"),
        ("ddn", {}, "linf", "l2"),
        ("rays", {"tolerance": 0.0}, "linf", "tolerance"),
        ("rays", {"n_queries": 0}, "linf", "n_queries must be at least 1"),
        ("rays", {"loss": "ce"}, "linf", "n_queries"),
        ("rays", {}, "l2", "linf"),
        ("fab-t", {"loss": "ce"}, "linf", "fab-t has no form for the loss ce: choose from cw"),
        ("cw-l2", {"loss": "ce"}, "l2", "choose from cw"),
        ("deepfool", {"loss": "dlr"}, "l2", "choose from cw"),
        ("fmn", {"loss": "kl"}, "l2", "choose from ce, cw, dlr"),
        ("apgd-t", {"loss": "kl"}, "linf", "kl has no targeted form"),
        ("pgd", {"loss": "kl", "target": 3}, "linf", "kl has no targeted form"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(name, settings, norm, reason):
    with pytest.raises(UserError, match=reason) as caught:
        find("attacks", name).create(**settings).for_model(norm, 10)
    assert "\n" not in str(caught.value)
