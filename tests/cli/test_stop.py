"""Signals: the first stops at the next step, the second ends at once; and the command line to resume with."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from advbench.cli.stop import Halted, Stop, resume_command
from advbench.errors import Interrupted
from advbench.signals import SIGNALS


@pytest.mark.usefixtures("hangup")
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


NOW = """
import signal, advbench.cli as cli
{before}
cli.app = lambda **_: signal.raise_signal(signal.{name})
cli.main()
"""


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_or_after_the_work(number: signal.Signals) -> None:
    code = NOW.format(before="", name=number.name)
    done = subprocess.run([sys.executable, "-c", code, "compare", "a"], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3 and done.stderr == "interrupted: stopped; continue with: advbench compare a\n"


def test_under_nohup_a_closed_terminal_is_ignored() -> None:
    code = NOW.format(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)", name="SIGHUP")
    done = subprocess.run([sys.executable, "-c", code, "list"], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.again()
            signal.raise_signal(signal.SIGHUP)
            assert not stop() and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_that_a_library_took_are_taken_again() -> None:
    with Stop() as stop:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        stop.again()
        signal.raise_signal(signal.SIGTERM)
        assert stop() and signal.getsignal(signal.SIGTERM) == before


def test_an_interruption_reaches_other_processes() -> None:
    sent = pickle.loads(pickle.dumps(Halted("stopped", {"--out": "x"})))
    assert str(sent) == "stopped" and sent.missing == {"--out": "x"}
