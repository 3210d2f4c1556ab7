"""Analyses of trained runs: formulas on known values, and what must hold on real digits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from advbench.analyses import features, filters, quantize, spectrum, transfer
from advbench.analyses.trained_run import images, load_runs, named_attack, right, withstands
from advbench.data.simple_corruptions import SIMPLE, corrupted_simply
from advbench.errors import UserError

Trained = Callable[..., Path]


def test_filter_sizes_by_hand() -> None:
    weight = torch.tensor([[[[3.0, 0.0], [0.0, -4.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    found = filters.sizes(weight)
    assert (found["max_max"], found["mean_max"]) == (4, 2.5)
    assert (found["max_l1"], found["mean_l1"]) == (7, 5.5)
    assert (found["max_spectral"], found["mean_spectral"]) == (pytest.approx(4), pytest.approx(3))
    assert filters.sizes(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))["max_l1"] == 3


def test_filters_lists_every_layer_of_every_run(trained: Trained) -> None:
    found = filters.run([trained("standard"), trained("pgd-at")])
    assert len(found.tables["filters"]) == 6 and found.tables["l1"].shape == (3, 2)
    assert set(found.tables["filters"].index.get_level_values("eps")) == {"0", "0.1"}


def test_max_w_is_the_mean_over_kernels_by_layer_and_run(trained: Trained) -> None:
    runs = [trained("pgd-at", arch="small_cnn_16_32_100", eps=eps) for eps in ("0.05", "0.1")]
    table = filters.run(runs).tables["max_w"]
    assert table.index.tolist() == ["conv1", "conv2", "linear1", "linear2"]
    for one in load_runs(runs, torch.device("cpu")):
        weight = dict(one.net.named_parameters())["conv2.weight"]
        by_hand = np.mean([kernel.abs().max().item() for row in weight for kernel in row])
        assert table.loc["conv2", one.name] == pytest.approx(by_hand)


def test_distances_and_entropy_by_hand() -> None:
    z = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 0.0], [4.0, 0.0]])
    intra, inter = features.distances(z, torch.tensor([3, 3, 7, 7]))
    assert (intra.item(), inter.item()) == (0.5, 4.0)
    uniform = features.entropy(torch.zeros(1, 10)).item()
    assert uniform == pytest.approx(np.log(10)) and features.entropy(torch.tensor([[99.0, 0.0]])).item() < 1e-9


def test_features_of_standard_and_adversarial_training(trained: Trained) -> None:
    plain, robust = trained("standard", "epochs=10"), trained("pgd-at", "epochs=10", eps="0.1")
    table = features.run([plain, robust], n=150, eps="0.1", steps=10).tables["features"]
    assert table.loc[robust.name, "divergence"] < table.loc[plain.name, "divergence"]
    assert table.loc[robust.name, "attacked"] > table.loc[plain.name, "attacked"]
    assert table.loc[plain.name, "gradient_probe"] > 0.6  # chance is 0.1: an undefended net reveals the class
    still = features.run([plain], n=50, eps="0", steps=1).tables["features"].iloc[0]
    assert still["divergence"] == 0 and still["entropy"] == still["entropy_attacked"]


def test_a_white_box_attack_is_the_strongest_without_gradient_masking(trained: Trained) -> None:
    runs = [trained("standard", "epochs=10"), trained("standard", "epochs=10", seed=1)]
    found = transfer.run(runs, n=150, eps="0.1", steps=10)
    table = found.tables["accuracy"]
    assert table.index.tolist() == ["clean", *table.columns]
    for name in table.columns:
        assert table[name].drop("clean").idxmin() == name and table[name].max() == table.loc["clean", name]
    assert found.notes == ()
    with pytest.raises(UserError, match="at least 2"):
        transfer.run(runs[:1])
    with pytest.raises(UserError, match="twice"):
        transfer.run([runs[0], runs[0]])


def test_transfer_notes_what_looks_masked() -> None:
    table = pd.DataFrame({"a": [0.9, 0.8, 0.3], "b": [0.9, 0.7, 0.2]}, index=["clean", "a", "b"])
    assert len(transfer._notes(table)) == 1 and transfer._notes(table)[0].startswith("a: points made against b")


def test_transfer_from_a_run_that_is_called_clean(trained: Trained, tmp_path: Path) -> None:
    run = trained("standard", "epochs=10")
    shutil.copytree(run, tmp_path / "clean")
    others = run, tmp_path / "clean"
    table = transfer.run(list(others), n=50, eps="0.1", steps=3).tables["accuracy"]
    assert table.index.tolist() == ["clean", run.name, "clean"]
    assert (table.iloc[0] > table.iloc[2]).all() and table.iloc[1].equals(table.iloc[2])


def test_quantisation_masks_gradients_and_straight_through_undoes_it(trained: Trained) -> None:
    run = trained("standard", arch="small_cnn")
    table = quantize.run([run], levels=4, n=100, eps="0.1", steps=10).tables["accuracy"]
    assert table.index.tolist() == [(run.name, "feature_extractor.conv1")]
    row = table.iloc[0]
    assert row["plain"] > row["unquantized"] + 0.1  # looks like a defence
    assert row["straight_through"] < row["plain"] - 0.1 and row["worst"] <= min(
        row["straight_through"], row["transfer"]
    )
    fine = quantize.run([run], levels=2**20, n=60, eps="0.1", steps=10).tables["accuracy"].iloc[0]
    assert fine["straight_through"] == fine["unquantized"] and fine["clean_quantized"] == fine["clean"]
    with pytest.raises(UserError, match="layer"):
        quantize.run([run], layer="conv9", n=10)


def test_a_quantised_net_is_attacked_by_the_attack_that_is_named(trained: Trained) -> None:
    run = trained("standard", "epochs=10")
    found = quantize.run([run], n=40, eps="0.1", attack="fgsm")
    one = load_runs([run], torch.device("cpu"))[0]
    data = images([one], "test", 40, torch.device("cpu"))
    fgsm = withstands(one.net, data, named_attack("fgsm", "linf"), norm="linf", eps=0.1)
    assert found.tables["accuracy"].iloc[0]["unquantized"] == fgsm.double().mean()
    assert "fgsm (steps: 1)" in found.title
    assert "pgd (steps: 20)" in quantize.run([run], n=10, eps="0.1").title


def test_a_net_without_layers_that_have_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = SimpleNamespace(net=torch.nn.Flatten(), name="bare", arch="bare")
    monkeypatch.setattr(filters, "load_runs", lambda runs, device: [bare])
    with pytest.raises(UserError, match="no convolution and no fully connected layer"):
        filters.run([Path("bare")])


def test_layers_are_quantised_one_at_a_time(trained: Trained) -> None:
    run = trained("standard", arch="small_cnn_16_32_100")
    settings = {"n": 40, "eps": "0.1", "steps": 3, "levels": 4}
    swept = quantize.run([run], layer="all", **settings).tables["accuracy"]  # type: ignore[arg-type]
    assert swept.index.get_level_values("layer").tolist() == ["conv1", "conv2", "linear1"]
    assert swept["unquantized"].nunique() == 1
    alone = quantize.run([run], layer="linear1, conv2,linear1", **settings).tables["accuracy"]  # type: ignore[arg-type]
    assert alone.equals(swept.iloc[[2, 1]])
    net = load_runs([trained("standard", arch="linear")], torch.device("cpu"))[0].net
    assert quantize.layers(net, "all") == quantize.layers(net, "first") == ["linear"]


def test_best_rows_of_a_known_matrix() -> None:
    """Overdesign as in Sridhar et al.: delta 4 best at 8, delta 8 best at 12, the edge of this grid."""
    matrix = pd.DataFrame(
        {0.0: [90, 83.6, 76.5], 4.0: [65.0, 68.5, 66.0], 8.0: [40.0, 48.8, 52.6]}, index=[4.0, 8.0, 12.0]
    )
    best = spectrum.best_rows(matrix).set_index("delta")
    assert best.best_eps.to_dict() == {4.0: 8.0, 8.0: 12.0} and best.overdesign.all()
    assert best.at_the_edge.to_dict() == {4.0: False, 8.0: True}
    assert best.gain[8.0] == pytest.approx(3.8) and best.clean_cost[8.0] == pytest.approx(7.1)
    notes = spectrum._notes(spectrum.best_rows(matrix))
    assert "attacked at 8.0: best trained at 12.0 (5260.0%), +380.0 points over training at the same eps, " in notes[1]


def test_nothing_is_overdesigned_where_no_smaller_eps_was_trained() -> None:
    best = spectrum.best_rows(pd.DataFrame({0.0: [0.9, 0.8], 2.0: [0.8, 0.7], 16.0: [0.3, 0.2]}, index=[4.0, 8.0]))
    assert best.nearest_eps.tolist() == [4, 8] and not best.overdesign.any()
    first, second = spectrum._notes(best)
    assert "+0.0 points over training at 4.0, the nearest, " in first and "over training at 8.0, the nearest" in second


def test_spectrum_of_digits(trained: Trained) -> None:
    runs = [trained("pgd-at", eps=eps) for eps in ("0.05", "0.1")]
    found = spectrum.run(runs, n=80, attack="pgd", steps=5)
    matrix = found.tables["matrix"]
    assert matrix.index.tolist() == ["0.05", "0.1"] and matrix.columns.tolist() == ["clean", "0.05", "0.1"]
    assert (matrix.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert len(found.notes) == 2 and "spectrum" in found.figures
    for place, (run, eps) in enumerate(zip(runs, (0.05, 0.1), strict=True)):
        one = load_runs([run], torch.device("cpu"))[0]
        data = images([one], "test", 80, torch.device("cpu"))
        stands = withstands(one.net, data, named_attack("pgd", "linf", 5), norm="linf", eps=0.0)
        assert stands.double().mean() == matrix.iloc[place, 0] and one.trained_eps.value == eps
    with pytest.raises(UserError, match="more than eps and seed"):
        spectrum.run([runs[0], trained("pgd-at", "epochs=10")], n=10)


def test_corruptions_stand_beside_the_spectrum(trained: Trained) -> None:
    runs = [trained("pgd-at", eps="0.05"), trained("pgd-at", eps="0.1"), trained("pgd-at", eps="0.1", seed=1)]
    found = spectrum.run(runs, n=60, attack="pgd", steps=2, corruptions="simple", seed=3)
    table = found.tables["corruptions"]
    assert table.index.tolist() == ["0.05", "0.1"] and table.columns.tolist() == ["clean", "mean", *SIMPLE]
    assert table["clean"].tolist() == pytest.approx(found.tables["matrix"]["clean"].tolist())
    assert table["mean"].tolist() == pytest.approx(table[list(SIMPLE)].mean(axis=1).tolist())
    one = load_runs(runs[:1], torch.device("cpu"))[0]
    data = images([one], "test", 60, torch.device("cpu"))
    shares = [
        right(one.net, corrupted_simply(data, "contrast", severity, seed=3), data.labels).double().mean().item()
        for severity in range(1, 6)
    ]
    assert table.loc["0.05", "contrast"] == pytest.approx(np.mean(shares))
    assert set(found.figures) == {"spectrum", "corruptions"} and "corruptions" in found.notes[-1]
    with pytest.raises(UserError, match="28 pixels a side"):
        spectrum.run(runs, n=10, attack="pgd", steps=2, corruptions="common")


def test_runs_of_one_name_keep_a_row_each(trained: Trained, tmp_path: Path) -> None:
    runs = []
    for place in ("a", "b"):
        runs.append(tmp_path / place / "run")
        shutil.copytree(trained("pgd-at"), runs[-1])
    table = features.run(runs, n=30, steps=2).tables["features"]
    assert list(table.index) == list(map(str, runs))
    assert table.iloc[0].drop("gradient_probe").equals(table.iloc[1].drop("gradient_probe"))


def test_steps_are_set_only_for_attacks_that_have_them() -> None:
    found = {one.name: one for one in named_attack("autoattack", "linf", 7)}
    assert [found[name].steps for name in ("apgd-ce", "apgd-t", "fab-t")] == [7, 7, 7]
    assert found["square"].steps == 5000


@pytest.mark.parametrize("name", ["feature-pgd", "multi-task"])
def test_attacks_that_need_more_than_logits_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} reads more than logits, .* choose another attack"):
        named_attack(name, "linf")
