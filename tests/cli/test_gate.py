"""The gate on the command line: what it passes, fails and refuses, and the baseline that `evaluate` saves for it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from measurements import fallen, made, other_images

import advbench
from advbench.eps import Eps
from advbench.errors import UserError
from advbench.record import AttackRef, Engine, Flag, Record, load_record

GATE = ["--fail-if", "acc@4/255 < baseline - 1"]
PGD = ["--attack", "pgd", "--eps", "0,0.1", "-n", "100"]


def write(file: str, lost: int = 0, **changes: Any) -> str:
    unit = made(fallen([180, 140 - lost, 100 - lost], 200), spec=file, **changes)
    unit.record.save_as(Path(file), unit.fates)
    return file


# --- comparable and believed, one by one ----------------------------------------------------------------


def attack(name: str = "pgd", version: str = "1", **settings: Any) -> dict[str, Any]:
    return {"attack": [AttackRef(name=name, version=version, settings=settings)]}


def engine(name: str = "advbench", version: str = "1", slots: int = 64, precision: Any = "fp32") -> dict[str, Any]:
    return {"engine": Engine(name=name, version=version, slots=slots, precision=precision)}


@pytest.mark.parametrize("lost", [0, 20])
@pytest.mark.parametrize(
    ("changes", "option"),
    [
        (other_images(200), "--unpaired"),
        ({"norm": "l2"}, "--different-attacks"),
        (attack("fgsm"), "--different-attacks"),
        (attack(steps=5), "--different-attacks"),
        (attack(version="2"), "--different-attacks"),
        (engine("pyautoattack", "0.2"), "--different-attacks"),
        (engine(version="2"), "--different-attacks"),
    ],
    ids=["images", "norm", "attack", "setting", "attack version", "engine kind", "engine version"],
)
def test_what_was_measured_differently_is_exit_2(cli: Any, changes: dict[str, Any], option: str, lost: int) -> None:
    sides = ["compare", write("new.json", lost, **changes), "--baseline", write("base.json")]
    for strict in ([], ["--strict"]):
        ran = cli(*sides, *GATE, *strict)
        assert ran.is_one_clear_line, ran
        assert f"compare them with {option}" in ran.err
    for allowed in ([option], [option, "--strict"]):
        ran = cli(*sides, *GATE, *allowed)
        assert ran.code == (1 if lost else 0), ran
        assert ran.out.startswith("Not measured alike: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (engine(slots=128), "slots (128; 64)"),
        (engine(precision="bf16"), "precision (bf16; fp32)"),
        ({"device": "cuda"}, "device (cuda; cpu)"),
    ],
    ids=["slots", "precision", "device"],
)
def test_slots_precision_and_device_are_reported(cli: Any, changes: dict[str, Any], says: str) -> None:
    for lost, code in ((0, 0), (20, 1)):
        ran = cli("compare", write("new.json", lost, **changes), "--baseline", write("base.json"), *GATE)
        assert ran.code == code and says in ran.out and "Not measured alike" not in ran.out


@pytest.mark.parametrize(
    ("name", "severity", "lost"),
    [
        *product(["zero-gradient"], ["suspect", "broken"], [0, 20]),
        *product(["square-wins", "random", "at-chance", "not-probed"], ["suspect"], [20]),
    ],
)
def test_what_is_doubted_is_exit_2(cli: Any, name: str, severity: Any, lost: int) -> None:
    flags = {eps: [Flag(name=name, severity=severity, eps=eps)] for eps in (None, 4 / 255, 8 / 255)}
    for eps in (None, 4 / 255):
        for new, base in ((flags[eps], []), ([], flags[eps])):
            sides = ["compare", write("new.json", lost, flags=new), "--baseline", write("base.json", flags=base)]
            for strict in ([], ["--strict"]):
                ran = cli(*sides, *GATE, *strict)
                assert ran.is_one_clear_line and f"{name} ({severity})" in ran.err, ran
                assert cli(*sides, *GATE, *strict, "--allow-flags", name).code == (1 if lost else 0)
    above = ["compare", write("new.json", lost, flags=flags[8 / 255]), "--baseline", write("base.json")]
    assert cli(*above, *GATE).code == (1 if lost else 0)


def test_reports_of_a_refusal(cli: Any) -> None:
    flags = [Flag(name="zero-gradient", severity="broken")]
    sides = ["compare", write("new.json", flags=flags), "--baseline", write("base.json"), *GATE]
    for form in ("table", "csv"):
        assert cli(*sides, "--format", form).is_one_clear_line
    for form in ("markdown", "junit", "json"):
        ran = cli(*sides, "--format", form)
        assert ran.code == 2 and ran.err.count("\n") == 1 and "zero-gradient (broken)" in ran.err
        assert "zero-gradient (broken)" in ran.out
    assert json.loads(cli(*sides, "--json").out)["gate"]["failed"] is None
    suite = ElementTree.fromstring(cli(*sides, "--format", "junit").out.partition("\n")[2])
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")


def test_a_floor_needs_one_model_alone(cli: Any) -> None:
    new = write("new.json", 1)
    assert cli("compare", new, "--fail-if", "acc@4/255 < 69.5").code == 0
    ran = cli("compare", new, "--fail-if", "acc@4/255 < 70")
    assert ran.code == 1 and "69.5 is below 70" in ran.out and "baseline" not in ran.out.splitlines()[-2]
    for form in ("csv", "markdown", "junit", "json"):
        ran = cli("compare", new, "--fail-if", "acc@4/255 < 70", "--format", form)
        assert ran.code == 1 and "acc@4/255 < 70" in ran.out.replace("&#64;&#8288;", "@").replace("&lt;", "<"), ran
    assert cli("compare", new, "--fail-if", "acc@4/255 < 70", "--plot", "f.svg").code == 1
    assert (cli.folder / "f.svg").stat().st_size > 1000


@pytest.mark.parametrize(("model", "more"), [("std", []), ("std.pt", ["--arch", "mlp", "--dataset", "digits"])])
def test_a_refusal_names_a_command_that_removes_the_difference(here: Any, model: str, more: list[str]) -> None:
    """Candidates that were measured otherwise are measured as the baseline was, by the command of the message."""
    base = ["--attack", "pgd", "--set", "steps=3", "--eps", "0,0.1", "-n", "60", "--subset", "random:2"]
    torch.save(advbench.load_model("std").net.state_dict(), "std.pt")
    assert here("evaluate", "--model", "good", *base, "--save-baseline", "base.json").code == 0
    gate = ["compare", model, "--baseline", "base.json", "--fail-if", "clean < baseline - 50", "--alpha", "0.9"]
    for other in (
        ["--attack", "fgsm", "--eps", "0,0.1", "-n", "60", "--subset", "random:2"],
        ["--attack", "pgd", "--set", "steps=2", "--eps", "0,0.1", "-n", "60", "--subset", "random:2"],
        ["--attack", "pgd", "--set", "steps=3", "--eps", "0,0.1", "-n", "70"],
        ["--attack", "pgd", "--set", "steps=3", "--norm", "l2", "--eps", "0,0.1", "-n", "60", "--subset", "random:2"],
    ):
        shutil.rmtree(here.folder / "std/records", ignore_errors=True)
        shutil.rmtree(here.folder / "records", ignore_errors=True)
        assert here("evaluate", "--model", model, *more, *other).code == 0
        ran = here(*gate)
        assert ran.is_one_clear_line and "--again" not in ran.err, ran
        command = shlex.split(ran.err.partition("Measure alike by ")[2].partition(", or compare them with --")[0])
        assert command[: 4 + len(more[:2])] == ["advbench", "evaluate", "--model", model, *more[:2]]
        assert here(*command[1:]).code == 0
        ran = here(*gate)
        assert "not measured as the baseline" not in ran.err, ran


@pytest.mark.parametrize("gone", [False, True])
def test_a_renewal_says_where_the_weights_have_to_be_named(cli: Any, gone: bool) -> None:
    spec = "net.safetensors"
    if not gone:
        Path(spec).write_bytes(b"x")
    unit, new = (made(fallen([180, 140, 100], 200), spec=spec, **engine(version=version)) for version in "12")
    unit.record.save_as(Path("base.json"), unit.fates)
    new.record.save_as(Path("new.json"), new.fates)
    ran = cli("compare", "new.json", "--baseline", "base.json", *GATE)
    place = "'<where its weights are>'" if gone else spec
    assert ran.is_one_clear_line
    assert f"Renew the baseline by advbench evaluate --again base.json --model {place} --save-baseline" in ran.err
    older = cli("compare", "base.json", "--baseline", "new.json", *GATE)  # here the candidate is what is old
    assert "--again" not in older.err and f"Measure alike by advbench evaluate --model {place}" in older.err


def test_a_record_that_was_there_keeps_its_flags_and_the_user_is_told(here: Any) -> None:
    command = ["evaluate", "--model", "good", *PGD]
    assert here(*command).code == 0
    (file,) = (here.folder / "good/records/digits/linf").glob("*.json")
    record, fates = load_record(file)
    file.unlink()
    flags = [Flag(name="random", severity="suspect", eps=0.1), *(one for one in record.flags if one.name != "small-n")]
    (record.model_copy(update={"flags": tuple(flags)})).save("good", fates)
    ran = here(*command)
    assert ran.code == 0 and f"warning: record {record.id} was there before, and keeps its flags: " in ran.err
    assert "only there random (suspect at 0.1); only now small-n (note)" in ran.err, ran
    assert "keeps its flags" not in here("evaluate", "--model", "good", *PGD, "--out", "fresh").err


# --- on models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two robust nets, one hardly trained, a standard one, and its copy that hides its gradients."""
    from advbench import train

    folder = tmp_path_factory.mktemp("nets")
    common: dict[str, Any] = {"dataset": "digits", "arch": "mlp", "device": "cpu"}
    few = {"train_n": 512, "batch_size": 32, "validation.n": 64}
    steps = {**few, "inner.steps": 2, "optim.lr": 0.05}
    train("pgd-at", eps="0.1", epochs=6, settings=steps, out=folder / "good", **common)
    train("pgd-at", eps="0.1", epochs=1, settings={**steps, "optim.lr": 1e-4}, out=folder / "bad", **common)
    train("standard", epochs=6, settings={**few, "optim.lr": 0.05}, out=folder / "std", **common)
    (folder / "masked.py").write_text(
        "import advbench\n"
        "from torch import nn\n"
        "class Masked(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = advbench.load_model('std').net\n"
        "    def forward(self, x):\n"
        "        return self.net(x.detach())\n"
        "def make():\n"
        "    return Masked().eval()\n"
    )
    return folder


