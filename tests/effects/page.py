"""leaderboards/EFFECTS.md: claim by claim, with the regime, the paired difference and the records."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from evidence import BOARDS, Claim, Effect, Runs
from findings import GAINED, PARTS, Finding, Numbers, mean_sd

from advbench.escape import markdown as cell
from advbench.record import load_record

INTRODUCTION = """# Does each system show its paper's effect?

Written by `make effects` from `effects/*.json`, `tuning/*.csv` and the records; edits will be lost. Nets and data are
small: what a claim shows or does not show, it does so here.

**Numbers.** Accuracies are in percent, on the first test images, or all of them; *a / b* are clean and robust accuracy.
Robust is what withstands AutoAttack, unless another attack is named: APGD-T is its targeted part, towards the three
nearest classes. AutoAttack leaves fewer of the same images: where both were run, both are given.
± is the standard deviation over seeds, which differ in the first weights and all that is drawn: where a regime has few
training images, they are the same, the first ones, with every seed. *fashion-1000* is the regime of the first 1,000
training images of Fashion-MNIST. *Passes an image*: forward and backward passes of the training for each image that it
was shown.

**Differences** are of the same images. In brackets is the 95 % interval: the error over seeds (of two groups of nets,
which holds whether or not nets of the same seed are alike; paired where both numbers are of the same nets), and the one
over images (paired) where both are accuracies under `advbench evaluate`. Then come the difference with each seed, and
the smallest difference that would have been shown beside that spread. *At an end*: the chosen value of a setting is the
first or last that was tried, and so many points of the held-out images, one or more, better than the one beside it.

**Settings** were chosen on held-out training images; *tried* says of how many for each method, those of earlier grids
included. Runs that a system's introduction names have what was chosen for others.

**Verdicts**
- *shown*: better with every seed, the interval is above 0, and by at least 1 point (2 below 5,000 test images).
- *shown, but small*: the same, by less.
- *refuted*: the interval is not above 0, and ends below that point (or two).
- *not shown*: none of these; or a flag doubts the gain, its control is at chance, or no more than chance withstands; or
  settings beyond an end might turn the verdict, if they gained as much again as the last step towards it; or nothing
  was tried for the side that other settings might help.
- *shown only under PGD*: gone under AutoAttack.

A claim of several parts is shown if all are, and refuted if one is. Where the rule is another, its *rule* says so."""


def row(claim: Claim, effect: Effect, numbers: Numbers) -> dict[str, str]:
    """A claim's row on the page. If some of its numbers are missing, it is "not measured yet"."""
    found = Finding("", "not measured yet")
    if is_measured(claim, effect, numbers):
        found = settled(claim, Finding(*claim.judge(numbers)))
    return {
        "claim": claim.text,
        "paper": claim.paper,
        "ours": found.ours,
        "difference": found.difference,
        "regime": regime(claim, effect, numbers),
        "rule": rule(claim),
        "verdict": found.verdict,
    }


def rule(claim: Claim) -> str:
    """What the judge says of itself, as one line."""
    judge: Any = claim.judge
    while isinstance(judge, partial):
        judge = judge.func
    return " ".join((inspect.getdoc(judge) or "").split())


def is_measured(claim: Claim, effect: Effect, numbers: Numbers) -> bool:
    """Whether all evaluations and trainings of the claim's runs are there, and its analyses."""
    tables = {name.rpartition("/")[0] for name in numbers.tables}
    return (
        all(one.key in numbers.records for one in effect.evaluations if one.runs in claim.of)
        and all(one.key in tables for one in claim.analyses)
        and all(set(runs.seeds) <= numbers.trained.get(runs.label, {}).keys() for runs in claim.of)
    )


def settled(claim: Claim, found: Finding) -> Finding:
    """What was found, unless better settings might turn it; with those at an end of what was tried.

    A value beyond an end is taken to gain no more than the last step towards it did. It turns a verdict that would not
    stand with that gain; so do settings that were chosen for other runs. A control's turns what is shown.
    """

    def ends(of: Sequence[Runs]) -> dict[str, dict[str, float]]:
        return {runs.tuned.name: found for runs in of if runs.tuned and (found := runs.tuned.at_edge())}

    def lead(of: Mapping[str, Mapping[str, float]]) -> float:
        return max((sum(one.values()) for one in of.values()), default=0.0)

    own = ends(claim.accused)
    controls = {name: one for name, one in ends(claim.of).items() if name not in own}
    turned = False
    if found.verdict == claim.excuses:
        turned = claim.untuned or bool(own and not stands(found, lead(own)))
    elif found.verdict in GAINED and (controls or claim.untuned_control):
        turned = claim.untuned_control or not stands(found, -lead(controls))
    if turned:
        why = PARTS.join([found.difference, f"not {found.verdict}, since settings may be better"])
        found = found._replace(verdict="not shown", difference=why)
    every = [
        f"{name} {' and '.join(f'{end} (by {by:.1f})' for end, by in one.items())}"
        for name, one in (own | controls).items()
    ]
    return found._replace(difference=f"{found.difference}{PARTS}at an end: {', '.join(every)}") if every else found


def stands(found: Finding, points: float) -> bool:
    """Whether the verdict is as good if ours gained so many points more."""
    told = found.rest(points) if found.rest else "not shown"
    return told == found.verdict or {told, found.verdict} <= {*GAINED}


