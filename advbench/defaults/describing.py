"""The reference of one entry: what `advbench list KIND NAME` prints, and the documentation is made of.

Everything is read from the code: ENTRIES, annotations, defaults and docstrings. An attack, method, model or analysis
loads torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from advbench.defaults.analysis import FLAGS, SUPPLIED
from advbench.defaults.listing import FOLDERS, listing
from advbench.defaults.signatures import meaning_in, setting, shown
from advbench.defaults.wording import without_raises
from advbench.eps import CORRUPTIONS, NORMS, example_size
from advbench.errors import UserError, unknown
from advbench.recipe.trees import leaves, shipped_recipe
from advbench.record.black_box import WINS
from advbench.record.glossary import BLACK_BOX_AHEAD
from advbench.registry import Entry, entries, parameters

_ABOUT = ("kind", "summary", "members", "recipe", "example")  # of ENTRIES, which the reference says in another form
_READS = {"logits": "answers alone, no gradients", "gradient": "gradients", "jacobian": "a gradient for each class"}
_MANY = 60  # names, of which an error shows the near ones alone


def describe(kind: str, name: str) -> dict[str, Any]:
    """The entry `name` of `kind` as plain values: at least `kind`, `name`, `summary` and `example`.

    A RobustBench model may be named without its dataset and threat.

    `settings`, where it has some, are a list of name, type, default (none where it must be given) and meaning.
    `details` are what the file says of itself. Raises UserError, with near names, if there is none.
    """
    rows = {str(row["name"]): row for row in listing(kind)}
    if kind == "flags" and (attack := _attack_ahead(name)):
        row = {key: str(value).replace("NAME", attack) for key, value in rows[BLACK_BOX_AHEAD].items()}
        rows = {name: row | {"name": name}, **rows}
    if kind == "models" and name.startswith("robustbench:"):
        from advbench.models import robustbench_zoo

        name = robustbench_zoo.choose(name.partition(":")[2])[0].spec
    if name not in rows:
        raise _unknown(kind, name, rows)
    found: dict[str, Any] = {"kind": kind, "name": name, "summary": rows[name]["summary"]}
    entry = entries(FOLDERS[kind]).get(name) if kind in FOLDERS else None
    if entry is None:
        rest = {key: value for key, value in rows[name].items() if key not in found}
        return found | rest | _unregistered(kind, name)
    module = importlib.import_module(entry.module)
    about = {key: value for key, value in entry.about.items() if key not in _ABOUT and value not in (None, {})}
    details = [inspect.cleandoc(module.__doc__ or "")]
    found |= _OF[kind](entry) | about
    if "argument" in about or "members" in found:
        details.append(without_raises(inspect.getdoc(entry.load())))
    source = details[0].split("\n\n")[0].replace("\n", " ")
    if "paper" not in about and kind in ("attacks", "models"):
        found["source"], details[0] = source, details[0].partition("\n\n")[2]
    found["file"] = f"{entry.module.replace('.', '/')}.py"
    return {**found, "example": _example(kind, entry, found), "details": "\n\n".join(filter(None, details))}


def _unknown(kind: str, name: str, rows: Mapping[str, Any]) -> UserError:
    """The error for a name that is none; of many names only the near ones are shown."""
    what = {"analyses": "analysis"}.get(kind, kind.removesuffix("s"))
    error = unknown(what, name, (known.replace(BLACK_BOX_AHEAD, f"square{WINS}") for known in rows))
    near = str(error).partition("choose from")[0]
    return error if len(rows) < _MANY else UserError(f"{near}see advbench list {kind}")


def _attack_ahead(name: str) -> str:
    """The attack that a flag such as square-wins names; empty for other names."""
    attack, _, end = name.rpartition("-")
    return attack if f"-{end}" == WINS and attack in entries("attacks") else ""


def _unregistered(kind: str, name: str) -> dict[str, Any]:
    """What there is to say of a flag, or of a model that is no entry: trained ones, and forms of names."""
    if kind == "flags":
        return {"example": f"advbench compare A B --fail-if 'auc < baseline' --allow-flags {name}"}
    if name.startswith("robustbench:"):
        from advbench.models import robustbench_zoo

        model, _ = robustbench_zoo.choose(name.partition(":")[2], None, None)
        accuracy = robustbench_zoo.published_accuracy(model)
        facts = {} if accuracy is None else {"published_clean_accuracy": accuracy}
        how = {None: "--attack corruptions", "l2": "--norm l2 --eps 0.5"}.get(model.norm, "--eps 8/255")
        return {**facts, "example": f"advbench evaluate --model {name} --dataset {model.dataset} {how}"}
    spec = {"FILE of torch.jit.save": "FILE.pt", "package.module:name": "mynet:Net"}.get(name, name.partition("[")[0])
    arch = " --arch resnet18" if name in ("FILE.safetensors", "FILE.pt") else ""
    return {"example": f"advbench evaluate --model {spec}{arch} --dataset cifar10"}


def _attack(entry: Entry) -> dict[str, Any]:
    """Norms and settings; of a set its members, with the settings in which they differ from the attack of that name."""
    from advbench.attacks.base import make

    made = make(entry.name, "linf")
    norms = [norm for norm in (*NORMS, CORRUPTIONS) if all(norm in one.norms for one in made)]
    if not isinstance(entry.load(), type):
        alone = {one.name: make(one.name, "linf")[0] for one in made if one.name in entries("attacks")}
        members = [
            {"name": one.name, "settings": _differences(one.settings(), alone[one.name].settings())}
            if one.name in alone
            else {"name": one.name, "settings": {}}
            for one in made
        ]
        return {"norms": norms, "members": members}
    (one,) = made
    kinds, layers = get_type_hints(type(one), include_extras=True), inspect.getmro(type(one))
    return {
        "norms": norms,
        "finds": "the nearest adversarial example" if one.minimum_norm else "a point within eps",
        "reads": _READS[one.asks],
        "settings": [
            setting(name, kinds[name], getattr(one, name), meaning_in(layers, name)) for name in one.setting_names()
        ],
    }


def _differences(own: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if value != usual.get(name)}


def _method(entry: Entry) -> dict[str, Any]:
    """Norms, settings (fields of the recipe below `method`), and where its recipe differs from the default one."""
    maker: Any = entry.load()
    kinds, settings = get_type_hints(maker, include_extras=True), []
    for one in dataclasses.fields(maker):
        if one.init:
            meaning = meaning_in(inspect.getmro(maker), one.name)
            settings.append(setting(one.name, kinds[one.name], entry.set.get(one.name, one.default), meaning))
    own = shipped_recipe("", "", entry.name)
    changed = {key: value for key, value in leaves(own).items() if leaves(shipped_recipe("", "", "")).get(key) != value}
    recipe = {**entry.about.get("recipe", {}), **changed}
    return {"norms": list(getattr(maker, "norms", ())), "recipe": recipe, "settings": settings}


def _model(entry: Entry) -> dict[str, Any]:
    """Settings: fields of the recipe below `model`."""
    from advbench.models import settings_of

    maker: Any = entry.load()
    layers = [layer for layer in inspect.getmro(maker) if layer.__module__.startswith("advbench.")]
    kinds: dict[str, Any] = {}
    for layer in reversed(layers):
        kinds |= get_type_hints(layer.__init__, include_extras=True)  # type: ignore[misc]
    settings = [
        setting(name, kinds[name], default, meaning_in(layers, name))
        for name, default in settings_of(entry).items()
        if not (entry.about.get("kind") == "wrapper" and name in ("activation", "normalize"))
    ]
    return {"settings": settings}


def _analysis(entry: Entry) -> dict[str, Any]:
    """Settings: flags of `advbench analyze`, and fields for --set."""
    maker = entry.load()
    kinds = get_type_hints(maker, include_extras=True)
    settings = []
    for name, one in parameters(maker).items():
        if name not in SUPPLIED:
            found = setting(name, kinds.get(name, Any), one.default, meaning_in([maker], name))
            settings.append(found | ({"flag": f"-{name}" if name == "n" else f"--{name}"} if name in FLAGS else {}))
    return {"settings": settings, "gives": without_raises(inspect.getdoc(maker)).split("\n\n")[0]}


_OF: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "attacks": _attack,
    "methods": _method,
    "models": _model,
    "datasets": lambda entry: {},
    "analyses": _analysis,
}


def _example(kind: str, entry: Entry, found: Mapping[str, Any]) -> str:
    """A command that uses the entry: the one that its ENTRIES give, or one with a setting of its own."""
    if "example" in entry.about:
        return str(entry.about["example"])
    own = [one for one in found.get("settings", ()) if _settable(one)]
    if kind == "attacks":
        norm = "linf" if "linf" in found["norms"] else found["norms"][0]
        where = "" if norm == "linf" else f" --norm {norm}"
        likely = [one for one in own if one["name"] in ("steps", "n_queries", "searches") and one["default"] != 1]
        change = f" --set {likely[-1]['name']}={shown(likely[-1]['default'])}" if likely else ""
        return f"advbench evaluate --attack {entry.name}{where} --eps {example_size(norm)}{change}"
    if kind == "methods":
        change = f" --set method.{own[0]['name']}={shown(own[0]['default'])}" if own else ""
        return f"advbench train --method {entry.name} --eps 8/255{change}"
    if kind == "models":
        if entry.about.get("kind") == "wrapper":
            form = {"attention": "64", "quantize": "layer1:8"}.get(entry.name, entry.about["form"])
            return f"advbench train --arch resnet18 --dataset cifar10 --set model.{entry.name}={form}"
        own = [one for one in own if one["name"] not in ("activation", "normalize")]
        change = f" --set model.{own[0]['name']}={shown(own[0]['default'])}" if own else ""
        return f"advbench train --arch {entry.name}{change}"
    if kind == "datasets":
        place = {"imagefolder": ":photos@32", "npz": ":mine.npz"}.get(entry.name, "")
        return f"advbench train --dataset {entry.name}{place}"
    runs = "" if str(entry.about.get("runs", "")).startswith("none") else " runs/a runs/b"
    return f"advbench analyze {entry.name}{runs}"


def _settable(one: Mapping[str, Any]) -> bool:
    """Whether a setting can stand in an example as its default."""
    value = one.get("default")
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(value))
