"""The bar and the plain lines of progress: what they show at each width, and over time."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from advbench.cli import bar as module
from advbench.cli.bar import LiveBar, SparseBar, _is_utf8, drawn, laid_out
from advbench.cli.console import Screen, amount
from advbench.outlook import Outlook, Steady, duration

WIDTHS = (80, 100, 120, 200)
SCORES = "1,163 images/s, best clean 98.1% PGD 81.2% (epoch 11)"
TERMS = "loss 0.432, robust_ce 0.310, agreement 0.122, entropy 0.098"
EVALUATING = Outlook("model 1 of 3, attack 2 of 4: apgd-t", 0.4321, 745.0, "412 of 1000 fell")
TRAINING = Outlook("run 2 of 6, epoch 12 of 200", 0.2, 7505.0, f"{SCORES}, {TERMS}")
FETCHING = Outlook("fetching cifar-10-python.tar.gz", 0.071, 62.0, "12.1 of 170.5 MB")


def line(outlook: Outlook, width: int, *, plain: bool = False, spent: str = "3 s") -> str:
    return "".join(text for text, _ in laid_out(outlook, width, spent=spent, plain=plain))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("outlook", [EVALUATING, TRAINING, FETCHING])
def test_what_share_and_time_come_first_at_every_width(outlook: Outlook, width: int) -> None:
    shown = line(outlook, width - 1)
    assert cell_len(shown) < width
    what, bar, share, left = (
        shown.index(text) for text in (outlook.what, "░", f" {int(100 * (outlook.share or 0))} %", outlook.time_left)
    )
    assert what < bar < share < left
    assert shown.count("█") + shown.count("░") >= 8
    assert shown.count("█") == round((outlook.share or 0) * (shown.count("█") + shown.count("░")))


def test_loss_terms_are_cut_first() -> None:
    shown = {width: line(TRAINING, width - 1) for width in WIDTHS}
    assert TERMS not in shown[80] and "1,163" in shown[80] and shown[80].endswith("…")
    assert SCORES not in shown[100] and "best clean 98.1%" in shown[120] and "loss" not in shown[120]
    assert shown[200].endswith(TERMS)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("what", ["x" * 300, "模型" * 60 + ": pgd", "m\x1b[2J"])
def test_no_line_is_wider_than_the_terminal(what: str, plain: bool) -> None:
    for width in range(1, 130):
        shown = line(Outlook(what, 0.5, 100.0, "more " * 40), width, plain=plain)
        assert cell_len(shown) <= width and "\x1b" not in shown and (shown.isascii() or not plain)
        if width >= 40:
            assert "50 %  ~1 min 40 s left" in shown


def test_without_a_total_the_time_spent_is_shown() -> None:
    assert line(Outlook("fetching x", more="3.2 MB"), 79) == "fetching x  3 s so far  3.2 MB"
    assert line(Outlook("attack 1 of 2: mine", 0.0), 79) == "attack 1 of 2: mine ░░░░░░░░░   0 %  3 s so far"


@pytest.mark.parametrize(
    ("env", "utf8"),
    [
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "en_US.utf8"}, True),
        ({"LANG": "C"}, False),
        ({}, False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),  # as Python sets it
        ({"LANG": "C.UTF-8", "LC_ALL": "en_US.ISO-8859-1"}, False),
        ({"LANG": "en_US.ISO-8859-1", "LC_CTYPE": "en_US.UTF-8"}, True),
    ],
)
def test_a_terminal_that_is_not_utf8_gets_ascii(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], utf8: bool
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert _is_utf8(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == utf8
    assert not _is_utf8(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("colour", [True, False])
def test_drawn_on_a_terminal(width: int, colour: bool) -> None:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        height=30,
        force_terminal=True,
        color_system="standard" if colour else None,
        _environ={},
    )
    with drawn(console) as bar:
        bar.update("apgd-t", lambda: EVALUATING)
        bar.line(f"warning: {'words ' * 40}")
    shown = stream.getvalue()
    assert EVALUATING.what in shown and "43 %" in shown and "min" in shown
    assert ("\x1b[3" in shown) == colour
    assert shown.rstrip().endswith("\x1b[2K") and shown.index("\x1b[?25l") < shown.rindex("\x1b[?25h")


def test_between_measurements_the_time_left_follows_the_clock() -> None:
    past = [EVALUATING.later(float(seconds)) for seconds in range(0, 2000, 10)]
    lefts = [one.left or 0.0 for one in past]
    assert lefts == sorted(lefts, reverse=True) and lefts[-1] == 1.0
    assert {one.share for one in past} == {EVALUATING.share}  # only a measurement moves it: it never falls
    assert past[10].left == 645.0
    assert Outlook("x").later(5) == Outlook("x")


def test_an_even_pace_tells_the_time_left() -> None:
    now = [10.0]
    pace = Steady(0.5, clock=lambda: now[0])
    assert pace.outlook("x", 0.5).left is None and pace.outlook("x", None).left is None
    now[0] = 20.0
    assert pace.outlook("x", 0.75).left == pytest.approx(10.0)
    assert [duration(s) for s in (0.4, 59.6, 3599, 7505, 200_000)] == [
        "0 s", "1 min 0 s", "59 min 59 s", "2 h 5 min", "2 d 7 h"
    ]  # fmt: skip
    assert amount(0, None, "decoding x") == ""
    assert amount(5, 9, "reading images") == "5 of 9"
    assert amount(2_000_000, 4_000_000, "fetching x") == "2.0 of 4.0 MB"


def test_plain_lines_come_every_30_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [0.0], list[str]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bar = SparseBar("model", lines.append)
    for second in range(70):
        now[0] = second
        bar.update("pgd", lambda done=second: Outlook("pgd", done / 100, 100.0 - done, "all well"))
    assert lines == ["model: pgd, 30 %, ~1 min 10 s left, all well", "model: pgd, 60 %, ~40 s left, all well"]
    now[0] = 85  # nothing was heard for a while, but time has passed
    bar.show()
    now[0] = 95
    bar.show()
    assert len(lines) == 3 and lines[2] == "model: pgd, 69 %, ~5 s left, all well"
    bar.line("epoch 1")
    now[0] = 130
    bar.update("mine", lambda: Outlook("mine"))
    assert lines[3:] == ["epoch 1", "model: mine, 2 min 10 s so far"]


def test_plain_lines_come_while_the_work_is_at_something_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr(module, "_SPARSE_SECONDS", 0.0)
    with Screen().bar("model") as bar:
        bar.update("one batch", lambda: Outlook("one batch", 0.2, 60.0))
        first, ended = capsys.readouterr().err, time.monotonic() + 20
        while not (more := capsys.readouterr().err) and time.monotonic() < ended:
            time.sleep(0.05)
    assert first.startswith("model: one batch, 20 %, ~1 min") and more.startswith("model: one batch, ")


def test_measured_seldom_and_at_once_for_another_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], list[str]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bar: Any = LiveBar(Console(file=io.StringIO()))

    def measure() -> Outlook:
        calls.append("x")
        return EVALUATING

    for step in range(100):
        now[0] = step / 100
        bar.update("a", measure)
    assert 3 <= len(calls) <= 6
    bar.update("b", measure)
    assert len(calls) <= 7 and bar.now() == EVALUATING
