"""The command line. Neither this file nor those of the commands import torch before a command needs it."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

from advbench.allocator import keep_freed
from advbench.cli import analyze, attack, compare, complete, evaluate, leaderboard, options, train
from advbench.cli import list as list_
from advbench.cli.help import Command, Commands
from advbench.cli.stop import Halted, resume_command
from advbench.errors import Interrupted, UserError, one_line, unknown
from advbench.escape import visible
from advbench.signals import handle
from advbench.version import __version__

app = typer.Typer(
    name="advbench",
    no_args_is_help=True,
    cls=Commands,
    rich_markup_mode=None,  # see cli.help
    pretty_exceptions_enable=False,
    epilog="More: advbench COMMAND --help, README.md, docs/index.md",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"advbench {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, attack, evaluate and compare robust image classifiers.

    To start, type advbench train, then advbench evaluate. Neither needs options.
    """


# What each command's help ends with.
_MORE = {
    "train": "advbench list methods, advbench list models, docs/how-to/method.md, docs/how-to/resume.md",
    "attack": "advbench list attacks, docs/how-to/attack.md, docs/how-to/model.md",
    "evaluate": "advbench list attacks, advbench list flags, docs/how-to/model.md, docs/what-a-number-means.md",
    "compare": "advbench list flags, docs/how-to/ci.md, docs/how-to/compare.md",
    "analyze": "advbench list analyses, docs/reference/analyses.md",
    "leaderboard": "docs/how-to/leaderboard.md",
    "list": "docs/reference/index.md",
}
for _name, _module in {
    "train": train,
    "attack": attack,
    "evaluate": evaluate,
    "compare": compare,
    "analyze": analyze,
    "leaderboard": leaderboard,
    "list": list_,
}.items():
    app.command(_name, cls=Command, epilog=f"More: {_MORE[_name]}")(_module.command)


