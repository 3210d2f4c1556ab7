"""Errors that a user can act on. The command line prints them as one line on stderr and sets the exit code."""

from __future__ import annotations

import difflib
import os
import reprlib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

# What the names of files begin with that are none of the user's.
_NOT_THE_USERS = ("<", os.path.dirname(os.__file__), os.path.dirname(__file__))
_INSTALLED = {"site-packages", "dist-packages"}


class UserError(ValueError):
    """Wrong input. The message is one line that names the valid choices. Exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook (IPython) shows of this error."""
        return [f"{type(self).__name__}: {self}"]


class Untrusted(UserError):
    """The user has not consented to the code that would run. The message names the flag that consents."""


class Interrupted(Exception):
    """Stopped by a signal, after saving. The command line says how to resume. Exit code 3."""


class CodeRuns(UserWarning):
    """The warning that code from outside advbench is about to run."""


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
    """The error for a `name` that is not among `choices`, with similar choices first, in any case of letters."""
    valid = sorted(choices)
    folded = {choice.casefold(): choice for choice in valid}
    meant = str(name).casefold()
    found = [meant] if meant in folded else difflib.get_close_matches(meant, folded, n=3, cutoff=0.5)
    near = [folded[one] for one in found]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    if "," in str(name) and {*str(name).split(",")} <= {*valid}:
        hint = "only one can be given here; "
    choice = f"choose from {', '.join(valid)}" if valid else "there are none"
    return UserError(f"unknown {kind} {name!r}: {hint}{choice}")


# What pydantic's kinds of errors mean, filled with what it says of the error.
_MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "decimal": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "bool": "true or false",
    "string": "a text",
    "literal_error": "{expected}",
    "tuple": "a list",
    "list": "a list",
    "model": "a table of fields",
    "dict": "a table of fields",
}


def must_be(problem: Mapping[str, Any]) -> str:
    """What is wrong with a value, as "it must be a whole number". `problem`: one of pydantic's `errors()`."""
    kind = str(problem["type"])
    if kind in ("missing", "extra_forbidden"):
        return "it is missing" if kind == "missing" else "there is no such field"
    form = _MUST_BE.get(kind) or _MUST_BE.get(kind.partition("_")[0])
    if kind == "value_error" or form is None:
        text = str(problem["msg"]).removeprefix("Value error, ")
        return f"{text[:1].lower()}{text[1:]}"
    return f"it must be {form.format(**problem.get('ctx', {})).replace(chr(39), '')}"


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, at most 160 characters of it, cut between words; its type where it has none.

    What the user's own code raised is followed by the file and the line.
    """
    words = " ".join(str(error).split()) or type(error).__name__
    short = words if len(words) <= 160 else f"{words[:156].rpartition(' ')[0] or words[:156]} ..."
    return short + _place(error)


def _place(error: BaseException) -> str:
    """The innermost line of the user's code that raised `error`, as " [net.py line 7]"; empty where there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if not frame.filename.startswith(_NOT_THE_USERS) and _INSTALLED.isdisjoint(file.parts):
            return f" [{file.name} line {frame.lineno}]"
    return ""


def shortened(value: object) -> str:
    """`value` as Python writes it, in at most about 60 characters."""
    return reprlib.repr(value)


@contextmanager
def explained(failure: str) -> Iterator[None]:
    """Inside, any error is a UserError that starts with `failure`: for others' code and files, which raise anything."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{failure}: {reason}") from error


def reading(what: object) -> AbstractContextManager[None]:
    """Inside, any error is a UserError about `what`, a file from elsewhere: no list of what readers raise is whole."""
    return explained(f"cannot read {what}")
