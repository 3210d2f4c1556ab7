"""Predictors, functions and ONNX files, as a user names them in an empty folder."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from advbench.errors import UserError
from advbench.models.external import load

OWN = """
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

X, Y = load_digits(return_X_y=True)
forest = RandomForestClassifier(10, random_state=0).fit(X[:1000] / 16, Y[:1000])
lines = LogisticRegression(max_iter=100).fit(X[:1000] / 16, Y[:1000])
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
with torch.no_grad():
    net[1].weight.copy_(torch.from_numpy(lines.coef_))
    net[1].bias.copy_(torch.from_numpy(lines.intercept_))

def make_forest(num_classes, trees=10):
    return RandomForestClassifier(trees, random_state=0).fit(X[:1000] / 16, Y[:1000])

def make_function():
    return lambda x: net(x)

def by_tensor(x):
    return net(x)

def by_array(images, scale=1.0):
    return images.reshape(len(images), -1) @ lines.coef_.T * scale + lines.intercept_

def width(width):
    raise KeyError(width)

class Own:
    def predict(self, x):
        return lines.predict(x)

own = Own()
"""
SQUARE = ("--attack", "square", "--set", "n_queries=20", "--eps", "0,0.1", "-n", "24")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def own(cli: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (cli.folder / "own_black_boxes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(cli.folder))
    monkeypatch.delitem(sys.modules, "own_black_boxes", raising=False)
    return cli


def evaluated(cli: Any, name: str, *more: str) -> dict[str, Any]:
    ran = cli("evaluate", "--model", f"own_black_boxes:{name}", "--dataset", "digits", *(more or SQUARE), "--json")
    assert ran.code == 0 and "Traceback" not in ran.err, ran.err
    return dict(json.loads(ran.out))


def refusal(ran: Any) -> str:
    """The one line of the error, after the warning that code runs; "" if there is another outcome."""
    warning, _, error = ran.err.partition("\n")
    one_line = error.startswith("error: ") and error.count("\n") == 1
    return str(error) if ran.code == 2 and not ran.out and one_line and warning.endswith("which runs now") else ""


def test_each_kind_of_name_is_evaluated(own: Any) -> None:
    found = {name: evaluated(own, name) for name in ("forest", "make_forest", "own", "Own", "by_array", "by_tensor",
                                                     "make_function", "net")}  # fmt: skip
    clean = {name: one["clean"] for name, one in found.items()}
    assert min(clean.values()) > 0.7 and clean["forest"] == clean["make_forest"]
    assert clean["own"] == clean["Own"] == clean["by_array"] == clean["by_tensor"] == clean["net"]
    curves = {name: [point["robust"] for point in one["curve"]] for name, one in found.items()}
    assert curves["by_tensor"] == curves["net"] == curves["make_function"]
    notes = [flag["detail"] for flag in found["forest"]["flags"] if flag["name"] == "model"]
    assert "own_black_boxes:forest is a black box (RandomForestClassifier): attacks see its answers alone" in notes
    hashes = {name: (one["model"]["weights_sha256"], one["model"]["code_sha256"]) for name, one in found.items()}
    assert hashes["forest"][1] == hashes["net"][1] is not None
    assert hashes["forest"][0] not in (hashes["net"][0], hashes["by_array"][0])


def test_square_and_rays_find_nothing_to_doubt_in_a_forest(own: Any) -> None:
    settings = ("--attack", "square", "--attack", "rays", "--set", "n_queries=150", "--eps", "0,0.05,0.1", "-n", "100")
    record = evaluated(own, "forest", *settings)
    assert not [flag for flag in record["flags"] if flag["severity"] != "note"]
    accuracies = [point["accuracy"] for point in record["curve"]]
    assert accuracies[0] > accuracies[1] > accuracies[2]


@pytest.mark.parametrize("command", [("evaluate",), ("evaluate", "--attack", "apgd-ce"), ("attack", "--eps", "0.1")])
def test_attacks_by_gradients_are_refused_with_the_way_out(own: Any, command: tuple[str, ...]) -> None:
    for name in ("forest", "by_tensor"):
        ran = own(*command, "--model", f"own_black_boxes:{name}", "--dataset", "digits", "-n", "24")
        assert refusal(ran), ran.err
        assert f"own_black_boxes:{name} is a black box: it has no gradient" in ran.err
        assert "choose --attack square or rays or hopskipjump" in ran.err
        assert ("or wrap it in a torch.nn.Module if it is differentiable" in ran.err) == (name == "by_tensor")
    assert own.files() == {"own_black_boxes.py"}


def test_a_black_box_is_attacked_and_its_examples_kept(own: Any) -> None:
    ran = own("attack", "--model", "own_black_boxes:forest", "--dataset", "digits", "--eps", "0.1", "-n", "16",
              "--attack", "square", "--set", "n_queries=20")  # fmt: skip
    assert ran.code == 0, ran.err


def test_what_is_no_model_ends_in_one_line(own: Any) -> None:
    for name, message in (
        ("X", "ndarray"),
        ("width", "width takes the images in no form (a tensor: KeyError"),
        ("load_digits", "a model is a torch.nn.Module, a function of a batch of images, or an object with"),
    ):
        ran = own("evaluate", "--model", f"own_black_boxes:{name}", "--dataset", "digits", *SQUARE)
        assert message in refusal(ran), ran.err


def test_the_forms_are_listed(cli: Any) -> None:
    ran = cli("list", "models", "--json")
    forms = {row["name"]: row["summary"] for row in json.loads(ran.out) if row["kind"] == "form"}
    assert "black box" in forms["FILE.onnx"] and "a predictor, a function" in forms["package.module:name"]


def test_without_the_packages_the_extra_is_named(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (cli.folder / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    ran = cli("evaluate", "--model", "a.onnx", "--dataset", "digits")
    assert ran.is_one_clear_line and "pip install 'advbench[onnx]'" in ran.err
    with pytest.raises(UserError, match=r"no file nowhere\.onnx"):
        load("nowhere.onnx")
    with pytest.raises(UserError, match=r"--arch is for weight files .*a\.onnx already says what it is"):
        load("a.onnx", arch="mlp")


EXPORT = """
from own_black_boxes import net
import torch
from onnx import TensorProto, helper, numpy_helper

w, b = (part.detach().numpy() for part in (net[1].weight, net[1].bias))
graph = helper.make_graph(
    [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("Gemm", ["rows", "w", "b"], ["logits"], transB=1)],
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
    [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
)
made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
with open("digits.onnx", "wb") as file:
    file.write(made.SerializeToString())
"""


@pytest.mark.parametrize("convert", [True, False])
def test_an_onnx_file_in_both_forms(own: Any, convert: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime", "onnx2pytorch"):
        pytest.importorskip(name, reason=f"{name} is not installed: the extra advbench[onnx]")
    exec(EXPORT, {})
    if not convert:
        monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    model = ("--model", "digits.onnx", "--dataset", "digits", "--eps", "0,0.05,0.1", "-n", "64", "--json")
    ran = own("evaluate", *model, "--attack", "square", "--attack", "rays", "--set", "n_queries=1000")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert not [flag for flag in record["flags"] if flag["severity"] != "note"], record["flags"]
    assert record["model"]["arch"] == "onnx" and record["model"]["code_sha256"] is None and record["clean"] > 0.8
    note = "was converted to PyTorch" if convert else "is a black box, run by onnxruntime"
    assert any(flag["name"] == "model" and note in flag["detail"] for flag in record["flags"])
    ran = own("evaluate", *model, "--attack", "pgd")
    assert ran.code == 0 if convert else ran.is_one_clear_line
