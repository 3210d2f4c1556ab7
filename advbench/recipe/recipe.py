"""A recipe: all settings of a training run, validated."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from advbench.eps import Eps
from advbench.errors import UserError, must_be, shortened, unknown
from advbench.recipe.fields import (
    Augment,
    Average,
    Awp,
    Count,
    Init,
    Inner,
    MethodSpec,
    ModelSpec,
    Optim,
    Part,
    Real,
    Schedule,
    Seed,
    Size,
    Threat,
    Validation,
    converted,
)
from advbench.recipe.trees import Tree, get, leaves, listed, merged, parse_set, plain, put, read_toml, shipped_recipe
from advbench.registry import LIBRARIES, Entry, find, parameters, plain_dataset, training_dataset


class Recipe(Part):
    """All settings of a training run.

    - `format`: the version of this form.
    - `seed`: of the weights, the order of the images, their augmentation and the attacks.
    - `dataset`: one of `advbench list datasets`, with its path, or `module:callable`.
    - `train_n`: how many training images are used, the first ones; 0 for all.
    - `epochs`: passes over the training images.
    - `batch_size`: images in a batch, over all processes together.
    - `precision`: "auto" is bf16 on CUDA (from compute capability 8.0 on), else fp32.
    - `bn`: matters with several processes only. BatchNorm normalises by each process's share of a batch ("local"; the
      running statistics are averaged), or by the whole batch ("sync", only on CUDA).
    - `compile`: the backend of torch.compile for the networks; "auto" is inductor on CUDA and off on a CPU.
    - `label_smoothing`: the share of the target that is spread over all classes, in cross-entropies with the label; all
      other terms of a method, and its attack, use the label itself.
    """

    format: Literal[1] = 1
    seed: Seed = 0
    dataset: str
    train_n: Size = 0
    epochs: Count = 100
    batch_size: Count = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    bn: Literal["local", "sync"] = "local"
    compile: Literal["auto", "off", "inductor", "aot_eager"] = "auto"
    label_smoothing: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    method: MethodSpec
    model: ModelSpec
    init: Init | None = None
    threat: Threat
    inner: Inner = Inner()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    average: Average = Average()
    awp: Awp = Awp()
    validation: Validation = Validation()

    @classmethod
    def resolve(
        cls,
        *,
        method: str | None = None,
        dataset: str | None = None,
        arch: str | None = None,
        norm: str | None = None,
        eps: str | None = None,
        preset: str | None = None,
        config: Path | None = None,
        flags: Mapping[str, Any] | None = None,
        sets: Iterable[str] = (),
    ) -> Recipe:
        """The recipe from all sources, with the precedence that the package's docstring gives; None means "not given".

        `flags` have dotted names ("epochs", "optim.lr"). The default names are act, digits, small_cnn and linf. Raises
        UserError for an unknown name or field, with similar ones, for a value out of range, and for a `preset` beside a
        file that leaves it nothing to say.
        """
        named = {"method.name": method, "dataset": dataset, "model.arch": arch, "threat.norm": norm, "threat.eps": eps}
        upper: Tree = {} if config is None else read_toml(config)
        if preset is not None and "format" in upper:
            raise UserError(f"{config} is the whole recipe of a run, which no preset changes: leave one of them out")
        if isinstance(upper.get("threat"), dict):
            upper["threat"].pop("eps_value", None)  # a flag may change eps, and this would be the old value
        for path, value in {**named, **(flags or {})}.items():
            if value is not None:
                put(upper, path, value)
        for text in sets:
            put(upper, *parse_set(text))
        # First the names, from any source, since they decide which defaults apply.
        names = {"method.name": "act", "dataset": "digits", "model.arch": "small_cnn", "threat.norm": "linf"}
        names = {path: str(get(upper, path, default)) for path, default in names.items()}
        entry = find("methods", names["method.name"])
        shipped = shipped_recipe(names["dataset"], names["model.arch"], names["method.name"])
        sizes = shipped.pop("eps", {})
        tree: Tree = {}
        for path, value in names.items():
            put(tree, path, value)
        if names["threat.norm"] in sizes:
            put(tree, "threat.eps", sizes[names["threat.norm"]])
        for path, value in entry.about.get("recipe", {}).items():
            section, _, setting = path.rpartition(".")
            if section != "model" or _takes(names["model.arch"], setting):
                put(tree, path, value)
        tree = merged(tree, shipped)
        for path, value in {} if preset is None else preset_fields(entry, preset).items():
            put(tree, path, value)
        tree = merged(tree, upper)
        tree["dataset"] = training_dataset(str(tree["dataset"]))
        for section in ("method", "model"):
            if not isinstance(tree[section], dict):
                raise UserError(f"recipe field {section} is a table, not {shortened(tree[section])}: set its fields")
        tree["method"] = {"name": entry.name, **_method_tree(entry, tree["method"])}
        tree["model"] = {key: plain(value) for key, value in tree["model"].items()}
        return cls.read(tree)

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> Recipe:
        """The recipe in nested tables. Raises UserError, in one line, for a field that does not fit."""
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise _explained(error) from error

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """The complete recipe in a TOML file, such as a run folder's. Raises UserError if it cannot be read."""
        return cls.read(read_toml(path))

    def tree(self) -> Tree:
        """The recipe as nested tables of plain values, without fields that are None."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """The recipe as TOML, which `load` reads back as an equal recipe."""
        return tomli_w.dumps(self.tree())

    @property
    def sha256(self) -> str:
        """sha256 (hex) of all settings, however eps is written."""
        return _sha256(self.tree())

    @property
    def series_sha256(self) -> str:
        """sha256 (hex) of all settings but the seed."""
        return self.model_copy(update={"seed": 0}).sha256

    @property
    def run_name(self) -> str:
        """The default name of the run folder: METHOD-DATASET-ARCH-NORM-EPS-sSEED."""
        eps = Eps(self.threat.eps, self.threat.eps_value).plain
        words = (self.method.name, self.dataset, self.model.arch, self.threat.norm, eps, f"s{self.seed}")
        return "-".join(re.sub(r"[^\w.+-]+", "_", word) for word in words)


def preset_fields(entry: Entry, name: str) -> dict[str, Any]:
    """The fields, by their dotted names, that the preset `name` of a method sets. Raises UserError if it has none."""
    known: dict[str, dict[str, Any]] = entry.about.get("presets", {})
    if name not in known:
        raise unknown(f"preset of {entry.name}", name, known)
    return known[name]


def _takes(arch: str, setting: str) -> bool:
    """Whether a method's default for a setting of the model suits `arch`: code from outside may not have it."""
    library, colon, _ = arch.partition(":")
    if not colon or library in LIBRARIES:
        return not colon
    maker = find("models", arch).load()
    if not (isinstance(maker, type) or inspect.isroutine(maker)):  # a network
        return False
    known = parameters(maker)
    return setting in known or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())


