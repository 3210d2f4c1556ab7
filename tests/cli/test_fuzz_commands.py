"""Command lines from a grammar of sound and hostile values end in 0, 1 or 2, never in a traceback or half a file."""

from __future__ import annotations

import os
import random
import resource
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from advbench.attacks.base import make
from advbench.cli import app, run
from advbench.recipe.recipe import field_names
from advbench.registry import entries

LINES = [range(80), pytest.param(range(80, 1000), marks=pytest.mark.long)]
SECONDS = 120  # a line that takes longer hangs
MEMORY = 2**31  # more than is in use is never needed here: only a number in the input can ask for it


def words(*lines: str) -> list[str]:
    return " ".join(lines).split()


WORDS = [
    "",
    " ",
    "-",
    "--",
    "a\nb",
    "\x1b[31m",
    "\udcff",
    "x" * 300,
    "x/" * 3000,
    "%s{}",
    "none",
    "true",
    "É",
    "\u202e",
]
NUMBERS = words(
    "-1 0 1 2 0.5 1.9 true none nan inf -inf 1e999 1e-999 1e300 -1e300 1/0 1e308/1e-308 8/255 1e9 1000000000",
    "٣ 0x10 1_0 1,2 [1] {} -0 +1 1. .5 2001-01-01",
)
NUMBERS += ["9" * 20, "9" * 400, "9" * 5000, "[" * 3000, ""]
PLACES = words(
    ". .. runs runs/a runs/a/run.json runs/a/model.safetensors runs/a/recipe.toml missing missing/deep/er empty text",
    "bytes folder.pt folder.json deep.json deep.toml huge.json large.toml pickle.pt zip.npz loop shut",
    "/dev/null /dev/full /proc/self /proc/self/mem",
)
PLACES += WORDS
RECORDS = ["record.json", "damaged.json", "runs/a", *PLACES]
DATASETS = words(
    "digits npz:good.npz imagefolder:pictures digits:x npz:zip.npz npz:text npz:runs npz:labels.npz npz:loop",
    "imagefolder:/proc/self imagefolder:runs imagefolder:text imagefolder:loop imagefolder: imagefolder:pictures@0",
    "imagefolder:pictures@4 json:loads os:getcwd builtins:int : a:b:c",
)
ARCHES = words(
    "mlp small_cnn linear resnet18 wrn28_10 quantize builtins:int os:getcwd torch.nn:Linear mine:Net mine:leaves",
    "mine:raises",
)
MODELS = words(
    "runs/a runs/a/last.safetensors mine:net mine:leaves mine:raises mine:numbers mine:missing robustbench:x",
    "torchvision:x timm:x pyautoattack:x",
)
SUBSETS = words(
    "first random:0 good random:9999999999999999999 random:-1 random: fraction.json truth.json texts.json",
    "infinite.json huge.json deep.json object.json",
)
# Values of flags by name, sound ones first. A flag that is not here gets any of NUMBERS and PLACES.
VALUES: dict[str, list[str]] = {
    "--dataset": [*DATASETS, "imagefolder:pictures@" + "9" * 30, *WORDS],
    "--arch": ARCHES + WORDS,
    "--mean": ["half", "0.5", "digits", "imagenet", "0,0,0", "1e308", "nan", *NUMBERS, *WORDS],
    "--std": ["0.5", "1,1,1", "0", "1e-320", "inf", *NUMBERS, *WORDS],
    "--abstain": ["last", "first", *WORDS],
    "--model": MODELS + PLACES,
    "--subset": SUBSETS + PLACES,
    "--method": [*entries("methods"), "pgd-at,", "mine:net", *WORDS],
    "--attack": [*entries("attacks"), "mine:net", "mine:raises", "mine:attack", *WORDS],
    "--norm": ["linf", "l2", "l1", "fourier-linf", "l0", "corruptions", *WORDS],
    "--device": ["cpu", "auto", "cuda:99", "cuda:" + "9" * 30, "cuda:-1", "cuda:٣", "mps", "meta", *WORDS],
    "--on": ["local", "ray:x,cpus=nan", "ray,cpus=", "slurm:", "slurm:time=1e9,gpus=٣", *WORDS],
    "--seed": ["0", "1", str(2**62 - 1), str(2**62), "-1", "9" * 5000, "1.5", "٣", "", "0,1"],
    "--eps": ["0,0.1", "0.1", "8/255", "0", "1", "8", "1e-320", "nan", "1/0", "1e400", "0.1,", "9" * 400, "٣", *WORDS],
    "--fail-if": ["clean < 0", "acc@0.1 < baseline - 1", "auc < 1", "acc@nan < 1", "auc <", "clean < baseline", "((",
                  "clean < 1e999", "clean < 1 or " * 500 + "clean < 1", "clean < 1 and auc < 2", *WORDS],
    "--precision": ["fp32", "auto", "bf16", *WORDS],
    "--engine": ["own", "reference", *WORDS],
    "--curve": ["fast", "exact", *WORDS],
    "--format": ["table", "csv", "markdown", "junit", "json", *WORDS],
    "--plot": ["c.svg", "c.png", "c", *PLACES],
    "--config": ["flags.toml", "good.toml", *PLACES],
    "--log": ["tensorboard", *WORDS],
    "--out": ["out", "runs/b", *PLACES],
    "--again": RECORDS,
    "--explain": RECORDS,
    "--baseline": RECORDS,
    "--epochs": ["1", "2", *NUMBERS],
    "-n": ["1", "2", *NUMBERS],
}  # fmt: skip
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
FLAGS: dict[str, dict[str, list[str] | None]] = {
    name: {
        option.opts[0]: None if option.is_flag else VALUES.get(option.opts[0], [*NUMBERS, *PLACES])
        for option in command.params
        if option.opts[0].startswith("-") and option.opts[0] != "--set"
    }
    for name, command in COMMANDS.items()
}
# What makes each command quick; later flags override it.
QUICK = {
    "train": "--dataset digits --arch mlp --eps 0.1 --device cpu --epochs 1 --set train_n=64 --set batch_size=32 "
    "--set validation.n=8 --set validation.steps=1 --set inner.steps=1 --set model.width=8",
    "evaluate": "--model runs/a --eps 0,0.1 -n 8 --device cpu",
    "attack": "--model runs/a --eps 0.1 -n 8 --device cpu",
    "compare": "record.json",
    "analyze": "--device cpu",
}
OF_ATTACKS = {
    name
    for entry in ("pgd", "apgd-ce", "square", "cw-l2", "ddn", "fab", "fmn", "deepfool", "transfer")
    for one in make(entry, "l2")
    for name in one.setting_names()
}
OF_METHODS = [f"method.{name}" for name in words("beta a T lam tau m k width tasks name")]
OF_MODELS = [f"model.{name}" for name in words("width depth dropout activation normalize quantize attention arch")]
SETTINGS = {
    "train": [*field_names(), *OF_METHODS, *OF_MODELS, "x", "", "model", "epochs.x", "eps"],
    "evaluate": sorted(OF_ATTACKS | {"x", "name", "norm"}),
    "attack": sorted(OF_ATTACKS),
    "analyze": words("n eps steps attack layer levels sizes dim trials fista_steps seed runs x"),
}
MINE = r"""
import sys, torch
class Net(torch.nn.Module): ...
def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
def leaves(): sys.exit(0)
def raises(): raise KeyError("mine\nand yours")
def numbers(): return 3
def attack(model, x, y, eps): raise AssertionError
"""


