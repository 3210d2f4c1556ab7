"""The signals that ask a command to save and stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # Ctrl-C, kill, a closed terminal, Slurm


def handle(handler: Any) -> dict[int, Any]:
    """Let `handler` handle SIGNALS, and return the handlers before. Under nohup SIGHUP stays ignored."""
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set handlers
        return {}
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    taken = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
    return {number: signal.signal(number, handler) for number in taken}
