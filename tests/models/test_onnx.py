"""ONNX files: in PyTorch where the logits agree, black boxes elsewhere; their shapes, identity, and hostile ones."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import advbench
from advbench.checkpoint import load_model, weights_sha256
from advbench.errors import UserError
from advbench.models.black_box import is_black_box
from advbench.models.external import Foreign, Shape, load

DIGITS = Shape("digits", 10, (1, 8, 8))


onnx = pytest.importorskip("onnx", reason="onnx is not installed: the extra advbench[onnx]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra advbench[onnx]")


def model(
    batch: str | int = "batch",
    shape: tuple[int | str, ...] = (1, 8, 8),
    activation: str = "Relu",
    *,
    tail: tuple[str, ...] = (),
    seed: int = 0,
) -> Any:
    """A network of two layers on flattened images, its answers named `logits` unless operators of `tail` follow."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(seed)
    weights = {"w": draw.normal(size=(64, 32)) / 4, "v": draw.normal(size=(32, 10)) / 2}
    names = ["x", "flat", "a", "b", "logits", *(f"out{place}" for place in range(len(tail)))]
    kinds = [("Flatten", None), ("MatMul", "w"), (activation, None), ("MatMul", "v"), *((kind, None) for kind in tail)]
    nodes = [
        helper.make_node(
            kind,
            [source, weight] if weight else [source],
            [name],
            **({"axis": 1, "keepdims": 0} if kind == "ArgMax" else {}),
        )
        for (kind, weight), source, name in zip(kinds, names[:-1], names[1:], strict=True)
    ]
    labels = "ArgMax" in tail
    out = helper.make_tensor_value_info(
        names[-1], TensorProto.INT64 if labels else TensorProto.FLOAT, [batch] if labels else [batch, 10]
    )
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])], [out],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def loaded(made: Any, folder: Path, name: str = "net.onnx") -> Foreign:
    onnx.save(made, folder / name)
    return load(str(folder / name), shape=DIGITS)


@pytest.fixture
def unconverted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return advbench.load_data("digits").batch(slice(0, 37))[0]


def expected(x: Tensor) -> np.ndarray:
    draw = np.random.default_rng(0)
    w, v = draw.normal(size=(64, 32)) / 4, draw.normal(size=(32, 10)) / 2
    return (x.flatten(1).double().numpy() @ w).clip(0) @ v


def test_a_network_is_converted_and_has_a_gradient(tmp_path: Path, images: Tensor) -> None:
    pytest.importorskip("onnx2pytorch", reason="onnx2pytorch is not installed: the extra advbench[onnx]")
    found = loaded(model(), tmp_path)
    assert found.num_classes == 10 and found.arch == "onnx" and not is_black_box(found.net)
    assert "was converted to PyTorch: on 8 images its logits are those of onnxruntime" in found.notes[0]
    x = images.clone().requires_grad_()
    logits = found.net(x)
    np.testing.assert_allclose(logits.detach().numpy(), expected(images), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(logits.sum(), x)
    assert bool(slope.any())


@pytest.mark.parametrize("batch", ["batch", 1, 16])
@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8, 1), ("c", "h", "w"), (64,)])
@pytest.mark.usefixtures("unconverted")
def test_onnxruntime_takes_any_batch_and_layout(
    batch: str | int, shape: tuple[int | str, ...], tmp_path: Path, images: Tensor
) -> None:
    found = loaded(model(batch, shape), tmp_path)
    assert is_black_box(found.net) and found.num_classes == 10
    assert "is a black box, run by onnxruntime: attacks see its answers alone (no conversion" in found.notes[0]
    for net in (found.net, copy.deepcopy(found.net), pickle.loads(pickle.dumps(found.net))):
        logits = net(images.clone().requires_grad_())
        assert logits.dtype == torch.float32 and not logits.requires_grad
        np.testing.assert_allclose(logits.numpy(), expected(images), rtol=1e-4, atol=1e-4)


def test_channels_last_is_told_from_the_declared_shape(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("ReduceMean", ["x"], ["logits"], axes=[1, 2], keepdims=0)]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    net = load(str(tmp_path / "a.onnx"), shape=Shape("", 3, (3, 4, 5))).net
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(net(x), x.mean((2, 3)))


def test_labels_are_a_black_box(tmp_path: Path, images: Tensor) -> None:
    found = loaded(model(tail=("ArgMax",)), tmp_path)
    assert is_black_box(found.net)
    assert found.net(images).argmax(1).tolist() == expected(images).argmax(1).tolist()
    assert set(found.net(images).unique().tolist()) == {0.0, 1.0}


def test_one_of_several_outputs_has_the_logits(tmp_path: Path, images: Tensor) -> None:
    from onnx import TensorProto, helper

    made = model(tail=("Exp",))
    made.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]))
    np.testing.assert_allclose(
        loaded(made, tmp_path).net(images).detach().numpy(), expected(images), rtol=1e-4, atol=1e-4
    )


