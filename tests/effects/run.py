"""`make effects`: whether each published system shows the effect that its paper claims.

    python tests/effects/run.py [--jobs 2] [--only TEXT] [--check] [--collect] [SYSTEM ...]

Runs what the files of this folder ask for and leaderboards/ does not have: grids on held-out images, trainings,
evaluations and analyses, several at a time, each on one thread. What was begun goes on. Writes
leaderboards/tuning/NAME.csv, leaderboards/effects/SYSTEM.json and leaderboards/EFFECTS.md. --only runs those trainings,
with their evaluations, whose label begins with TEXT. --collect runs nothing and uses what has been measured. --check
lists where these files differ from what the records and judges give, and exits 1 if there is any difference.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evidence import BOARDS, Effect, Evaluation, Runs
from page import drawn, page, read_numbers, row
from workers import FAILED, Workers, tune

from advbench.checkpoint.card import LAST, read_card
from advbench.evaluator.plan import engine_version
from advbench.figure import same
from advbench.files import write_atomic
from advbench.record import Record, load_records, slug
from advbench.registry import find
from advbench.version import __version__

HERE = Path(__file__).parent
PAGE = BOARDS / "EFFECTS.md"
RECORDS = tuple(folder / "records" for folder in (BOARDS, BOARDS / "small", BOARDS / "effects"))
ORDER = (
    "act", "great", "center-loss", "compactness", "multi-task", "implicit-bias", "learned-optimizer",
    "spectrum", "consistency", "feature-prioritization", "single-step",
)  # fmt: skip
COLLECT = "python tests/effects/run.py --collect"
Stored = dict[str, Any]


def main() -> int:
    """Run the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"by default all: {', '.join(ORDER)}")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--collect", action="store_true")
    given = parser.parse_args()
    os.chdir(HERE.parents[1])
    chosen = given.systems or list(ORDER)
    if unknown := set(chosen) - set(ORDER):
        parser.error(f"unknown system {', '.join(sorted(unknown))}: choose from {', '.join(ORDER)}")
    if given.check:
        return check()
    code = 0
    for effect in map(load, chosen):
        if not given.collect and code in (0, FAILED):
            code = perform(effect, given.jobs, given.only) or code
        collect(effect)
    write_atomic(PAGE, text())
    print(f"{PAGE} is written")
    return code


def load(name: str) -> Effect:
    """The effect of a system."""
    found = importlib.import_module(name.replace("-", "_")).EFFECT
    assert isinstance(found, Effect) and found.system == name
    return found


# --- what is left, and running it -------------------------------------------------------------------------


def perform(effect: Effect, jobs: int, only: str = "") -> int:
    """Run all that is missing of an effect, or its runs whose label begins with `only`, without analyses.

    Returns the first exit code of a command that is not 0, else 0.
    """
    stored, records = read(effect.system), measured()
    trained = remembered(stored)
    evaluated = {e: [seed for seed in e.runs.seeds if not found(records, e, seed, trained)] for e in effect.evaluations}
    lacking = {runs.folder(seed) for runs in effect.runs for seed in runs.seeds if not facts_of(runs, seed, trained)}
    analyses = [
        one
        for one in effect.analyses
        if not only and (stored["analysed"].get(one.key) != one.asked or not lacking.isdisjoint(one.folders))
    ]
    lacking |= {folder for one in analyses for folder in one.folders}
    chains = []
    for runs in {runs.label: runs for runs in effect.runs}.values():
        for seed in runs.seeds:
            todo = [e for e, seeds in evaluated.items() if e.runs == runs and seed in seeds]
            if runs.label.startswith(only) and (todo or runs.folder(seed) in lacking):
                chains.append((runs, seed, todo))
    if not chains and not analyses:
        if not any(runs.label.startswith(only) for runs in effect.runs):
            print(f"{effect.system}: no run begins with {only}", file=sys.stderr)
            return FAILED
        print(f"{effect.system}: nothing was run, all of it is measured")
        return 0
    at_work = Workers(jobs)
    first = {one.label: one for runs, _, _ in chains for one in runs.after}
    at_work.each(partial(train, at_work, one, seed) for one in first.values() for seed in one.seeds)
    tunings = {one.name: one for runs, _, _ in chains if runs.tuned for one in (runs.tuned.shared, runs.tuned) if one}
    for depth in (False, True):
        ready = [one for one in tunings.values() if bool(one.shared) is depth and (not depth or one.shared.done)]
        at_work.each(partial(tune, at_work, one) for one in ready if one.left)
    named = {
        one.folder(source): partial(train, at_work, one, source)
        for _, seed, todo in chains
        for e in todo
        for one in e.after
        for source in one.seeds
        if one.recipe_sha256(source) and any(f"{one.folder(source)}/" in f"{text}/" for text in e.settings(seed))
    }
    at_work.each(named.values())
    at_work.each(partial(chain, at_work, effect, *one) for one in chains)
    for one in analyses:
        finished = (facts(runs.folder(seed), runs.recipe_sha256(seed)) for runs in one.runs for seed in runs.seeds)
        if all(finished) and at_work.run(one.command()):
            tables = {f"{one.key}/{file.stem}": rows(file) for file in sorted(one.out.glob("*.csv"))}
            collect(effect, {one.key: one.asked}, tables)
    return at_work.code


