"""`make effects`: whether each published system shows the effect that its paper claims.

    python tests/effects/run.py [--check] [--collect] [SYSTEM ...]

Runs the trainings, evaluations and analyses in the files of this folder, resuming what was begun, and writes
leaderboards/effects/SYSTEM.json and leaderboards/EFFECTS.md. --collect runs nothing and uses what has been measured.
--check lists where these files differ from what the records and judges give, and exits 1 if there is any difference.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence import BOARDS, MISSING, Analysis, Effect, Evaluation, Numbers, mean_sd, read_numbers

from advbench.checkpoint.card import read_card
from advbench.escape import markdown
from advbench.files import write_atomic
from advbench.record import Record, load_records, slug
from advbench.version import __version__

HERE = Path(__file__).parent
PAGE = BOARDS / "EFFECTS.md"
ORDER = (
    "act", "great", "center-loss", "compactness", "multi-task", "implicit-bias", "learned-optimizer", "spectrum",
    "consistency", "feature-prioritization", "single-step",
)  # fmt: skip


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"by default all: {', '.join(ORDER)}")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args()
    os.chdir(HERE.parents[1])
    chosen = given.systems or list(ORDER)
    if unknown := set(chosen) - set(ORDER):
        parser.error(f"unknown system {', '.join(sorted(unknown))}: choose from {', '.join(ORDER)}")
    if given.check:
        return check()
    for name in chosen:
        effect = load(name)
        if not given.collect and (code := perform(effect)):
            return code
        stored = collect(effect)
        if judged(stored) and judged(stored) >= judged(read(name)):
            write_atomic(place(name), json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    write_atomic(PAGE, page())
    print(f"{PAGE} is written")
    return 0


def load(name: str) -> Effect:
    """The effect of a system."""
    found = importlib.import_module(name.replace("-", "_")).EFFECT
    assert isinstance(found, Effect) and found.system == name
    return found


def place(name: str) -> Path:
    return BOARDS / "effects" / f"{name}.json"


def perform(effect: Effect) -> int:
    """Run all commands of an effect. Returns the exit code of the first that fails, else 0."""
    from advbench.cli import run

    for step in (*effect.runs, *effect.evaluations, *effect.analyses):
        if isinstance(step, Analysis) and step.fresh:
            continue
        for command in step.commands():
            print(f"$ advbench {shlex.join(command)}", flush=True)
            if code := run(command):
                print("stopped: run the same command to continue")
                return code
        if isinstance(step, Analysis):
            write_atomic(step.out / "command.json", json.dumps(step.commands()[0]))
    return 0


def collect(effect: Effect) -> dict[str, Any]:
    """The measured numbers, with verdicts. An evaluation counts once all its seeds are measured."""
    stored = gathered(effect)
    numbers = read_numbers(stored)
    return {**stored, "claims": [claim.judged(numbers) for claim in effect.claims]}


def judged(stored: Mapping[str, Any]) -> int:
    """The number of claims in `stored` that have a verdict."""
    return sum(claim["verdict"] != MISSING["verdict"] for claim in stored["claims"])


def gathered(effect: Effect) -> dict[str, Any]:
    """The existing records, tables and runs of an effect, as plain values."""
    records, _ = load_records(BOARDS / "records")
    commands = [c for step in (*effect.runs, *effect.evaluations, *effect.analyses) for c in step.commands()]
    measured = {e.key: {str(seed): found(records, e, seed) for seed in e.runs.seeds} for e in effect.evaluations}
    return {
        "system": effect.system,
        "source": effect.source,
        "command": command_of(effect),
        "commands": [shlex.join(["advbench", *command]) for command in commands],
        "version": __version__,
        "records": {
            key: {seed: path_of(record) for seed, record in of.items() if record}
            for key, of in measured.items()
            if all(of.values())
        },
        "tables": {
            f"{one.key}/{file.stem}": rows(file)
            for one in effect.analyses
            if one.fresh
            for file in sorted(one.out.glob("*.csv"))
        },
        "trained": {
            runs.label: {str(seed): facts(runs.folder(seed)) for seed in runs.seeds}
            for runs in effect.runs
            if all(finished(folder) for folder in runs.folders)
        },
    }


def finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_card(folder).finished


def command_of(effect: Effect) -> str:
    return f"make effects SYSTEM={effect.system}"


def found(records: Sequence[Record], asked: Evaluation, seed: int) -> Record | None:
    """The newest record of the evaluation `asked` with this seed, or None."""
    spec, grid = asked.spec(seed), asked.eps.split(",")
    measured = [record for record in records if (record.model.spec, record.attack_name) == (spec, asked.attack)]
    same = [record for record in measured if [point.eps_text for point in record.curve] == grid]
    return max(same, key=lambda record: record.environment.date, default=None)


def path_of(record: Record) -> str:
    """The record's path, relative to leaderboards/records."""
    return f"{slug(record.dataset.name)}/{record.norm}/{record.id}.json"


