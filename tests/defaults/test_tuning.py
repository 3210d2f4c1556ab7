"""Choosing among what a grid tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from advbench.defaults.tuning import Trial, add, choose, chosen, half_width, read
from advbench.errors import UserError


def trial(
    lr: str, robust: int | None, clean: int = 90, *, seed: int = 0, method: str = "trades", **other: str
) -> Trial:
    fields = {"weights": "best", "eps": "0.1", **other}
    return Trial(
        method=method, settings={"optim.lr": lr}, seed=seed, n=100, clean_k=None if robust is None else clean,
        robust_k=robust, passes=None if robust is None else 22.5, updates=None, epochs=3, train_images=500,
        dataset="digits", arch="mlp", norm="linf", attack="apgd-t", recipe_sha256=f"{lr}{seed}", weights_sha256="",
        images_sha256="0", folder=f"{method}-{lr}-{seed}", **fields,
    )  # fmt: skip


def picked(trials: list[Trial], weights: str = "best", select: str = "margin") -> dict[str, str]:
    found = choose(trials, weights=weights, select=select)
    return {method: tried[0].settings["optim.lr"] for method, tried in found.items()}


def test_the_highest_mean_over_the_seeds() -> None:
    trials = [trial("0.1", 60), trial("0.2", 70), trial("0.1", 60, seed=1), trial("0.2", 49, seed=1)]
    assert picked(trials) == {"trades": "0.1"}
    assert picked(trials[:2]) == {"trades": "0.2"}
    assert picked([*trials, trial("0.3", 10, method="act")]) == {"trades": "0.1", "act": "0.3"}


def test_the_weights_that_are_asked_for() -> None:
    trials = [trial("0.1", 60), trial("0.2", 50), trial("0.1", 40, weights="last"), trial("0.2", 45, weights="last")]
    assert (picked(trials), picked(trials, "last")) == ({"trades": "0.1"}, {"trades": "0.2"})


def test_equal_scores_are_told_apart_by_the_other_then_by_the_place() -> None:
    trials = [trial("0.1", 60, 90), trial("0.2", 60, 91), trial("0.3", 60, 91)]
    assert picked(trials) == {"trades": "0.2"}
    assert picked([trial("0.1", 60, 90), trial("0.2", 50, 95)], select="clean") == {"trades": "0.2"}
    assert picked([trial("0.1", 60, 90), trial("0.2", 61, 90)], select="clean") == {"trades": "0.2"}


def test_settings_without_every_seed_or_with_a_diverged_run_are_left_out() -> None:
    trials = [trial("0.1", 60), trial("0.1", 60, seed=1), trial("0.2", 99)]
    assert picked(trials) == {"trades": "0.1"}
    assert picked([trial("0.1", 60), trial("0.1", None, seed=1), trial("0.2", 1), trial("0.2", 1, seed=1)]) == {
        "trades": "0.2"
    }
    assert picked([trial("0.1", None)]) == {}


def test_a_setting_that_is_there_twice_counts_once() -> None:
    fields = {"optim.lr": "0.1", "method.beta": "6"}
    again = [{**vars(trial("", 40)), "settings": of} for of in (fields, dict(reversed(fields.items())))]
    assert picked([trial("0.1", 60), *(Trial(**one) for one in again)]) == {"trades": "0.1"}
    seeds = [Trial(**{**one, "seed": seed}) for seed, one in enumerate(again)]
    assert choose(seeds, weights="best") == {"trades": seeds}


def test_unknown_words_are_refused() -> None:
    with pytest.raises(UserError, match="choose from best, last"):
        picked([trial("0.1", 1)], weights="first")
    with pytest.raises(UserError, match="choose from clean, margin"):
        picked([trial("0.1", 1)], select="robust")


def test_a_file_gives_back_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    trials = [trial("0.1", 60), trial("-1e-3", None, seed=2)]
    assert add(path, trials[:1]) == trials[:1]
    assert add(path, trials[1:]) == trials == read(path)
    renewed = trial("0.1", 61)
    assert add(path, [renewed]) == [renewed, trials[1]] == read(path)
    other = Trial(**{**vars(trial("0.5", 3, method="act")), "settings": {"method.b": "0.9"}})
    assert add(path, [other]) == [renewed, trials[1], other] == read(path)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.csv"]
    with pytest.raises(UserError, match="another problem"):
        add(path, [trial("0.1", 60, eps="0.2")])
    assert len(read(path)) == 3


def test_chosen_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    add(path, [trial("0.1", 60), trial("0.2", 70)])
    assert chosen(path) == {"trades": {"optim.lr": "0.2"}}
    add(path, [trial("0.1", None, method="act")])
    with pytest.raises(UserError, match="no setting of act has a score for every seed"):
        chosen(path)


@pytest.mark.parametrize("text", ["", "method,seed\ntrades,0\n", "\x00", None])
def test_a_file_that_is_none_is_told_in_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "grid.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"grid\.csv") as raised:
        chosen(path)
    assert "\n" not in str(raised.value)


def test_half_of_the_interval_at_one_half() -> None:
    z = 1.959964  # Wilson's interval at p = 1/2: z sqrt(1/4 + z^2 / 4n) / sqrt(n) / (1 + z^2 / n)
    for n in (100, 2000):
        assert half_width(n) == pytest.approx(z / 2 / (n + z * z) ** 0.5, rel=1e-4)
