"""Certified shares of an evaluation: beside the attacks, before them, in records, tables and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench import leaderboard
from advbench.data import load
from advbench.data.dataset import Dataset
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Evaluation, Journal, Settings, certify, evaluate
from advbench.evaluator.identity import answers
from advbench.models import build
from advbench.record import Fates, load_record

EPS = ("0", "0.01", "0.03", "0.05")  # few images fall, because proofs that are not found take longest
N = 16


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small net that was trained for a moment."""
    data = load("digits", "train")
    x, y = data.batch(slice(0, 800))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build("mlp", num_classes=10, in_channels=1, image_size=8, width=12)
        adam = torch.optim.Adam(made.parameters(), lr=0.02, weight_decay=1e-3)
        for _ in range(60):
            adam.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            adam.step()
    return made.eval()


@pytest.fixture(scope="module")
def images() -> Dataset:
    return load("digits", "test").subset(range(N))


def measured(net: nn.Module, images: Dataset, journal: Journal | None = None, **how: Any) -> Evaluation:
    asked = {"attack": ("pgd", "square"), "attack_settings": {"steps": 20, "n_queries": 100}, "eps": EPS, **how}
    settings = Settings(**{"processes": 1, "slots": 16, "probes": False, "certify_seconds": 20.0, **asked})
    return evaluate(net, images, settings, journal=journal, resume=how.pop("resume", False) if journal else False)


@pytest.fixture(scope="module")
def plain(net: nn.Module, images: Dataset) -> Evaluation:
    return measured(net, images)


@pytest.fixture(scope="module")
def after(net: nn.Module, images: Dataset) -> Evaluation:
    return measured(net, images, certify="after")


@pytest.fixture(scope="module")
def first(net: nn.Module, images: Dataset) -> Evaluation:
    return measured(net, images, certify="first")


def test_the_certified_share_is_at_most_the_share_that_stands(after: Evaluation) -> None:
    curve = after.record.curve
    certified = [point.certified for point in curve]
    assert all(one is not None and one <= point.accuracy for one, point in zip(certified, curve, strict=True))
    assert certified[0] == after.record.clean and sorted(certified, reverse=True) == certified
    assert certified[2] > 0 and certified[-1] < certified[0]
    assert [point.gap for point in curve] == [point.accuracy - point.certified for point in curve]


