"""Evaluations by the attack on several tasks: their records, their sharing by processes, and their flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import advbench
from advbench.checkpoint import read_card, save_weights, write_card
from advbench.data import load
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal
from advbench.models import build
from advbench.recipe import Recipe
from advbench.trainer import train

EPS = ["0", "0.05", "0.1"]
N = 61


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sets = ["epochs=12", "optim.lr=0.1", "train_n=600", "method.tasks=rotation,jigsaw"]
    recipe = Recipe.resolve(method="multi-task", arch="mlp", eps="0.1", sets=sets)
    return train(recipe, tmp_path_factory.mktemp("runs") / "several", device="cpu")


def measured(run: Path, attacked: str = "sum", n: int = N, **how: Any) -> Evaluation:
    settings = {"attacked": attacked, "steps": 10, **how.pop("settings", {})}
    how = {"eps": EPS, "device": "cpu", **how}
    return advbench.evaluate(str(run), attack="multi-task", n=n, settings=settings, **how)


@pytest.mark.usefixtures("whole_probes")
def test_raising_the_sum_fells_fewer_than_raising_the_main_task_and_is_flagged(run: Path) -> None:
    main, summed, other = (measured(run, attacked, 300) for attacked in ("main", "sum", "rotation"))
    robust = [found.record.curve[2].accuracy for found in (main, summed, other)]
    assert robust[0] + 0.1 < robust[1] < robust[2]
    weak = [next((f for f in found.record.flags if f.name == "weak-attack"), None) for found in (main, summed, other)]
    assert weak[0] is None
    assert weak[1] is not None and weak[2] is not None and weak[2].severity == "suspect"
    assert "PGD-100 fells" in weak[1].detail
    plain = advbench.evaluate(str(run), attack="pgd", eps=EPS, n=300, settings={"steps": 10}, device="cpu").record
    assert abs(plain.curve[2].accuracy - robust[0]) <= 0.01  # from other random starts


def test_a_record_pins_down_which_heads_were_attacked(run: Path, tmp_path: Path) -> None:
    first, again = measured(run).record, measured(run).record
    assert first.id == again.id
    settings = first.attack[0].settings
    assert settings["attacked"] == "sum" and len(str(settings["heads_sha256"])) == 64
    assert first.question != measured(run, "wgd").record.question

    other = tmp_path / "other"
    shutil.copytree(run, other)
    part = other / "parts" / "rotation.safetensors"
    state = safetensors.torch.load_file(part)
    head = torch.nn.Module()
    head.head = torch.nn.Linear(*reversed(state["head.weight"].shape))  # type: ignore[arg-type]
    head.load_state_dict({**state, "head.bias": state["head.bias"] + 1})
    card = read_card(other)
    digest = save_weights(head, part)
    write_card(other, card.model_copy(update={"files": {**card.files, "parts/rotation.safetensors": digest}}))
    moved = measured(other).record
    assert moved.model.weights_sha256 == first.model.weights_sha256 and moved.question != first.question
    with pytest.raises(UserError, match="name the run that was meant"):
        measured(other, settings={"heads_sha256": settings["heads_sha256"]})


@pytest.mark.parametrize("attacked", ["wgd", "cyclic"])
def test_fates_are_those_of_each_half_of_the_images(run: Path, attacked: str) -> None:
    """Views depend on the image, not on its place or on other images."""
    data, fell = load("digits", "test").subset(range(N)), np.full(N, -9)
    for rows in (range(1, N, 2), range(0, N, 2)):
        part = measured(run, attacked, dataset=data.subset(rows), n=len(rows), slots=16)
        fell[list(rows)] = part.fates.fell
    assert np.array_equal(fell, measured(run, attacked, slots=16).fates.fell) and len(set(fell.tolist())) > 2


def test_a_killed_evaluation_resumes_to_the_same_record(run: Path, tmp_path: Path) -> None:
    whole = measured(run, "relative", slots=16)
    rounds = iter(range(15))
    stopped = Journal(tmp_path / "journal", stop=lambda: next(rounds, None) is None)
    with pytest.raises(Interrupted):
        measured(run, "relative", slots=16, journal=stopped)
    resumed = measured(run, "relative", slots=16, journal=Journal(tmp_path / "journal"), resume=True)
    assert resumed.record.id == whole.record.id


@pytest.mark.usefixtures("started_by_fork")
def test_processes_share_the_images(run: Path) -> None:
    one, two = (measured(run, "cyclic", slots=16, processes=count) for count in (1, 2))
    assert two.record.id == one.record.id and two.record.forwards > one.record.forwards


def test_in_bf16_hits_count_in_fp32_and_standing_images_are_rechecked(run: Path) -> None:
    record = measured(run, precision="bf16").record
    assert [ref.name for ref in record.attack] == ["multi-task", "apgd-ce", "apgd-t"]
    assert record.curve[2].robust <= measured(run).record.curve[2].robust
    assert measured(run, precision="auto").record.engine.precision == "fp32"


def test_it_combines_with_other_attacks(run: Path) -> None:
    both = advbench.evaluate(str(run), attack=["multi-task", "pgd"], eps=EPS, n=N, device="cpu")
    assert set(both.fates.by.tolist()) >= {0}
    assert [ref.settings["set"] for ref in both.record.attack] == ["multi-task", "pgd"]


def test_a_model_without_tasks_is_refused_in_one_line(run: Path) -> None:
    net = build("mlp", num_classes=10, in_channels=1, image_size=8)
    for model in (net, f"{run}/last.safetensors", f"{run}/parts/rotation.safetensors"):
        with pytest.raises(UserError) as raised:
            advbench.evaluate(model, "digits", attack="multi-task", eps=["0.1"], n=8, device="cpu")
        assert "\n" not in str(raised.value)
    with pytest.raises(
        UserError, match=r"unknown attacked 'macro'.*cyclic, jigsaw, main, relative, rotation, sum, wgd"
    ):
        measured(run, "macro")


def test_plain_values_alone_are_in_the_record(run: Path) -> None:
    json.dumps(measured(run, n=8).record.attack[0].settings)
