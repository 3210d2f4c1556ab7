"""Damaged files of runs, journals and records: the same numbers or one line and exit code 2, never another number."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from advbench.cli import run
from advbench.cli.stop import Stop
from advbench.files import sha256_file

DAMAGES = [range(60), pytest.param(range(60, 360), marks=pytest.mark.long)]

TRAIN = shlex.split(
    "train --method trades --dataset digits --arch mlp --eps 0.1 --device cpu --epochs 2 --out runs/part --resume "
    "--set train_n=64 --set batch_size=16 --set validation.n=8 --set validation.steps=1 --set inner.steps=1 "
    "--set model.width=8"
)
EVALUATE = shlex.split(
    "evaluate --model runs/a --attack pgd,square --eps 0.05,0.1 -n 24 --device cpu --out o --json --resume "
    "--set steps=4 --set n_queries=12"
)
FGSM = shlex.split("evaluate --model runs/a --attack fgsm --eps 0,0.1 -n 8 --device cpu --out f --json")


@dataclass(frozen=True)
class Case:
    """A file to damage, a command that reads it, and what the numbers are when the command ends well."""

    file: str
    argv: list[str]
    numbers: Callable[[Any, Path], Any]


def curve(ran: Any, folder: Path) -> Any:
    """The accuracies that `evaluate --json` printed."""
    (line,) = ran.out.splitlines()
    return [(point["eps"], point["robust"]) for point in json.loads(line)["curve"]]


def weights(ran: Any, folder: Path) -> Any:
    """The hashes of the weights that `train` ended with."""
    return {name: sha256_file(folder / "runs/part" / name) for name in ("model.safetensors", "last.safetensors")}


def output(ran: Any, folder: Path) -> Any:
    """All that was printed, which has no times."""
    return ran.out


def repeated(ran: Any, folder: Path) -> Any:
    """What `evaluate --again --json` found."""
    return {name: json.loads(ran.out)[name] for name in ("same", "moved", "n")}


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, an interrupted one, an interrupted evaluation and the records of both runs."""
    folder = tmp_path_factory.mktemp("whole")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name in ("a", "b"):
            shutil.copytree(trained, f"runs/{name}")
        assert run([word.replace("runs/part", "runs/b").replace("--resume", "--force") for word in TRAIN]) == 0
        for name in ("a", "b"):
            argv = [word.replace("runs/a", f"runs/{name}") for word in FGSM]
            assert run(argv) == 0
        for number, place in enumerate(sorted(Path("f").rglob("*.npz"))):
            for suffix in (".json", ".npz"):
                shutil.copy(place.with_suffix(suffix), f"r{number}{suffix}")
        for argv, rounds in ((TRAIN, 5), (EVALUATE, 8)):
            left = iter(range(rounds))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Stop, "__call__", lambda self, left=left: next(left, None) is None)
                assert run(argv) == 3
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="module")
def cases(whole: Path) -> list[Case]:
    (journal,) = (whole / "o/records").glob(".*.journal")
    part = [path for path in (whole / "runs/part").rglob("*") if path.is_file() and path.name != ".lock"]
    a = [path for path in (whole / "runs/a").rglob("*") if path.is_file() and path.name != ".lock"]
    name = {path: str(path.relative_to(whole)) for path in (journal, *part, *a)}
    found = [Case(name[path], FGSM, curve) for path in a if path.suffix in (".safetensors", ".json")]
    found += [Case(name[path], TRAIN, weights) for path in part]
    again = [word.replace("--resume", "--force") for word in TRAIN]
    found += [Case(name[path], again, weights) for path in part[:2]]
    found += [Case(name[journal], EVALUATE, curve)] * 4
    of_record = ("r0.json", "r0.npz")
    found += [Case(file, ["compare", "r0.json", "r1.json", "--format", "csv"], output) for file in of_record * 2]
    found += [Case(file, ["compare", "--explain", "r0.json"], output) for file in of_record * 2]
    found += [
        Case(file, ["evaluate", "--again", "r0.json", "--json", "--device", "cpu"], repeated) for file in of_record
    ]
    found += [Case(name[path], ["analyze", "filters", "runs/a", "--json", "--out", "x"], output) for path in a[:4]]
    return found


def damage(content: bytes, rng: random.Random) -> bytes:
    """`content` with a bit or a byte changed, cut, doubled, with a hole, or replaced."""
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return rng.choice(
        [
            lambda: content[:at] + bytes([(content + b"x")[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            lambda: content[:at] + rng.randbytes(1) + content[at + 1 :],
            lambda: content[:at],
            lambda: content[at:],
            lambda: content[:at] + content[to:],
            lambda: content[:at] + bytes(to - at) + content[to:],
            lambda: content + content,
            lambda: content + b"\n",
            lambda: b"",
            lambda: rng.randbytes(200),
            lambda: b"[" * 100_000,
            lambda: content.replace(b"1", b"2"),
            lambda: content.replace(b"0.", b"9" * 400 + b"."),
        ]
    )()


@pytest.mark.slow
@pytest.mark.parametrize("numbers", DAMAGES)
def test_any_damage(
    cli: Any, whole: Path, cases: list[Case], numbers: range, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected: dict[int, Any] = {}
    faults = []
    for number in numbers:
        which = number % len(cases)
        case = cases[which]

        def ran(change: Callable[[bytes], bytes], case: Case = case, number: int = number) -> tuple[Any, Any]:
            folder = tmp_path / str(number)
            shutil.copytree(whole, folder)
            (folder / case.file).write_bytes(change((folder / case.file).read_bytes()))
            monkeypatch.chdir(folder)
            done = cli(*case.argv)
            found = case.numbers(done, folder) if done.code == 0 else None
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(folder)
            return done, found

        if which not in expected:
            sound, expected[which] = ran(lambda content: content)
            assert sound.code == 0, sound
        try:
            done, found = ran(lambda content, number=number: damage(content, random.Random(number)))  # type: ignore[misc]
        except Exception as error:
            faults.append(f"{number}: {case.file}: {shlex.join(case.argv)}: {type(error).__name__}: {error}")
            continue
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        refused = done.code == 2 and len(lines) == 1 and done.err.splitlines()[-1] == lines[0]
        if "Traceback" in done.err or not (refused or (done.code == 0 and found == expected[which] and not lines)):
            faults.append(f"{number}: {case.file}: {shlex.join(case.argv)}: {done}, {found} for {expected[which]}")
    assert not faults, "\n".join(faults)
