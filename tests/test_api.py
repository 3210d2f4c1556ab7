"""`import advbench`: the functions that notebooks use."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_classifiers import least_squares
from torch import nn
from torch.utils import data as torch_data

import advbench


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return least_squares()


def test_everything_named_is_there() -> None:
    assert all(hasattr(advbench, name) for name in advbench.__all__)


def test_a_module_and_a_named_dataset(net: nn.Module) -> None:
    result = advbench.evaluate(net, "digits", attack="pgd", eps="0,0.1", n=40, settings={"steps": 5})
    record = result.record
    assert [point.eps_text for point in record.curve] == ["0", "0.1"]
    assert record.dataset.indices == "first:40" and record.clean > 0.7
    assert record.curve[1].accuracy < record.clean


def test_tensors_are_the_same_images(net: nn.Module) -> None:
    x, y = advbench.load_data("digits").batch(slice(0, 30))
    x = (x * 255).round() / 255
    floats = advbench.evaluate(net, (x, y), attack="fgsm", eps=[0.05])
    whole = advbench.evaluate(net, ((x * 255).round().to(torch.uint8).numpy(), y.numpy()), attack="fgsm", eps=[0.05])
    assert floats.record.id == whole.record.id
    assert floats.record.n == 30 and floats.record.dataset.indices == tuple(range(30))


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64), "N, C, H, W"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64), "one for each"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), "whole numbers"),
        (torch.full((2, 1, 8, 8), 2.0), torch.zeros(2, dtype=torch.int64), "in [0, 1]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "uint8"),
    ],
)
def test_tensors_that_are_no_images(net: nn.Module, x: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    with pytest.raises(advbench.UserError) as raised:
        advbench.evaluate(net, (x, y), attack="fgsm", eps="0.1")
    assert reason in str(raised.value)


def test_importing_loads_neither_torch_nor_pandas() -> None:
    script = (
        "import advbench, sys; dir(advbench); advbench.attack; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_every_function_names_its_arguments() -> None:
    for name in advbench.__all__:
        function = getattr(advbench, name)
        if callable(function) and not isinstance(function, type):
            parameters = inspect.signature(function).parameters.values()
            assert all(one.kind is not one.VAR_KEYWORD and one.annotation is not one.empty for one in parameters), name
            with pytest.raises(TypeError, match="unexpected keyword"):
                function(nonsense=1)


@pytest.mark.parametrize(
    ("eps", "texts"),
    [
        (8 / 255, ["8/255"]),
        (0.1, ["0.1"]),
        (0, ["0"]),
        (np.float32(0.5), ["0.5"]),
        (torch.tensor(0.25), ["0.25"]),
        ("0.1,4/255", ["4/255", "0.1"]),
        ([0.1, 0, "0.10", 1 / 255], ["0", "1/255", "0.1"]),
        ((0.02, 0.01), ["0.01", "0.02"]),
        (np.array([0.0, 0.5]), ["0", "0.5"]),
        (torch.tensor([0.0, 0.5]), ["0", "0.5"]),
    ],
)
def test_sizes_in_any_form(net: nn.Module, eps: Any, texts: list[str]) -> None:
    record = advbench.evaluate(net, "digits", attack="fgsm", eps=eps, n=4, probes=False).record
    assert [point.eps_text for point in record.curve] == texts


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"n": 0}, "at least 1 image"),
        ({"n": -3}, "at least 1 image"),
        ({"n": 2.5}, "a whole number"),
        ({"n": True}, "a whole number"),
        ({"n": 10**6}, "choose at most"),
        ({"eps": -0.1}, "is not a size"),
        ({"eps": float("nan")}, "is not a size"),
        ({"eps": [None]}, "is not a size"),
        ({"eps": True}, "is not a size"),
        ({"eps": {}}, "no eps was given"),
        ({"eps": 8}, "8/255 was probably meant"),
        ({"eps": object()}, "is not a size"),
        ({"norm": "l7"}, "choose from"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"slots": 0}, "slots"),
        ({"processes": "2"}, "processes"),
        ({"attack": "pdg"}, "did you mean"),
        ({"attack": []}, "no attack was named"),
        ({"settings": {"stepz": 3}}, "unknown attack setting"),
        ({"settings": ["steps=3"]}, "it must be a dict"),
        ({"precision": "fp16"}, "choose from"),
        ({"curve": "slow"}, "choose from"),
        ({"engine": "theirs"}, "choose from"),
        ({"device": "tpu"}, "choose from"),
        ({"subset": "last"}, "choose first"),
        ({"arch": "mlp"}, "leave it out"),
        ({"progress": "yes"}, "give True"),
        ({"seed": 2**70}, "seed"),
        ({"subset": [1, 2]}, "subset is [1, 2]: it must be a text"),
        ({"name": 5}, "name is 5: it must be a text or None"),
        ({"settings": {1: 2}}, "unknown attack setting 1"),
        ({"precision": None}, "precision is None"),
        ({"device": None}, "choose from"),
        ({"probes": "on"}, "probes is 'on': it must be True or False"),
        ({"journal": 5}, "journal is 5: it must be a Journal or a text or a path or None"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(net: nn.Module, how: dict[str, Any], words: str) -> None:
    given = {"attack": "fgsm", "eps": 0.1, "n": 4, "processes": 1, **how}
    with pytest.raises(advbench.UserError) as raised:
        advbench.evaluate(net, "digits", **given)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"dataset": ([[[0.5]]], [0])}, "save arrays with numpy.savez and write npz:FILE"),
        ({"dataset": "digits", "arch": nn.Flatten()}, "write package.module:callable, which makes the network"),
    ],
)
def test_training_says_how_data_and_networks_are_named(how: dict[str, Any], words: str) -> None:
    with pytest.raises(advbench.UserError) as raised:
        advbench.train(**how)
    assert words in str(raised.value)


def test_numbers_of_numpy_and_torch_are_numbers(net: nn.Module) -> None:
    given: dict[str, Any] = {"attack": "pgd", "eps": 0.1, "n": 8}
    plain = advbench.evaluate(net, "digits", seed=1, slots=4, mean=0.5, std=0.25, attack_budget=40, **given)
    theirs = advbench.evaluate(
        net, "digits", seed=torch.tensor(1), slots=np.int64(4), mean=np.float32(0.5), std=torch.tensor(0.25),
        attack_budget=np.int64(40), **given,
    )  # fmt: skip
    assert theirs.record.id == plain.record.id


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ x.new_zeros(3, 10)


def test_an_error_of_the_users_code_tells_its_line() -> None:
    line = inspect.getsourcelines(Broken.forward)[1] + 1
    with pytest.raises(advbench.UserError, match=rf"cannot be multiplied .*\[test_api.py line {line}\]"):
        advbench.evaluate(Broken(), "digits", attack="fgsm", eps=0.1, n=4)


def test_a_device_may_be_one_of_pytorch(net: nn.Module) -> None:
    assert advbench.evaluate(net, "digits", attack="fgsm", eps=0, n=4, probes=False, device=torch.device("cpu"))


def test_other_functions_tell_theirs() -> None:
    for call in (
        lambda: advbench.load_data("digitz"),
        lambda: advbench.load_data("digits", "tset"),
        lambda: advbench.load_model("nothing"),
        lambda: advbench.list_entries("attack"),
        lambda: advbench.train("pgdat"),
        lambda: advbench.train(eps=[0.1], arch="mlp"),
        lambda: advbench.analyze("filterz"),
        lambda: advbench.analyze("filters", ["nothing"]),
        lambda: advbench.list_entries("attacks", 5),
        lambda: advbench.load_data(5),
        lambda: advbench.load_model("digits", dataset=(1, 2)),
        lambda: advbench.train("standard", dataset=5),
        lambda: advbench.train("standard", settings=5),
        lambda: advbench.train("standard", out=5),
        lambda: advbench.analyze(5, "run"),
        lambda: advbench.analyze("filters", 5),
        lambda: advbench.leaderboard(None),
        lambda: advbench.compare("nothing", "else", fail_if=5),
        lambda: advbench.compare("nothing", "else", alpha="x"),
        lambda: advbench.leaderboard("nothing"),
        lambda: advbench.compare("nothing", "else"),
        lambda: advbench.compare(3, 4),
        lambda: advbench.evaluate("nothing", "digits"),
    ):
        with pytest.raises(advbench.UserError) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_notebook_shows_one_line() -> None:
    with pytest.raises(advbench.UserError) as raised:
        advbench.list_entries("attack")
    assert raised.value._render_traceback_() == [f"UserError: {raised.value}"]


def test_an_image_a_row(net: nn.Module) -> None:
    data = advbench.load_data("digits").subset(range(10, 60))
    result = advbench.evaluate(net, data, attack=["fgsm", "apgd-ce"], eps=[0, 0.02, 0.05], settings={"steps": 5})
    frame, x = result.frame(), data.batch(slice(None))[0]
    assert frame["index"].tolist() == list(range(10, 60)) and frame["label"].tolist() == data.labels.tolist()
    with torch.no_grad():
        logits = net(x)
    assert frame["clean"].tolist() == logits.argmax(1).tolist()
    assert frame["right"].tolist() == (logits.argmax(1) == data.labels).tolist()
    assert ((frame["margin"] < 0) == frame["right"]).all()
    for point, row in zip(result.record.curve, result.curve_frame().itertuples(), strict=True):
        assert (frame["fell_at"].isna() | (frame["fell_at"] > point.eps)).sum() == point.robust == row.robust
        assert (row.eps, row.eps_text, row.accuracy) == (point.eps, point.eps_text, point.accuracy)
    fell = frame[frame["right"] & frame["fell_at"].notna()]
    assert len(fell) and set(fell["by"]) <= {"fgsm", "apgd-ce"} and (fell["distance"] <= fell["fell_at"]).all()
    assert set(frame.loc[~frame["right"], "fell_at"]) == {0.0} and set(frame.loc[~frame["right"], "distance"]) == {0.0}
    assert set(frame.loc[frame["fell_at"].isna(), "by"]) <= {""}


def test_distances_are_those_of_the_nearest_points(net: nn.Module) -> None:
    data = advbench.load_data("digits").subset(range(30))
    result = advbench.evaluate(net, data, attack="fmn", eps=[0.01, 0.5], settings={"steps": 20}, keep_points=True)
    x = data.batch(slice(None))[0]
    away = (result.adversarials.double() - x.double()).abs().amax((1, 2, 3)).numpy()
    right = result.frame()["right"].to_numpy()
    assert result.frame()["distance"].to_numpy()[right] == pytest.approx(away[right])


def test_attack_keeps_images_of_all(net: nn.Module) -> None:
    data = advbench.load_data("digits").subset(range(40))
    result = advbench.attack(net, data, eps=0.03)
    x, y = data.batch(slice(None))
    z, right = result.adversarials, torch.from_numpy(result.fates.clean)
    assert z.shape == x.shape and z.dtype == torch.float32 and result.found.dtype == torch.bool
    with torch.no_grad():
        wrong = net(z).argmax(1) != y
    assert wrong[result.found].all() and not wrong[right & ~result.found].any()
    assert ((z - x).abs().amax((1, 2, 3)) > 0)[right].all()
    assert int(result.found.sum()) == 40 - int((~right).sum()) - result.record.curve[0].robust
    with pytest.raises(advbench.UserError, match="not a size"):
        advbench.attack(net, data, eps=[0.1, 0.2])
    assert advbench.attack(net, "digits", n=3).record.curve[0].eps_text == "0.1"  # the usual one


def test_progress_is_told_and_can_stop_the_work(net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, float, float | None]] = []
    advbench.evaluate(net, "digits", attack="pgd", eps=0.1, n=20, progress=lambda *told: seen.append(told))
    assert any(stage == "pgd" and total and 0 <= done <= total <= 20 for stage, done, total in seen)

    def stop(stage: str, done: float, total: float | None) -> None:
        if stage == "pgd":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advbench.evaluate(net, "digits", attack="pgd", eps=0.1, n=20, progress=stop)
    capsys.readouterr()
    advbench.evaluate(net, "digits", attack="pgd", eps=0.1, n=20, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "pgd" in err and err.endswith("\n")
    advbench.evaluate(net, "digits", attack="pgd", eps=0.1, n=20)
    assert capsys.readouterr() == ("", "")


def test_results_are_compared_and_published(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    worse = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    worse[1].load_state_dict(net[1].state_dict())
    worse[1].weight.data[3:] *= -1
    one, two = (
        advbench.evaluate(model, "digits", attack="fgsm", eps=[0, 0.02], n=200, name=name)
        for model, name in ((net, "good"), (worse, "bad"))
    )
    flags = [flag.name for result in (one, two) for flag in result.record.doubts()]
    found = advbench.compare(one, two, fail_if="clean < baseline - 5", allow_flags=flags)
    assert found.failed and found.verdict == "Regression: bad against good" and found.verdict in found.report
    frame = found.frame()
    clean = frame[frame["quantity"] == "clean"].iloc[0]
    assert clean["difference"] == pytest.approx(two.record.clean - one.record.clean)
    assert not advbench.compare(two, one, fail_if="clean < baseline - 5", allow_flags=flags).failed
    for result in (one, two):
        result.record.save(Path("board"), result.fates)
    table = advbench.leaderboard("board")
    assert (tmp_path / "board" / "digits-linf.csv").is_file()
    assert sorted(zip(table["model"], table["eps"], table["accuracy"], strict=True)) == sorted(
        (result.record.model.title, point.eps, point.accuracy) for result in (one, two) for point in result.record.curve
    )
    stored = advbench.compare(f"board/{one.record.id}", two, allow_flags=flags)
    assert stored.frame()["difference"].tolist() == pytest.approx(frame["difference"].tolist())


def test_the_packages_can_be_called_and_imported() -> None:
    import advbench.compare.gate
    from advbench import compare, leaderboard

    assert callable(compare) and callable(leaderboard) and compare is advbench.compare
    assert pickle.loads(pickle.dumps([compare, leaderboard])) == [compare, leaderboard]  # as Ray and joblib do
    assert "fail_if" in inspect.signature(compare).parameters
    assert leaderboard.COLUMNS and advbench.compare.gate.parse_gate("clean < 80")


def test_entries_by_kind_and_text() -> None:
    names = {row["name"] for row in advbench.list_entries("attacks")}
    assert {"pgd", "autoattack"} <= names
    found = advbench.list_entries("attacks", "SQUARE")
    assert "square" in {row["name"] for row in found} and len(found) < len(names)
    assert advbench.list_entries("datasets", "no such thing") == []


@pytest.mark.parametrize("n", [0, -1, 1.5, "8", True])
def test_a_number_of_images_that_is_none(net: nn.Module, n: Any) -> None:
    """0 used to mean the default."""
    with pytest.raises(advbench.UserError, match="choose at least 1 image"):
        advbench.evaluate(net, "digits", attack="fgsm", eps="0.1", n=n)


def test_a_model_with_more_classes_than_the_labels_show(net: nn.Module) -> None:
    """A small sample often lacks the last class; it was refused."""
    x, y = advbench.load_data("digits").batch(slice(0, 60))
    x, y = x[y < 9], y[y < 9]
    how: dict[str, Any] = {"attack": "fgsm", "eps": ["0"]}
    accuracy = float((net(x).argmax(1) == y).double().mean())
    assert accuracy > 0.7
    assert advbench.evaluate(net, (x, y), **how).record.clean == pytest.approx(accuracy)
    assert advbench.evaluate(net, (x, y), num_classes=10, **how).record.clean == pytest.approx(accuracy)
    with pytest.raises(advbench.UserError, match="the model has 10 classes, tensors has 11"):
        advbench.evaluate(net, (x, y), num_classes=11, **how)
    with pytest.raises(advbench.UserError, match="leave out num_classes"):
        advbench.evaluate(net, "digits", num_classes=10, **how)
    with pytest.raises(advbench.UserError, match="digits says what its classes are: leave out class_names"):
        advbench.evaluate(net, advbench.load_data("digits"), class_names="0123456789", **how)


def test_the_images_of_a_dataset_are_the_dataset(net: nn.Module) -> None:
    """Floats that are no multiples of 1/255 were refused, those of digits among them."""
    data = advbench.load_data("digits").subset(range(60))
    how: dict[str, Any] = {"attack": "pgd", "eps": ["0", "0.05", "0.1"], "settings": {"steps": 5}}
    named, floats = advbench.evaluate(net, data, **how), advbench.evaluate(net, data.batch(slice(None)), **how)
    assert floats.fates.fell.tolist() == named.fates.fell.tolist()


def test_the_points_of_an_attack_are_data_for_another_model(net: nn.Module) -> None:
    data = advbench.load_data("digits").subset(range(40))
    found = advbench.attack(net, data, eps="0.15").points
    x, y = torch.stack(list(found.values())), data.labels[list(found)]
    other = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), net)
    for model in (net, other):
        result = advbench.evaluate(model, (x, y), attack="fgsm", eps=["0"])
        assert result.record.n == len(found) > 20
        assert result.record.clean == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert advbench.evaluate(net, (x, y), attack="fgsm", eps=["0"]).record.clean == 0


@pytest.mark.parametrize("form", ["TensorDataset", "DataLoader", "shuffled", "list"])
def test_the_forms_that_data_have_in_pytorch(net: nn.Module, form: str) -> None:
    x, y = advbench.load_data("digits").batch(slice(0, 30))
    pairs = torch_data.TensorDataset(x, y)
    data = {
        "TensorDataset": pairs,
        "DataLoader": torch_data.DataLoader(pairs, batch_size=7),
        "shuffled": torch_data.DataLoader(pairs, batch_size=7, shuffle=True, drop_last=True),
        "list": list(zip(x, y, strict=True)),
    }[form]
    how: dict[str, Any] = {"attack": "fgsm", "eps": [0.05]}
    wanted, result = advbench.evaluate(net, (x, y), **how), advbench.evaluate(net, data, **how)
    assert result.record.dataset.images_sha256 == wanted.record.dataset.images_sha256
    assert result.fates.fell.tolist() == wanted.fates.fell.tolist()


def test_attack_keeps_the_points(net: nn.Module) -> None:
    data = advbench.load_data("digits")
    result = advbench.attack(net, data.subset(range(20)), eps="0.1")
    assert result.points
    for row, point in result.points.items():
        x, y = data.batch(slice(row, row + 1))
        assert (point - x[0]).abs().max() <= 0.1 + 1e-6
        assert net(point[None]).argmax(1) != y


def test_a_run_by_its_folder_alone(tmp_path: Path) -> None:
    settings = {"train_n": 256, "validation.n": 32, "inner.steps": 1}
    run = advbench.train("pgd-at", arch="mlp", eps=0.1, epochs=1, settings=settings, device="cpu", out=tmp_path / "r")
    result = advbench.evaluate(str(run), attack="fgsm", n=20)
    assert [point.eps_text for point in result.record.curve][-1] == "0.2"
    assert advbench.load_model(run).arch == "mlp"
    assert advbench.attack(run, n=5).record.curve[0].eps_text == "0.1"
    seen: list[str] = []
    analysis = advbench.analyze("features", run, n=16, eps=0.1, progress=lambda stage, done, total: seen.append(stage))
    assert analysis.tables and seen
    with pytest.raises(advbench.UserError, match="resume=True"):
        advbench.train("pgd-at", arch="mlp", eps=0.1, epochs=1, settings=settings, device="cpu", out=run)


def test_arguments_of_train_are_fields_of_the_recipe(tmp_path: Path) -> None:
    how: dict[str, Any] = {"dataset": "digits", "arch": "mlp", "eps": 0.1, "epochs": 1, "device": "cpu"}
    short = {"train_n": 64, "validation.n": 16}
    first = advbench.train("standard", settings=short, out=tmp_path / "a", mean=0.5, std=[0.25], name="mine", **how)
    assert advbench.evaluate(first, attack="fgsm", eps=0.1, n=8, subset="random:1").record.model.name == "mine"
    second = advbench.train("standard", settings=short, out=tmp_path / "b", init=first, batch_size=16, lr=0.01, **how)
    a, b = (tomllib.loads((run / "recipe.toml").read_text()) for run in (first, second))
    assert a["model"]["normalize"] == [[0.5], [0.25]] and "normalize" not in b["model"]
    assert (b["batch_size"], b["optim"]["lr"], b["init"]["path"]) == (16, 0.01, str(first))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"mean": 0.5}, "mean without std"),
        ({"name": " "}, "not empty"),
        ({"init": tmp_path / "no"}, "no weights file"),
        ({"batch_size": 0}, "batch_size"),
    ]
    for wrong, message in bad:
        with pytest.raises(advbench.UserError, match=message):
            advbench.train("standard", settings=short, out=tmp_path / "c", **how, **wrong)
    assert not (tmp_path / "c" / "recipe.toml").exists()


def test_a_module_needs_images(net: nn.Module) -> None:
    with pytest.raises(advbench.UserError, match="which images"):
        advbench.evaluate(net)


def test_arguments_of_train_that_are_not_given_leave_settings_and_config_alone(tmp_path: Path) -> None:
    """They used to overwrite both with their defaults."""
    how: dict[str, Any] = {"dataset": "digits", "arch": "linear", "eps": "0.1", "device": "cpu"}
    short = {"train_n": 64, "validation.n": 16, "epochs": 2, "seed": 3}
    first = advbench.train("standard", settings=short, out=tmp_path / "first", **how)
    again = advbench.train("standard", config=first / "recipe.toml", out=tmp_path / "again", device="cpu")
    for run in (first, again):
        recipe = tomllib.loads((run / "recipe.toml").read_text())
        assert (recipe["epochs"], recipe["seed"]) == (2, 3)
