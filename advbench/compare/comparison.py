"""Differences between models measured on the same images, and the verdict of a gate on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from advbench.compare.believed import blind, check_flags, doubted, incomparable, retired
from advbench.compare.comparable import allowed_kinds, differences, reported
from advbench.compare.gate import Test, parse_gate
from advbench.compare.judge import Judge, check_measured, findings
from advbench.compare.matrix import FEW, names
from advbench.compare.results import Comparison, Finding, Gate, Refused
from advbench.compare.sides import Side, align, common_grid, labelled
from advbench.errors import UserError
from advbench.statistics import LEVEL


def compare(
    sides: Sequence[Side],
    baseline: Side | None = None,
    *,
    fail_if: str | None = None,
    alpha: float = 0.05,
    strict: bool = False,
    unpaired: bool = False,
    different_attacks: bool = False,
    allow_flags: Collection[str] = (),
) -> Comparison:
    """Compare each side with the baseline, which by default is the first side.

    Accuracies are compared at every eps at which all sides were measured, auc over that common grid, and median_norm
    if all sides have it.

    The gate `fail_if` (its language is in `gate`) fails for a model where all conditions of a branch are crossed, and
    the drops of the relative ones are significant: "no drop" has p < `alpha`, adjusted by Holm for branches and models.
    `strict` drops the condition of significance. A gate of floors alone needs no baseline; without one it judges every
    side.

    Raises Refused where the sides were measured differently, as far as `unpaired` (images) and `different_attacks`
    (norm, attacks, engine) do not allow it; and, of a gate, where a flag that is not in `allow_flags` doubts a number
    that it names, or where nothing failed and even a fall to 0 could not be significant somewhere. Raises UserError for
    wrong arguments.
    """
    branches = () if fail_if is None else parse_gate(fail_if)
    tests = [test for branch in branches for test in branch.tests]
    relative = [test.text for test in tests if test.relative]
    if not 0 < alpha < 1:
        raise UserError(f"alpha {alpha:g} is no significance level: choose a number between 0 and 1, such as 0.05")
    check_flags(allow_flags, [*sides, *([baseline] if baseline else [])])
    alone = baseline is None and len(sides) == 1
    if not sides or (alone and (relative or not tests)):
        what = f"{relative[0]} needs a baseline" if sides and relative else "nothing to compare"
        raise UserError(f"{what}: name two models, or one and --baseline")

    free = allowed_kinds(unpaired=unpaired, different_attacks=different_attacks)
    every = labelled(align([baseline, *sides] if baseline else sides, free))
    base, others = (None, every) if alone else (every[0], _once(every[1:]))
    judged = _once(every) if baseline is None and not relative else others
    asked = [(side, branch) for side in judged for branch in branches]
    untold = tuple(Finding(side.label, str(branch)) for side, branch in asked)
    record = others[0].units[0].record
    found = Comparison(
        sides=tuple([base, *others] if base else others),
        baseline=base.label if base else None,
        dataset=record.dataset.name,
        norm=record.norm,
        gate=None if fail_if is None else Gate(fail_if, alpha, strict, untold),
        caveat=_caveat(base, others, unpaired) if base else "",
    )
    if why := retired(found.sides):
        raise Refused(replace(found, refused=why, caveat=""))
    if base and (why := incomparable(base, others, free, gated=bool(tests))):
        raise Refused(replace(found, refused=why, caveat=""))
    found = replace(found, notes=_notes(found.sides, base, tests, unpaired, allow_flags))
    try:
        check_measured(asked, base, others)
    except UserError as error:
        raise Refused(replace(found, refused=str(error))) from error
    if why := doubted(tests, found.sides, allow_flags):
        raise Refused(replace(found, refused=why))
    judge = Judge(base, others, asked, paired=not unpaired, alpha=alpha) if base else None
    found = replace(found, rows=judge.rows() if judge else ())
    told = findings(asked, judge, alpha=alpha, strict=strict)
    if not strict and (why := blind(told, alpha)):
        if not any(finding.failed for finding in told):
            raise Refused(replace(found, refused=why))
        found = replace(found, notes=(*found.notes, f"{why[0].upper()}{why[1:]}."))
    return replace(found, gate=found.gate and replace(found.gate, findings=told))


def _once(sides: Iterable[Side]) -> list[Side]:
    """`sides` without those that repeat the records of an earlier one."""
    found: dict[frozenset[str], Side] = {}
    for side in sides:
        found.setdefault(side.ids, side)
    return list(found.values())


def _caveat(base: Side, others: Iterable[Side], unpaired: bool) -> str:
    """How `others` were measured differently, in words; empty where they were not."""
    found = ["treated as different images (--unpaired)"] if unpaired else []
    for side in others:
        differing = differences(side.units[0].record, base.units[0].record)
        if differing:
            found.append(f"{side.label} from {base.label}: {', '.join(differing.values())}")
    return f"Not measured alike: {'; '.join(found)}" if found else ""


def _notes(
    sides: Sequence[Side], base: Side | None, tests: Iterable[Test], unpaired: bool, allowed: Collection[str]
) -> tuple[str, ...]:
    notes = []
    others = [side for side in sides if side is not base]
    for side, name in zip(sides, names(sides), strict=True):
        record, ids = side.units[0].record, ", ".join(unit.record.id[:8] for unit in side.units)
        engine = f"{record.engine.name} {record.engine.version}"
        short = f"{name}: " if len(others) > FEW and name != side.label else ""  # as the matrix has it
        notes.append(f"{short}{side.label}: {record.attack_name} by {engine}, {record.n} images, record {ids}.")
        if side.others:
            notes.append(
                f"{short}{side.label} was measured by {', '.join(side.others)} too: the newest that all sides have in "
                "common counts, unless an id names a record."
            )
    if base is None and len(sides) == 1:
        pass  # a number against floors
    elif all(len(side.units) == 1 for side in sides):
        notes.append(
            "One model on each side: this compares these weights, and does not show how much the numbers vary when "
            "the same recipe is trained again (for that, give several seeds on each side)."
        )
    else:
        counts = ", ".join(f"{side.label}: {len(side.units)}" for side in sides)
        notes.append(f"Trained models are compared ({counts}), by means and standard deviations over models.")
    if base and len(others) > 1:
        each = 100 * (1 - (1 - LEVEL) / len(others))
        notes.append(
            f"p is adjusted for {len(others)} models (Holm), in a gate for its branches too; the intervals of a "
            f"quantity hold for all {len(others)} together with 95 % (Bonferroni: {each:.4g} % each)."
        )
    if unpaired:
        notes.append("Unpaired: the sides are treated as different images, so only larger differences are significant.")
    for test in tests:
        least = max(side.units[0].record.n for side in sides)
        if test.relative and test.quantity.scale == 100 and 0 < test.bound * least < 1:
            notes.append(f"{test.text} is a tolerance, in percentage points, of less than one of {least:,} images.")
    for side in sides:
        for unit in side.units:
            doubts = [
                f"{unit.record.words(flag)}{', which is allowed' if flag.name in allowed else ''}"
                for flag in unit.record.doubts()
            ]
            if doubts:
                whose = side.label if len(side.units) == 1 else f"record {unit.record.id[:8]} of {side.label}"
                notes.append(f"The numbers of {whose} are in doubt: flagged {', '.join(doubts)}.")
    for side in others:
        if base is None:
            break
        if side.ids == base.ids:
            notes.append(f"{side.label} is identical to the baseline: the same record.")
        told = {text: None for unit in side.units for text in reported(unit.record, base.units[0].record)}
        if told:
            notes.append(f"{side.label} and {base.label} also differ in {', '.join(told)}, which need not be the same.")
    units = [unit for side in sides for unit in side.units]
    grid = common_grid(units)
    if base and grid and any(len(unit.record.curve) != len(grid) for unit in units):
        area = (
            f"auc is taken over {', '.join(map(str, grid))} alone" if any(eps.value > 0 for eps in grid) else "no auc"
        )
        notes.append(f"The sides have different eps grids: {area}.")
    return tuple(dict.fromkeys(notes))
