"""The registry of methods, attacks, models, datasets and analyses: the files of a folder are its entries.

A file in `advbench/methods`, `attacks`, `models`, `data` or `analyses` registers entries by a top-level literal
`ENTRIES = {"name": {"make": "ClassOrFunction", "set": {...}, "summary": "..."}}`. The literal is read from the source,
so that names are listed without importing torch. Code from outside is named by `package.module:name`: an entry in the
ENTRIES of that module or, if there is none of that name, a class or function.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from advbench.consent import check_code
from advbench.errors import CodeRuns, Interrupted, UserError, one_line, reading, unknown
from advbench.files import plain_path

LIBRARIES = ("torchvision", "timm")  # whose networks `LIBRARY:NAME` names
# The flag that names an entry of each folder, and what such an entry is.
KINDS = {
    "methods": ("--method", "a method"),
    "attacks": ("--attack", "an attack"),
    "data": ("--dataset", "a dataset"),
    "models": ("--arch", "an architecture"),
    "analyses": ("analyze", "an analysis"),
}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Entry:
    """One registered name.

    `make`: the class or function of `module` that makes the object; `set`: settings for it; `proof`: what the tests of
    all attacks allow this one (tests/support/proofs.py); `about`: whatever else ENTRIES says, such as the summary.
    """

    name: str
    module: str
    make: str
    set: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, module: str, literal: Mapping[str, Any]) -> Entry:
        """The entry that a module's ENTRIES describe by `literal`. Raises KeyError without "make"."""
        about = dict(literal)
        return cls(name, module, about.pop("make"), about.pop("set", {}), about.pop("proof", {}), about)

    @property
    def summary(self) -> str:
        return str(self.about.get("summary", ""))

    def load(self) -> Callable[..., Any]:
        """Import the entry's module and return its class or function."""
        return operator.attrgetter(self.make)(importlib.import_module(self.module))  # type: ignore[no-any-return]

    def create(self, **settings: Any) -> Any:
        """Make the object, where `settings` override the entry's own.

        Raises UserError for an unknown setting, and for one that is required and missing.
        """
        maker = self.load()
        if not callable(maker):
            raise UserError(f"{self.name} is a {type(maker).__name__}: a class or a function is needed")
        known = parameters(maker)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for key in {**self.set, **settings}:
            if key not in known and not takes_any:
                raise unknown(f"setting of {self.name}", key, known)
        given = {**self.set, **settings}
        missing = [name for name, p in known.items() if p.default is p.empty and p.kind in _NAMED and name not in given]
        if missing:
            raise UserError(f"{self.name} needs {', '.join(missing)}: give defaults where it is defined, or in ENTRIES")
        if self.module.startswith("advbench."):
            return maker(**given)
        try:
            return maker(**given)
        except (UserError, Interrupted):
            raise
        except Exception as error:  # a user's code may raise anything
            raise UserError(f"{self.name} failed: {type(error).__name__}: {one_line(error)}") from error


def parameters(maker: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function by name; empty where Python does not know them, as for some C functions."""
    try:
        return inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return {}


def required(maker: Any) -> list[str]:
    """The names of the positional parameters of a class or function that have no default, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in parameters(maker).items() if p.kind in kinds and p.default is p.empty]


@cache
def entries(folder: str) -> dict[str, Entry]:
    """All entries of `advbench/<folder>`, by name, sorted."""
    found: dict[str, Entry] = {}
    for file in resources.files(f"advbench.{folder}").iterdir():
        if not file.name.endswith(".py") or file.name == "__init__.py":
            continue
        module = f"advbench.{folder}.{file.name.removesuffix('.py')}"
        for name, about in _literal(file.read_text(encoding="utf-8")).items():
            if name in found:
                raise ValueError(f"{name!r} is registered by {found[name].module} and by {module}")
            found[name] = Entry.of(name, module, about)
    return dict(sorted(found.items()))