def test_a_conversion_with_other_logits_is_not_used(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter = pytest.importorskip("onnx2pytorch", reason="onnx2pytorch is not installed: the extra advbench[onnx]")
    other = converter.ConvertModel(model(seed=1))
    monkeypatch.setattr(converter, "ConvertModel", lambda *_: other)
    found = loaded(model(), tmp_path)
    assert is_black_box(found.net) and "converted to PyTorch its logits would differ by" in found.notes[0]
    np.testing.assert_allclose(found.net(images).numpy(), expected(images), rtol=1e-4, atol=1e-4)


def test_weights_that_are_aliases_of_others_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("onnx2pytorch", reason="onnx2pytorch is not installed: the extra advbench[onnx]")
    from onnx import helper

    made = model()
    made.graph.node.insert(0, helper.make_node("Identity", ["v"], ["v2"]))
    made.graph.node[-1].input[1] = "v2"
    assert not is_black_box(loaded(made, tmp_path).net)


@pytest.mark.parametrize("convert", [True, False])
def test_files_differ_by_all_that_they_say(tmp_path: Path, convert: bool, request: pytest.FixtureRequest) -> None:
    if not convert:
        request.getfixturevalue("unconverted")
    first = loaded(model(), tmp_path, "a.onnx")
    again, other, weights = (
        loaded(made, tmp_path, name)
        for made, name in ((model(), "b.onnx"), (model(activation="Tanh"), "c.onnx"), (model(seed=1), "d.onnx"))
    )
    names = [weights_sha256(one.net) for one in (first, again, other, weights)]
    assert names[0] == names[1] and len(set(names)) == 3


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    names = []
    for seed in (0, 1):
        onnx.save(model(seed=seed), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
        names.append(weights_sha256(load(str(tmp_path / "a.onnx"), shape=DIGITS).net))
        (tmp_path / "a.bin").unlink()
    assert names[0] != names[1]


def test_weights_from_elsewhere_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(model(), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    os.symlink(tmp_path / "a.bin", folder / "link.bin")
    for location in ("../a.bin", str(tmp_path / "a.bin"), "link.bin", "nowhere.bin"):
        made = onnx.load(tmp_path / "a.onnx", load_external_data=False)
        for weight in made.graph.initializer:
            for entry in weight.external_data:
                entry.value = location if entry.key == "location" else entry.value
        (folder / "b.onnx").write_bytes(made.SerializeToString())
        with pytest.raises(UserError, match=r"cannot read .*b\.onnx: ") as caught:
            load(str(folder / "b.onnx"), shape=DIGITS)
        assert "\n" not in str(caught.value)


def unknown_operator() -> Any:
    made = model()
    made.graph.node[2].domain, made.graph.node[2].op_type = "elsewhere", "Run"
    made.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    return made


def two_inputs() -> Any:
    made = model()
    made.graph.input.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    return made


def bytes_as_input() -> Any:
    made = model()
    made.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    made.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT))
    made.graph.node[1].input[0] = "y"
    return made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (b"", "cannot read"),
        (b"\x00" * 100, "cannot read"),
        (model().SerializeToString()[:3000], "cannot read"),
        (unknown_operator().SerializeToString(), "cannot read .*elsewhere"),
        (two_inputs().SerializeToString(), r"takes 2 inputs \(x, y\), not one"),
        (bytes_as_input().SerializeToString(), r"takes tensor\(uint8\): images are floating-point numbers"),
        (model(shape=(1, 4, 16)).SerializeToString(), r"takes inputs of \?x1x4x16, the images are 1x8x8"),
        (model(tail=("Unsqueeze",)).SerializeToString(), "cannot read"),
    ],
)
def test_files_that_do_not_suit_end_in_one_line(made: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(made)
    with pytest.raises(UserError, match=message) as caught:
        load(str(tmp_path / "a.onnx"), shape=DIGITS)
    assert "\n" not in str(caught.value)


def test_both_forms_have_the_same_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx2pytorch", reason="onnx2pytorch is not installed: the extra advbench[onnx]")
    onnx.save(model(), tmp_path / "net.onnx")
    data = advbench.load_data("digits")
    nets = [load_model(str(tmp_path / "net.onnx"), dataset=data)]
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    nets.append(load_model(str(tmp_path / "net.onnx"), dataset=data))
    assert [is_black_box(one.net) for one in nets] == [False, True]
    labels = nets[0].net(data.batch(slice(0, 32))[0]).argmax(1)
    given = replace(data.subset(range(32)), labels=labels)  # the net is random: its own answers are the labels
    how: dict[str, Any] = {"attack": ["square", "rays"], "eps": ["0", "0.05", "0.1"], "probes": False}
    fell = [advbench.evaluate(one, given, **how, settings={"n_queries": 50}).fates.fell for one in nets]
    assert (fell[0] >= 0).any() and (fell[0] != fell[1]).sum() <= 1
    with pytest.raises(UserError, match="is a black box: it has no gradient"):
        advbench.evaluate(nets[1], given, attack="pgd", eps=["0", "0.1"])
    advbench.evaluate(nets[0], given, attack="pgd", eps=["0", "0.1"], probes=False)