@pytest.fixture
def here(cli: Any, nets: Path) -> Any:
    shutil.copytree(nets, cli.folder, dirs_exist_ok=True)
    return cli


@pytest.fixture
def measure(here: Any) -> Callable[..., Path]:
    """Evaluate a model, and return the file of its record."""

    def run(model: str, out: str, *flags: str) -> Path:
        ran = here(
            "evaluate", "--model", model, "--dataset", "digits", "--eps", "0,0.1", "-n", "100", "--out", out, *flags
        )
        assert ran.code == 0, ran
        (file,) = (here.folder / out / "records/digits/linf").glob("*.json")
        return Path(file)

    return run


def test_a_far_worse_model_fails_by_its_area(here: Any, measure: Any) -> None:
    """Nets that are hardly trained are flagged (at-chance, weak-attack): their gates need --allow-flags."""
    good, bad = measure("good", "G", "--attack", "pgd"), measure("bad", "B", "--attack", "pgd")
    believed = ["--allow-flags", ",".join(flag.name for file in (good, bad) for flag in load_record(file)[0].flags)]
    ran = here("compare", bad, "--baseline", good, "--fail-if", "auc < baseline - 1", *believed)
    assert ran.code == 1 and "Regression" in ran.out, ran
    ran = here("compare", good, "--baseline", bad, "--fail-if", "auc < 10", *believed)
    assert ran.code == 0 and "No regression" in ran.out, ran


