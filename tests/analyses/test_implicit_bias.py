"""The largest margins against closed forms, and the optimisers against the largest margins."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advbench.analyses.base import Analysis
from advbench.analyses.implicit_bias import NORMS, OWN, run
from advbench.analyses.linear_optimizers import _to_l1_ball, ascent, prox, steepest
from advbench.analyses.minimum_norm import DUALS, largest_margin, margin, minimum_norm
from advbench.errors import UserError


@cache
def small() -> Analysis:
    return run([], sizes="3,12", trials=1, steps=6000, fista_steps=1000)


def test_fista_takes_a_step_at_every_lambda() -> None:
    with pytest.raises(UserError, match=r"fista_steps must be at least 20, one for each lambda"):
        run([], sizes="3", trials=1, steps=10, fista_steps=19)
    few = run([], sizes="3", trials=1, steps=10, fista_steps=20, adversarial_steps=10)
    assert few.tables["margins"].notna().all(axis=None)


@pytest.mark.parametrize("norm", NORMS)
def test_a_single_point_has_its_own_norm_as_margin(norm: str) -> None:
    """max_w z.w / ||w||_dual = ||z||."""
    z = np.random.default_rng(0).standard_normal((1, 20))
    own = {
        "l2": np.linalg.norm(z),
        "linf": np.abs(z).max(),
        "l1": np.abs(z).sum(),
        "fourier-linf": np.abs(np.fft.fft(z, norm="ortho")).max(),
    }[norm]
    assert largest_margin(z, norm) == pytest.approx(own, rel=2e-3 if norm == "fourier-linf" else 1e-6)


def test_two_orthogonal_points_have_the_margins_of_the_simplex() -> None:
    z = np.eye(2, 6) * 3.0
    assert largest_margin(z, "l2") == pytest.approx(3 / np.sqrt(2))
    assert largest_margin(z, "linf") == pytest.approx(3 / 2)
    assert largest_margin(z, "l1") == pytest.approx(3)


@given(seed=st.integers(0, 1000), n=st.integers(1, 6))
@settings(max_examples=settings.default.max_examples * 3 // 20)
def test_no_classifier_beats_an_oracle(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    z, some = rng.standard_normal((n, 12)), rng.standard_normal((20, 12))
    solutions = [*some, *(minimum_norm(z, norm) for norm in NORMS)]
    for norm in NORMS:
        best = largest_margin(z, norm)
        assert max(margin(z, w, norm) for w in solutions) <= best * (1 + 1e-6)
        assert margin(z, minimum_norm(z, norm), norm) >= 0.9985 * best  # the polygon costs 0.12 %


@given(seed=st.integers(0, 1000), t=st.floats(0.01, 5))
@settings(max_examples=settings.default.max_examples * 3 // 10)
def test_prox_is_a_minimum(seed: int, t: float) -> None:
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(9)
    for norm in NORMS:

        def value(w: np.ndarray, norm: str = norm) -> float:
            return float((w - v) @ (w - v)) / 2 + t * DUALS[norm](w)

        found = prox(v, t, norm)
        for size in (1e-4, 1e-2, 1):
            assert value(found) <= min(value(found + size * rng.standard_normal(9)) for _ in range(5)) + 1e-12
        assert value(found) <= value(v) and value(found) <= value(np.zeros(9)) + 1e-12


def test_ascent_is_the_gradient_of_the_log_loss() -> None:
    rng = np.random.default_rng(1)
    z, w = rng.standard_normal((4, 5)), rng.standard_normal(5)

    def log_loss(v: np.ndarray) -> float:
        return float(np.log(np.exp(-z @ v).mean()))

    numeric = [-(log_loss(w + 1e-6 * e) - log_loss(w - 1e-6 * e)) / 2e-6 for e in np.eye(5)]
    assert ascent(z, w) == pytest.approx(np.array(numeric), abs=1e-7)


@pytest.mark.parametrize("name", list(OWN))
def test_each_optimiser_reaches_its_own_margin(name: str) -> None:
    enough = 0.85 if name == "conv-gradient-descent" else 0.99
    assert small().tables["worst"].loc[name, OWN[name]] >= enough


@pytest.mark.parametrize("name", list(OWN))
def test_each_optimiser_wins_its_own_column(name: str) -> None:
    table, norm = small().tables["by_size"][OWN[name]].unstack("optimiser"), OWN[name]
    rivals = [other for other in OWN if OWN[other] != norm]
    assert (table[name] > table[rivals].max(axis=1)).all()


def test_coordinate_descent_is_sparse_and_sign_descent_is_flat() -> None:
    z = np.random.default_rng(2).standard_normal((3, 100))
    assert np.count_nonzero(steepest(z, "coordinate-descent", 500)) <= 10
    w = np.abs(steepest(z, "sign-gradient-descent", 500))
    assert np.mean(w > 0.95 * w.max()) > 0.9


@pytest.mark.parametrize("bad", [{"sizes": "3,x"}, {"sizes": "200"}, {"trials": 0}])
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UserError):
        run([], **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("radius", [1e-30, 0.5])
def test_the_l1_ball_of_one_number(radius: float) -> None:
    assert _to_l1_ball(np.array([-1.0]), radius) == pytest.approx(-radius)