def main() -> None:
    """The `advbench` program."""
    if complete.VARIABLE in os.environ:
        complete.answer(lambda: app(prog_name="advbench"))
        return
    # Before torch is loaded: threads that spin while they wait made a run on a shared machine 4 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    keep_freed()
    _open_streams()
    handle(signal.default_int_handler)  # before and after `Stop`, every signal ends the command as Ctrl-C does
    try:
        code = run(sys.argv[1:])
    except Exception:  # a bug: Python would exit with 1, which a gate takes for a regression
        traceback.print_exc()
        code = 2
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code: 0 done, 1 regression, 2 wrong input, 3 interrupted and resumable."""
    try:
        _check_words(options.in_full(argv))
        # The submodule `list` hides the builtin here.
        code = app(args=[*argv], prog_name="advbench", standalone_mode=False, obj=options.in_full(argv))
    except typer.Exit as done:
        return done.exit_code
    except UserError as error:
        return _complain("error", error, 2)
    except Interrupted as error:
        missing = error.missing if isinstance(error, Halted) else {}
        return _complain("interrupted", f"{error}; continue with: {resume_command(options.in_full(argv), missing)}", 3)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", f"stopped; continue with: {resume_command(options.in_full(argv), {})}", 3)
    except SystemExit as left:
        if not left.code and {*argv[:1]} & _COMPLETION:  # so typer ends them
            return 0
        if not isinstance(left.__context__, BrokenPipeError):
            return _complain("error", f"code from outside advbench called sys.exit({left.code!r})", 2)
        sys.stdout, sys.stderr = (getattr(stream, "wrapped", stream) for stream in (sys.stdout, sys.stderr))
        return _failed(left.__context__)  # typer's answer to an output that its reader, such as head, has closed
    except OSError as error:
        return _failed(error)
    except MemoryError:
        return _complain("error", "out of memory: choose fewer images, or a smaller batch or model", 2)
    except _USAGE as error:
        return _usage(error, argv)
    return code if isinstance(code, int) else 0


_FOLDERS = ("--out", "--leaderboard", "leaderboard")  # what stands before the name of a folder


def _check_words(words: Sequence[str]) -> None:
    """Raise UserError for a word that is no UTF-8, and for an empty folder, which would be the current one."""
    for before, word in pairwise(("", *words)):
        if any("\ud800" <= char <= "\udfff" for char in word):
            raise UserError(f"{word!r} is no UTF-8, in which records are written: give it another name")
        flag, given, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if flag in _FOLDERS and given and not value.strip():
            raise UserError(f"{flag} is empty, as of an unset variable: name a folder, such as . for the current one")


# What typer says of a value, and what we do.
_OUR_WORDS = {
    "^Invalid value for '(.*?)': Input should be": r"\1: it must be",
    "it must be greater than or equal to": "it must be at least",
    "it must be less than or equal to": "it must be at most",
    "a valid integer.*": "a whole number",
    "a valid number.*": "a number",
    "^Option '(.*?)' requires an argument": r"\1 needs a value",
    "^Option '(.*?)' does not take a value": r"\1 takes no value",
}
_COMPLETION = {"--install-completion", "--show-completion"}
# The base class of all errors about a command line, which typer does not export itself.
_USAGE: type[Exception] = typer.BadParameter.__mro__[1]


def _open_streams() -> None:
    """Open the standard streams that were closed where this started: else files that are opened take their numbers.

    Writing to a closed stdout fails, since results would be lost.
    """
    for name, mode in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, mode), "r" if name == "stdin" else "w"))


def _failed(error: OSError) -> int:
    """Report that a file, or standard output, cannot be read or written."""
    if error.filename is not None:
        return _complain("error", f"cannot use {error.filename}: {error.strerror}", 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes its buffer once more at exit
    return _complain("error", f"cannot write, perhaps standard output: {error.strerror or one_line(error)}", 2)


def _usage(error: Any, argv: Sequence[str]) -> int:
    """Print typer's error about the command line as one line, with what was meant, or the nearest or valid choices."""
    from advbench.cli import meant

    context = error.ctx
    name = type(error).__name__
    if name == "NoArgsIsHelpError":
        typer.echo(context.get_help())
        return 0
    command = getattr(context, "command", None)
    program = context.command_path if context is not None else " ".join(["advbench", *({*argv[:1]} & _MORE.keys())])
    if name == "NoSuchOption":
        known = {name: _flags(one) for name, one in (context.parent or context).command.commands.items()}
        given, _, value = next((word for word in argv if word.startswith(error.option_name)), "").partition("=")
        after = [*argv, ""][[*argv].index(given) + 1] if given in argv else ""
        value = value or ("" if after.startswith("--") else after)
        if hint := meant.flag(given, value, context.command.name, known):
            return _complain("error", f"unknown flag {given}: {hint}", 2)
        return _complain("error", unknown("flag", given, {*_flags(context.command)} - options.SHORT.keys()), 2)
    commands = getattr(command, "commands", None)
    if commands and error.message.startswith("No such command"):
        given = error.message.split("'")[1]
        if hint := meant.command(given):
            return _complain("error", f"unknown command {given!r}: write {hint}", 2)
        return _complain("error", unknown("command", given, commands), 2)
    if "unexpected extra argument" in error.message:
        if flag := _without_value(context.command, argv):
            return _complain("error", f"{flag} needs a value; see {program} --help", 2)
        given = error.message.rpartition("(")[2].rstrip(").").split(" ")[0].strip("'")
        hint = meant.extra(given, context.command.name, _flags(context.command), argv)
        return _complain("error", f"unexpected word {given!r}: {hint}; see {program} --help", 2)
    message = " ".join(error.format_message().split()).rstrip(".")
    for theirs, ours in _OUR_WORDS.items():
        message = re.sub(theirs, ours, message)
    return _complain("error", f"{message[:1].lower()}{message[1:]}; see {program} --help", 2)


def _without_value(command: Any, argv: Sequence[str]) -> str:
    """The first flag that took the flag behind it for its value; empty where none did."""
    known = _flags(command)
    taking = {text for option in command.params if not getattr(option, "is_flag", False) for text in option.opts}
    return next((word for word, after in pairwise(argv) if word in taking and after in known), "")


def _flags(command: Any) -> list[str]:
    """The flags of a command, long and short."""
    return [text for option in command.params for text in option.opts if text.startswith("-")]


def _complain(what: str, message: object, code: int) -> int:
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    if rank != "0":  # torchrun: a signal stops all processes and the first reports it; an error may be one's own
        if code == 3:
            return code
        what = f"{what} in process {rank}"
    sys.stderr.write(f"{visible(f'{what}: {message}')}\n")
    return code