def test_an_unchanged_model_passes(here: Any, measure: Any) -> None:
    first, second = (measure("good", out, "--attack", "pgd") for out in ("G", "G2"))
    ran = here("compare", second, "--baseline", first, "--fail-if", "acc@0.1 < baseline - 1")
    assert first != second and ran.code == 0 and "identical to the baseline" in ran.out, ran


def test_a_weaker_attack_is_refused(here: Any, measure: Any) -> None:
    good = measure("good", "G", "--attack", "pgd")
    for out, flags in (
        ("W", ["--attack", "fgsm", "--set", "rel_step=0.01"]),
        ("S", ["--attack", "square", "--set", "n_queries=1"]),
    ):
        weak = measure("std", out, *flags)
        for strict in ([], ["--strict"]):
            ran = here("compare", weak, "--baseline", good, "--fail-if", "acc@0.1 < baseline - 0.5", *strict)
            assert ran.is_one_clear_line and "different attacks" in ran.err, ran


def test_a_broken_candidate_is_refused(here: Any, measure: Any) -> None:
    good, masked = measure("good", "G", "--attack", "pgd"), measure("masked:make", "M", "--attack", "pgd")
    gate = ["compare", masked, "--baseline", good, "--fail-if", "acc@0.1 < baseline - 0.5"]
    for strict in ([], ["--strict"]):
        ran = here(*gate, *strict)
        assert ran.is_one_clear_line and "zero-gradient (broken)" in ran.err, ran
    assert 'failures="1"' in here(*gate, "--format", "junit").out


