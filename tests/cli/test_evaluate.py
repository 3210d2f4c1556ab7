"""`advbench evaluate`: flags, defaults, records, tables, interruption, repetition."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from advbench.checkpoint import load_model
from advbench.cli import again as again_module
from advbench.cli import evaluate as evaluate_module
from advbench.cli import keep
from advbench.record import load_record
from advbench.signals import SIGNALS

PGD = ["--attack", "pgd", "--set", "steps=3"]
SHORT = ["--set", "steps=12", "--set", "n_queries=40"]
DEFAULT_EPS = ["0", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2"]  # of a run trained at 0.1


def records(folder: Path) -> list[Path]:
    return sorted(folder.rglob("records/*/*/*.json"))


def test_every_flag_reaches_the_function(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(evaluate_module, "evaluate", lambda flags, **given: seen.append((flags, given)))
    argv = shlex.split(
        "evaluate --model a --model b --attack pgd,square --attack fab-t --eps 0,8/255 -n 20 --subset random:4 "
        "--dataset mnist --arch lenet5 --mean mnist --std 0.5 "
        "--abstain last --norm l2 --name N --engine reference --curve exact --seed 3 --device cpu "
        "--precision fp32 --set steps=40 --set step_size=2/255 --attack-budget 500 --adversarials x.npz "
        "--adversarials y.npz --certify first --certify-seconds 2 --leaderboard LB --out o --resume "
        "--force --save-baseline b.json "
        "--trust-pickle --on local --dry-run --json"
    )
    assert cli(*argv).code == 0
    ((flags, given),) = seen
    assert given.pop("screen").as_json and given == {"argv": tuple(argv)}
    assert asdict(flags) == {
        "models": ("a", "b"),
        "attacks": ("pgd", "square", "fab-t"),
        "eps": "0,8/255",
        "n": 20,
        "subset": "random:4",
        "dataset": "mnist",
        "arch": "lenet5",
        "mean": "mnist",
        "std": "0.5",
        "abstain": "last",
        "norm": "l2",
        "name": "N",
        "engine": "reference",
        "curve": "exact",
        "seed": 3,
        "device": "cpu",
        "precision": "fp32",
        "settings": {"steps": 40, "step_size": 2 / 255},
        "attack_budget": 500,
        "adversarials": (Path("x.npz"), Path("y.npz")),
        "certify": "first",
        "certify_seconds": 2.0,
        "probes": "on",
        "leaderboard": Path("LB"),
        "save_baseline": Path("b.json"),
        "out": Path("o"),
        "resume": True,
        "force": True,
        "on": "local",
        "dry_run": True,
    }


def test_flags_from_a_file_and_flags_over_it(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(evaluate_module, "evaluate", lambda flags, **given: seen.append((flags, given)))
    (cli.folder / "e.toml").write_text(
        'model = ["a", "b"]\neps = "0,0.1"\nn = 7\nleaderboard = "LB"\n[set]\nsteps = 4\nloss = "dlr"\n'
    )
    assert cli("evaluate", "--config", "e.toml", "-n", "9").code == 0
    ((flags, _),) = seen
    assert flags.models == ("a", "b") and flags.attacks == ("autoattack",)
    assert flags.n == 9 and flags.eps == "0,0.1" and flags.leaderboard == Path("LB")
    assert flags.settings == {"steps": 4, "loss": "dlr"}
    (cli.folder / "e.toml").write_text('modle = "a"\n')
    ran = cli("evaluate", "--config", "e.toml")
    assert ran.is_one_clear_line and "did you mean model" in ran.err


def test_the_newest_run_and_its_own_eps(cli: Any, run_folder: Path) -> None:
    ran = cli("evaluate", *PGD)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("runs/a (newest run): pgd, linf eps 0,0.025,")
    assert "0 to 2 x the training eps 0.1" in lines[0] and "all 500 images of digits" in lines[0]
    assert lines[1].split() == ["eps", "accuracy", "%", "95", "%", "interval", "robust"]
    assert [line.split()[0] for line in lines[2:9]] == DEFAULT_EPS
    (path,) = records(cli.folder)
    assert path.parent == cli.folder / "runs/a/records/digits/linf"
    record, _ = load_record(path)
    assert lines[-1] == f"record {path.relative_to(cli.folder)}"
    shown = [float(line.split()[1]) for line in lines[2:9]]
    assert shown == [round(100 * point.accuracy, 1) for point in record.curve]
    assert record.environment.command == ("advbench", "evaluate", *PGD)
    assert record.dataset.indices == "first:500" and record.model.spec == "runs/a"
    assert "\x1b" not in ran.out and ran.err == ""


def test_json_is_a_record_a_line(cli: Any, run_folder: Path) -> None:
    shutil.copytree(cli.folder / "runs/a", cli.folder / "runs/b")
    ran = cli("evaluate", "--model", "runs/a", "--model", "runs/b", "-n", "10", *PGD, "--json")
    one, two = map(json.loads, ran.out.splitlines())
    assert (one["model"]["spec"], two["model"]["spec"]) == ("runs/a", "runs/b")
    assert one["schema"] == 2 and one["curve"][0]["n"] == 10 and Path(one["path"]).is_file()
    assert one["id"] == two["id"]  # the same weights and settings


def test_a_leaderboard_gets_the_record_and_its_tables(cli: Any, run_folder: Path) -> None:
    ran = cli("evaluate", "--leaderboard", "LB", "-n", "20", "--eps", "0,0.1", *PGD)
    assert ran.code == 0
    made = {path.name for path in (cli.folder / "LB").iterdir() if not path.name.startswith(".")}
    assert made == {"records", "digits-linf.csv", "digits-linf.md", "digits-linf.svg", "index.html"}
    assert len(records(cli.folder / "LB")) == len(records(cli.folder / "runs/a")) == 1


def test_a_model_without_a_folder_leaves_its_record_here(cli: Any, run_folder: Path) -> None:
    ran = cli("evaluate", "--model", "runs/a/last.safetensors", "--dataset", "digits", "-n", "5", "--eps", "0.1", *PGD)
    assert ran.code == 0, ran.err
    assert len(records(cli.folder)) == 1


def test_out_is_where_the_record_goes(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "5", "--eps", "0.1", *PGD, "--out", "here").code == 0
    assert [path.parts[-5] for path in records(cli.folder)] == ["here"]


@pytest.mark.parametrize(
    ("subset", "n", "indices"), [("random:2", ["-n", "4"], "random:2:4"), ("rows.txt", [], (7, 3, 5))]
)
def test_the_subset_is_named_in_the_record(cli: Any, run_folder: Path, subset: str, n: list[str], indices: Any) -> None:
    (cli.folder / "rows.txt").write_text("7 3 5")
    assert cli("evaluate", "--subset", subset, *n, "--eps", "0.1", *PGD).code == 0
    (path,) = records(cli.folder)
    assert load_record(path)[0].dataset.indices == indices


def interrupting(monkeypatch: pytest.MonkeyPatch, module: Any, number: int, after: int) -> None:
    """Send the signal `number` to this process at the call `after` of the progress."""
    rounds = [0]

    def search_progress(*_: Any) -> Any:
        def progress(forecast: Any) -> None:
            rounds[0] += 1
            if rounds[0] == after:
                os.kill(os.getpid(), number)

        return progress

    monkeypatch.setattr(module, "search_progress", search_progress)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_and_resumed_to_the_same_record(
    cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    argv = ["evaluate", "--attack", "pgd,square", *SHORT, "-n", "60", "--eps", "0.05,0.1"]
    assert cli(*argv, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupting(patch, keep, number, after=20)
        ran = cli(*argv, "--out", "part")
    assert ran.code == 3 and "Traceback" not in ran.err
    assert records(cli.folder / "part") == []
    (journal,) = (cli.folder / "part/records").glob(".*.journal")
    command = ran.err.splitlines()[-1].partition("continue with: ")[2]
    assert shlex.split(command) == ["advbench", *argv, "--out", "part", "--model", "runs/a", "--resume"]
    resumed = cli(*shlex.split(command)[1:])
    assert resumed.code == 0 and not journal.exists()
    (whole,), (part,) = records(cli.folder / "whole"), records(cli.folder / "part")
    assert whole.name == part.name
    assert "measured before" in cli(*shlex.split(command)[1:]).out


def test_two_processes_at_one_evaluation(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["evaluate", "--model", "runs/a", *PGD, "-n", "20", "--eps", "0.1", "--out", "o"]
    names: list[Path] = []
    real = keep.in_use
    with monkeypatch.context() as patch:
        patch.setattr(keep, "in_use", lambda path: names.append(path) or real(path))
        assert cli(*argv, "--out", "p").code == 0
    begun = cli.folder / "o/records" / names[0].name
    with keep.in_use(begun):
        refused = cli(*argv)
    assert refused.code == 2 and "another process holds" in refused.err and records(cli.folder / "o") == []
    assert cli(*argv).code == 0
    assert not list((cli.folder / "o/records").glob("*.journal*"))
    with keep.in_use(begun.with_name(f"{begun.name}.rank0")):  # as a process that was killed under torchrun leaves it
        assert cli(*argv, "--resume").code == 0


def test_starting_over_warns_of_the_interrupted_evaluation(
    cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["evaluate", "-n", "60", "--attack", "square", *SHORT[2:], "--eps", "0.1"]
    with monkeypatch.context() as patch:
        interrupting(patch, keep, signal.SIGINT, after=3)
        assert cli(*argv).code == 3
    ran = cli(*argv)
    assert ran.code == 0 and "warning: " in ran.err and "--resume would continue it" in ran.err
    with monkeypatch.context() as patch:
        interrupting(patch, keep, signal.SIGINT, after=3)
        assert cli(*argv, "--force").code == 3
    (kept,) = (cli.folder / "runs/a/records").glob(".*.journal")
    other = cli(*argv, "--seed", "9", "--resume")  # starts apart
    assert other.code == 0 and "asked something else are kept" in other.err and kept.name in other.err
    assert kept.exists() and cli(*argv, "--resume").code == 0 and not kept.exists()


def test_again(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "40", "--subset", "random:1", "--attack", "pgd,fgsm", "--set", "steps=3").code == 0
    (path,) = records(cli.folder)
    before = cli.files()
    ran = cli("evaluate", "--again", path)
    assert ran.code == 0 and "the same: record" in ran.out and "40 verdicts" in ran.out
    assert json.loads(cli("evaluate", "--again", path, "--json").out) == {
        "record": path.stem,
        "again": path.stem,
        "same": True,
        "moved": 0,
        "n": 40,
    }
    assert cli.files() == before


def test_again_refuses_flags_that_the_record_settles(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "20", "--attack", "fgsm").code == 0
    (path,) = records(cli.folder)
    ran = cli("evaluate", "--again", path, "--eps", "0.2", "-n", "10", "--set", "steps=1")
    assert ran.is_one_clear_line and "which --eps, -n, --set would change: use only --model, --device" in ran.err
    assert cli("evaluate", "--again", path, "--model", "a", "--model", "b").is_one_clear_line


def test_again_when_the_run_was_moved_altered_or_lost(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "20", "--attack", "fgsm").code == 0
    (path,) = records(cli.folder)
    run_folder.rename("runs/moved")
    path = cli.folder / "runs/moved" / path.relative_to(cli.folder / "runs/a")
    assert "the same: record" in cli("evaluate", "--again", path).out
    assert "every link that can be checked is verified" in cli("compare", "--explain", path).out
    kept = Path("kept.json")  # in another folder than the run
    for suffix in (".json", ".npz"):
        kept.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
    lost = cli("evaluate", "--again", kept)
    assert lost.is_one_clear_line and "runs/a" in lost.err
    assert "the same: record" in cli("evaluate", "--again", kept, "--model", "runs/moved").out
    weights = cli.folder / "runs/moved/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert cli("evaluate", "--again", path).is_one_clear_line


def test_again_with_other_weights_or_attacks(cli: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("evaluate", "-n", "10", *PGD).code == 0
    (path,) = records(cli.folder)
    train = "train --method standard --dataset digits --arch mlp --eps 0.1 --epochs 1 --set train_n=128 --out runs/b"
    assert cli(*train.split()).code == 0
    ran = cli("evaluate", "--again", path, "--model", "runs/b")
    assert ran.is_one_clear_line and "the weights of runs/b are not those of record" in ran.err
    real = again_module.asked
    monkeypatch.setattr(again_module, "asked", lambda *given: (real(*given)[0], {"steps": 4}))
    ran = cli("evaluate", "--again", path)
    assert ran.code == 0 and "not the same" in ran.out and "the attacks changed since" in ran.out


def test_again_without_probes(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "10", *PGD, "--probes", "off").code == 0
    (path,) = records(cli.folder)
    assert "the same: record" in cli("evaluate", "--again", path).out


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("file", ["net.pt", "net.safetensors", "traced.pt"])
def test_again_of_a_file(cli: Any, run_folder: Path, file: str) -> None:
    net = load_model(str(run_folder)).net
    arch = () if file == "traced.pt" else ("--arch", "mlp")
    if file == "traced.pt":
        torch.jit.trace(net, torch.zeros(2, 1, 8, 8)).save(file)  # type: ignore[no-untyped-call]
    elif file == "net.pt":
        torch.save(net.state_dict(), file)
    else:
        save_file(net.state_dict(), file)
    assert cli("evaluate", "-n", "10", *PGD, "--model", file, *arch, "--dataset", "digits", "--out", "o").code == 0
    (path,) = records(Path("o"))
    ran = cli("evaluate", "--again", path)
    assert "the same: record" in ran.out, ran


def test_a_set_with_its_settings_is_made_again(cli: Any, run_folder: Path) -> None:
    assert cli("evaluate", "-n", "4", "--attack", "autoattack", *SHORT, "--eps", "0.1").code == 0
    (path,) = records(cli.folder)
    assert "the same: record" in cli("evaluate", "--again", path).out


def test_the_tasks_of_a_run_are_attacked(cli: Any, run_folder: Path) -> None:
    short = ("--set", "train_n=256", "--epochs", "1", "--set", "method.tasks=rotation,macro", "--out", "runs/tasks")
    assert cli("train", "--method", "multi-task", "--arch", "mlp", *short).code == 0
    asked = ("evaluate", "--attack", "multi-task", "--eps", "0.1", "-n", "20", "--set", "steps=3")
    for attacked in ("sum", "rotation"):
        done = cli(*asked, "--model", "runs/tasks", "--set", f"attacked={attacked}")
        assert done.code == 0 and f"{20} images of digits" in done.out, done.err
    first, second = (load_record(path)[0].attack[0].settings for path in records(Path("runs/tasks")))
    assert {first["attacked"], second["attacked"]} == {"sum", "rotation"}
    assert first["heads_sha256"] == second["heads_sha256"] != ""
    again = cli("evaluate", "--again", records(Path("runs/tasks"))[0])
    assert again.code == 0 and "the same: record" in again.out
    examples = cli("attack", "--model", "runs/tasks", "--attack", "multi-task", "-n", "8", "--set", "attacked=wgd")
    assert examples.code == 0 and "felled" in examples.out

    none = cli(*asked, "--model", "runs/tasks", "--model", run_folder)  # refused before the first model is measured
    assert none.is_one_clear_line and f"which {run_folder} is not" in none.err and "--method multi-task" in none.err
    unknown = cli(*asked, "--model", "runs/tasks", "--set", "attacked=jigsaw")
    assert unknown.is_one_clear_line and "macro, main, relative, rotation, sum, wgd" in unknown.err


def test_labels_alone_give_a_curve_in_one_search(cli: Any, run_folder: Path) -> None:
    """As many passes for five eps as for one, the same numbers where there are but labels, and no norm but Linf."""
    (cli.folder / "mine.py").write_text(
        "import torch\n"
        "from advbench.checkpoint import load_model\n\n"
        "class Labels(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = load_model('runs/a').net\n\n"
        "    def forward(self, x):\n"
        "        return 10 * torch.nn.functional.one_hot(self.net(x).argmax(1), 10).float()\n"
    )
    argv = ["evaluate", "--dataset", "digits", "-n", "40", "--attack", "rays", "--set", "n_queries=400", "--json"]
    found = [
        json.loads(cli(*argv, "--model", model, "--eps", eps).out)
        for model, eps in (("runs/a", "0.1"), ("runs/a", "0.025,0.05,0.1,0.15,0.2"), ("mine:Labels", "0.1"))
    ]
    one, five, labels = ({point["eps_text"]: point["robust"] for point in record["curve"]} for record in found)
    assert one["0.1"] == five["0.1"] == labels["0.1"] and five["0.025"] > five["0.1"] > five["0.2"]
    assert found[0]["forwards"] == found[1]["forwards"] and found[0]["backwards"] == 0
    assert found[0]["attack"][0]["settings"]["n_queries"] == 400
    refused = cli(*argv[:-1], "--model", "runs/a", "--eps", "0.1", "--norm", "l2")
    assert refused.is_one_clear_line and "rays has no form for norm l2: choose from linf" in refused.err
