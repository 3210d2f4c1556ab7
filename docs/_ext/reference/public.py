"""The page of the Python functions, and docstrings for other pages."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cached_property
from typing import Any

import advbench
from advbench.defaults.wording import without_raises
from reference import markdown as md

RETURNED = (
    "advbench.evaluator.Evaluation",
    "advbench.compare.Comparison",
    "advbench.analyses.base.Analysis",
    "advbench.data.dataset.Dataset",
    "advbench.checkpoint.Loaded",
)


def page() -> str:
    """What advbench exports, and the classes of what its functions return."""
    functions = [_function(name) for name in advbench.__all__ if not name.startswith("__")]
    return "\n\n".join([*functions, "## What they return", *map(_class, RETURNED)])


def docstring(path: str) -> str:
    """The docstring of what `path` names, without what it raises."""
    return md.docs(without_raises(inspect.getdoc(_named(path))))


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _class(path: str) -> str:
    """A class with its public properties and methods."""
    thing, parts = _named(path), []
    for name, member in vars(thing).items():
        is_property = isinstance(member, property | cached_property)
        function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        kind, called = ("attribute", "") if is_property else ("method", _signature(function))
        parts.append(f"```{{py:{kind}}} {name}{called}\n\n{md.docs(inspect.getdoc(function) or '')}\n```")
    opening = f"### `{thing.__name__}`\n\n`````{{py:class}} {path}"
    return f"{opening}\n\n{md.docs(inspect.getdoc(thing) or '')}\n\n" + "\n\n".join(parts) + "\n`````"


def _signature(function: Any) -> str:
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))


def _function(name: str) -> str:
    """A function with its signature, or an error, as an object that the search and links find."""
    thing = getattr(advbench, name)
    if isinstance(thing, type):
        text = f"````{{py:exception}} advbench.{name}\n\n{md.docs(inspect.getdoc(thing) or '')}\n````"
    else:
        called = thing.__call__ if inspect.ismodule(thing) else thing
        text = (
            f"````{{py:function}} advbench.{name}{_signature(called)}\n\n{md.docs(inspect.getdoc(called) or '')}\n````"
        )
    return f"{md.heading(2, f'`{name}`', f'python-{name}')}\n\n{text}"