@pytest.mark.parametrize("spec", ["net.safetensors", "mynet:make"])
def test_what_a_spec_stood_for_before_is_no_seed_of_it(here: Any, spec: str) -> None:
    """Without a recipe one spec is one model, and the weights that were measured last are its weights."""
    (here.folder / "mynet.py").write_text("import advbench\ndef make():\n    return advbench.load_model('now').net\n")
    flags = ["--model", spec, "--dataset", "digits", *PGD, *(["--arch", "mlp"] if spec == "net.safetensors" else [])]

    def become(run: str, *more: str) -> None:
        shutil.copytree(here.folder / run, here.folder / "now", dirs_exist_ok=True)
        shutil.copy(here.folder / run / "model.safetensors", here.folder / "net.safetensors")
        ran = here("evaluate", *flags, *more)
        assert ran.code == 0, ran

    become("good", "--save-baseline", "base.json")
    become("bad")
    flagged = {flag.name for file in here.folder.glob("records/*/*/*.json") for flag in load_record(file)[0].flags}
    gate = ["--fail-if", "clean < baseline - 1", "--allow-flags", ",".join(flagged)]
    ran = here("compare", spec, "--baseline", "base.json", *gate)
    assert ran.code == 1 and "One model on each side" in ran.out and "Welch" not in ran.out, ran


def test_old_weights_are_not_compared_where_the_new_ones_were_measured_elsewhere(cli: Any) -> None:
    """The newest record is in another norm: that of the old weights in this one says nothing of the model now."""
    base = write("base.json")
    for weights, norm, day in (("1", "linf", 1), ("2", "l2", 2)):
        unit = made(fallen([180, 140, 100], 200), spec="net:make", norm=norm, date=f"2026-08-0{day}T00:00:00+00:00")
        model = unit.record.model.model_copy(update={"weights_sha256": weights * 64, "trained": None})
        parts = {name: getattr(unit.record, name) for name in ("dataset", "norm", "attack", "engine", "seed")}
        eps = [Eps(point.eps_text, point.eps) for point in unit.record.curve]
        record = Record.of(unit.fates, model=model, eps=eps, environment=unit.record.environment, **parts)
        record.save(cli.folder, unit.fates)
    ran = cli("compare", "net:make", "--baseline", base, "--norm", "linf", *GATE)
    assert ran.is_one_clear_line and "there is no record of net:make on linf: choose from cifar10 in l2" in ran.err, ran


def test_several_files_that_are_named_are_seeds(here: Any) -> None:
    for name in ("good", "std"):
        shutil.copy(here.folder / name / "model.safetensors", here.folder / f"{name}.safetensors")
        ran = here("evaluate", "--model", f"{name}.safetensors", "--arch", "mlp", "--dataset", "digits", *PGD)
        assert ran.code == 0, ran
    ran = here("compare", "good.safetensors,std.safetensors", "--baseline", "good.safetensors")
    assert ran.code == 0 and "good.safetensors,std.safetensors: 2" in ran.out, ran


def test_an_area_needs_every_eps_of_the_baseline(cli: Any) -> None:
    """One over fewer eps, down to the clean accuracy alone, could hide any loss of robustness."""
    grids = {"base": "0,0.1,0.2", "clean": "0,8/255,16/255", "fewer": "0,0.1,0.15", "more": "0,0.1,0.15,0.2"}
    files = {name: write(f"{name}.json", eps=grid, lost=10) for name, grid in grids.items() if name != "more"}
    unit = made(fallen([180, 140, 120, 100], 200), spec="more.json", eps=grids["more"])
    unit.record.save_as(Path("more.json"), unit.fates)
    gate = ("--baseline", files["base"], "--fail-if", "auc < baseline - 1")
    for name in ("clean", "fewer"):
        ran = cli("compare", files[name], *gate)
        assert ran.is_one_clear_line and "measure with --eps 0,0.1,0.2" in ran.err, ran
        assert grids[name].replace(",", ", ") in ran.err, ran
    assert cli("compare", "more.json", *gate).code == 0
    ran = cli("compare", files["clean"], "--baseline", files["base"])
    assert ran.code == 0 and "clean" in ran.out and "\nauc" not in ran.out and "no auc" in ran.out, ran


