"""Weight files from elsewhere: what scripts wrap them in, what is damaged, what is refused."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench import consent
from advbench.errors import UserError
from advbench.models import build
from advbench.models.state_files import fit_state, read_state


def net() -> nn.Module:
    return build("linear", num_classes=3, in_channels=1, image_size=2, seed=0)


class Evil:
    """Unpickling one calls `print`, standing for any code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this code ran",)


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}},
    "model": lambda s: {"model": s, "best": 0.5},
    "net in model": lambda s: {"model": {"net": s}},
    "both": lambda s: {"ema": {k: v + 1 for k, v in s.items()}, "state_dict": s},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    "in a sequence": lambda s: {f"1.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_state_is_found_in_what_scripts_save(wrapping: str, legacy: bool, tmp_path: Path) -> None:
    wanted = net().state_dict()
    torch.save(WRAPPINGS[wrapping](wanted), tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    state, metadata = read_state(tmp_path / "x.pt")
    assert isinstance(state, dict) and metadata == {}
    other = build("linear", num_classes=3, in_channels=1, image_size=2, seed=1)
    fit_state(other, state, "x.pt", "linear")
    assert all(torch.equal(value, wanted[key]) for key, value in other.state_dict().items())


def test_batch_counters_may_be_missing_since_old_states_have_none() -> None:
    with_norm = build("resnet18", num_classes=3, in_channels=1, image_size=8, seed=0, width=4)
    state = {key: value for key, value in with_norm.state_dict().items() if not key.endswith("num_batches_tracked")}
    fit_state(with_norm, state, "x.pt", "resnet18")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "bias" not in k}, r"1 missing keys \(linear.bias\)"),
        (lambda s: {**s, "mean": torch.zeros(1)}, r"1 unknown keys \(mean\)"),
        (lambda s: {**s, "linear.weight": torch.zeros(5, 4)}, r"linear.weight \(5, 4\) where \(3, 4\) is wanted"),
        (lambda s: {**s, "linear.bias": torch.tensor([0.0, float("nan"), 0.0])}, "NaN or infinite: linear.bias"),
        (lambda s: {f"head.{k}": v for k, v in s.items()}, "2 missing keys .*; 2 unknown keys"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, message: str) -> None:
    target = net()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        fit_state(target, change(before), "x.pt", "linear")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


KINDS = {
    "sparse": lambda w: w.to_sparse(),
    "sparse row": lambda w: w.to_sparse_csr(),
    "meta": lambda w: w.to("meta"),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "complex": lambda w: w.to(torch.complex64),
    "nested": lambda w: torch.nested.nested_tensor([w]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_no_dense_real_numbers_are_named(kind: str, tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save({**state, "linear.weight": KINDS[kind](state["linear.weight"])}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x.pt has linear.weight as a {kind.split()[0]} tensor.*: save it dense"):
        read_state(tmp_path / "x.pt")


def test_complex_weights_of_safetensors_are_named(tmp_path: Path) -> None:
    safetensors.torch.save_file({"linear.weight": torch.zeros(3, 4, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors has linear.weight as a complex tensor"):
        read_state(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    state, other = net().state_dict(), net()
    torch.save({key: value.to(kind) for key, value in state.items()}, tmp_path / "x.pt")
    read, _ = read_state(tmp_path / "x.pt")
    assert isinstance(read, dict)
    fit_state(other, read, "x.pt", "linear")
    assert all(torch.equal(value, state[key].to(kind).float()) for key, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("content", "needs"),
    [
        ({"state_dict": {"w": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"w": Evil()}, ""),
    ],
    ids=["namespace", "module", "evil"],
)
def test_pickles_that_need_code_are_refused(
    content: Any, needs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    capsys.readouterr()
    with pytest.raises(UserError, match="is a pickle that needs more than tensors") as caught:
        read_state(tmp_path / "x.pt")
    assert needs in str(caught.value) and "--trust-pickle" in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # nothing ran


def test_trusted_pickles_are_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": Evil()}, tmp_path / "x.pt")
    with consent.also(pickle=True).given():
        state, _ = read_state(tmp_path / "x.pt")
    assert isinstance(state, dict) and torch.equal(state["w"], torch.ones(2))
    assert "this code ran" in capsys.readouterr().out
    torch.save(nn.Linear(2, 2), tmp_path / "y.pt")
    with consent.also(pickle=True).given():
        module, _ = read_state(tmp_path / "y.pt")
    assert isinstance(module, nn.Linear)


def zipped(state: dict[str, Tensor]) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


STATE = {"w": torch.arange(2000.0)}
DAMAGED = {
    "empty.pt": b"",
    "text.pt": b"hello, no weights here",
    "half.pt": zipped(STATE)[: len(zipped(STATE)) // 2],
    "plain_pickle.pt": pickle.dumps(Evil()),
    "empty.safetensors": b"",
    "text.safetensors": b"hello, no weights here",
    "half.safetensors": safetensors.torch.save(STATE)[:4000],
    "none.safetensors": safetensors.torch.save({}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        read_state(tmp_path / name)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "held"),
    [({"lr": 0.1, "n": 3}, "lr, n"), ([1, 2], "list"), ({}, "nothing"), ({"state_dict": {"a": 1}}, "state_dict")],
)
def test_files_without_a_state_say_what_they_hold(content: Any, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"holds no state dict of tensors but {held}"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pointer_of_git_lfs_is_called_so(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n")
    with pytest.raises(UserError, match="pointer of Git LFS: get the file by git lfs pull"):
        read_state(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_state(tmp_path / "x.pt")


@settings(
    max_examples=settings.default.max_examples * 3 // 5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    start=st.integers(0, 9000),
    patch=st.binary(min_size=1, max_size=40),
    suffix=st.sampled_from([".pt", ".safetensors"]),
)
def test_any_damage_ends_in_a_user_error_or_in_tensors(start: int, patch: bytes, suffix: str, tmp_path: Path) -> None:
    whole = zipped(STATE) if suffix == ".pt" else safetensors.torch.save(STATE)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole[:start] + patch + whole[start + len(patch) :])
    try:
        state, _ = read_state(path)
    except UserError:
        return
    assert isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
