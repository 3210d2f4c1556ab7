"""Nested tables of a recipe before they are validated: reading, merging, and FIELD=VALUE."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from advbench.errors import UserError

Tree = dict[str, Any]


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file; UserError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read recipe {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"recipe {path} is not TOML: it is nested too deeply") from error


def shipped_recipe(dataset: str, arch: str, method: str) -> Tree:
    """`default.toml`, under it `DATASET.toml` and `DATASET-ARCH.toml` where they exist, merged.

    Their `[eps]` are the default sizes of each norm; `[for.METHOD]` holds what one method needs otherwise.
    """
    folder, dataset = Path(__file__).parent.parent / "recipes", dataset.partition(":")[0]
    tree: Tree = {}
    for name in ("default", dataset, f"{dataset}-{arch}"):
        file = folder.joinpath(f"{name}.toml")
        if file.is_file():
            tree = merged(tree, tomllib.loads(file.read_text(encoding="utf-8")))
    special = tree.pop("for", {})
    return merged(tree, special.get(method, {}))


def parse_set(text: str) -> tuple[str, str]:
    """Split FIELD=VALUE; the value stays text until the field's type is known. Raises UserError."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise UserError(f"--set {text!r} is not FIELD=VALUE: write for example optim.lr=0.05")
    return path, value.strip()


def listed(value: Any) -> Any:
    """A comma list as --set gives it, "0.5,0.75" or "[0.5, 0.75]"."""
    if not isinstance(value, str):
        return value
    return [part.strip().strip("'\"") for part in value.strip("[]() ").split(",") if part.strip()]


def plain(value: Any) -> Any:
    """A text as TOML would read it, where it would: for fields whose type only the architecture knows."""
    if isinstance(value, str):
        try:
            read = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            return value
        if list(read) == ["value"] and isinstance(read["value"], bool | int | float | str | list):
            return read["value"]
    return value


def put(tree: Tree, path: str, value: Any) -> None:
    *sections, last = path.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"recipe field {section} has no fields of its own, so not {path}")
        tree = inner
    tree[last] = value


def get(tree: Tree, path: str, default: Any) -> Any:
    at: Any = tree
    for key in path.split("."):
        if not isinstance(at, dict) or key not in at:
            return default
        at = at[key]
    return at


def merged(lower: Tree, upper: Tree) -> Tree:
    """`upper` over `lower`, table by table."""
    both = dict(lower)
    for key, value in upper.items():
        mine = both.get(key)
        both[key] = merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both


def leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found
