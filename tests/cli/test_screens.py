"""Whole commands in a real terminal: every frame of their bars."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terminals import Shown, in_terminal

BAR = re.compile(r"[█░#-]{8,} +(\d+) %  (~.* left|.* so far)")


def bars(shown: Shown) -> list[str]:
    """The frames that hold a bar."""
    return [frame for frame in shown.frames if " %  " in frame]


def check(shown: Shown) -> None:
    """No bar wraps or is left behind, the cursor is back, and the share never falls."""
    assert not [line for line in shown.terminal.wrapped if " %  " in line], shown.text
    assert not BAR.search(shown.text), shown.text
    assert shown.terminal.cursor_shown
    found = [BAR.search(frame) for frame in bars(shown)]
    shares = [int(one[1]) for one in found if one]
    assert shares == sorted(shares) and len(shares) >= 2


def test_an_evaluation_of_two_models_in_a_terminal_that_is_resized(cli: Any, run_folder: Path) -> None:
    widths: list[int] = []

    def widen(shown: Shown, process: int, resize: Callable[[int], None]) -> None:
        widths.append(shown.terminal.columns)
        if "model 2 of 2" in shown.frames[-1] and shown.terminal.columns == 80:
            resize(120)  # to a narrower one a frame that is under way would wrap

    argv = ["evaluate", "--model", "runs/a", "--model", "runs/a", "--attack", "pgd,square", "--out", "o"]
    argv += ["--set", "n_queries=300", "--set", "restarts=3", "-n", "60", "--eps", "0,0.05,0.1"]
    shown = in_terminal(argv, 80, folder=cli.folder, on_frame=widen)
    assert shown.code == 0, shown.text
    check(shown)
    found = [(frame, width) for frame, width in zip(shown.frames, widths, strict=True) if "left" in frame]
    narrow, wide = ([frame for frame, width in found if width == columns] for columns in (80, 120))
    first = r"model 1 of 2, attack \d of 2: \w+ [█░]{9} +\d+ %  ~.* left  \d+ of \d+ fell$"
    assert all(len(frame) < 80 for frame in narrow) and any(re.match(first, frame) for frame in narrow)
    assert any(re.match(r"model 2 of 2, .* [█░]{14} +\d+ %  ~.* left", frame) for frame in wide)
    assert shown.terminal.coloured and shown.text.count("record o/") == 2


def test_a_training_that_is_interrupted_where_neither_colour_nor_utf8_is_shown(cli: Any) -> None:
    sent: list[int] = []

    def interrupt(shown: Shown, process: int, resize: Callable[[int], None]) -> None:
        if not sent and len([frame for frame in bars(shown) if "left" in frame]) > 3:
            sent.append(process)
            os.kill(process, signal.SIGINT)

    argv = ["train", "--method", "pgd-at", "--seed", "0,1", "--dataset", "digits", "--arch", "mlp", "--epochs", "200"]
    argv += ["--set", "train_n=400", "--set", "inner.steps=2", "--set", "validation.steps=2", "--out", "o"]
    shown = in_terminal(argv, 80, folder=cli.folder, on_frame=interrupt, LANG="C", NO_COLOR="1")
    assert shown.code == 3, shown.text
    check(shown)
    assert shown.text.isascii() and not shown.terminal.coloured
    frames = [frame for frame in bars(shown) if "left" in frame]
    assert all(frame.isascii() and len(frame) < 80 for frame in frames)
    assert re.match(r"run 1 of 2, epoch \d+ of 200 [#-]+ +\d+ %  ~.* left  [\d,]+ images/s", frames[-1])
    assert "\nstopping at the next step; a second signal ends at once\n" in shown.text
    assert "epoch 1/200" in shown.text and "continue with: advbench train" in shown.text
