"""The effect runs: every command is one that advbench takes, and the page says what the records and judges say."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from itertools import pairwise, product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from advbench import cli
from advbench.analyses.implicit_bias import OWN
from advbench.attacks.base import make as make_attack
from advbench.cli.settings import parse_settings
from advbench.eps import parse_eps_list
from advbench.methods.base import make
from advbench.recipe import Recipe
from advbench.registry import entries, find

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "effects"


@pytest.fixture
def effects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module `run`; nothing that it imports stays."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(HERE))
    before = set(sys.modules)
    yield importlib.import_module("run")
    for name in set(sys.modules) - before:
        if str(HERE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def options(command: list[str], name: str) -> list[str]:
    return [value for flag, value in pairwise(command) if flag == name]


def test_every_system_is_in_the_order(effects: ModuleType) -> None:
    files = {file.stem.replace("_", "-") for file in HERE.glob("*.py") if "EFFECT =" in file.read_text()}
    assert files == set(effects.ORDER)


def recipe_of(command: list[str], **more: str) -> Recipe:
    """The recipe of an `advbench train`, checked by its method; `more` are further fields."""
    one = {flag: options(command, f"--{flag}") for flag in ("method", "dataset", "arch", "eps")}
    sets = [*options(command, "--set"), *(f"{name}={value}" for name, value in more.items())]
    sets += [f"epochs={epochs}" for epochs in options(command, "--epochs")]
    recipe = Recipe.resolve(**{name: value for name, (value,) in one.items()}, sets=sets)
    make(recipe).check(recipe, 10)
    return recipe


def grids_fit(tuning: Any) -> None:
    """Every combination of a grid is a recipe of its own."""
    assert all(len(set(values)) == len(values) > 1 for _, values in tuning.grid)
    names = [name for name, _ in tuning.grid]
    tried = [dict(zip(names, values, strict=True)) for values in product(*(values for _, values in tuning.grid))]
    assert len({recipe_of(tuning.command(), **one).sha256 for one in tried}) == tuning.tries == len(tried)


def needed_are_named(effect: Any, runs: Any, command: list[str]) -> None:
    """The runs whose folders the settings name are those of `after`, and the system trains them."""
    named = {text.partition("=")[2] for text in options(command, "--set") if str(runs.folders_in) in text}
    assert named <= {str(folder) for one in runs.after for folder in one.folders}
    assert set(runs.after) <= set(effect.runs) and bool(named) == bool(runs.after)


def test_every_command_is_one_that_advbench_takes(effects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = importlib.import_module("evidence")
    first = lambda tuning: tuple(f"{name}={values[0]}" for name, values in tuning.grid)  # noqa: E731
    monkeypatch.setattr(evidence.Tuning, "chosen", first)
    folders: dict[str, str] = {}
    tunings: dict[str, Any] = {}
    for effect in map(effects.load, effects.ORDER):
        trained = {str(folder) for runs in effect.runs for folder in runs.folders}
        assert len({runs.label for runs in effect.runs}) == len(effect.runs)
        for runs in effect.runs:
            for seed in runs.seeds:
                command = runs.command(seed)
                sha256 = recipe_of(command, seed=str(seed)).sha256
                assert folders.setdefault(options(command, "--out")[0], sha256) == sha256, "two recipes share a folder"
                needed_are_named(effect, runs, command)
            if runs.tuned:
                needed_are_named(effect, runs.tuned.base, runs.tuned.command())
                assert tunings.setdefault(runs.tuned.name, runs.tuned) == runs.tuned, "two grids share a file"
                assert not set(runs.seeds) & set(runs.tuned.base.seeds), "claims need other seeds than the choice"
        for evaluation in effect.evaluations:
            find("attacks", evaluation.attack)
            settings = parse_settings(evaluation.sets)
            taken = [one.setting_names() for one in make_attack(evaluation.attack, evaluation.norm)]
            assert all(any(name in names for names in taken) for name in settings)
            assert parse_eps_list(evaluation.eps, evaluation.norm)[0].value == 0
            assert {str(folder) for folder in evaluation.runs.folders} <= trained
            named = [text for text in evaluation.sets if str(evaluation.runs.folders_in) in text]
            for text, seed in product(named, evaluation.runs.seeds):
                assert any(f"={one.folder(seed)}/" in text.format(seed=seed) for one in evaluation.after)
            assert set(evaluation.after) <= set(effect.runs) and bool(named) == bool(evaluation.after)
            assert evaluation.n or evaluation.runs.dataset == "digits", "without n only the first 1,000 images count"
        assert len({evaluation.key for evaluation in effect.evaluations}) == len(effect.evaluations)
        for analysis in effect.analyses:
            settings = parse_settings(options(analysis.command(), "--set"))
            assert set(settings) <= set(signature(find("analyses", analysis.name).load()).parameters)
            assert {str(folder) for folder in analysis.folders} <= trained
            assert len({folder.name for folder in analysis.folders}) == len(analysis.folders)
    for tuning in tunings.values():
        grids_fit(tuning)


def test_trainings_come_in_the_order_that_they_need(
    effects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = importlib.import_module("evidence")
    teacher = evidence.Runs("teacher", "standard", ("model.activation=softplus",), seeds=(0, 1))
    plain = evidence.Runs("student", "great", after=(teacher,))
    tuning = evidence.Tuning("tiny", replace(plain, label="student tuning"), GRID)
    effect = evidence.Effect("tiny", "nobody", (), (plain, tuning.runs("tuned student", (1,)), teacher))
    asked: list[list[str]] = []
    monkeypatch.setattr(effects, "load", lambda name: effect)
    monkeypatch.setattr(effects.Workers, "run", lambda self, command: bool(asked.append(command)))
    monkeypatch.setattr(evidence.Tuning, "chosen", lambda self: ())
    monkeypatch.chdir(tmp_path)
    effects.perform(effect, 2)
    out = [options(command, "--out")[0] for command in asked]
    assert set(out[:2]) == {str(folder) for folder in teacher.folders} and out[2] == str(tuning.folder)
    assert {str(plain.folder(0)), "effects/runs/tuned-student-s1"} <= set(out[3:])


def test_neither_a_method_nor_its_controls_lack_tries(effects: ModuleType) -> None:
    for effect in map(effects.load, effects.ORDER):
        for claim in effect.claims:
            own, controls = ([of for of in claim.of if (of in claim.accused) is ours] for ours in (True, False))
            for some, others in ((own, controls), (controls, own)):
                tries = max((runs.tuned.tries if runs.tuned else 1 for runs in some), default=0)
                for runs in others:
                    assert tries <= (runs.tuned.tried if runs.tuned else 1), f"{effect.system}: {claim.text}"


class Row(dict[str, Any]):
    """A row of a table, or the facts on a run, that has every column."""

    def __missing__(self, name: str) -> Any:
        return {"largest": Row(), "held_out_last": Row(), "flags": []}.get(name, 0.5)


def table_of(one: Any) -> dict[str, list[Row]]:
    """The tables of an analysis of runs, of which every number is a half."""
    runs = [(folder.name, float(parse_eps_list(runs.eps, "linf")[0].value), runs.method)
            for runs in one.runs for folder in runs.folders]  # fmt: skip
    if one.name == "spectrum":
        rows = [Row({"trained eps": eps if method != "standard" else 0.0}) for _, eps, method in runs]
        return {f"{one.key}/corruptions": rows}
    if one.name == "quantize":
        return {f"{one.key}/accuracy": [Row(layer=layer) for layer in ("conv1", "conv2") for _ in runs]}
    if one.name == "filters":
        layers = product(runs, ("conv1", "conv2"))
        return {f"{one.key}/filters": [Row(run=name, layer=layer, kind="Conv2d") for (name, *_), layer in layers]}
    if one.name == "implicit-bias":
        rows = [Row(optimiser=name) for name in OWN]
        return {f"{one.key}/worst": rows, f"{one.key}/margins": rows}
    name = {"features": "features", "vulnerability": "main", "salience": "salience"}[one.name]
    return {f"{one.key}/{name}": [Row(run=name) for name, *_ in runs]}


def as_measured(effect: Any) -> Any:
    """Numbers of which none is missing; at every eps half of 10,000 images stand."""
    half = np.arange(10_000) % 2 < 1
    point = SimpleNamespace(accuracy=0.5)
    fates = SimpleNamespace(clean=half, standing=lambda place: half)
    records: dict[str, Any] = {}
    for one in effect.evaluations:
        curve = [SimpleNamespace(eps=eps.value) for eps in parse_eps_list(one.eps, one.norm)]
        dataset = SimpleNamespace(images_sha256=(one.runs.dataset, one.n), count=10_000)
        record = SimpleNamespace(clean=0.5, curve=curve, at=lambda eps: point, flags=[], dataset=dataset)
        records[one.key] = dict.fromkeys(one.runs.seeds, (record, fates))
    tables = {name: rows for one in effect.analyses for name, rows in table_of(one).items()}
    trained = {runs.label: {seed: Row() for seed in runs.seeds} for runs in effect.runs}
    return importlib.import_module("findings").Numbers(records, tables, trained)


def test_every_claim_is_decided_once_its_own_numbers_are_measured(effects: ModuleType) -> None:
    page = importlib.import_module("page")
    decided = {"shown", "shown, but small", "refuted", "not shown", "shown only under PGD"}
    for effect in map(effects.load, effects.ORDER):
        numbers, needed = as_measured(effect), set[str]()
        for claim in effect.claims:
            found = page.row(claim, effect, numbers)
            assert found["ours"] and found["verdict"] in decided, found
        for part in ("records", "tables", "trained"):
            every = getattr(numbers, part)
            for name in {key.rpartition("/")[0] or key for key in every}:
                left = {key: value for key, value in every.items() if (key.rpartition("/")[0] or key) != name}
                lacking = replace(numbers, **{part: left})
                waiting = [page.row(claim, effect, lacking)["verdict"] == "not measured yet" for claim in effect.claims]
                needed |= {name} if any(waiting) else set()
        assert {one.key for one in (*effect.evaluations, *effect.analyses)} <= needed, "measured for no claim"


def test_a_figure_shows_what_is_measured(effects: ModuleType) -> None:
    act, page = effects.load("act"), importlib.import_module("page")
    assert page.drawn(act, importlib.import_module("findings").Numbers()) is None  # nothing is measured
    measured = as_measured(act)
    svg = page.drawn(act, measured)
    assert svg == page.drawn(act, measured) and svg.startswith(b"<?xml")
    other = replace(measured, records={**measured.records})
    key = next(key for key in other.records if key.startswith("fashion-1000 act b 0.7"))
    (record, fates), *_ = other.records[key].values()
    low = SimpleNamespace(**{**vars(record), "clean": 0.4})
    other.records[key] = dict.fromkeys(other.records[key], (low, fates))
    assert page.drawn(act, other) != svg


def test_the_page_is_what_the_records_and_the_judges_say(
    effects: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    code = effects.check()
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("what", ["verdict", "table", "page"])
def test_what_was_edited_by_hand_is_found(
    effects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    shutil.copytree(ROOT / "leaderboards", tmp_path / "leaderboards")
    monkeypatch.chdir(tmp_path)
    file = effects.place("great")
    stored = json.loads(file.read_text())
    if what == "verdict":
        stored["claims"][0]["verdict"] = "shown"
    elif what == "table":
        stored["tables"]["great-masking/features"][0]["gradient_probe"] = 0.9
    else:
        effects.PAGE.write_text(effects.PAGE.read_text().replace("not shown", "shown"))
    file.write_text(json.dumps(stored))
    assert effects.check() == 1


def test_the_readme_says_what_acts_page_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (caption,) = re.findall(r"^\*Where ACT is good: .*$", readme, re.M)
    claims = json.loads((ROOT / "leaderboards" / "effects" / "act.json").read_text(encoding="utf-8"))["claims"][:2]
    said = " ".join(claim["ours"] + claim["difference"] for claim in claims)
    numbers = set(re.findall(r"[+-]?\d+\.\d+", caption)) - {"0.1"}
    assert len(numbers) >= 5
    for number in numbers:
        assert number in said, number


def test_verdicts_of_several_parts(effects: ModuleType) -> None:
    findings = importlib.import_module("findings")
    assert findings.mean_sd({0: 1.0, 1: 3.0}) == "2.0 ± 1.4" and findings.mean_sd([1.26]) == "1.3"
    assert [findings.verdict(*held) for held in ((True, True), (False, True), (False, False))] == [
        "shown",
        "shown only under PGD",
        "not shown",
    ]
    shown, small, refuted, neither = "shown", "shown, but small", "refuted", "not shown"
    for parts, whole in (
        ([shown, shown], shown),
        ([shown, small], small),
        ([shown, small, neither], neither),
        ([shown, neither, refuted], refuted),
    ):
        assert findings.worst(parts) == whole


def standing(shares: list[float], n: int) -> Any:
    """(seeds, n): for each seed the first images stand, a share of all."""
    return np.arange(n) < np.round(np.array(shares)[:, None] * n)


def test_a_paired_gain_has_the_errors_over_seeds_and_images(effects: ModuleType) -> None:
    findings = importlib.import_module("findings")
    ours, control = standing([0.62, 0.64, 0.63], 6000), standing([0.58, 0.60, 0.59], 6000)
    found = findings.gain(ours, control)
    assert found.mean == pytest.approx(4.0) and found.by_seed == pytest.approx((4.0, 4.0, 4.0)) and found.margin == 1
    accuracies = [100 * of.mean(axis=1) for of in (ours, control)]
    over_seeds = ttest_ind(*accuracies, equal_var=False).confidence_interval()
    over_images = ttest_1samp(100 * (ours.mean(axis=0) - control.mean(axis=0)), 0).confidence_interval()
    half = np.hypot(over_seeds.high - 4, over_images.high - 4)
    assert over_seeds.high - 4 == pytest.approx(2.776 * (2 / 3) ** 0.5, abs=0.01)  # of 4 degrees of freedom
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half)) and found.verdict == "shown"
    assert found.least == pytest.approx(half)
    back = findings.gain(control, ours)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))
    assert back.verdict == "refuted"
    # One seed has the error over images alone: 4 in 100 differ, so a mean of 4 points, of 100 sqrt(0.04 * 0.96 / n).
    alone = findings.gain(standing([0.62], 400), standing([0.58], 400))
    half = 1.966 * 100 * (0.04 * 0.96 / 399) ** 0.5
    assert (alone.low, alone.high) == pytest.approx((4 - half, 4 + half), abs=0.01) and alone.margin == 2


def test_two_numbers_of_the_same_nets_are_paired(effects: ModuleType) -> None:
    findings = importlib.import_module("findings")
    ours, control = {1: 72.0, 2: 75.0, 3: 61.0}, {1: 71.0, 2: 73.5, 3: 60.0}
    found, apart = (judge(ours, control, 1.0) for judge in (findings.of_the_same, findings.by_seeds))
    expected = ttest_1samp([1.0, 1.5, 1.0], 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high)) and found.verdict == "shown"
    assert (apart.mean, apart.by_seed) == (pytest.approx(found.mean), found.by_seed) and apart.verdict == "not shown"


@pytest.mark.parametrize(
    ("mean", "low", "high", "by_seed", "margin", "verdict"),
    [
        (1.2, 0.3, 2.1, (1.0, 1.1, 1.5), 1.0, "shown"),
        (1.2, 0.3, 2.1, (1.0, 1.1, 1.5), 2.0, "shown, but small"),
        (1.2, 0.3, 1.9, (1.0, 1.1, 1.5), 2.0, "shown, but small"),
        (1.2, -0.3, 2.7, (1.0, 1.1, 1.5), 1.0, "not shown"),
        (1.2, 0.3, 2.1, (-0.1, 1.5, 2.2), 1.0, "not shown"),
        (0.6, 0.3, 0.9, (-0.1, 0.9, 1.0), 1.0, "not shown"),
        (0.2, -0.5, 0.9, (0.1, 0.2, 0.3), 1.0, "refuted"),
        (0.2, -0.5, 1.5, (0.1, 0.2, 0.3), 1.0, "not shown"),
        (0.2, -0.5, 1.5, (0.1, 0.2, 0.3), 2.0, "refuted"),
    ],
)
def test_a_gain_is_shown_refuted_or_neither(
    effects: ModuleType, mean: float, low: float, high: float, by_seed: tuple[float, ...], margin: float, verdict: str
) -> None:
    gain = importlib.import_module("findings").Gain(mean, low, high, by_seed, margin)
    assert gain.verdict == verdict and replace(gain, never=(verdict,)).verdict == "not shown"


def test_no_gain_is_claimed_by_intervals(effects: ModuleType) -> None:
    findings = importlib.import_module("findings")
    none, wide, some = (
        findings.Gain(mean, low, high, (mean,) * 3, 1.0)
        for mean, low, high in ((0.0, -1.0, 1.5), (0.0, -9.0, 9.0), (3.0, 2.0, 4.0))
    )
    assert findings.absent([none, none], 2.0) == "shown" and findings.absent([none, wide], 2.0) == "not shown"
    assert findings.absent([none], 1.5) == "not shown" and findings.absent([none, some], 5.0) == "shown"
    assert findings.absent([none, some], 2.0) == "refuted"


def test_a_gain_that_a_flag_doubts_is_not_shown(effects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = importlib.import_module("findings")
    kept = {"ours": standing([0.62, 0.64], 6000), "control": standing([0.5, 0.52], 6000)}
    monkeypatch.setattr(findings.Numbers, "standing", lambda self, key, eps: kept[key])
    flags = {name: [SimpleNamespace(name="x", severity=name)] for name in ("note", "suspect")}
    for severity, verdict in (("note", "shown"), ("suspect", "not shown")):
        record = SimpleNamespace(flags=flags[severity], dataset=SimpleNamespace(images_sha256="0"))
        numbers = findings.Numbers({name: {1: (record, None), 2: (record, None)} for name in kept})
        assert numbers.gain("ours", "control", "0.1").verdict == verdict
        assert numbers.gain("ours", "control").verdict == "shown"  # no attack had a part in clean accuracy


def test_a_gain_over_a_net_at_chance_or_below_chance_is_not_shown(effects: ModuleType) -> None:
    findings = importlib.import_module("findings")

    def numbers(ours: list[float], control: list[float], *flags: str, **more: Any) -> Any:
        """Of 6,000 images such shares are right at 0.1, the first of them."""
        records = {}
        for name, shares in {"ours": ours, "control": control}.items():
            raised = [SimpleNamespace(name=flag, severity="suspect") for flag in flags if name == "control"]
            record = SimpleNamespace(
                flags=raised, dataset=SimpleNamespace(images_sha256="0"), curve=[SimpleNamespace(eps=0.1)]
            )
            rows = enumerate(standing(shares, 6000), 1)
            records[name] = {
                seed: (record, SimpleNamespace(standing=lambda place, right=right: right)) for seed, right in rows
            }
        return findings.Numbers(records, **more)

    def told(*of: Any, **more: Any) -> str:
        return str(numbers(*of, **more).gain("ours", "control", "0.1").verdict)

    assert told([0.3, 0.32], [0.1, 0.1]) == "shown" and told([0.3, 0.32], [0.1, 0.1], "constant") == "shown"
    assert told([0.3, 0.32], [0.1, 0.1], "at-chance") == "not shown"  # the control has not learned
    assert told([0.09, 0.095], [0.03, 0.032]) == "not shown"  # a constant classifier is more robust
    assert told([0.03, 0.032], [0.09, 0.095]) == "refuted"
    fresh, wide = (numbers([0.5, 0.51], [0.3, 0.31], **more) for more in ({"first": 2400}, {"level": 0.975}))
    gain = fresh.gain("ours", "control", "0.1")
    assert gain.mean == pytest.approx(100 * (0.505 * 6000 - 2400) / 3600)  # the control's are all among the first
    usual, wider = numbers([0.5, 0.51], [0.3, 0.31]).gain("ours", "control", "0.1"), wide.gain("ours", "control", "0.1")
    assert wider.mean == usual.mean and wider.high > usual.high and "(97.5 %: +" in str(wider)


def test_a_gain_is_of_the_same_seeds(effects: ModuleType) -> None:
    numbers = importlib.import_module("findings").Numbers({"a": {1: None, 2: None}, "b": {2: None, 3: None}})
    with pytest.raises(AssertionError, match="a and b have other seeds"):
        numbers.gain("a", "b")


def test_a_frontier_is_compared_at_equal_clean_accuracy(effects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = importlib.import_module("findings")
    shares = {
        "ours": (0.80, 0.60), "low": (0.78, 0.62), "high": (0.82, 0.50), "best": (0.90, 0.40), "beaten": (0.79, 0.45),
        "great": (0.95, 0.61), "poor": (0.70, 0.30),
    }  # fmt: skip
    kept = {name: [standing([share] * 2, 1000) for share in pair] for name, pair in shares.items()}
    monkeypatch.setattr(findings.Numbers, "standing", lambda self, key, eps: kept[key][0 if eps == "0" else 1])
    unflagged = SimpleNamespace(flags=[])
    numbers = findings.Numbers({name: {1: (unflagged, None), 2: (unflagged, None)} for name in kept})

    def compared(key: str, *rivals: str) -> tuple[float, str]:
        gain = numbers.at_equal_clean(key, rivals, "0.1")
        return round(gain.mean, 6), gain.verdict

    assert compared("ours", "best", "high", "low") == (60 - 56, "shown")
    assert compared("ours", "low", "beaten", "high") == (60 - 56, "shown")  # what another beats is not on the line
    assert compared("high", "high", "low") == (0, "refuted")
    assert compared("ours", "high", "best") == (60 - 50, "not shown")  # less clean than the line
    assert compared("best", "low", "high") == (40 - 50, "not shown")  # cleaner than the line
    assert compared("great", "low", "high") == (61 - 50, "shown") and compared("poor", "low") == (30 - 62, "refuted")
    kept["ours"][0] = standing([0.79, 0.81], 1000)  # each seed has its own place on the line
    assert numbers.at_equal_clean("ours", ["low", "high"], "0.1").by_seed == pytest.approx((60 - 59, 60 - 53))


def test_what_may_be_badly_tuned_is_not_refuted(effects: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, page, findings = map(importlib.import_module, ("evidence", "page", "findings"))
    monkeypatch.setattr(evidence.Tuning, "left", ())
    grid = (("optim.lr", ("0.1", "0.2", "0.3")), ("method.b", ("1", "2")))
    tuning = evidence.Tuning("tiny", evidence.Runs("tiny", "act"), grid)
    runs = tuning.runs("ours", (1,))

    def settled(robust: dict[str, int], verdict: str, gains: Any = None, **more: Any) -> str:
        """With so many of 1,000 held-out images that withstand, by the rate."""
        same = {"method": "act", "seed": 0, "weights": "best", "n": 1000, "clean_k": 900}
        rows = [
            SimpleNamespace(settings={"optim.lr": rate, "method.b": b}, robust_k=k - int(b), **same)
            for rate, k in robust.items()
            for b in "12"
        ]
        monkeypatch.setattr(evidence, "read", lambda file: rows)
        claim = evidence.Claim("a claim", "none", lambda numbers: None, (runs,), **more)
        return page.settled(claim, findings.conclude("", gains) if gains else findings.Finding("", verdict)).verdict

    middle, end = {"0.1": 500, "0.2": 600, "0.3": 500}, {"0.1": 500, "0.2": 590, "0.3": 600}
    assert settled(middle, "refuted") == "refuted" and settled(middle, "refuted", untuned=True) == "not shown"
    assert settled(end, "refuted") == "not shown" and settled(end, "shown") == "shown"
    level = {**end, "0.2": 591}  # within a point: one beyond the end is hardly better
    assert settled(level, "refuted") == "refuted" and tuning.chosen() == ("optim.lr=0.3", "method.b=1")
    # An earlier grid tried one beyond: the end counts only while that is better.
    beyond = [settled({**end, rate: k}, "refuted") for rate, k in (("0.4", 600), ("0.4", 601), ("0.05", 400))]
    assert beyond == ["refuted", "not shown", "not shown"]
    # A value beyond an end gains as much again as the last one did, here 1 point, and not more.
    gain = lambda mean: {"": findings.Gain(mean, mean - 0.5, mean + 0.5, (mean,) * 3, 1.0)}  # noqa: E731
    assert [settled(end, "", gain(mean)) for mean in (-3.0, -0.2)] == ["refuted", "not shown"]
    assert [settled(middle, "", gain(mean)) for mean in (-3.0, -0.2)] == ["refuted", "refuted"]
    # A control's counts against what is shown.
    theirs = {"own": (replace(runs, label="others", tuned=None),)}
    told = [settled(end, "", gain(mean), **theirs) for mean in (4.0, 1.2, 0.6)]
    assert told == ["shown", "not shown", "not shown"]
    assert [settled(middle, "", gain(mean), **theirs) for mean in (4.0, 1.2)] == ["shown", "shown"]
    monkeypatch.setattr(evidence, "read", lambda file: [])  # as where every try diverged
    assert tuning.at_edge() == {} and runs.recipe_sha256(1) is None


@pytest.fixture
def small(effects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `run` in an empty folder, with one small system."""
    evidence, findings = importlib.import_module("evidence"), importlib.import_module("findings")
    few = ("train_n=64", "batch_size=32", "validation.held_out=32", "validation.select=last")
    tuning = evidence.Tuning("tiny", evidence.Runs("tiny tuning", "pgd-at", common=few, epochs=1), GRID)
    tuned, plain = tuning.runs("tiny", (1, 2)), evidence.Runs("plain", "standard", common=few, epochs=1, seeds=(1, 2))
    again = replace(plain, label="plain again")
    rated = [evidence.Evaluation(runs, "0,0.1", "pgd", n=40, sets=("steps=2",)) for runs in (tuned, plain, again)]

    def judge(numbers: Any) -> Any:
        gain = numbers.gain(rated[0].key, rated[1].key, "0.1")
        return findings.Finding(f"margin {gain.margin}", gain.verdict, str(gain))

    effect = evidence.Effect(
        "tiny", "nobody", (evidence.Claim("a claim", "none", judge, (tuned, plain, again)),), (tuned, plain, again),
        tuple(rated),
        (evidence.Analysis("tiny", "features", (plain,), ("-n", "20")),),
    )  # fmt: skip
    monkeypatch.setattr(effects, "load", lambda name: effect)
    monkeypatch.setattr(effects, "ORDER", ("tiny",))
    monkeypatch.setattr(effects, "HERE", tmp_path / "tests" / "effects")
    monkeypatch.chdir(tmp_path)
    return effects