def draw(rng: random.Random) -> list[str]:
    """A command line: a quick one, to which flags with sound and hostile values are added."""
    command = rng.choice([*FLAGS, "train", "evaluate", "evaluate", "attack"])
    flags, line = FLAGS[command], [command, *shlex.split(QUICK.get(command, ""))]
    if command in ("evaluate", "attack"):
        name = rng.choice([*entries("attacks")]) if rng.random() < 0.3 else "fgsm"
        quick = entries("attacks")[name].proof.get("quick", {})
        line += ["--attack", name, *(word for item in quick.items() for word in ("--set", "{}={}".format(*item)))]
    if command == "train":
        line += ["--method", rng.choice(["pgd-at", "standard", "trades", "act"])]
    if command == "analyze":
        name = rng.choice([*entries("analyses"), *entries("analyses"), *WORDS])
        line += [name, *rng.sample(["runs/a", *PLACES], k=rng.choice([0, 1, 1, 1, 2]))]
        known = {"implicit-bias": ["steps", "fista_steps", "adversarial_steps", "trials"], "filters": []}
        line += [word for field in known.get(name, ["steps"]) for word in ("--set", f"{field}=2")]
        line += [] if name in known else ["-n", "8"]
    if command == "compare":
        line += rng.sample(RECORDS, k=rng.choice([0, 1]))
    if command not in QUICK:
        line += rng.sample(["methods", "attacks", "models", "datasets", "analyses", *PLACES], k=rng.choice([0, 1]))
    for flag in rng.sample(sorted(flags), k=min(rng.choice([0, 1, 1, 2, 3]), len(flags))):
        values = flags[flag]
        line += [flag] if values is None else [flag, rng.choice(values[:3] if rng.random() < 0.4 else values)]
    for _ in range(rng.choice([0, 0, 1, 1, 2]) if command in SETTINGS else 0):
        value = rng.choice(rng.choice([NUMBERS, NUMBERS, WORDS, PLACES]))
        line += ["--set", f"{rng.choice(SETTINGS[command])}={value}"]
    return line