def find(folder: str, name: str) -> Entry:
    """The entry called `name`, or for `module:name` the code from outside (see `outside`).

    Raises UserError, naming similar entries, when there is none.
    """
    known = entries(folder)
    if name in known:
        return known[name]
    kind = {"analyses": "analysis", "data": "dataset", "models": "architecture"}.get(folder, folder.removesuffix("s"))
    if ":" in name:
        return outside(kind, name)
    if other := kind_of(name):
        raise UserError(f"{name} is {dict(KINDS.values())[other]} ({other}), no {kind}: choose from {', '.join(known)}")
    raise UserError(f"{unknown(kind, name, known)}, or write {_instead(folder, name)}")


def kind_of(name: str) -> str:
    """The flag of KINDS that takes `name`; empty where none does."""
    known = (flag for folder, (flag, _) in KINDS.items() if name.partition(":")[0] in entries(folder))
    return next(known, "")


def _instead(folder: str, name: str) -> str:
    """The form of what is not registered; for the name of a file or module in the current folder, with that name."""
    path = Path(name)
    if folder == "data" and path.exists():
        return f"imagefolder:{name}" if path.is_dir() else f"npz:{name}"
    return of_module(name) or "module:name"


def of_module(name: str) -> str:
    """How to name what is in the module `name`, or the file `name`, of the current folder; empty if there is none."""
    module = name.removesuffix(".py")
    return f"{module}:NAME, of {module}.py" if Path(f"{module}.py").is_file() else ""


def plain_dataset(spec: str) -> str:
    """The one spelling of a dataset's specification: `imagefolder:data@32` for `imagefolder:data/@32`."""
    name, _, argument = spec.partition(":")
    entry = entries("data").get(name)
    if not argument or entry is None or entry.about.get("argument") != "PATH":
        return spec
    path, how = re.fullmatch(r"(?s)(.+?)((?:@[0-9]+(?:x[0-9]+)?)?(?:@fifth)?)", argument).groups()  # type: ignore[union-attr]
    return f"{name}:{plain_path(path)}{how}"


def training_dataset(spec: str) -> str:
    """The specification, in its one spelling, under which a run that trains on `spec` is recorded.

    Image folders without a test folder become ones that hold images back. Raises UserError for an unreadable folder.
    """
    name, _, argument = spec.partition(":")
    entry = entries("data").get(name)
    held_back = getattr(importlib.import_module(entry.module), "held_back", None) if argument and entry else None
    if held_back is not None:
        with reading(spec):
            spec = f"{name}:{held_back(argument)}"
    return plain_dataset(spec)


def outside(kind: str, spec: str) -> Entry:
    """The entry that `module:name` names: one in the module's ENTRIES, else its class or function of that name.

    Modules in the current folder are found too. A CodeRuns warning announces that code from outside is imported and so
    runs. Raises Untrusted where it must not run, and UserError where there is no such module or name, or where its code
    raises an error.
    """
    check_code(kind, spec)
    module, _, name = spec.partition(":")
    if module.partition(".")[0] != "advbench":
        warnings.warn(f"{spec} is code outside advbench, which runs now", CodeRuns, stacklevel=2)
    if module.endswith(".py") or "/" in module:
        raise UserError(f"cannot load {kind} {spec!r}: write the module without folder and .py, such as mynet:Net")
    search_current_folder()
    try:
        table = getattr(importlib.import_module(module), "ENTRIES", {})
        known = isinstance(table, dict) and isinstance(table.get(name), dict)
        entry = Entry.of(spec, module, table[name] if known else {"make": name, "summary": "plug-in"})
        entry.load()
    except Exception as error:  # the module or name is missing, or its code raised anything
        there = vars(sys.modules[module]) if module in sys.modules and isinstance(error, AttributeError) else {}
        own = [word for word, value in there.items() if getattr(value, "__module__", None) == module]
        hint = f"it has {', '.join(own)}" if own else "the form is package.module:name"
        raise UserError(f"cannot load {kind} {spec!r}: {one_line(error)}; {hint}") from error
    if not isinstance(entry.set, dict):
        raise UserError(f"{spec}: 'set' in ENTRIES is a {type(entry.set).__name__}: write a dict of settings")
    return entry


def search_current_folder() -> None:
    """Let Python look for modules in the current folder too."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last: a file there must not stand in for an installed module
    importlib.invalidate_caches()


def _literal(source: str) -> dict[str, dict[str, Any]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets: list[ast.expr] = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == "ENTRIES" for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[arg-type]
    return {}
