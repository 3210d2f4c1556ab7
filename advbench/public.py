"""Public functions: their arguments are checked, and a package may be one. Loads no torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from advbench.errors import UserError, shortened

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: dict[str, tuple[str, type]] = {
    "None": ("None", type(None)),
    "str": ("a text", str),
    "Path": ("a path", os.PathLike),
    "bool": ("True or False", bool),
    "float": ("a number", Real),
    "Mapping": ("a dict", Mapping),
    "Collection": ("a list", Collection),
    "Sequence": ("a list", Collection),
}
_SWITCHES = ("trust_pickle", "trust_code", "unpaired", "different_attacks", "strict", "force", "resume")
_BY_NAME = ("Dataset", "Journal")  # whose modules load torch
# Of the arguments that must be texts where many would give the thing itself: how to name it.
_NAMED_BY = {
    "dataset": "save arrays with numpy.savez and write npz:FILE",
    "arch": "write package.module:callable, which makes the network",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which raises UserError for an argument of another type than its signature says.

    Checked are annotations that consist of _KINDS and _BY_NAME, such as `str | Path | None`. Others are the function's
    own matter.
    """
    signature = inspect.signature(function)
    kinds = {name: _kinds(str(one.annotation)) for name, one in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: P.args, **how: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **how).arguments
        except TypeError:
            return function(*args, **how)  # raises the same, with its name
        for name, value in given.items():
            if kinds[name] and not any(_is(value, kind) for kind in kinds[name]):
                choices = [_KINDS[kind][0] if kind in _KINDS else f"a {kind}" for kind in kinds[name]]
                how_else = f"; {_NAMED_BY[name]}" if name in _NAMED_BY else ""
                raise UserError(f"{name} is {shortened(value)}: it must be {' or '.join(choices)}{how_else}")
        try:
            return function(*args, **how)
        except UserError as error:
            error.args = (in_python(str(error)),)
            raise

    return call


def in_python(message: str) -> str:
    """The message of an error in which the flags of the command line are the arguments of functions.

    What follows "advbench COMMAND" stays, up to a semicolon or bracket: it is a command to type.
    """
    parts = re.split(r"(advbench (?:train|attack|evaluate|compare|analyze|leaderboard|list)\b[^;()]*)", message)
    for at in range(0, len(parts), 2):
        text = re.sub(r"^--?([a-z][a-z-]*) ([^\s:]+):", r"\1=\2:", parts[at])
        text = re.sub(r"--set ([\w.]+)=([\w./]+)", r"settings={'\1': \2}", text)
        text = re.sub(r"(?<![\w-])-n\b", "n", text).replace("on the command line too", "in the call too")
        text = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda found: _argument(found[1]), text)
        parts[at] = text
    return "".join(parts)


def _argument(flag: str) -> str:
    name = {"set": "settings"}.get(flag, flag.replace("-", "_"))
    return f"{name}=True" if name in _SWITCHES else name


def make_callable(package: str, function: Callable[..., Any]) -> None:
    """Let `package`, a module that is being imported, be called as `function`.

    A function of the package's name in the package above would be replaced by the package once that is imported.
    """

    class Package(ModuleType):
        __call__ = staticmethod(function)

        def __reduce__(self) -> tuple[Any, ...]:  # cloudpickle knows plain modules only
            return importlib.import_module, (package,)

    sys.modules[package].__class__ = Package


def _kinds(annotation: str) -> list[str]:
    """The kinds of an annotation; none if one of them is not known."""
    kinds = re.sub(r"\[.*?\]", "", annotation).split(" | ")
    return kinds if all(kind in _KINDS or kind in _BY_NAME for kind in kinds) else []


def _is(value: Any, kind: str) -> bool:
    if kind in _BY_NAME:
        return any(one.__name__ == kind for one in type(value).__mro__)
    return isinstance(value, _KINDS[kind][1])