def chain(at_work: Workers, effect: Effect, runs: Runs, seed: int, evaluations: Sequence[Evaluation]) -> None:
    """A training, or the copy of one with the same recipe, and then its evaluations; nothing if none was chosen."""
    folder, recipe = runs.folder(seed), runs.recipe_sha256(seed)
    if recipe is None:
        return
    twins = (one.folder(seed) for one in effect.runs if seed in one.seeds and facts(one.folder(seed), recipe))
    if not folder.exists() and (twin := next(twins, None)):
        print(f"{folder} is a copy of {twin}: the recipe is the same", flush=True)
        shutil.copytree(twin, folder)
    if train(at_work, runs, seed):
        for one in evaluations:
            at_work.run(one.command(seed))
    with at_work.alone("collect"):
        collect(effect)


def train(at_work: Workers, runs: Runs, seed: int) -> bool:
    """Whether the run is trained. One with another recipe in its folder, as from a smaller grid, is put aside."""
    folder = runs.folder(seed)
    if (folder / "run.json").is_file() and (old := read_card(folder).recipe_sha256) != runs.recipe_sha256(seed):
        aside = folder.with_name(f"{folder.name}-{old[:8]}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
        print(f"{folder} has another recipe: it is now {aside}", flush=True)
    return at_work.run(runs.command(seed))


# --- what was measured ------------------------------------------------------------------------------------


def collect(effect: Effect, analysed: Mapping[str, Any] | None = None, tables: Mapping[str, Any] | None = None) -> None:
    """Keep what is measured by now. An evaluation counts once all its seeds are measured."""
    old, records = read(effect.system), measured()
    before = remembered(old)
    asked = effect.asked
    known = {key: of for key, of in {**old["analysed"], **(analysed or {})}.items() if asked.get(key) == of}
    every = {**old["tables"], **(tables or {})}
    evaluated = {
        e.key: {str(seed): found(records, e, seed, before) for seed in e.runs.seeds} for e in effect.evaluations
    }
    trained = {
        runs.label: {str(seed): told for seed in runs.seeds if (told := facts_of(runs, seed, before))}
        for runs in effect.runs
    }
    stored: Stored = {
        "system": effect.system,
        "version": __version__,
        "records": {
            key: {seed: place_of(record) for seed, record in of.items() if record}
            for key, of in evaluated.items()
            if all(of.values())
        },
        "analysed": known,
        "tables": {name: table for name, table in every.items() if name.rpartition("/")[0] in known},
        "trained": {label: facts for label, facts in trained.items() if facts},
    }
    if not any(stored[name] for name in ("records", "tables", "trained")):
        for suffix in (".json", ".svg"):
            place(effect.system).with_suffix(suffix).unlink(missing_ok=True)
    else:
        numbers = read_numbers(stored)
        claims = [row(claim, effect, numbers) for claim in effect.claims]
        write_atomic(
            place(effect.system), json.dumps({**stored, "claims": claims}, indent=1, ensure_ascii=False) + "\n"
        )
        if figure := drawn(effect, numbers):
            write_atomic(place(effect.system).with_suffix(".svg"), figure)


def place(name: str) -> Path:
    return BOARDS / "effects" / f"{name}.json"


def read(name: str) -> Stored:
    """The JSON of a system; without a file, that of a system with nothing measured."""
    if place(name).is_file():
        return json.loads(place(name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    effect = load(name)
    nothing: Stored = {"system": name, "records": {}, "analysed": {}, "tables": {}, "trained": {}}
    return {**nothing, "claims": [row(claim, effect, read_numbers(nothing)) for claim in effect.claims]}


def text() -> str:
    """The text of the page."""
    return page([read(name) for name in ORDER], [load(name) for name in ORDER])


def measured() -> list[Record]:
    """The records of the boards and of the effects."""
    return [record for folder in RECORDS if folder.is_dir() for record in load_records(folder)[0]]


def found(records: Sequence[Record], asked: Evaluation, seed: int, trained: Mapping[str, Any]) -> Record | None:
    """The newest record of the evaluation `asked` with this seed, or None.

    It is of a run, whatever its folder, with the recipe that is asked for now; or of the run's folder, if the facts on
    it in `trained` do not say its recipe, as those from before they did. Where the last epoch is the best, one record
    is of both.
    """
    wanted = asked.runs.recipe_sha256(seed)
    known = trained.get(asked.runs.label, {}).get(str(seed), {"recipe": None})
    is_last = "best_epoch" in known and known["best_epoch"] == known["epochs"]
    files = {asked.file} | ({"", LAST} if is_last else set())
    grid = asked.eps.split(",")
    images = asked.n or find("data", asked.runs.dataset).about["sizes"]["test"]
    same = [
        record
        for record in records
        if (record.attack_name, record.norm) == (asked.attack, asked.norm)
        and record.engine.version == engine_version(asked.norm)
        and (record.model.spec == asked.spec(seed) or is_of(record, wanted, files))
        and [point.eps_text for point in record.curve] == grid
        and record.dataset.count == images
        and all(has(record, text) for text in asked.settings(seed))
    ]
    if same and "recipe" in known:
        same = [one for one in same if is_of(one, wanted, files)]
    return max(same, key=lambda record: record.environment.date, default=None)


def is_of(record: Record, recipe: str | None, files: Collection[str]) -> bool:
    """Whether the record is of the weights in one of `files`, the deployed ones if "", of a run with this recipe."""
    trained, spec = record.model.trained, Path(record.model.spec)
    its = spec.name if spec.suffix == ".safetensors" else ""
    return bool(recipe and trained and trained.recipe_sha256 == recipe and its in files)


def has(record: Record, text: str) -> bool:
    """Whether an attack of the record has the setting NAME=VALUE."""
    name, _, value = text.partition("=")
    return any(str(attack.settings.get(name)).lower() == value.lower() for attack in record.attack)


def place_of(record: Record) -> str:
    """The record's path, relative to leaderboards/."""
    name = f"{slug(record.dataset.name)}/{record.norm}/{record.id}.json"
    return next(str((folder / name).relative_to(BOARDS)) for folder in RECORDS if (folder / name).is_file())


def remembered(stored: Stored) -> dict[str, dict[str, Any]]:
    """The facts on trainings by label and seed: this system's, and others', whose controls it may share."""
    found: dict[str, dict[str, Any]] = {}
    for one in (*(read(file.stem) for file in sorted(place("").parent.glob("*.json"))), stored):
        for label, by_seed in one["trained"].items():
            found.setdefault(label, {}).update(by_seed)
    return found


def facts_of(runs: Runs, seed: int, trained: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The facts on a training, from its folder, or as they were kept in `trained`; None if they are not known.

    Those of another recipe than is asked for now do not count.
    """
    recipe = runs.recipe_sha256(seed)
    found: Mapping[str, Any] | None = facts(runs.folder(seed), recipe) or trained.get(runs.label, {}).get(str(seed))
    return found if found and found.get("recipe", recipe) == recipe else None


def facts(folder: Path, recipe: str | None) -> dict[str, Any] | None:
    """The facts on a run that a judge or the page may use; None unless it is finished and has this recipe."""
    if not (folder / "run.json").is_file():
        return None
    card = read_card(folder)
    if not card.finished or card.recipe_sha256 != recipe:
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    notes = {name: max(line["notes"].get(name, 0.0) for line in lines) for name in lines[-1]["notes"]}
    best: Any = card.results["best"]
    return {
        "model": card.files["model.safetensors"],
        "recipe": card.recipe_sha256,
        "epochs": len(lines),
        "best_epoch": best["epoch"],
        "held_out_last": {name: lines[-1][name] for name in ("clean", "robust", "fgsm")},
        "updates": card.cost["updates"],
        "images": card.cost["images"],
        "forwards": card.cost["forwards"],
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


# --- the check --------------------------------------------------------------------------------------------


def check() -> int:
    """Print each difference. Returns 1 if there is any, else 0."""
    wrong = []
    files = {path.stem: path for path in (BOARDS / "effects").glob("*.json")}
    wrong += [f"{files[name]} belongs to no system" for name in sorted(files.keys() - set(ORDER))]
    tunings = {runs.tuned.file for name in ORDER for runs in load(name).runs if runs.tuned}
    tunings |= {tuning.file for tuning in importlib.import_module("board").tunings()}
    wrong += [f"{file} belongs to no system" for file in (BOARDS / "tuning").glob("*") if file not in tunings]
    records = load_records(BOARDS / "effects" / "records")[0]
    needed = set()
    for name in ORDER:
        stored, effect = read(name), load(name)
        asked = (found(records, e, seed, stored["trained"]) for e in effect.evaluations for seed in e.runs.seeds)
        needed |= {record.id for record in asked if record}
        if unasked := stored["records"].keys() - {one.key for one in effect.evaluations}:
            wrong.append(f"{place(name)}: nothing asks for {', '.join(sorted(unasked))}: {COLLECT} {name}")
        analyses = effect.asked
        if other := [key for key, of in stored["analysed"].items() if analyses.get(key) != of]:
            wrong.append(f"{place(name)}: {', '.join(other)} is of other runs: make effects SYSTEM={name}")
        numbers = read_numbers(stored)
        if [row(claim, effect, numbers) for claim in effect.claims] != stored["claims"]:
            wrong.append(f"{place(name)}: its claims are not those that the judges give: make effects SYSTEM={name}")
        file, figure = place(name).with_suffix(".svg"), drawn(effect, numbers)
        if figure and not (file.is_file() and same(file.read_bytes(), figure)):
            wrong.append(f"{file} does not match its numbers: {COLLECT}")
    wrong += [f"{place_of(one)} belongs to no claim: remove it" for one in records if one.id not in needed]
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text():
        wrong.append(f"{PAGE} does not match its numbers: {COLLECT}")
    print("\n".join(wrong) or f"{len(files)} systems match their numbers")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
