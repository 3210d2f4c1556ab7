"""Code from outside, of a model or an attack: whether there is any, and the hash of its source files.

The files are those of the modules that define the parts, and of all that these import, wherever it stands in them.
Installed packages do not count: their versions are in the record. Only the names of modules and the contents of files
enter the hash, so it is the same wherever the files lie.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache, partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advbench.models.black_box import BlackBox

_INSTALLED = ("site-packages", "dist-packages")
_PACKAGES = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_PACKAGES.append(str(Path(__file__).resolve().parent.parent))  # advbench itself
_GENERATED = (torch.jit.ScriptModule, torch.fx.GraphModule)  # their code is in no file
# What was read of each module that is loaded, with its spec, which is a new object after a reload. A file that was
# changed since is not the code that runs.
_read: dict[str, tuple[ModuleSpec | None, bytes]] = {}


def is_outside(net: nn.Module, arch: str) -> bool:
    """Whether code that is not advbench's or an installed package's decides what `net`, of `arch`, answers."""
    return ":" in arch or any(isinstance(part, _GENERATED) or _is_outside(_module(part)) for part in net.modules())


def code_sha256(net: nn.Module, arch: str) -> str | None:
    """sha256 (hex) of the source files from outside that make `net`; None if there are none or one cannot be read.

    `arch` may name a further module, as `module:name`.
    """
    if any(isinstance(part, _GENERATED) for part in net.modules()):
        return None
    module, colon, _ = arch.partition(":")
    return modules_sha256({_module(part) for part in net.modules()} | ({module} if colon else set()))


def maker_sha256(maker: Any) -> str | None:
    """As `modules_sha256`, of the module that defines a class, a function, or the class of another object."""
    while isinstance(maker, partial):
        maker = maker.func
    defined = maker if isinstance(maker, type) or inspect.isroutine(maker) else type(maker)
    return modules_sha256({getattr(defined, "__module__", None) or ""})


def modules_sha256(roots: set[str]) -> str | None:
    """sha256 (hex) of the source files from outside among the modules `roots` and all that they import.

    None if there are none or one cannot be read.
    """
    left, found = [name for root in roots for name in _with_parents(root)], dict[str, bytes]()
    while left:
        name = left.pop()
        if name in found or not _is_outside(name):
            continue
        try:
            found[name] = _source(name)
        except OSError:
            if name in roots or _spec(name) is not None:
                return None
            continue  # no module, but a name in one
        left += _imported(found[name], _package(name))
    parts = "".join(f"{name} {hashlib.sha256(found[name]).hexdigest()}\n" for name in sorted(found) if found[name])
    return hashlib.sha256(parts.encode()).hexdigest() if parts else None


def _module(part: nn.Module) -> str:
    return part.code if isinstance(part, BlackBox) else type(part).__module__


def _is_outside(name: str) -> bool:
    """Whether the module `name`, or what seems to be one, is neither the interpreter's nor part of a package."""
    if name.partition(".")[0] in (*sys.builtin_module_names, *sys.stdlib_module_names, "advbench", "torch"):
        return False
    file = next((file for above in _with_parents(name) if (file := _file(above))), None)
    if file is None:
        return True
    real = os.path.realpath(file)
    inside = any(real.startswith(folder + os.sep) for folder in _PACKAGES)
    return not inside and not set(_INSTALLED) & set(Path(real).parts)


def _file(name: str) -> str | None:
    loaded = getattr(sys.modules.get(name), "__file__", None)
    spec = None if loaded else _spec(name)
    return loaded or (spec.origin if spec is not None and spec.has_location else None)


def _spec(name: str) -> ModuleSpec | None:
    """The spec of a module, without importing it; None if there is no such module."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__spec__", None)
    parent, _, _ = name.rpartition(".")
    above = _spec(parent) if parent else None
    if parent and (above is None or above.submodule_search_locations is None):
        return None
    return PathFinder.find_spec(name, None if above is None else list(above.submodule_search_locations or ()))


def _package(name: str) -> str:
    spec = _spec(name)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return name if is_package else name.rpartition(".")[0]


def _source(name: str) -> bytes:
    """The content of a module's file, empty for a folder without code. Raises OSError if it cannot be read."""
    spec, file = _spec(name), _file(name)
    if name in sys.modules and name in _read and _read[name][0] is spec:
        return _read[name][1]
    if file is None:
        if spec is not None and spec.submodule_search_locations is not None:
            return b""
        raise OSError(f"{name} has no file")
    content = Path(file).read_bytes()
    if name in sys.modules:
        _read[name] = spec, content
    return content


@lru_cache(maxsize=1024)
def _imported(source: bytes, package: str) -> tuple[str, ...]:
    """The names that a file of `package` imports, with the packages around them. Some may be no modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # no Python source, such as a compiled module
        return ()
    return tuple(sorted({above for name in _names(tree, package) for above in _with_parents(name)}))


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # above the outermost package, which fails when it runs
                continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
