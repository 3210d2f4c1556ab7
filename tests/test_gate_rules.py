"""The rules of the gate, in order: identical, comparable, believed, floors, drops. And how often it is wrong."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from measurements import fallen, made, other_images, side

from advbench import statistics
from advbench.compare import (
    Comparison,
    Refused,
    Side,
    cells,
    compare,
    reason,
    to_csv,
    to_json,
    to_junit,
    to_markdown,
    verdict,
)
from advbench.errors import UserError
from advbench.record import AttackRef, Engine, External, Flag

BASE = side("base", made(fallen([900, 700, 500]), spec="base"))
PGD = AttackRef(name="pgd", version="1")


def new(lost: int = 0, label: str = "new", **changes: Any) -> Side:
    return side(label, made(fallen([900, 700, 500 - lost]), spec=label, **changes))


def failed(*sides: Side, **given: Any) -> bool:
    gate = compare(sides, **given).gate
    assert gate is not None
    return gate.failed


def reasons(found: Comparison) -> list[str]:
    assert found.gate is not None
    return [reason(finding, found.gate.strict) for finding in found.gate.findings]


# --- 1. the same record on both sides -------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["acc@8/255 <= baseline", "clean < baseline - 1 or auc <= baseline"])
@pytest.mark.parametrize("strict", [False, True])
def test_what_is_identical_cannot_have_dropped(expression: str, strict: bool) -> None:
    found = compare([BASE], BASE, fail_if=expression, strict=strict)
    assert found.gate is not None and not found.gate.failed
    assert all("identical" in text for text in reasons(found)) and "identical" in " ".join(found.notes)
    for report in (to_markdown, to_junit, to_json):
        assert "identical" in report(found)


def test_what_is_identical_can_be_below_a_floor_or_doubted() -> None:
    assert failed(BASE, baseline=BASE, fail_if="clean < baseline or acc@8/255 < 60")
    doubted = side("base", made(fallen([900, 700, 500]), spec="base", flags=[Flag(name="random", severity="suspect")]))
    assert doubted.ids == BASE.ids  # the id is of verdicts, not of flags
    for sides in ((doubted, BASE), (BASE, doubted)):
        with pytest.raises(Refused, match="base is flagged random"):
            compare(sides[:1], sides[1], fail_if="clean < baseline - 1")


def test_few_images_are_no_hindrance_where_all_is_identical() -> None:
    few = side("few", made([1, 2, -1], spec="few"))
    assert not failed(few, few, fail_if="acc@8/255 < baseline")


def test_a_side_that_is_named_twice_is_judged_once() -> None:
    """What repeats the baseline or another side takes no share of the level: p = 1/32 is significant alone."""
    worse = new(5)
    found = compare([BASE, BASE, worse, worse], fail_if="acc@8/255 < baseline")
    assert found.gate is not None and found.gate.failed
    assert [finding.p_holm for finding in found.gate.findings] == [None, pytest.approx(1 / 32)]


# --- 2. comparable --------------------------------------------------------------------------------------


DIFFERENT = {
    "images": (other_images(), r"different images \(cifar10, random:7:1000; cifar10, first:1000\)", "unpaired"),
    "norm": ({"norm": "l2"}, r"different norms \(l2; linf\)", "different_attacks"),
    "attack": (
        {"attack": [AttackRef(name="square", version="1")]},
        r"different attacks \(square; pgd\)",
        "different_attacks",
    ),
    "one attack less": (
        {"attack": [PGD, AttackRef(name="square", version="1")]},
        r"different attacks \(pgd\+square; pgd\)",
        "different_attacks",
    ),
    "setting": (
        {"attack": [AttackRef(name="pgd", version="1", settings={"steps": 1})]},
        r"different attacks \(steps 1; none of pgd\)",
        "different_attacks",
    ),
    "attack version": (
        {"attack": [AttackRef(name="pgd", version="2")]},
        r"different attacks \(version of pgd 2; 1\)",
        "different_attacks",
    ),
    "engine kind": (
        {"engine": Engine(name="pyautoattack", version="1", slots=64, precision="fp32")},
        r"different engines \(pyautoattack 1; advbench 1\)",
        "different_attacks",
    ),
    "engine version": (
        {"engine": Engine(name="advbench", version="2", slots=64, precision="fp32")},
        r"different engines \(advbench 2; advbench 1\)",
        "different_attacks",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("lost", [0, 100])
def test_what_was_measured_differently_is_refused_or_said_in_the_first_line(kind: str, lost: int) -> None:
    changes, says, option = DIFFERENT[kind]
    sides = (BASE, new(lost, **changes))
    for strict in (False, True):
        with pytest.raises(Refused, match=says) as caught:
            compare(sides, fail_if="acc@8/255 < baseline - 1", strict=strict)
    message = str(caught.value)
    renewal = "advbench evaluate --again x.json --model '<where its weights are>' --save-baseline x.json"
    measured = "advbench evaluate --model '<where its weights are>' --dataset cifar10 --attack pgd "
    assert (renewal in message, measured in message) == ("version" in kind, "version" not in kind)
    assert f"compare them with --{option.replace('_', '-')}" in message and "\n" not in message
    other = "unpaired" if option != "unpaired" else "different_attacks"
    with pytest.raises(Refused, match=says):
        compare(sides, fail_if="acc@8/255 < baseline - 1", **{other: True})
    found = compare(sides, fail_if="acc@8/255 < baseline - 1", **{option: True})
    assert found.gate is not None and found.gate.failed == (lost > 0)
    assert to_markdown(found).splitlines()[0].startswith("### Not measured alike: ")
    assert "Not measured alike" in to_junit(found).splitlines()[1]
    assert all(json.loads(line)["caveat"] == found.caveat for line in to_json(found).splitlines())
    assert "Not measured alike" in to_csv(found).splitlines()[1]


@pytest.mark.parametrize("kind", DIFFERENT)
def test_without_a_gate_only_images_and_norms_have_to_be_the_same(kind: str) -> None:
    changes, says, _ = DIFFERENT[kind]
    if kind in ("images", "norm"):
        with pytest.raises(Refused, match=says):
            compare([BASE, new(**changes)])
    else:
        assert compare([BASE, new(**changes)]).caveat.startswith("Not measured alike: new from base: different")


def test_others_adversarial_images_and_abstention_are_part_of_the_attack() -> None:
    plain = new(10)
    unit = plain.units[0]
    for part in (
        {"external": (External(name="a.npz", sha256="e" * 64, felled=3),)},
        {"model": unit.record.model.model_copy(update={"abstain": "last"})},
    ):
        changed = type(unit)(unit.record.model_copy(update=part), unit.fates, unit.path)
        with pytest.raises(Refused, match="different attacks"):
            compare([BASE, side("new", changed)], fail_if="clean < baseline - 1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": Engine(name="advbench", version="1", slots=256, precision="fp32")}, "slots (256; 64)"),
        ({"engine": Engine(name="advbench", version="1", slots=64, precision="bf16")}, "precision (bf16; fp32)"),
        ({"device": "cuda"}, "device (cuda; cpu)"),
        ({"seed": 7}, "seed (7; 0)"),
        ({"engine": Engine(name="advbench", version="1", slots=64, precision="fp32", curve="fast")}, "curve (fast;"),
        (
            {
                "engine": Engine(name="advbench", version="1", slots=64, precision="bf16"),
                "attack": [PGD, AttackRef(name="apgd-ce", version="2", settings={"set": "survivors-fp32"})],
            },
            "precision (bf16; fp32)",  # and the recheck that belongs to it
        ),
        ({"flags": [Flag(name="escalated", severity="note", detail="it went on")]}, "escalated (yes; no)"),
    ],
)
def test_slots_precision_and_device_are_reported(changes: dict[str, Any], says: str) -> None:
    for lost in (0, 100):
        found = compare([BASE, new(lost, **changes)], fail_if="acc@8/255 < baseline - 1")
        assert found.gate is not None and found.gate.failed == (lost > 0) and not found.caveat
        assert says in " ".join(found.notes)


# --- 3. believed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "eps", "doubted"),
    [
        ("clean < baseline - 1", None, True),
        ("clean < baseline - 1", 0.0, True),
        ("clean < baseline - 1", 4 / 255, False),
        ("acc@4/255 < baseline - 1", 4 / 255, True),
        ("acc@4/255 < baseline - 1", 8 / 255, False),
        ("acc@0 < baseline - 1", 4 / 255, False),
        ("auc < baseline - 1", 8 / 255, True),
        ("auc < 10", 8 / 255, True),
        ("clean < 10", 4 / 255, False),
        ("clean < 10 or acc@8/255 < 10", 4 / 255, True),
    ],
)
@pytest.mark.parametrize("severity", ["suspect", "broken"])
@pytest.mark.parametrize("where", ["candidate", "baseline"])
def test_a_flag_decides_at_the_eps_of_the_condition_and_above(
    expression: str, eps: float | None, doubted: bool, severity: Any, where: str
) -> None:
    flags = [Flag(name="zero-gradient", severity=severity, eps=eps), Flag(name="small-n", severity="note")]
    flagged = new(0, "flagged", flags=flags)
    sides = {"candidate": ([flagged], BASE), "baseline": ([BASE], flagged)}[where]
    for strict in (False, True):
        if not doubted:
            assert not failed(*sides[0], baseline=sides[1], fail_if=expression, strict=strict)
            continue
        with pytest.raises(Refused, match=rf"flagged is flagged zero-gradient \({severity}\); --allow-flags zero"):
            compare(*sides, fail_if=expression, strict=strict)
        with pytest.raises(Refused, match="--allow-flags random,zero-gradient would"):
            compare(*sides, fail_if=expression, strict=strict, allow_flags=["random"])
        found = compare(*sides, fail_if=expression, strict=strict, allow_flags=["zero-gradient"])
        assert found.gate is not None and not found.gate.failed and "which is allowed" in " ".join(found.notes)


def test_above_the_common_grid_no_flag_counts_for_auc() -> None:
    flags = [Flag(name="square-wins", severity="suspect", eps=16 / 255)]
    far = side("far", made(fallen([900, 700, 500, 100]), spec="far", eps="0,4/255,8/255,16/255", flags=flags))
    assert not failed(BASE, far, fail_if="auc < baseline - 1")
    with pytest.raises(Refused, match="square-wins"):
        compare([far], fail_if="auc < 1")


def test_all_flags_count_for_the_median() -> None:
    norm = np.linspace(0.001, 8 / 255, 500)
    flags = [Flag(name="square-wins", severity="suspect", eps=1.0)]
    sides = [
        side(name, made(np.where(norm <= 4 / 255, 1, 2), norm, spec=name, flags=given))
        for name, given in (("a", []), ("b", flags))
    ]
    with pytest.raises(Refused, match="square-wins"):
        compare(sides, fail_if="median_norm < baseline - 0.001")


def test_flags_to_allow_have_to_be_flags() -> None:
    with pytest.raises(UserError, match="unknown flag 'zero-gradients': did you mean zero-gradient"):
        compare([BASE, new()], allow_flags=["zero-gradients"])
    for name in ("foo-wins", "-wins"):
        with pytest.raises(UserError, match=f"unknown flag '{name}'"):
            compare([BASE, new()], allow_flags=[name])
    mine = new(attack=[AttackRef(name="mine", version="1")])
    assert compare([BASE, mine], allow_flags=["mine-wins", "square-wins", "pgd-wins"])
    own = new(flags=[Flag(name="of-a-plug-in", severity="suspect")])
    assert not failed(BASE, own, fail_if="clean < 1", allow_flags=["of-a-plug-in", "square-wins", "at-chance"])


# --- 4. floors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "expression", "fails"),
    [
        (1, "acc@8/255 < 50", True),  # 49.9 % is below 50 %, significantly or not
        (0, "acc@8/255 < 50", False),
        (0, "acc@8/255 <= 50", True),
        (0, "auc < 70", False),
        (1, "auc < 70", True),  # percent: (90 + 2 x 70 + 49.9) / 4
        (0, "clean < 80 or auc < 69.9", False),
        (0, "acc@0 < 90.1", True),
    ],
)
def test_a_floor_is_decided_by_the_number_itself(lost: int, expression: str, fails: bool) -> None:
    alone = compare([new(lost)], fail_if=expression)
    assert alone.gate is not None and alone.gate.failed == fails and alone.baseline is None and alone.rows == ()
    assert failed(new(lost), baseline=BASE, fail_if=expression) == fails
    assert failed(new(lost), baseline=BASE, fail_if=expression, strict=True) == fails
    assert all(finding.p_holm is None for finding in alone.gate.findings)
    for report in (to_csv, to_markdown, to_junit, to_json):
        assert "None" not in report(alone)


def test_a_floor_holds_for_every_side_and_on_its_own_grid() -> None:
    found = compare([new(100), new(0, "fine")], fail_if="acc@8/255 < 45")
    assert found.gate is not None and [(one.model, one.failed) for one in found.gate.findings] == [
        ("new", True),
        ("fine", False),
    ]
    wide = side("wide", made(fallen([900, 700, 500, 0]), spec="wide", eps="0,4/255,8/255,16/255"))
    auc = 100 * wide.units[0].record.auc
    assert auc < 50 and failed(wide, baseline=BASE, fail_if=f"auc < {auc + 0.1}")
    assert not failed(wide, baseline=BASE, fail_if=f"auc < {auc - 0.1}")


def test_a_relative_condition_needs_a_baseline() -> None:
    with pytest.raises(UserError, match="clean < baseline - 1 needs a baseline"):
        compare([BASE], fail_if="acc@8/255 < 10 or clean < baseline - 1")


def test_a_floor_below_one_point_is_pointed_out() -> None:
    with pytest.raises(UserError, match=r"auc is measured in percent, of which 0.7 is less than one: write 70"):
        compare([BASE], fail_if="auc < 0.7")
    for tolerance, noted in (("0.05", True), ("0.1", False)):
        notes = compare([new(), BASE], fail_if=f"clean < baseline - {tolerance}").notes
        assert ("of less than one of 1,000 images" in " ".join(notes)) is noted


# --- 5. drops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "expression", "strict", "fails"),
    [
        (50, "acc@8/255 < baseline - 0.5", False, True),
        (5, "acc@8/255 < baseline - 0.5", False, False),  # just the tolerance
        (6, "acc@8/255 <= baseline - 0.6", True, True),
        (50, "acc@8/255 < baseline - 5", True, False),
        (4, "acc@8/255 < baseline", False, False),  # beyond it, p = 1/16
        (4, "acc@8/255 < baseline", True, True),
        (5, "acc@8/255 < baseline", False, True),  # p = 1/32
        (50, "acc@8/255 < baseline - 0.5 and clean < baseline", False, False),
        (50, "acc@8/255 < baseline - 0.5 and clean < baseline", True, False),
        (50, "acc@8/255 < baseline and auc < 69", False, True),  # the floor carries no p
        (50, "acc@8/255 < baseline and auc < 68", False, False),
        (4, "acc@8/255 < baseline and auc < 70", False, False),
        (50, "clean < baseline or acc@8/255 < baseline - 0.5", False, True),
        (50, "auc < baseline - 1.2", False, True),  # points: 5 points at one of two steps, by the trapezoid rule
        (50, "auc < baseline - 1.3", False, False),
        (0, "acc@0 < baseline", True, False),
    ],
)
def test_a_drop_fails_when_it_exceeds_the_tolerance_and_is_significant(
    lost: int, expression: str, strict: bool, fails: bool
) -> None:
    assert failed(BASE, new(lost), fail_if=expression, strict=strict) == fails


def test_a_gain_never_fails() -> None:
    better = side("new", made(fallen([950, 800, 700]), spec="new"))
    assert not failed(BASE, better, fail_if="clean < baseline or acc@8/255 < baseline or auc < baseline", strict=True)


def test_drops_of_the_median() -> None:
    norm = np.linspace(0.001, 8 / 255, 500)
    base = side("base", made(np.where(norm <= 4 / 255, 1, 2), norm, spec="base"))
    nearer = side("new", made(np.where(norm * 0.8 <= 4 / 255, 1, 2), norm * 0.8, spec="new"))
    for bound, fails in (
        ("baseline - 0.001", True),
        ("baseline - 0.01", False),
        ("8/255", True),
        ("0.001", False),
    ):
        assert failed(base, nearer, fail_if=f"median_norm < {bound}") == fails
    with pytest.raises(Refused, match="median_norm is not known"):
        compare([BASE, new()], fail_if="median_norm < baseline")


def test_a_gate_at_an_eps_that_was_not_measured() -> None:
    for expression in ("acc@2/255 < 5", "acc@2/255 < baseline"):
        with pytest.raises(Refused, match=r"(new|base) was not measured at 2/255: choose from 0, 4/255, 8/255"):
            compare([BASE, new()], fail_if=expression)


def test_branches_and_models_share_the_level() -> None:
    """p = 1/64 fails for one model and one branch, and not among four."""
    news = [new(6, f"m{i}") for i in range(2)]
    alone = compare([BASE, news[0]], fail_if="acc@8/255 < baseline").gate
    among = compare([BASE, *news], fail_if="acc@8/255 < baseline or clean < baseline").gate
    assert alone is not None and alone.failed
    assert among is not None and not among.failed and among.findings[0].p_holm == pytest.approx(4 / 64)
    with_a_floor = compare([BASE, *news], fail_if="acc@8/255 < baseline or clean < 1").gate
    assert with_a_floor is not None and with_a_floor.findings[0].p_holm == pytest.approx(2 / 64)  # floors share nothing
    assert with_a_floor.failed


def test_of_an_and_branch_the_largest_p_counts() -> None:
    worse = side("new", made(fallen([894, 700, 450]), spec="new"))
    found = compare([BASE, worse], fail_if="acc@8/255 < baseline and clean < baseline and auc < 99").gate
    assert found is not None and found.failed and found.findings[0].p_holm == statistics.mcnemar_drop(6, 0)


@pytest.mark.parametrize(
    ("standing", "images", "blind"), [(4, 4, True), (5, 5, False), (4, 100, True), (5, 100, False)]
)
def test_where_even_a_fall_to_0_is_not_significant_there_is_no_verdict(standing: int, images: int, blind: bool) -> None:
    base, none_left = (
        side(name, made(fallen([images, standing, left], images), spec=name))
        for name, left in (("base", standing), ("new", 0))
    )
    if blind:
        for sides in (
            [base, none_left],
            [base, side("same", made(fallen([images, standing, standing], images), spec="s"))],
        ):
            with pytest.raises(Refused, match=r"too few images: even a fall to 0 .*\(p 0.062\)"):
                compare(sides, fail_if="acc@8/255 < baseline")
        assert failed(base, none_left, fail_if="acc@8/255 < baseline", strict=True)
        return
    assert failed(base, none_left, fail_if="acc@8/255 < baseline")
    with pytest.raises(Refused, match="too few images"):  # two models share the level: 2/32
        compare(
            [base, none_left, side("b", made(fallen([images, 1, 0], images), spec="b"))], fail_if="acc@8/255 < baseline"
        )
    with pytest.raises(Refused, match="too few images"):
        compare([base, none_left], fail_if="acc@8/255 < baseline", alpha=0.01)


def test_a_certain_failure_is_no_refusal_for_too_few_images() -> None:
    base, new = (side(name, made(fallen([100, 4, left], 100), spec=name)) for name, left in (("base", 4), ("new", 3)))
    expression = "clean <= 100 or acc@8/255 < baseline"
    found = compare([base, new], fail_if=expression)
    assert found.gate is not None and found.gate.failed
    assert [finding.failed for finding in found.gate.findings] == [True, False]
    assert any(note.startswith("Too few images: even a fall to 0 could not be") for note in found.notes)
    with pytest.raises(Refused, match="too few images"):
        compare([base, new], fail_if="clean < 99 or acc@8/255 < baseline")


def test_where_seeds_are_too_few_more_seeds_are_asked_for() -> None:
    def several(label: str, *counts: int, n: int = 1000) -> Side:
        return side(label, *(made(fallen([n, n, count], n), spec=f"{label}{count}") for count in counts))

    gate = {"fail_if": "acc@8/255 < baseline"}
    with pytest.raises(Refused, match=r"^too few seeds: .*; give more seeds on each side, choose a larger --alpha"):
        compare([several("base", 100, 500), several("new", 90, 400)], **gate)
    with pytest.raises(Refused, match=r"^too few images: .*; measure more images, choose a larger --alpha"):
        compare([several("base", 3, 3, n=10), several("new", 2, 3, n=10)], **gate)
    assert failed(several("base", 500, 501), several("new", 90, 91), **gate)


def test_a_verdict_on_floors_is_against_no_one() -> None:
    low, high = new(100, "mid"), new(0, "high")
    assert verdict(compare([low, high], fail_if="acc@8/255 < 45")) == "Regression: mid"
    assert verdict(compare([high], low, fail_if="acc@8/255 < 45")) == "No regression"
    assert verdict(compare([high, low], fail_if="acc@8/255 < 45 or clean < baseline")) == "Regression: mid against high"


def test_no_difference_has_no_sign() -> None:
    found = compare([BASE, new()], fail_if="acc@8/255 < baseline - 1")
    assert "a drop of 0 (" in reasons(found)[0]
    assert all("-0.0" not in cells(row)[4:6] and cells(row)[4] == "+0.0" for row in found.rows)


def test_a_baseline_below_its_own_tolerance_cannot_drop() -> None:
    """The other conditions decide, and have the whole level for themselves."""
    base = side("base", made(fallen([900, 700, 3]), spec="base"))
    worse = side("new", made(fallen([895, 700, 0]), spec="new"))
    for expression in ("acc@8/255 < baseline - 1", "acc@8/255 < baseline - 0.3"):
        found = compare([base, worse], fail_if=expression)
        assert found.gate is not None and not found.gate.failed and "cannot drop" in reasons(found)[0]
        assert "cannot drop" in to_markdown(found)
        assert failed(base, worse, fail_if=f"{expression} or clean < baseline")
        assert failed(base, worse, fail_if=f"{expression} or acc@8/255 < 1")
        assert not failed(base, worse, fail_if=f"{expression} and clean < baseline")


def test_the_report_gives_the_interval_and_the_smallest_significant_drop() -> None:
    found = compare([BASE, new(50)], fail_if="acc@8/255 < baseline - 0.5")
    assert found.gate is not None
    drop = found.gate.findings[0].checks[0].drop
    low, high = statistics.tango(0, 50, 1000)
    assert drop is not None and (drop.drop, drop.low, drop.high) == (0.05, pytest.approx(-high), pytest.approx(-low))
    assert (drop.p, drop.least) == (statistics.mcnemar_drop(50, 0), 0.005)
    assert "a drop of 5 (3.813 to 6.531); a drop is significant from 0.5 on" in reasons(found)[0]
    shared = compare([BASE, new(50)], fail_if="acc@8/255 < baseline - 0.5 or clean < baseline")
    assert "significant from 0.6 on" in reasons(shared)[0]  # the level is 0.025: six images
    assert "trained again" in " ".join(found.notes)


def test_unpaired_drops() -> None:
    other = side("new", made(fallen([900, 700, 450]), spec="new", **other_images()))
    found = compare([BASE, other], fail_if="acc@8/255 < baseline - 1", unpaired=True).gate
    expected = statistics.unpaired_accuracies((500, 1000), (450, 1000))
    assert found is not None and found.findings[0].p_holm == expected.p_drop and found.failed


# --- several seeds --------------------------------------------------------------------------------------


def seeds(name: str, counts: list[int], n: int = 1000) -> Side:
    """Models of one recipe; the same images stand first."""
    return side(name, *(made(fallen([n, n, count], n), spec=f"{name}{i}{count}") for i, count in enumerate(counts)))


def test_seeds_are_the_units() -> None:
    base, worse = seeds("base", [500, 510, 490]), seeds("new", [450, 470, 460, 455])
    found = compare([base, worse], fail_if="acc@8/255 < baseline - 1")
    row = next(row for row in found.rows if row.quantity == "acc@8/255")
    expected = statistics.seeds([0.50, 0.51, 0.49], [0.45, 0.47, 0.46, 0.455])
    assert (row.difference, row.p) == (pytest.approx(expected.difference), pytest.approx(expected.p))
    assert (row.baseline, row.baseline_sd) == (pytest.approx(0.5), pytest.approx(0.01))
    assert row.test == "Welch's t over models and paired permutation over images" and row.n == 7
    assert cells(row)[2] == "50.0 ± 1.0"
    assert found.gate is not None and found.gate.failed
    assert found.gate.findings[0].p_holm == pytest.approx(expected.p_drop)
    assert any("base: 3, new: 4" in note for note in found.notes)


def test_seeds_without_spread_do_not_prove_a_drop() -> None:
    """Two models a side, one image less each: the t-test over models has p = 0, that over images 1/2."""
    base, worse = seeds("base", [500, 500]), seeds("new", [499, 499])
    gate = compare([base, worse], fail_if="acc@8/255 < baseline").gate
    assert gate is not None and not gate.failed and gate.findings[0].p_holm == 1.0
    far = compare([base, seeds("far", [400, 400])], fail_if="acc@8/255 < baseline").gate
    assert far is not None and far.failed and 0 < (far.findings[0].p_holm or 0) < 0.001


def test_of_seeds_the_larger_p_of_models_and_of_images_counts() -> None:
    spread, worse = seeds("base", [600, 400, 500]), seeds("new", [430, 520, 450])
    gate = compare([spread, worse], fail_if="acc@8/255 < baseline").gate
    over_models = statistics.seeds([0.6, 0.4, 0.5], [0.43, 0.52, 0.45]).p_drop
    assert over_models > 0.2 and gate is not None and gate.findings[0].p_holm == pytest.approx(over_models)
    few = compare([seeds("base", [9, 9, 9], 10), seeds("new", [7, 7, 7], 10)], fail_if="acc@8/255 < baseline").gate
    assert few is not None and few.findings[0].p_holm == pytest.approx(1 / 4)  # two images of ten


def test_seeds_of_the_median_where_some_images_never_fall() -> None:
    norm = np.append(np.linspace(0.001, 8 / 255, 300), np.full(100, np.nan))
    fell = np.append(np.where(norm[:300] <= 4 / 255, 1, 2), np.full(100, -1))

    def of(name: str, scale: float) -> Side:
        units = []
        for seed in range(3):
            sizes = norm * scale * (1 - 0.01 * seed)
            at = np.where(np.isnan(sizes), -1, np.where(sizes <= 4 / 255, 1, 2))
            units.append(made(at, sizes, spec=f"{name}{seed}"))
        return side(name, *units)

    assert fell.shape == norm.shape
    assert failed(of("base", 1.0), of("new", 0.8), fail_if="median_norm < baseline - 0.001")
    assert not failed(of("base", 1.0), of("new", 0.999), fail_if="median_norm < baseline")


@pytest.mark.parametrize("unknown", [0.2, 0.25])
@pytest.mark.parametrize("far", [None, 1.0])
def test_one_distance_far_away_hides_no_drop_of_the_median(unknown: float, far: float | None) -> None:
    rng = np.random.default_rng(0)
    distance = rng.uniform(0.005, 0.03, 1000)

    def of(name: str, scale: float, farthest: float | None) -> Side:
        units = []
        for seed in range(3):
            sizes = distance * scale * np.exp(0.05 * rng.normal(size=1000))
            sizes[rng.random(1000) < unknown] = np.nan
            sizes[0] = farthest or sizes[0]
            at = np.where(np.isnan(sizes), -1, np.where(sizes <= 4 / 255, 1, np.where(sizes <= 8 / 255, 2, -1)))
            units.append(made(at, sizes, spec=f"{name}{seed}"))
        return side(name, *units)

    sides = [of("base", 1.0, None), of("new", 0.7, far)]
    found = compare(sides, fail_if="median_norm < baseline - 0.001")
    row = next(row for row in found.rows if row.quantity == "median_norm")
    assert found.gate is not None and found.gate.failed
    assert -0.012 < row.low < row.value - row.baseline < row.high < -0.004


# --- how often it is wrong ------------------------------------------------------------------------------


def _simulated(rng: np.random.Generator, discordant: float, drop: float, models: int = 1, n: int = 1000) -> list[Any]:
    """(n,) fates on one eps of a baseline and of models, each with a share of samples that changed sides."""
    before = rng.random(n) < 0.5
    found = [before]
    for _ in range(models):
        lost, gained = (discordant + drop), (discordant - drop)  # of the half that stands, of the half that does not
        found.append(np.where(before, rng.random(n) >= lost, rng.random(n) < gained))
    return [np.where(standing, -1, 1) for standing in found]


def _alarms(rng: np.random.Generator, runs: int, drop: float, models: int, fail_if: str) -> float:
    count = 0
    for _ in range(runs):
        fates = _simulated(rng, 0.1, drop, models)
        sides = [side(str(i), made(fell, spec=str(i), eps="0,8/255")) for i, fell in enumerate(fates)]
        count += failed(*sides, fail_if=fail_if)
    return count / runs


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """19 permutations: those tests are tried in test_statistics."""
    resampling = statistics._resampling
    monkeypatch.setattr(statistics, "_resampling", lambda *sizes: {**resampling(*sizes), "n_resamples": 19})


@pytest.mark.parametrize(
    ("drop", "tolerance", "expression"),
    [(0.0, 0.0, "acc@8/255 < baseline"), (0.03, 0.0, "acc@8/255 < baseline"), (0.03, 0.01, "acc@8/255 < baseline - 1")],
)
@pytest.mark.usefixtures("few_resamples")
def test_the_gates_alarms_are_as_frequent_as_theory_says(drop: float, tolerance: float, expression: str) -> None:
    """n = 1,000, a tenth discordant: 4 % false alarms; a drop of 3 points is caught 90 times in 100."""
    runs = 250
    rate = _alarms(np.random.default_rng(6), runs, drop, 1, expression)
    theory = statistics.mcnemar_power(1000, 0.1, drop, tolerance=tolerance)
    assert abs(rate - theory) < 4 * math.sqrt(theory * (1 - theory) / runs)


@pytest.mark.parametrize(
    ("models", "expression"),
    [
        (4, "acc@8/255 < baseline"),
        (1, "clean < baseline or acc@8/255 < baseline"),
        (3, "clean < baseline or acc@8/255 < baseline or acc@8/255 < baseline - 0.5"),
        (2, "acc@8/255 < baseline and acc@8/255 < 99 or clean < baseline - 0.1"),
    ],
)
@pytest.mark.usefixtures("few_resamples")
def test_false_alarms_of_several_models_and_branches_together_stay_below_the_level(
    models: int, expression: str
) -> None:
    runs = 150
    rate = _alarms(np.random.default_rng(7), runs, 0.0, models, expression)
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


# --- the reports of what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "given"),
    [
        ([BASE, new(attack=[AttackRef(name="square", version="1")])], {}),
        ([BASE, new(flags=[Flag(name="random", severity="broken")])], {}),
        ([BASE, new(eps="0,4/255,9/255")], {}),
        ([BASE, new()], {"alpha": 1e-300}),
    ],
    ids=["attacks", "flags", "eps", "few images"],
)
def test_what_is_refused_has_reports_that_do_not_pass(sides: list[Side], given: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        compare(sides, fail_if="acc@8/255 < baseline - 1 or clean < 80", **given)
    found = caught.value.comparison
    assert found.refused == str(caught.value)
    text = to_markdown(found)
    assert text.startswith("### No verdict against base: ") and "passed" not in text and "No regression" not in text
    suite = ElementTree.fromstring(to_junit(found))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    assert {case.find("failure").get("message") for case in suite.iter("testcase")} == {found.refused}  # type: ignore[union-attr]
    (line,) = map(json.loads, to_json(found).splitlines())
    assert line["refused"] == found.refused and line["gate"]["failed"] is None


def test_a_comparison_without_a_gate_that_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        compare([BASE, new(**other_images())])
    suite = ElementTree.fromstring(to_junit(caught.value.comparison))
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