def test_proofs_are_no_other_question_but_another_record(plain: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    assert after.record.question == plain.record.question and after.record.id != plain.record.id
    assert np.array_equal(after.fates.fell, plain.fates.fell) and np.array_equal(after.fates.by, plain.fates.by)
    assert plain.record.curve[0].certified is None and not after.points
    path = after.record.save(tmp_path, after.fates)
    record, fates = load_record(path)
    assert record == after.record and np.array_equal(fates.proved, after.fates.proved)
    lying = json.loads(path.read_text())
    lying["curve"][1]["certified"] = 1.0
    path.write_text(json.dumps(lying))
    with pytest.raises(UserError, match="curve is not what the fates say"):
        load_record(path)


def test_attacks_that_proofs_make_needless_are_skipped(plain: Evaluation, first: Evaluation) -> None:
    assert np.array_equal(first.fates.fell, plain.fates.fell) and np.array_equal(first.fates.by, plain.fates.by)
    said = first.record.environment.certify
    assert said["when"] == "first" and said["skipped_strikes"] > 0
    assert said["skipped_passes"] > said["skipped_strikes"]
    assert first.record.forwards < plain.record.forwards and first.record.backwards < plain.record.backwards


@pytest.mark.slow
@pytest.mark.usefixtures("started_by_fork")
def test_two_processes_skip_what_is_proved_too(net: nn.Module, images: Dataset, first: Evaluation) -> None:
    """How many strikes that saves differs, because few images are struck at several points at once."""
    two = measured(net, images, certify="first", processes=2)
    assert two.record.id == first.record.id and two.record.environment.certify["skipped_strikes"] > 0


def test_an_evaluation_is_resumed_with_the_proofs_that_it_had(
    net: nn.Module, images: Dataset, first: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    proved = []
    stopping = Journal(path, stop=lambda: bool(proved))
    whole = certify.before

    def before(*given: Any) -> Any:
        found = whole(*given)
        proved.append(found)
        return found

    monkeypatch.setattr(certify, "before", before)
    settings = Settings(
        attack=("pgd", "square"), attack_settings={"steps": 20, "n_queries": 100}, eps=EPS, processes=1, slots=16,
        probes=False, certify="first", certify_seconds=20.0,
    )  # fmt: skip
    with pytest.raises(Interrupted):
        evaluate(net, images, settings, journal=stopping)
    monkeypatch.setattr(certify, "before", whole)
    monkeypatch.setattr(certify, "certify", None)  # a second proof would raise
    resumed = evaluate(net, images, settings, journal=Journal(path), resume=True)
    assert resumed.record.id == first.record.id
    with pytest.raises(UserError, match="another evaluation"):
        evaluate(net, images, replace(settings, certify="off"), journal=stopping, resume=True)


@pytest.mark.parametrize("when", ["first", "after"])
def test_proofs_that_were_stopped_go_on_where_they_were(
    when: str, net: nn.Module, images: Dataset, after: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tried, whole = tmp_path / "kept", [], certify._certified

    def counted(graph: Any, runner: Any, settings: Any, rows: Any, *rest: Any) -> Any:
        tried.append(rows)
        return whole(graph, runner, settings, rows, *rest)

    monkeypatch.setattr(certify, "_certified", counted)
    settings = Settings(
        attack=("pgd", "square"), attack_settings={"steps": 20, "n_queries": 100}, eps=EPS, processes=1, slots=16,
        probes=False, certify=when, certify_seconds=20.0,
    )  # fmt: skip
    with pytest.raises(Interrupted):
        evaluate(net, images, settings, journal=Journal(path, stop=lambda: len(tried) > 15))
    before = {int(row) for rows in tried for row in rows} - {int(tried[-1][0])}
    tried.clear()
    resumed = evaluate(net, images, settings, journal=Journal(path), resume=True)
    assert before and not before & {int(row) for rows in tried for row in rows}
    assert resumed.record.id == after.record.id and resumed.record.environment.certify["seconds"] is None


def test_images_that_do_not_fit_into_memory_together_are_proved_in_parts(
    net: nn.Module, images: Dataset, after: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = certify.certify

    def small(graph: Any, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("CUDA out of memory")
        return whole(graph, x, *rest, **more)

    monkeypatch.setattr(certify, "certify", small)
    found = measured(net, images, certify="after", certify_seconds=1.0)
    assert [one.certified for one in found.record.curve] == [one.certified for one in after.record.curve]


def test_a_record_answers_only_with_the_proofs_that_are_asked_for(plain: Evaluation, after: Evaluation) -> None:
    question = {"model": {}, "certify": ["after", 20.0]}
    known = after.record
    asked = {
        "model": known.model.model_dump(
            mode="json", include={"weights_sha256", "arch", "settings", "code_sha256", "mean", "std", "abstain"}
        ),
        "images": known.dataset.images_sha256, "indices": list(known.dataset.indices), "norm": "linf",
        "eps": known.eps, "attacks": [one.model_dump(mode="json") for one in known.attack],
        "engine": known.engine.model_dump(mode="json"), "seed": 0, "keep_points": False, "probes": False,
        "advbench": known.environment.advbench,
    }  # fmt: skip
    assert answers(known, {**asked, "certify": question["certify"]}) and not answers(known, asked)
    assert answers(plain.record, asked) and not answers(plain.record, {**asked, "certify": ["after", 20.0]})


def test_an_image_that_is_proved_and_felled_ends_the_evaluation_with_both_witnesses(
    net: nn.Module, images: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "certify", lambda graph, x, y, *rest, **more: torch.ones_like(y, dtype=torch.bool))
    with pytest.raises(UserError, match=r"a defect of advbench: \d+ images are proved") as raised:
        measured(net, images, Journal(tmp_path / "kept"), certify="after")
    (file,) = tmp_path.glob("contradiction-*.npz")
    assert str(file) in str(raised.value)
    with np.load(file) as kept:
        x, x_adv, y = (torch.from_numpy(kept[name]) for name in ("x", "x_adv", "y"))
        assert bool((kept["fell"] <= kept["proved"]).all())
        reach = (x_adv - x).abs().flatten(1).amax(1).double()
        assert bool((reach <= torch.from_numpy(kept["fell"]) + 1e-6).all())
    with torch.no_grad():
        assert bool((net(x).argmax(1) == y).all()) and bool((net(x_adv).argmax(1) != y).all())


def test_fates_hold_no_contradiction() -> None:
    with pytest.raises(UserError, match="proved must hold indices below"):
        Fates(np.array([1, -1]), np.array([0, -1]), proved=np.array([1, 0]))
    with pytest.raises(UserError, match="one length"):
        Fates(np.array([1, -1]), np.array([0, -1]), proved=np.array([0]))
    assert Fates(np.array([1, -1]), np.array([0, -1]), proved=np.array([0, 1])).standing(0).all()


class Odd(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sin())


def test_a_model_without_bounds_is_not_certified_and_a_note_names_the_layer(net: nn.Module, images: Dataset) -> None:
    for when in ("after", "first"):
        record = measured(Odd(net), images, attack="fgsm", attack_settings={}, certify=when).record
        (flag,) = (flag for flag in record.flags if flag.name == "not-certified")
        assert flag.severity == "note" and "sin" in flag.detail
        assert all(point.certified is None for point in record.curve)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"norm": "fourier-linf", "certify": "after"}, "linf, l2, l1"),
        ({"attack": "fmn", "attack_settings": {}, "certify": "first"}, "--certify after"),
        ({"certify": "maybe"}, "off"),
        ({"certify": "after", "certify_seconds": 0}, "above 0"),
    ],
)
def test_what_cannot_be_certified_is_refused(net: nn.Module, images: Dataset, asked: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        measured(net, images, **asked)


def test_tables_page_and_figure_show_what_is_proved(plain: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    assert after.record.curve_columns[-2:] == ("certified %", "gap") and "certified" in str(after.record)
    assert "certified" not in str(plain.record)
    leaderboard.publish(plain.record, plain.fates, tmp_path)
    svg = (tmp_path / "digits-linf.svg").read_text()
    leaderboard.publish(after.record, after.fates, tmp_path)
    markdown = (tmp_path / "digits-linf.md").read_text()
    point = after.record.at(0.05)
    assert point is not None and point.certified is not None
    assert "| certified | gap |" in markdown and "## Not shown" in markdown  # the one without proofs
    assert f",{point.certified}," in (tmp_path / "digits-linf.csv").read_text()
    assert "(gap " in (tmp_path / "index.html").read_text()
    assert "hatched" in (tmp_path / "digits-linf.svg").read_text() and "hatched" not in svg