def facts(folder: Path) -> dict[str, Any]:
    """The facts on a run that a judge may use."""
    card = read_card(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    notes = {name: max(line["notes"].get(name, 0.0) for line in lines) for name in lines[-1]["notes"]}
    best: Any = card.results["best"]
    return {
        "model": card.files["model.safetensors"],
        "epochs": len(lines),
        "best_epoch": best["epoch"],
        "held_out_last": {name: lines[-1][name] for name in ("clean", "robust", "fgsm")},
        "backwards": card.cost["backwards"],
        "flags": [flag.model_dump(mode="json") for flag in card.flags],
        "largest": notes,
    }


def rows(table: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, with numbers converted."""

    def value(text: str) -> float | str | None:
        try:
            return float(f"{float(text):.6g}") if text else None
        except ValueError:
            return text

    with table.open(encoding="utf-8", newline="") as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def page() -> str:
    """The text of EFFECTS.md, which follows from the JSON files and the records."""
    shown = [read(name) for name in ORDER]
    lines = [
        "# Does each system show its paper's effect?",
        "",
        "Written by `make effects` from `effects/*.json` and the records; edits will be lost. Accuracies in percent on "
        "all 500 test images of digits, under AutoAttack unless another attack is named; ± is the standard deviation "
        "over seeds. The verdicts are functions of these numbers in `tests/effects/`: a gain counts from 2 points on "
        "average and with every seed. Nets and data are small: what a row shows or does not show, it does so here. "
        "What is not measured yet, its command measures, and goes on with what has begun.",
        "",
        "| system | claim | paper | ours | verdict | command |",
        "|:--|:--|:--|:--|:--|:--|",
    ]
    for one in shown:
        lines += [
            f"| {one['system']} | {cell(claim['claim'])} | {cell(claim['paper'])} | {cell(claim['ours'])} "
            f"| **{claim['verdict']}** | `{one['command']}` |"
            for claim in one["claims"]
        ]
    for one in shown:
        lines += ["", f"## {one['system']}", "", cell(one["source"]), *details(read_numbers(one), one)]
    return "\n".join(lines) + "\n"


def read(name: str) -> dict[str, Any]:
    """The JSON of a system; without a file, that of a system with nothing measured."""
    if place(name).is_file():
        return json.loads(place(name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    effect = load(name)
    claims = [claim.judged(Numbers()) for claim in effect.claims]
    empty: dict[str, Any] = {"records": {}, "tables": {}, "trained": {}, "claims": claims}
    return {**empty, "system": name, "source": effect.source, "command": command_of(effect)}


def details(numbers: Numbers, stored: dict[str, Any]) -> list[str]:
    """A table of the evaluations of a system."""
    if not numbers.records:
        return []
    lines = ["", "| runs | seeds | clean | accuracy at eps | flags | records |", "|:--|--:|--:|:--|:--|:--|"]
    for key, records in numbers.records.items():
        first = next(iter(records.values()))
        grid = [point.eps_text for point in first.curve if point.eps > 0]
        curve = ", ".join(f"{eps}: {mean_sd(numbers.robust(key, eps))}" for eps in grid)
        links = " ".join(f"[{seed}](records/{stored['records'][key][str(seed)]})" for seed in records)
        doubts = ", ".join(numbers.doubts(key))
        lines.append(f"| {key} | {len(records)} | {mean_sd(numbers.clean(key))} | {curve} | {doubts} | {links} |")
    return lines


def cell(text: str) -> str:
    return markdown(text)


def check() -> int:
    """Print each difference. Returns 1 if there is any, else 0."""
    wrong = []
    files = {path.stem: path for path in (BOARDS / "effects").glob("*.json")}
    wrong += [f"{files[name]} belongs to no system" for name in sorted(files.keys() - set(ORDER))]
    for name in ORDER:
        if name not in files:
            continue
        stored, effect = json.loads(files[name].read_text(encoding="utf-8")), load(name)
        numbers = read_numbers(stored)
        if [claim.judged(numbers) for claim in effect.claims] != stored["claims"]:
            wrong.append(f"{files[name]}: its claims are not those that the judges give: make effects SYSTEM={name}")
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        wrong.append(f"{PAGE} does not match its numbers: python tests/effects/run.py --collect")
    print("\n".join(wrong) or f"{len(files)} systems match their numbers")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
