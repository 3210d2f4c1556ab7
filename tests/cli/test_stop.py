"""Signals: the first stops at the next step, the second ends at once; and the command line to resume with."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from advbench.cli.stop import SIGNALS, Stop, resume_command
from advbench.errors import Interrupted


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_stops_second_ends(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop()
        stop.check()
        signal.raise_signal(number)
        assert stop() and not ended
        with pytest.raises(Interrupted):
            stop.check()
        signal.raise_signal(number)
        assert ended == [128 + number]
    assert signal.getsignal(number) == before
    assert "a second signal ends at once" in capfd.readouterr().err


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def work() -> None:
        with Stop() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(
    ("argv", "missing", "command"),
    [
        (["train"], {}, "advbench train --resume"),
        (["train", "--resume"], {}, "advbench train --resume"),
        (["train", "--force", "--out", "a b"], {"--out": "c"}, "advbench train --out 'a b' --resume"),
        (["train", "--out=x"], {"--out": "c"}, "advbench train --out=x --resume"),
        (["evaluate", "-n", "5"], {"--model": "runs/a"}, "advbench evaluate -n 5 --model runs/a --resume"),
        (["analyze", "filters", "runs/a"], {}, "advbench analyze filters runs/a"),
        (["evaluate", "--again", "r.json"], {}, "advbench evaluate --again r.json"),
    ],
)
def test_resume_command(argv: list[str], missing: dict[str, str], command: str) -> None:
    assert resume_command(argv, missing) == command
