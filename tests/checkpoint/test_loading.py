"""Run folders: what is loaded from them, and the errors of faulty ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbench.checkpoint import (
    BEST,
    CARD,
    LAST,
    ModelCard,
    RunCard,
    load_model,
    newest_run,
    read_card,
    save_weights,
    weights_sha256,
    write_card,
)
from advbench.errors import UserError
from advbench.models import build, describe, wrap
from advbench.models.base import Model
from advbench.record import Flag


def network(seed: int = 0, arch: str = "small_cnn_16_32_100", **settings: Any) -> Model:
    return build(arch, num_classes=10, in_channels=1, image_size=8, seed=seed, **settings)


def card(net: Model, files: dict[str, str], **more: Any) -> RunCard:
    return RunCard(
        model=ModelCard.model_validate(describe(net)),
        files=files,
        method="act",
        dataset="digits",
        norm="linf",
        eps=0.1,
        eps_text="0.1",
        seed=3,
        **more,
    )


def write_run(folder: Path, best: Model, last: Model | None = None, **more: Any) -> Path:
    files = {BEST: save_weights(best, folder / BEST)}
    files[LAST] = save_weights(last or best, folder / LAST)
    write_card(folder, card(best, files, **more))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", network(0), network(1))


def test_the_best_weights_by_default_and_the_last_by_name(run: Path) -> None:
    best, last = load_model(str(run), dataset="digits"), load_model(str(run / LAST), dataset="digits")
    assert best.weights_sha256 == weights_sha256(network(0)) == weights_sha256(best.net)
    assert last.weights_sha256 == weights_sha256(network(1))
    for loaded, spec in ((best, run), (last, run / LAST)):
        assert loaded.spec == str(spec) and loaded.arch == "small_cnn_16_32_100" and loaded.num_classes == 10
        assert loaded.dataset == "digits" and loaded.folder == run and loaded.notes == ()
        assert not loaded.net.training
        assert loaded.trained is not None and loaded.trained["method"] == "act" and loaded.trained["eps_text"] == "0.1"


def test_what_was_trained_fits_a_record(tmp_path: Path) -> None:
    from advbench.record.parts import Trained

    flag = Flag(name="overfitting", severity="suspect", detail="PGD accuracy fell")
    folder = write_run(tmp_path / "run", network(), flags=(flag,), cost={"seconds": 1.5}, finished=False)
    loaded = load_model(str(folder))
    assert loaded.trained is not None
    assert Trained(**loaded.trained).eps == 0.1 and loaded.trained["flags"][0]["severity"] == "suspect"
    assert loaded.notes == (f"{folder} was not trained to the end",)


def test_another_network_of_the_run_is_checked_too(run: Path) -> None:
    other = network(5, "mlp")
    digest = save_weights(other, run / "parts" / "g.safetensors")
    old = read_card(run)
    write_card(run, old.model_copy(update={"files": {**old.files, "parts/g.safetensors": digest}}))
    loaded = load_model(str(run / "parts" / "g.safetensors"))
    assert loaded.arch == "mlp" and loaded.weights_sha256 == weights_sha256(other)
    assert loaded.folder == run and loaded.trained is not None
    save_weights(network(6, "mlp"), run / "parts" / "g.safetensors")
    with pytest.raises(UserError, match=r"g.safetensors is truncated or altered"):
        load_model(str(run / "parts" / "g.safetensors"))


def test_a_wrapped_network_comes_back_wrapped(tmp_path: Path) -> None:
    wrapped = wrap(network(), "quantize", layer="conv1", levels=4).eval()
    loaded = load_model(str(write_run(tmp_path / "run", wrapped)), dataset="digits")
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded.net(x), wrapped(x)) and not torch.equal(loaded.net(x), network().eval()(x))
    assert isinstance(loaded.net, Model) and describe(loaded.net) == describe(wrapped)


def test_loading_leaves_the_random_state_alone(run: Path) -> None:
    before = torch.get_rng_state()
    load_model(str(run), dataset="digits")
    assert torch.equal(torch.get_rng_state(), before)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit(run: Path, **changes: Any) -> None:
    """Change the card and remove its seal, as an edit by hand or an old version would."""
    written = json.loads((run / CARD).read_text())
    del written["seal"]
    (run / CARD).write_text(json.dumps({**written, **changes}))


def model_of(run: Path, **changes: Any) -> None:
    edit(run, model={**json.loads((run / CARD).read_text())["model"], **changes})


FAULTS: dict[str, tuple[Any, str]] = {
    "altered": (lambda run: flip(run / BEST), "truncated or altered: its sha256 is not the one in run.json"),
    "truncated": (lambda run: os.truncate(run / BEST, 100), "model.safetensors is truncated or altered"),
    "swapped": (lambda run: (run / LAST).replace(run / BEST), "model.safetensors is truncated or altered"),
    "no weights": (lambda run: (run / BEST).unlink(), "is not a complete run folder: model.safetensors is missing"),
    "unlisted": (lambda run: edit(run, files={}), "is not a complete run folder: model.safetensors is missing"),
    "no card": (lambda run: (run / CARD).unlink(), "is not a run folder: run.json is missing"),
    "card cut": (lambda run: os.truncate(run / CARD, 50), "run.json is damaged or of another version: the file: "),
    "card binary": (lambda run: (run / CARD).write_bytes(b"\xff\xfe\x00"), "cannot read .*run.json"),
    "schema": (lambda run: edit(run, schema=2), "of another version: schema: "),
    "foreign field": (lambda run: edit(run, colour=2), "of another version: colour: "),
    "hash form": (lambda run: edit(run, files={BEST: "x"}), "of another version: files.model.safetensors: "),
    "other arch": (lambda run: model_of(run, arch="lenet5"), "does not fit lenet5: "),
    "no arch": (lambda run: model_of(run, arch="lenet6"), "unknown architecture 'lenet6': did you mean lenet5"),
    "classes": (lambda run: model_of(run, num_classes=9), "does not fit small_cnn_16_32_100: 2 of another shape"),
    "wrapper": (lambda run: model_of(run, wrappers=[{"name": "attend"}]), "unknown wrapper 'attend'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_run_is_refused_in_one_line(fault: str, run: Path) -> None:
    break_it, message = FAULTS[fault]
    break_it(run)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(run), dataset="digits")
    assert "\n" not in str(caught.value)


def test_every_change_of_the_card_is_noticed(run: Path) -> None:
    path = run / CARD
    text = path.read_text()
    card = read_card(run)
    for position, char in enumerate(text):
        path.write_text(text[:position] + ("7" if char != "7" else "8") + text[position + 1 :])
        with pytest.raises(UserError, match="damaged") as caught:
            read_card(run)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(json.loads(text)))  # spaces mean nothing
    assert read_card(run) == card


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([*RunCard.model_fields, "seal", ""]), JSON, st.binary(max_size=100))
def test_any_card_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, card(network(), {BEST: "a" * 64}))
    if field:
        edit(folder, **{"schema" if field == "schema_" else field: value})
    else:
        (folder / CARD).write_bytes(content)
    try:
        read_card(folder)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_card_cannot_make_loading_run_code(run: Path) -> None:
    model_of(run, arch="os:system")
    with pytest.raises(UserError, match=r"names code outside advbench \(os:system\), which loading would run"):
        load_model(str(run))


def test_plug_in_architectures_load_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug_in_arch.py").write_text("from advbench.models.linear import Linear\nclass Mine(Linear): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    net = network(0, "plug_in_arch:Mine")
    folder = str(write_run(tmp_path / "run", net))
    with pytest.raises(UserError, match="such as by --arch plug_in_arch:Mine"):
        load_model(folder)
    assert load_model(folder, arch="plug_in_arch:Mine").weights_sha256 == weights_sha256(net)
    assert load_model(folder, trust_code=True).arch == "plug_in_arch:Mine"


def test_what_is_pickled_as_a_whole_is_asked_what_it_answers(tmp_path: Path) -> None:
    """Its tensors and its code may be those of another model."""
    layer = nn.Linear(64, 10)
    for name, last in (("a", nn.Tanh()), ("b", nn.Identity())):
        torch.save(nn.Sequential(nn.Flatten(), layer, last), tmp_path / f"{name}.pt")
    a, b = (load_model(str(tmp_path / f"{name}.pt"), dataset="digits", trust_pickle=True) for name in "ab")
    assert a.weights_sha256 == b.weights_sha256 and a.code_sha256 is b.code_sha256 is None and a.arch == b.arch
    assert a.outside and b.outside


def test_arch_must_be_that_of_the_run(run: Path) -> None:
    assert load_model(str(run), arch="small_cnn_16_32_100").num_classes == 10
    with pytest.raises(UserError, match="is a run of small_cnn_16_32_100: leave out --arch lenet5"):
        load_model(str(run), arch="lenet5")
    model_of(run, arch="tv:Grey")
    with pytest.raises(UserError, match="is a run of tv:Grey: write --arch tv:Grey"):
        load_model(str(run), arch="tv:Other")


def test_a_run_whose_training_was_interrupted_can_go_on(run: Path) -> None:
    folder = run.with_name("my run")
    run.rename(folder)
    (folder / BEST).unlink()
    (folder / "train_state").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"its training may go on: advbench train --resume --out '.*/my run'"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("mnist", "does not take the 1x28x28 images of mnist: "),
        ("cifar10", "takes images of 1 channel, cifar10 has 3x32x32$"),
    ],
)
def test_the_dataset_must_fit(run: Path, dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(str(run), dataset=dataset)


def test_a_folder_of_runs_names_them(run: Path) -> None:
    with pytest.raises(UserError, match=rf"is not a run folder: run.json is missing; did you mean {run}\?"):
        load_model(str(run.parent))


def test_the_run_json_of_another_program_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text('{"command": "mine"}')
    save_weights(network(2), tmp_path / "x.safetensors")
    assert load_model(str(tmp_path / "x.safetensors")).weights_sha256 == weights_sha256(network(2))


def test_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*: train one \(advbench train\), or name a model with --model: "):
        newest_run(tmp_path / "runs")
    for number, name in enumerate(["b", "a", "c"]):
        folder = write_run(tmp_path / "runs" / name, network())
        os.utime(folder / CARD, (1000 - number, 1000 - number))
    (tmp_path / "runs" / "no_run").mkdir()
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "b"


def test_a_failed_card_write_leaves_the_old_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / CARD).read_bytes()

    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_card(run, read_card(run).model_copy(update={"seed": 9}))
    assert (run / CARD).read_bytes() == before and {file.name for file in run.iterdir()} == {BEST, LAST, CARD}