def saved_sha256(path: Path) -> str:
    """The `Recipe.sha256` that a saved TOML recipe had when it was written, whatever fields were added since.

    Raises UserError if it cannot be read.
    """
    return _sha256(read_toml(path))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The differences between two recipes, each like "optim.lr 0.1 -> 0.05"; other spellings are none.

    A field of their method that only one of them has, since the other was saved before it existed, counts there as the
    method's default.
    """
    a, b = ({**leaves(_plain(recipe.tree())), "dataset": plain_dataset(recipe.dataset)} for recipe in (old, new))
    if old.method.name == new.method.name and old.method.settings.keys() != new.method.settings.keys():
        default = leaves({"method": _method_tree(find("methods", new.method.name), {})})
        a, b = {**default, **a}, {**default, **b}
    return [f"{path} {a.get(path)} -> {b.get(path)}" for path in sorted({*a, *b}) if a.get(path) != b.get(path)]


def is_longer(old: Recipe, new: Recipe) -> bool:
    """Whether `new` is `old` with more epochs."""
    return new.epochs > old.epochs and not differences(old, new.model_copy(update={"epochs": old.epochs}))


def method_fields(maker: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `given` for the dataclass `maker` of a method, converted to their annotated types, also from texts.

    Raises UserError for an unknown field or a value that cannot be converted.
    """
    hints = typing.get_type_hints(maker, include_extras=True)
    known = [field.name for field in dataclasses.fields(maker) if field.init]
    found = {}
    for name, value in given.items():
        if name not in known:
            raise unknown("field of the method", name, known)
        if typing.get_origin(hints[name]) in (tuple, list):
            value = listed(value)
        try:
            found[name] = converted(hints[name], value)
        except ValueError as error:
            raise UserError(f"recipe field method.{name} is {shortened(value)}: {error}") from error
    return found


def _method_tree(entry: Entry, given: Tree) -> Tree:
    """All fields of the method: the dataclass's defaults, overridden by those in ENTRIES, then by those given."""
    maker = entry.load()
    given = {key: value for key, value in given.items() if key != "name"}
    if not dataclasses.is_dataclass(maker):
        return given
    missing = dataclasses.MISSING
    fields = {f.name: f.default for f in dataclasses.fields(maker) if f.init and f.default is not missing}
    fields |= method_fields(maker, {**entry.set, **given})
    fields = {name: value for name, value in fields.items() if value is not None}  # as in a file, which has no none
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def field_names(part: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """The dotted names of all fields of recipes, without the methods' and architectures' own."""
    found = []
    for name, field in part.model_fields.items():
        kind = field.annotation
        inside = isinstance(kind, type) and issubclass(kind, BaseModel)
        found += field_names(kind, f"{prefix}{name}.") if inside else [prefix + name]  # type: ignore[arg-type]
    return found


def _explained(error: ValidationError) -> UserError:
    """The first error in one line; for an unknown field with similar ones, by the whole name or its last part."""
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), UserError):
        return cause
    path = ".".join(str(key) for key in first["loc"])
    if first["type"] != "extra_forbidden":
        if first["type"] == "missing":
            return UserError(f"recipe field {path} is missing")
        return UserError(f"recipe field {path} is {shortened(first['input'])}: {must_be(first)}")
    names = field_names()
    last = {name.rpartition(".")[2]: name for name in names}
    close = difflib.get_close_matches(path, names, n=3, cutoff=0.6)
    close += [last[word] for word in difflib.get_close_matches(path.rpartition(".")[2], last, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(dict.fromkeys(close))}? " if close else ""
    section = path.rpartition(".")[0]
    inside = [name for name in names if section and name.startswith(f"{section}.")]
    return UserError(f"unknown recipe field {path!r}: {hint}choose from {', '.join(inside or names)}")


def _plain(tree: Tree) -> Tree:
    """`tree` with the one spelling of its eps, and without the path of the initial weights, which their hash names."""
    if isinstance(tree.get("init"), dict):
        tree = {**tree, "init": {name: value for name, value in tree["init"].items() if name != "path"}}
    threat = tree.get("threat", {})
    if "eps" not in threat or "eps_value" not in threat:
        return tree
    return {**tree, "threat": {**threat, "eps": Eps(threat["eps"], threat["eps_value"]).plain}}


def _sha256(tree: Tree) -> str:
    return hashlib.sha256(json.dumps(_plain(tree), sort_keys=True, default=str).encode()).hexdigest()
