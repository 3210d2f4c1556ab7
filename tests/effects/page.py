"""leaderboards/EFFECTS.md: claim by claim, with the regime, the paired difference and the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evidence import BOARDS, Claim, Effect, Runs
from findings import Finding, Numbers, mean_sd

from advbench.escape import markdown as cell
from advbench.record import load_record

INTRODUCTION = """# Does each system show its paper's effect?

Written by `make effects` from `effects/*.json`, `tuning/*.csv` and the records; edits will be lost. Accuracies in
percent, under AutoAttack unless another attack is named; ± is the standard deviation over seeds.

- *Difference* is of the same images. In brackets its 95 % interval, which has the error over seeds (as of two groups
  of them, or paired where both numbers are of the same nets) and the one over images (paired), then each seed's
  difference, and from which gain on it would have been shown beside that spread. Where a number of training images is
  given, every seed has the same, the first of the data set.
- **shown**: at least 1 point (2 below 5,000 test images), with every seed, and the interval is above 0. **shown, but
  small**: the same, below that gain. **refuted**: the interval is not above 0, and ends below that gain. **not shown**:
  none of these, or a gain that a flag doubts, or a refutation that better settings might turn. **shown only under
  PGD**: gone under AutoAttack. Claims about other quantities have their rules in `tests/effects/`.
- *Tried* are so many settings, on held-out training images, of a method and as many of its controls; runs that a
  system's introduction names have what was chosen for others. *At an end*: the chosen value is the first or last that
  was tried, and does better by a point or more of the held-out images than the one beside it.

Nets and data are small: what a row shows or does not show, it does so here."""


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
        "verdict": found.verdict,
    }


def is_measured(claim: Claim, effect: Effect, numbers: Numbers) -> bool:
    """Whether all evaluations and trainings of the claim's runs are there, and its analyses."""
    about = () if claim.data else claim.of or effect.runs
    tables = {name.rpartition("/")[0] for name in numbers.tables}
    return (
        all(one.key in numbers.records for one in effect.evaluations if one.runs in about)
        and all(one.key in tables for one in claim.analyses)
        and all(set(runs.seeds) <= numbers.trained.get(runs.label, {}).keys() for runs in about)
    )


def settled(claim: Claim, found: Finding) -> Finding:
    """What was found, with the settings that are at an end of what was tried; these may excuse the verdict."""

    def ends(of: Sequence[Runs]) -> list[str]:
        tunings = {runs.tuned.name: runs.tuned for runs in of if runs.tuned}
        return [f"{name} {end}" for name, one in tunings.items() for end in one.at_edge()]

    own = ends(claim.accused)
    if found.verdict == claim.excuses and (own or claim.untuned):
        why = "; ".join([found.difference, f"not {claim.excuses}, since settings may be better"])
        found = found._replace(verdict="not shown", difference=why)
    every = [*own, *(one for one in ends(claim.of) if one not in own)]
    return found._replace(difference=f"{found.difference}; at an end: {', '.join(every)}") if every else found


def regime(claim: Claim, effect: Effect, numbers: Numbers) -> str:
    """Data, net, epochs, seeds, tries and test images of a claim's runs, in words."""
    if claim.data:
        return claim.data
    about = claim.of or effect.runs
    measured = [e for e in effect.evaluations if e.runs in about and e.key in numbers.records]
    images = sorted({record.dataset.count for e in measured for record, _ in numbers.records[e.key].values()})
    parts = {
        "": [runs.dataset for runs in about],
        "net": [runs.arch for runs in about],
        "training images": [field(runs, "train_n") for runs in about],
        "epochs": [str(runs.epochs or "the recipe's") for runs in about],
        "seeds": [str(len(runs.seeds)) for runs in about],
        "tried": [str(runs.tuned.tries if runs.tuned else 1) for runs in about],
        "test images": list(map(str, images)),
    }
    return ", ".join(phrase(list(dict.fromkeys(found)), name) for name, found in parts.items() if found)


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
        lines += [f"`make effects SYSTEM={effect.system}`", ""]
        lines += [f"![{cell(effect.source)}](effects/{effect.system}.svg)", ""] if drawn(effect, numbers) else []
        lines += ["| claim | paper | ours | difference | regime | verdict |", "|:--|:--|:--|:--|:--|:--|"]
        for claim in stored["claims"]:
            words = [cell(claim[name]) for name in ("claim", "paper", "ours", "difference", "regime")]
            lines.append(f"| {' | '.join(words)} | **{claim['verdict']}** |")
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
