"""Errors that a user can act on. The command line prints them as one line on stderr and sets the exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. The message is one line that names the valid choices. Exit code 2."""


class Untrusted(UserError):
    """The user has not consented to the code that would run. The message names the flag that consents."""


class Interrupted(Exception):
    """Stopped by a signal, after saving. The message says how to resume. Exit code 3."""


class CodeRuns(UserWarning):
    """The warning that code from outside advbench is about to run."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a `name` that is not among `choices`, with similar choices first."""
    valid = sorted(choices)
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    choice = f"choose from {', '.join(valid)}" if valid else "there are none"
    return UserError(f"unknown {kind} {name!r}: {hint}{choice}")


def one_line(error: BaseException) -> str:
    """The message of `error` on one line of at most 160 characters; its type where it has none."""
    return " ".join(str(error).split())[:160] or type(error).__name__
