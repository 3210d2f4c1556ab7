"""Whether a comparison may be made and its numbers believed; if not, why, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from advbench.compare.comparable import KINDS, differences
from advbench.compare.gate import Test
from advbench.compare.remedy import remedies
from advbench.compare.results import Finding
from advbench.compare.sides import Side, common_grid
from advbench.errors import unknown
from advbench.record import FLAG_NAMES, WINS
from advbench.registry import entries


def incomparable(base: Side, others: Iterable[Side], free: Collection[str], *, gated: bool) -> str:
    """Why `others` cannot be compared with `base`: they were measured differently, in kinds that are not in `free`.

    Without a gate, other attacks and engines may be compared.
    """
    refused = set(KINDS if gated else ("images", "norms")) - set(free)
    found: dict[str, str] = {}
    differing_units = []
    kinds: set[str] = set()
    for side in others:
        differing = {
            kind: text
            for kind, text in differences(side.units[0].record, base.units[0].record).items()
            if kind in refused
        }
        if differing:
            found[side.label] = ", ".join(differing.values())
            differing_units.append(side.units[0])
            kinds |= set(differing)
    if not found:
        return ""
    options = " and ".join(
        dict.fromkeys("--unpaired" if kind == "images" else "--different-attacks" for kind in sorted(kinds))
    )
    what = "; ".join(f"{label}: {text}" for label, text in found.items())
    return (
        f"not measured as the baseline {base.label} was: {what}. {remedies(base.units[0], differing_units)}, or "
        f"compare them with {options}"
    )


def retired(sides: Iterable[Side]) -> str:
    """Which of the records are retired, by notices with their reasons. Nothing allows them."""
    found = [f"{side.label}: record {unit.record.id} is retired: {unit.retired}"
             for side in sides for unit in side.units if unit.retired]  # fmt: skip
    return f"{'; '.join(found)}; name another record, or delete the notice beside it" if found else ""


def doubted(tests: Sequence[Test], sides: Sequence[Side], allowed: Collection[str]) -> str:
    """Why the gate's numbers cannot be believed: flags at the eps that its conditions name, or below."""
    top = max((eps.value for eps in common_grid([unit for side in sides for unit in side.units])), default=None)
    found: dict[str, dict[str, str]] = {}
    for side in sides:
        for record in (unit.record for unit in side.units):
            for test in tests:
                of_auc = top if test.relative else record.eps[-1]
                named = test.quantity.eps.value if test.quantity.eps else None
                eps = {"clean": 0.0, "acc": named, "auc": of_auc, "median_norm": None}[test.quantity.kind]
                flags = {flag.name: flag.severity for flag in record.doubts(eps) if flag.name not in allowed}
                found[side.label] = found.get(side.label, {}) | flags
    named_flags = {name for flags in found.values() for name in flags}
    if not named_flags:
        return ""
    what = "; ".join(
        f"{label} is flagged {', '.join(f'{name} ({severity})' for name, severity in sorted(flags.items()))}"
        for label, flags in found.items()
        if flags
    )
    accepting = ",".join(sorted({*allowed, *named_flags}))
    return f"numbers that cannot be believed: {what}; --allow-flags {accepting} would accept them"


def blind(findings: Iterable[Finding], alpha: float) -> str:
    """Why images or seeds are too few for the gate: a branch for which even a fall to 0 could not be significant."""
    found: dict[str, list[str]] = {}
    for one in findings:
        if one.p_zero is not None and one.p_zero >= alpha:
            worst = max((check.drop for check in one.checks if check.drop), key=lambda drop: drop.p_zero)
            found.setdefault(worst.few, []).append(f"{one.model}: {one.branch} (p {one.p_zero:.3f})")
    if not found:
        return ""
    remedies = {"images": "measure more images", "seeds": "give more seeds on each side"}
    return (
        f"too few {' and '.join(found)}: even a fall to 0 could not be significant at alpha {alpha:g}: "
        f"{'; '.join(text for several in found.values() for text in several)}; "
        f"{', '.join(remedies[few] for few in found)}, choose a larger --alpha, or gate --strict"
    )


def check_flags(allowed: Collection[str], sides: Iterable[Side]) -> None:
    """Raise UserError for names that are no flag's: neither known, nor raised here, nor NAME-wins of an attack."""
    records = [unit.record for side in sides for unit in side.units]
    attacks = {*entries("attacks"), *(one.name for record in records for one in record.attack)}
    valid = {*FLAG_NAMES, *(flag.name for record in records for flag in record.flags)}
    for name in allowed:
        if name not in valid and name not in {f"{attack}{WINS}" for attack in attacks}:
            raise unknown("flag", name, valid)