def toml(rng: random.Random, command: str) -> str:
    """A file of flags or of a recipe, with values of any kind."""
    names = SETTINGS["train"] if command == "train" else [flag.lstrip("-") for flag in FLAGS[command]]
    values = words("1 -1 true 1e999 nan [] [[1]] {} 2001-01-01")
    values += ['""', '"a\\u0000b"', '"x"', "9" * 30, "[" * 900 + "]" * 900]
    lines = [f"{name} = {rng.choice(values)}" for name in rng.sample(names, k=min(2, len(names))) if name]
    return "\n".join([*lines, "[set]", f"steps = {rng.choice(values)}"])


@pytest.fixture(scope="module")
def prepared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a measured run, its record, and files of every kind of damage."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(trained, folder / "runs" / "a")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert run(shlex.split("evaluate --attack fgsm --eps 0,0.1 -n 8 --device cpu")) == 0
    finally:
        os.chdir(here)
    (record,) = folder.glob("runs/a/records/digits/linf/*.json")
    for name in ("record", "damaged"):
        shutil.copy(record, folder / f"{name}.json")
        shutil.copy(record.with_suffix(".npz"), folder / f"{name}.npz")
    (folder / "damaged.json").write_text(record.read_text().replace('"auc": 0', '"auc": 1', 1))
    for name, labels in (("good", np.arange(4)), ("labels", np.array([0, 1, 2, 2**62]))):
        arrays = {"x": np.zeros((4, 8, 8), np.uint8), "y": labels}
        np.savez(folder / f"{name}.npz", **{f"{k}_{s}": v for k, v in arrays.items() for s in ("train", "test")})
    (folder / "zip.npz").write_bytes((folder / "good.npz").read_bytes()[:-30])
    torch.save(Path("x"), folder / "pickle.pt")
    for split in ("train", "test"):
        for label in range(2):
            place = folder / "pictures" / split / str(label)
            place.mkdir(parents=True)
            for one in range(12):
                Image.new("RGB", (8, 8), (200 * label + one, 9, 9)).save(place / f"{one}.png")
    texts = {
        "text": "not what was meant", "empty": "", "deep.json": "[" * 100_000 + "]" * 100_000,
        "deep.toml": "x = " + "[" * 50_000, "huge.json": f"[{'9' * 5000}]", "large.toml": "x = " + "9" * 5000,
        "good": "0 3,1\n2", "fraction.json": "[1.9]", "truth.json": "[true]", "texts.json": '["3"]',
        "infinite.json": "[1e999]", "object.json": "[{}]", "good.toml": "json = true", "mine.py": MINE,
    }  # fmt: skip
    for name, content in texts.items():
        (folder / name).write_text(content)
    (folder / "bytes").write_bytes(bytes(range(256)))
    for name in ("folder.pt", "folder.json", "shut"):
        (folder / name).mkdir(mode=0 if name == "shut" else 0o777)
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture
def bounded() -> Iterator[None]:
    """Inside, no more memory can be had than what is in use now and MEMORY."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def hang(*_: object) -> None:
    raise AssertionError("a hang")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from /proc")
@pytest.mark.parametrize("numbers", LINES, ids=["some", "many"])
def test_any_command_line(
    cli: Any, prepared: Path, bounded: None, numbers: range, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGALRM, hang)
    faults = []
    for number in numbers:
        rng, folder = random.Random(number), tmp_path / str(number)
        line = draw(rng)
        shutil.copytree(prepared, folder, symlinks=True)
        (folder / "flags.toml").write_text(toml(rng, line[0]))
        monkeypatch.chdir(folder)
        signal.alarm(SECONDS)
        try:
            fault = wrong(cli(*line), folder)
        except BaseException as error:  # pytest's failures too
            fault = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        if fault:
            faults.append(f"{number}: {shlex.join(word[:80] for word in line)}\n  {fault}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder, ignore_errors=True)
    signal.signal(signal.SIGALRM, before)
    assert not faults, "\n".join(faults)


def wrong(ran: Any, folder: Path) -> str:
    """What is wrong with how a command ended; "" if nothing is."""
    lines = ran.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if ran.code not in (0, 1, 2):
        return f"exit code {ran.code}"
    if "Traceback" in ran.err + ran.out:
        return "a traceback"
    if (ran.code == 2) != (len(errors) == 1) or (ran.code == 2 and lines[-1] != errors[0]):
        return f"exit code {ran.code} with {lines}"
    left = [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".lock.")]
    return f"left {left}" if left else ""