def test_a_record_that_a_leaderboard_retires_is_refused_in_the_run_folder_too(here: Any) -> None:
    assert here("evaluate", "--model", "good", *PGD, "--leaderboard", "LB", "--save-baseline", "base.json").code == 0
    (file,) = (here.folder / "LB/records/digits/linf").glob("*.json")
    gate = ["compare", "good", "--baseline", "base.json", "--fail-if", "clean < baseline"]
    assert here(*gate).code == 0
    assert here("leaderboard", "LB", "retire", file.stem, "--why", "a bug").code == 0
    ran = here(*gate)
    assert ran.is_one_clear_line and f"good: record {file.stem} is retired: a bug" in ran.err, ran
    file.with_name(f"{file.stem}.notice.json").write_text("{}")
    ran = here(*gate)
    assert ran.is_one_clear_line and "notice" in ran.err, ran


@pytest.mark.parametrize("gate", [[], GATE])
def test_a_retired_record_is_refused_and_a_renamed_one_has_its_new_name(cli: Any, gate: list[str]) -> None:
    ids = {}
    for spec, lost in (("base", 0), ("new", 20)):
        unit = made(fallen([180, 140 - lost, 100 - lost], 200), spec=spec, name=f"old {spec}")
        ids[spec] = unit.record.save("leaderboards", unit.fates).stem
        unit.record.save_as(Path(f"{spec}.json"), unit.fates)
    code = 1 if gate else 0
    assert cli("leaderboard", "leaderboards", "rename", ids["new"], "Net, the new").code == 0
    for name in ("Net, the new", "new", "new.json", ids["new"]):
        ran = cli("compare", name, "--baseline", "base", *gate)
        assert ran.code == code and "Net, the new" in ran.out and "old new" not in ran.out, ran
    assert cli("compare", "old new", "--baseline", "base", *gate).is_one_clear_line
    assert cli("leaderboard", "leaderboards", "retire", ids["new"], "--why", "trained on test images").code == 0
    for sides in (["new", "--baseline", "base"], ["base", "--baseline", "new.json"]):
        ran = cli("compare", *sides, *gate, *(["--allow-flags", "random", "--different-attacks"] if gate else []))
        assert ran.is_one_clear_line and f"record {ids['new']} is retired: trained on test images" in ran.err, ran
    assert 'failures="1"' in cli("compare", "new", "--baseline", "base", *gate, "--format", "junit").out


# --- the baseline ---------------------------------------------------------------------------------------


def test_a_baseline_is_saved_used_and_renewed(here: Any) -> None:
    ran = here("evaluate", "--model", "good", *PGD, "--name", "mine", "--save-baseline", "ci/base.json")
    assert ran.code == 0 and "baseline ci/base.json" in ran.err, ran
    record, _ = load_record(here.folder / "ci/base.json")
    assert {file.name for file in (here.folder / "ci").iterdir()} == {"base.json", "base.npz"}
    assert (here.folder / f"good/records/digits/linf/{record.id}.json").read_text() == (
        here.folder / "ci/base.json"
    ).read_text()
    gate = ["compare", "good", "--baseline", "ci/base.json", "--fail-if", "acc@0.1 < baseline - 1"]
    assert here(*gate).code == 0
    # The baseline of an older engine, whose renewal the message names.
    old = record.engine.model_copy(update={"version": "0"})
    parts = {name: getattr(record, name) for name in ("model", "dataset", "norm", "attack", "seed", "environment")}
    _, fates = load_record(here.folder / "ci/base.json")
    grid = [Eps(point.eps_text, point.eps) for point in record.curve]
    Record.of(fates, **parts, engine=old, eps=grid).save_as(here.folder / "ci/base.json", fates)
    ran = here(*gate)
    command = "advbench evaluate --again ci/base.json --model good --save-baseline ci/base.json"
    assert ran.is_one_clear_line and "different engines" in ran.err and command in ran.err, ran
    renewed = here(*command.split()[1:])
    assert renewed.code == 0 and "the engine changed since" in renewed.out, renewed
    assert here(*gate).code == 0
    renewed_record, _ = load_record(here.folder / "ci/base.json")
    assert (renewed_record.id, renewed_record.model.name) == (record.id, "mine")


def test_a_baseline_is_also_saved_of_what_was_measured_before(here: Any) -> None:
    assert here("evaluate", "--model", "good", *PGD).code == 0
    ran = here("evaluate", "--model", "good", *PGD, "--resume", "--save-baseline", "base.json")
    assert ran.code == 0 and "measured before" in ran.out and load_record(here.folder / "base.json")