GRID = (("optim.lr", ("0.02", "0.05")),)


def test_what_is_measured_is_not_done_again(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = importlib.import_module("workers")  # here they have no processes of their own, which need long to start
    monkeypatch.setattr(workers.Workers, "each", lambda self, tasks: [task() for task in tasks])
    monkeypatch.setattr(workers.Workers, "run", lambda self, command: cli.run(list(command)) == 0)
    monkeypatch.setattr(sys, "argv", ["run.py", "--jobs", "1"])
    assert small.main() == 0
    said = capfd.readouterr().out
    assert "tiny: nothing was run" not in said and said.count("is a copy of") == 2  # the recipe of two others
    (claim,) = small.read("tiny")["claims"]
    assert claim["ours"] == "margin 2.0" and claim["verdict"] != "not measured yet" and "to" in claim["difference"]
    assert claim["regime"].startswith("digits, mlp net, 64 training images, 1 epoch, 2 seeds")
    assert small.check() == 0
    shutil.rmtree("effects")  # a clone has what is kept alone
    before = {file: file.read_bytes() for file in Path("leaderboards").rglob("*") if file.is_file()}
    assert small.main() == 0
    assert "tiny: nothing was run, all of it is measured" in capfd.readouterr().out and not Path("effects").exists()
    assert {file: file.read_bytes() for file in Path("leaderboards").rglob("*") if file.is_file()} == before
    fewer = replace(small.load("tiny"), evaluations=small.load("tiny").evaluations[:2])
    with monkeypatch.context() as patch:
        patch.setattr(small, "load", lambda name: fewer)
        assert small.check() == 1 and "nothing asks for plain again pgd n=40" in capfd.readouterr().out
    trained, records, (_, asked, _) = small.read("tiny")["trained"], small.measured(), small.load("tiny").evaluations
    other = replace(asked.runs, common=(*asked.runs.common, "optim.lr=0.03"))  # what is asked for has changed
    assert small.facts_of(asked.runs, 1, trained) and not small.facts_of(other, 1, trained)
    assert small.found(records, asked, 1, trained)
    for changed in ({"runs": other}, {"sets": ("steps=3",)}, {"n": 0}, {"eps": "0,0.2"}):
        assert not small.found(records, replace(asked, **changed), 1, trained), changed
    last = replace(asked, file="last.safetensors")  # the only epoch is the best and the last one
    assert small.found(records, last, 1, trained)
    trained[asked.runs.label]["1"]["best_epoch"] = 0
    assert not small.found(records, last, 1, trained)


def test_a_seed_more_is_run_alone(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = importlib.import_module("workers")
    asked: list[list[str]] = []
    run = lambda self, command: not asked.append(command) and cli.run(list(command)) == 0  # noqa: E731
    monkeypatch.setattr(workers.Workers, "run", run)
    monkeypatch.setattr(sys, "argv", ["run.py", "--jobs", "1", "--only", "plain"])
    tiny = small.load("tiny")
    for seeds in ((1,), (1, 2, 3)):
        runs = replace(tiny.runs[1], seeds=seeds)
        asks = replace(tiny.evaluations[1], runs=runs)
        effect = replace(tiny, runs=(runs,), evaluations=(asks,), analyses=(), claims=())
        monkeypatch.setattr(small, "load", lambda name, effect=effect: effect)
        assert small.main() == 0
        shutil.rmtree("effects")  # of what is kept alone it is known what is measured
    seeds = [value for command in asked if command[0] == "train" for value in options(command, "--seed")]
    assert seeds == ["1", "2", "3"] and sum(command[0] == "evaluate" for command in asked) == 3
    assert small.read("tiny")["trained"]["plain"].keys() == {"1", "2", "3"}
    other = replace(effect, system="other")  # with the same runs as controls
    monkeypatch.setattr(small, "load", lambda name: other)
    monkeypatch.setattr(small, "ORDER", ("other",))
    assert small.main() == 0 and len(asked) == 6
    assert small.read("other")["trained"] == small.read("tiny")["trained"]


def test_a_run_of_another_recipe_is_put_aside(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = importlib.import_module("workers")
    monkeypatch.setattr(workers.Workers, "run", lambda self, command: cli.run(list(command)) == 0)
    monkeypatch.setattr(sys, "argv", ["run.py", "--jobs", "1"])
    tiny = small.load("tiny")
    plain = replace(tiny.runs[1], seeds=(1, 2))
    analysis = replace(tiny.analyses[0], runs=(plain,))
    recipes = {}
    for rate in ("0.02", "0.05"):
        runs = replace(plain, common=(*plain.common, f"optim.lr={rate}"))
        analysis = replace(analysis, runs=(runs,))
        effect = replace(tiny, runs=(runs,), evaluations=(), analyses=(analysis,), claims=())
        monkeypatch.setattr(small, "load", lambda name, effect=effect: effect)
        if recipes:  # the table that is kept is of the runs of before
            assert small.check() == 1 and "tiny is of other runs: make effects SYSTEM=tiny" in capfd.readouterr().out
            small.collect(effect)
            assert not small.place("tiny").is_file()
        assert small.main() == 0 and small.check() == 0
        recipes[rate] = small.read("tiny")["analysed"]["tiny"]["recipes"]
        assert recipes[rate] == [runs.recipe_sha256(seed) for seed in (1, 2)]
    cards = {path.parent.name: json.loads(path.read_text()) for path in Path("effects/runs").glob("*/run.json")}
    assert {name: card["recipe_sha256"] for name, card in cards.items()} == {
        **{f"plain-s{seed}": recipes["0.05"][seed - 1] for seed in (1, 2)},
        **{f"plain-s{seed}-{old[:8]}": old for seed, old in zip((1, 2), recipes["0.02"], strict=True)},
    }


def test_a_part_that_does_not_exist_is_refused(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "tinny"])
    assert small.main() == 2
    assert "tiny: no run begins with tinny" in capfd.readouterr().err and not Path("effects").exists()


def test_a_grid_that_grows_is_run_for_what_it_lacks(small: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = importlib.import_module("workers")
    asked: list[list[str]] = []
    run = lambda self, command: not asked.append(command) and cli.run(list(command)) == 0  # noqa: E731
    monkeypatch.setattr(workers.Workers, "run", run)
    tuning = small.load("tiny").runs[0].tuned
    at_work = workers.Workers(1)
    workers.tune(at_work, tuning)
    assert tuning.done and tuning.at_edge() == {} and len(tuning.file.read_text().splitlines()) == 1 + 2 * 2
    shutil.rmtree("effects")
    grown = replace(tuning, grid=(("optim.lr", ("0.01", "0.02", "0.03", "0.05")),))
    assert not grown.done and grown.left == (("optim.lr", ("0.01", "0.03")),)
    with pytest.raises(KeyError, match="tiny"):
        grown.chosen()
    workers.tune(at_work, grown)
    assert options(asked[1], "--grid") == ["optim.lr=0.01,0.03"] and grown.done and tuning.done
    assert len(grown.file.read_text().splitlines()) == 1 + 4 * 2
    assert replace(tuning, grid=(("optim.lr", ("0.02", "0.07")),)).left == (("optim.lr", ("0.02", "0.07")),)


def test_what_fails_lets_the_others_go_on_and_an_interruption_does_not(
    effects: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = importlib.import_module("workers")
    codes = {"diverges": 2, "interrupted": 3}
    run = lambda words, **more: SimpleNamespace(returncode=codes.get(words[-1], 0))  # noqa: E731
    monkeypatch.setattr(workers.subprocess, "run", run)
    at_work = workers.Workers(1)
    done = [at_work.run([word]) for word in ("trains", "diverges", "trains", "interrupted", "trains")]
    said = capfd.readouterr().out
    assert done == [True, False, True, False, False] and at_work.code == 3
    assert said.count("$ advbench") == 4 and "failed, the others go on: advbench diverges" in said
    assert said.count("stopped: run the same command to continue") == 1


def test_boards_have_every_method_and_a_recipe_for_each(effects: ModuleType) -> None:
    board = importlib.import_module("board")
    assert sorted(board.METHODS) == sorted(entries("methods")) and set(board.FIRST) < set(board.METHODS)
    for tuning in board.tunings():
        grids_fit(tuning)
        assert tuning.tries == 9 and not set(board.SEEDS) & set(tuning.base.seeds)
    for name, method in product(board.BOARDS, board.METHODS):
        row = board.evaluation(name, method)
        assert row.runs.tuned is None or row.runs.tuned in board.tunings()
        recipe = recipe_of(replace(row.runs, tuned=None).command(0))
        assert recipe.train_n == 0 and recipe.validation.n == recipe.validation.held_out == 2000
        assert recipe.epochs >= 10 or method == "learned-optimizer"
        assert (recipe.augment.policy, recipe.augment.cutout) == ("none", 0) or name == "cifar10"
        assert row.leaderboard / "records" in effects.RECORDS


def test_a_board_measures_nothing_that_leaderboards_has(
    effects: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = importlib.import_module("board")
    monkeypatch.setattr(board, "measure", lambda *_: pytest.fail("a measured row is run again"))
    monkeypatch.setattr(sys, "argv", ["board.py", "mnist", "pgd-at"])
    assert board.main() == 0
    assert capsys.readouterr().out == "mnist: nothing was run, all seeds are measured of pgd-at\n"


def test_a_board_is_of_the_methods_that_tell_most_unless_others_are_asked_for(
    effects: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = importlib.import_module("board")
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(board, "measured", list)
    monkeypatch.setattr(board, "measure", lambda at_work, row, seed: asked.append((row.runs.method, seed)))
    monkeypatch.setattr(sys, "argv", ["board.py", "--jobs", "1", "mnist"])
    assert board.main() == 0
    assert asked == [(method, seed) for seed, method in product(board.SEEDS, board.FIRST)]
    asked.clear()
    monkeypatch.setattr(sys, "argv", ["board.py", "--jobs", "1", "mnist", "act", "free-at"])
    assert board.main() == 0 and asked == [(m, s) for s, m in product(board.SEEDS, ("act", "free-at"))]
    monkeypatch.setattr(sys, "argv", ["board.py", "mnist", "at"])
    with pytest.raises(SystemExit):
        board.main()
    assert "unknown method at: choose from pgd-at, trades" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["fashion-mnist", "mnist"])
def test_every_method_has_its_row(dataset: str) -> None:
    table = pd.read_csv(ROOT / f"leaderboards/brief/{dataset}-linf.csv")
    full = table[(table["attack"] == "autoattack") & (table["n"] >= 1000)]
    assert set(full["method"]) == set(entries("methods")) and full["arch"].nunique() == 1
