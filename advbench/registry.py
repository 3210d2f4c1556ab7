"""The folder is the registry.

A file in `advbench/methods`, `attacks`, `models`, `data` or `analyses` is an entry when it has a
top-level literal `ENTRIES = {"name": {"make": "ClassOrFunction", "set": {...}, "summary": "..."}}`.
The literal is read from the source, so names are listed without importing torch. Plug-ins from
outside come by `package.module:name`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from advbench.errors import CodeRuns, UserError, unknown


@dataclass(frozen=True)
class Entry:
    """One registered name: where its maker lives, the settings bound to it, and what is told about it."""

    name: str
    module: str
    make: str
    set: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return str(self.about.get("summary", ""))

    def load(self) -> Callable[..., Any]:
        """Import the entry's module and return its class or function."""
        return getattr(importlib.import_module(self.module), self.make)  # type: ignore[no-any-return]

    def create(self, **settings: Any) -> Any:
        """Make the object with `settings` over the entry's own. Raises UserError for an unknown setting."""
        maker = self.load()
        known = inspect.signature(maker).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for key in settings:
            if key not in known and not takes_any:
                raise unknown(f"setting of {self.name}", key, known)
        return maker(**{**self.set, **settings})


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
            about = dict(about)
            found[name] = Entry(name, module, about.pop("make"), about.pop("set", {}), about)
    return dict(sorted(found.items()))


def find(folder: str, name: str) -> Entry:
    """The entry called `name`; UserError naming the near ones when there is none.

    `package.module:attribute` imports, and so runs, code from outside, which a CodeRuns warning says.
    """
    known = entries(folder)
    if name in known:
        return known[name]
    kind = {"analyses": "analysis", "data": "dataset"}.get(folder, folder.removesuffix("s"))
    if ":" in name:
        module, _, attribute = name.partition(":")
        warnings.warn(f"{name} is code outside advbench, which runs now", CodeRuns, stacklevel=1)
        try:
            getattr(importlib.import_module(module), attribute)
        except Exception as error:  # no module of that name, or whatever its code raises
            raise UserError(f"cannot load {kind} {name!r}: {' '.join(str(error).split())}") from error
        return Entry(name, module, attribute, about={"summary": "plug-in"})
    raise unknown(kind, name, known)


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