def test_a_doubted_baseline_is_warned_of(here: Any) -> None:
    ran = here("evaluate", "--model", "masked:make", "--dataset", "digits", *PGD, "--save-baseline", "base.json")
    assert ran.code == 0 and "warning: gates will not believe the baseline base.json" in ran.err
    assert "zero-gradient" in ran.err


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("base", "name a .json file"),
        ("other.json", "would replace what is no baseline"),
        ("folder.json", "would replace what is no baseline"),
        ("arrays.json", "would replace arrays.npz"),
        ("LB/records/digits/linf/0123456789abcdef.json", "records are never edited"),
        ("other.json/base.json", "other.json is a file"),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_baseline_that_cannot_be_written_is_refused_before_the_attack(
    here: Any, monkeypatch: pytest.MonkeyPatch, file: str, says: str, again: bool
) -> None:
    (here.folder / "other.json").write_text('{"mine": 1}')
    (here.folder / "arrays.npz").write_bytes(b"mine")
    (here.folder / "folder.json").mkdir()
    command = ["evaluate", "--model", "good", *PGD]
    if again:
        assert here(*command, "--out", "G").code == 0
        (record,) = (here.folder / "G/records/digits/linf").glob("*.json")
        command = ["evaluate", "--again", record]
    before = here.files()
    monkeypatch.setattr("advbench.evaluator.evaluate", lambda *_, **__: pytest.fail("it was attacked"))
    ran = here(*command, "--save-baseline", file)
    assert ran.is_one_clear_line and says in ran.err, ran
    assert here.files() == before


def test_one_baseline_is_of_one_model(here: Any) -> None:
    ran = here("evaluate", "--model", "good", "--model", "bad", *PGD, "--save-baseline", "base.json")
    assert ran.is_one_clear_line and "one model" in ran.err


@pytest.mark.parametrize("stop", range(4))
def test_a_kill_leaves_the_older_or_the_newer_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Stopped before each of the steps by which files are put in place, and then tried again."""
    from advbench import files

    file = tmp_path / "base.json"
    old, new, newest = (made(fallen([900, 700, robust]), spec="a") for robust in (500, 499, 498))
    old.record.save_as(file, old.fates)

    class Killed(Exception):
        pass

    steps = 0
    replace = Path.replace

    def counted(self: Path, target: Any) -> Path:
        nonlocal steps
        if steps == stop:
            raise Killed
        steps += 1
        return replace(self, target)

    assert files is not None
    monkeypatch.setattr(Path, "replace", counted)
    if stop < 3:
        with pytest.raises(Killed):
            new.record.save_as(file, new.fates)
    else:
        new.record.save_as(file, new.fates)
    monkeypatch.undo()
    left, fates = load_record(file)
    assert left.id == (old if stop < 2 else new).record.id and len(fates) == 1000
    newest.record.save_as(file, newest.fates)
    assert load_record(file)[0].id == newest.record.id
    assert {path.name for path in tmp_path.iterdir()} == {"base.json", "base.npz"}


def test_writers_of_one_baseline_take_turns(tmp_path: Path) -> None:
    """Each pair is whole, though the lock file is gone after each."""
    file = tmp_path / "base.json"

    def write(number: int) -> str:
        unit = made(fallen([900, 700, 400 + number]), spec="a")
        for _ in range(5):
            unit.record.save_as(file, unit.fates)
        return unit.record.id

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(write, range(4)))
    assert load_record(file)[0].id in ids
    assert {path.name for path in tmp_path.iterdir()} == {"base.json", "base.npz"}


def test_a_baseline_without_its_archive_is_half_of_it(cli: Any) -> None:
    new, base = write("new.json"), write("base.json")
    (cli.folder / "base.npz").unlink()
    ran = cli("compare", new, "--baseline", base, *GATE)
    assert ran.is_one_clear_line and "base.npz is missing: keep base.json and base.npz together" in ran.err, ran


def test_a_baseline_whose_archive_is_another_s_is_damaged(tmp_path: Path) -> None:
    for name, robust in (("a", 500), ("b", 400)):
        unit = made(fallen([900, 700, robust]), spec="a")
        unit.record.save_as(tmp_path / f"{name}.json", unit.fates)
    shutil.copy(tmp_path / "b.npz", tmp_path / "a.npz")
    with pytest.raises(UserError, match="damaged"):
        load_record(tmp_path / "a.json")
