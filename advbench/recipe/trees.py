"""Nested tables of a recipe before validation: reading, merging, and FIELD=VALUE."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from advbench.errors import UserError, reading

Tree = dict[str, Any]


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file. Raises UserError if it cannot be read."""
    with reading(f"recipe {path}"):
        return tomllib.loads(path.read_text(encoding="utf-8"))


def shipped_recipe(dataset: str, arch: str, method: str) -> Tree:
    """`default.toml`, overridden by `DATASET.toml`, then by `DATASET-ARCH.toml`, where these exist.

    `[eps]` holds the default eps of each norm, `[for.METHOD]` the fields in which a method's recipe differs.
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
    """Split FIELD=VALUE. The value stays a text until the field's type is known. Raises UserError for other texts."""
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise UserError(f"--set {text!r} is not FIELD=VALUE: write for example optim.lr=0.05")
    return path, value.strip()


def listed(value: Any) -> Any:
    """The list in a text from --set, "0.5,0.75" or "[0.5, 0.75]". Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    return [part.strip().strip("'\"") for part in value.strip("[]() ").split(",") if part.strip()]


def plain(value: Any) -> Any:
    """The TOML value of a text, or the text if it is not TOML: for fields whose type only the architecture knows."""
    if isinstance(value, str):
        try:
            read = tomllib.loads(f"value = {value}")
        except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, or nested too deeply
            return value
        if list(read) == ["value"] and isinstance(read["value"], bool | int | float | str | list):
            return read["value"]
    return value


def put(tree: Tree, path: str, value: Any) -> None:
    """Set the field with the dotted name `path`. Raises UserError if a part of the name is not a table."""
    *sections, last = path.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"recipe field {section} has no fields of its own, so not {path}")
        tree = inner
    tree[last] = value


def get(tree: Tree, path: str, default: Any) -> Any:
    """The field with the dotted name `path`, or `default` if there is none."""
    at: Any = tree
    for key in path.split("."):
        if not isinstance(at, dict) or key not in at:
            return default
        at = at[key]
    return at


def merged(lower: Tree, upper: Tree) -> Tree:
    """`lower` overridden by `upper`, field by field."""
    both = dict(lower)
    for key, value in upper.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found
