"""What the shell offers after Tab: the names that flags take. Loads no torch."""

from __future__ import annotations

import contextlib
import io
import os
import re
import string
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from advbench.eps import NORMS, TRAINING_NORMS
from advbench.registry import LIBRARIES, entries

VARIABLE = "_ADVBENCH_COMPLETE"  # the shell sets it to ask for names
_WEIGHTS = (".pt", ".pth", ".safetensors", ".onnx")
_VISIBLE = f"_{string.ascii_letters}{string.digits}"  # hidden files are offered only after a dot
_FORMS = ("robustbench:", *(f"{name}:" for name in LIBRARIES), "pyautoattack:model_test")
Completer = Callable[[str], list[str]]


def words(*choices: str) -> Completer:
    """Offers those of `choices` that begin as the last name of a comma list does."""
    return _of(lambda: choices)


def _of(choices: Callable[[], Iterable[str]]) -> Completer:
    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in choices() if name.startswith(last)]

    return complete


methods = _of(lambda: entries("methods"))
attacks = _of(lambda: entries("attacks"))
analyses = _of(lambda: entries("analyses"))
norms = words(*NORMS)
training_norms = words(*TRAINING_NORMS)


def presets(context: typer.Context, incomplete: str) -> list[str]:
    """Those of the methods that --method names; without it those of all."""
    known = {name: entry.about.get("presets", {}) for name, entry in entries("methods").items()}
    typed = (context.params.get("method") or "").split(",")
    chosen = [known[name] for name in typed if name in known] or known.values()
    return sorted({name for of in chosen for name in of if name.startswith(incomplete)})


def architectures(incomplete: str) -> list[str]:
    from advbench.models import architectures as known

    return words(*known(), *(f"{name}:" for name in LIBRARIES))(incomplete)


def flags(incomplete: str) -> list[str]:
    from advbench.record import FLAG_NAMES
    from advbench.record.black_box import WINS

    return words(*FLAG_NAMES, f"square{WINS}")(incomplete)


def datasets(incomplete: str) -> list[str]:
    """Names, and after `npz:` or `imagefolder:` files and folders."""
    form, colon, path = incomplete.partition(":")
    if colon:
        suffixes = (".npz",) if form == "npz" else ()
        return [f"{form}:{place}" for place in _places(path, suffixes)]
    takes = {name: ":" if "argument" in entry.about else "" for name, entry in entries("data").items()}
    return [f"{name}{colon}" for name, colon in takes.items() if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Runs and weights files, the forms of other names, and after `robustbench:` its names."""
    if zoo := _zoo(incomplete):
        return zoo
    runs = [str(path.parent) for path in sorted(Path("runs").glob("*/run.json"))] if not incomplete else []
    return [*runs, *(form for form in _FORMS if form.startswith(incomplete)), *_places(incomplete, _WEIGHTS)]


def records(incomplete: str) -> list[str]:
    return _places(incomplete, (".json",))


def measured(incomplete: str) -> list[str]:
    """What has records: models, and the files of records."""
    return list(dict.fromkeys([*models(incomplete), *records(incomplete)]))


def _zoo(incomplete: str) -> list[str]:
    """RobustBench's names, after `robustbench:` alone, in short and in full."""
    if not incomplete.startswith("robustbench:"):
        return []
    from advbench.models.external import listing

    full = [str(row["name"]) for row in listing() if str(row["name"]).startswith("robustbench:")]
    bare = dict.fromkeys(f"robustbench:{name.rpartition('/')[2]}" for name in full)
    return [name for name in (*bare, *full) if name.startswith(incomplete)]


def names(context: typer.Context, incomplete: str) -> list[str]:
    """The names of the kind that `advbench list` was given."""
    from advbench.defaults.listing import ALL, listing

    kind = context.params.get("kind")
    if kind == "flags":
        return flags(incomplete)
    found = words(*(str(row["name"]) for row in listing(kind)))(incomplete) if kind in ALL else []
    return list(dict.fromkeys([*found, *_zoo(incomplete)])) if kind == "models" else found


def _places(start: str, suffixes: tuple[str, ...]) -> list[str]:
    """The folders, and the files with these suffixes, whose path begins with `start`."""
    above, _, name = start.rpartition("/")
    folder = Path(f"{above}/" if above or start.startswith("/") else ".")
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.name.startswith(name or tuple(_VISIBLE))]
    return [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix in suffixes]


def answer(program: Callable[[], object]) -> None:
    """Let typer answer the shell by running `program`, and print what the shell is to insert.

    Bash breaks words at ":" and "=", and inserts only the part after the last of them: they are joined before, and what
    the shell has already is taken off after.
    """
    held = ""
    if os.environ[VARIABLE] == "complete_bash":
        typed = os.environ.get("COMP_WORDS", "").split("\n")
        typed = typed[: int(os.environ.get("COMP_CWORD", "0")) + 1]
        text = re.sub("\n*([:=])\n*", r"\1", "\n".join(typed))
        held = re.sub("[^:=]*$", "", text.rpartition("\n")[2])
        os.environ |= {"COMP_WORDS": text, "COMP_CWORD": str(text.count("\n"))}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        program()
    sys.stdout.write("".join(f"{line.removeprefix(held)}\n" for line in shown.getvalue().splitlines()))