def regime(claim: Claim, effect: Effect, numbers: Numbers) -> str:
    """Data, net, epochs, seeds, tries and test images of a claim's runs, in words."""
    if claim.data:
        return claim.data
    about = claim.of
    if claim.analyses:
        images = sorted({int(n) for one in claim.analyses if (n := one.images)})
    else:
        measured = [e for e in effect.evaluations if e.runs in about and e.key in numbers.records]
        images = sorted({record.dataset.count for e in measured for record, _ in numbers.records[e.key].values()})
    parts = {
        "": [runs.dataset for runs in about],
        "net": [runs.arch for runs in about],
        "training images": [field(runs, "train_n") for runs in about],
        "epochs": [str(runs.epochs or "the recipe's") for runs in about],
        "seeds": [str(len(runs.seeds)) for runs in about],
        "test images": list(map(str, images)),
    }
    words = [phrase(list(dict.fromkeys(found)), name) for name, found in parts.items() if found]
    return ", ".join([*words, tries(about)])


def tries(of: Sequence[Runs]) -> str:
    """How many settings of each method were tried: "tried: act 16, trades 12"."""
    found: dict[str, dict[str, None]] = {}
    for tuned in dict.fromkeys(runs.tuned for runs in of if runs.tuned):
        found.setdefault(tuned.base.method, {})[str(tuned.tried)] = None
    counts = [f"{method} {' or '.join(each)}" for method, each in found.items()]
    return f"tried: {', '.join(counts) or 1}"


def phrase(values: Sequence[str], name: str) -> str:
    """The values and what they are of: "10 or 20 epochs", "1 seed"."""
    plural = name if values != ["1"] else name.removesuffix("s")
    return f"{' or '.join(values)} {plural}".strip()


def field(runs: Runs, name: str) -> str:
    """A field of the recipe, as it is set, or "all"."""
    given = dict(text.split("=", 1) for text in (*runs.common, *runs.sets))
    return given.get(name, "all")


def page(systems: Sequence[Mapping[str, Any]], effects: Sequence[Effect]) -> str:
    """The text of EFFECTS.md, which follows from the JSON files and the records."""
    lines = [INTRODUCTION, "", "| system | claim | verdict |", "|:--|:--|:--|"]
    for stored in systems:
        lines += [f"| {stored['system']} | {cell(c['claim'])} | **{c['verdict']}** |" for c in stored["claims"]]
    for stored, effect in zip(systems, effects, strict=True):
        numbers = read_numbers(stored)
        lines += ["", f"## {effect.system}", "", cell(effect.source), ""]
        lines += [effect.about, ""] if effect.about else []
        lines += [f"`make effects SYSTEM={effect.system}`"]
        lines += ["", f"![{cell(effect.source)}](effects/{effect.system}.svg)"] if drawn(effect, numbers) else []
        for claim in stored["claims"]:
            lines += ["", f"### {cell(claim['claim'])}: {claim['verdict']}", ""]
            for name in ("paper", "ours", "difference", "regime", "rule"):
                first, *others = [cell(part) for part in claim[name].split(PARTS)]
                lines += [f"- {name}: {first}"] if first and not others else []
                lines += [f"- {name}", *(f"  - {part}" for part in (first, *others))] if others else []
        lines += [*tunings(effect), *evaluations(numbers, stored, effect)]
    return "\n".join(lines) + "\n"


def drawn(effect: Effect, numbers: Numbers) -> bytes | None:
    """The figure of a system, once its numbers are measured."""
    try:
        return effect.figure(numbers) if effect.figure else None
    except KeyError:
        return None


def tunings(effect: Effect) -> list[str]:
    """What was tried, and what was chosen."""
    found = {runs.tuned.name: runs.tuned for runs in effect.runs if runs.tuned and runs.tuned.done}
    if not found:
        return []
    lines = ["", "| tried | grid | chosen | at an end of it |", "|:--|:--|:--|:--|"]
    for name, one in found.items():
        grid = "; ".join(f"{setting}: {', '.join(values)}" for setting, values in one.grid)
        words = (grid, ", ".join(one.chosen()), ", ".join(one.at_edge()))
        lines.append(f"| [{name}](tuning/{one.file.name}) | {' | '.join(map(cell, words))} |")
    return lines


def evaluations(numbers: Numbers, stored: Mapping[str, Any], effect: Effect) -> list[str]:
    """A table of the evaluations of a system, with what the trainings cost."""
    if not numbers.records:
        return []
    label = {e.key: e.runs.label for e in effect.evaluations}
    head = [
        "runs",
        "seeds",
        "test images",
        "clean",
        "accuracy at eps",
        "flags",
        "passes an image",
        "updates",
        "records",
    ]
    lines = ["", f"| {' | '.join(head)} |", "|:--|--:|--:|--:|:--|:--|--:|--:|:--|"]
    for key, records in numbers.records.items():
        first, _ = next(iter(records.values()))
        grid = [point.eps_text for point in first.curve if point.eps > 0]
        curve = ", ".join(f"{eps}: {mean_sd(numbers.robust(key, eps))}" for eps in grid)
        links = " ".join(f"[{seed}]({stored['records'][key][str(seed)]})" for seed in records)
        passes = first.model.trained.passes_an_image if first.model.trained else None
        seen = next(iter(numbers.trained.get(label.get(key, ""), {}).values()), {}).get("updates")
        words = [key, len(records), first.dataset.count, mean_sd(numbers.clean(key)), curve]
        words += [", ".join(numbers.doubts(key)), passes or "", f"{seen:,}" if seen else "", links]
        lines.append(f"| {' | '.join(map(str, words))} |")
    return lines


def read_numbers(stored: Mapping[str, Any]) -> Numbers:
    """The numbers in an effect's JSON, and the records that it names."""

    def by_seed(found: Mapping[str, Any]) -> dict[int, Any]:
        return {int(seed): value for seed, value in found.items()}

    records = {
        key: {seed: load_record(BOARDS / place) for seed, place in by_seed(found).items()}
        for key, found in stored["records"].items()
    }
    trained = {label: by_seed(found) for label, found in stored["trained"].items()}
    return Numbers(records, stored["tables"], trained)
