"""`advbench list KIND NAME`: the reference of an entry."""

from __future__ import annotations

import dataclasses
import json
import shlex
import typing
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from advbench.cli import app
from advbench.defaults.describing import describe
from advbench.defaults.listing import ALL, FOLDERS, KINDS
from advbench.defaults.signatures import meanings, written
from advbench.defaults.wording import paragraphs
from advbench.engine.attack import Attack
from advbench.eps import as_eps_list
from advbench.recipe import Recipe
from advbench.recipe.fields import Count, Fractions, NotNegative, Share
from advbench.record import Record
from advbench.registry import entries

ENTRIES = [(kind, name) for kind in KINDS for name in entries(FOLDERS[kind])]
FORMS = ["robustbench:cifar10/Linf/Standard", "torchvision:NAME[:random]", "FILE.pt", "package.module:name"]


@pytest.mark.parametrize(("kind", "name"), [*ENTRIES, *(("models", name) for name in FORMS)])
def test_every_setting_has_a_type_and_a_meaning(kind: str, name: str) -> None:
    found = describe(kind, name)
    assert found["name"] == name and found["summary"] and json.dumps(found)
    for one in found.get("settings", ()):
        assert one["type"] and one["meaning"], f"the docstring should say what `{one['name']}` of {name} is"
        assert "default" in one or kind == "models"
    words = [word for word in shlex.split(found["example"]) if word != "advbench"]
    command: Any = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    with command.make_context(words[0], words[1:]) as context:  # an unknown flag or a flag without value is an error
        assert context.params
        if "--eps" in words:
            as_eps_list(context.params["eps"], context.params["norm"] or "linf")


def test_the_settings_are_those_that_set_takes() -> None:
    for name, entry in entries("attacks").items():
        maker = entry.load()
        if isinstance(maker, type) and issubclass(maker, Attack):
            assert [one["name"] for one in describe("attacks", name)["settings"]] == maker.setting_names()
    for name, entry in entries("methods").items():
        fields = [one.name for one in dataclasses.fields(entry.load()) if one.init]  # type: ignore[arg-type]
        assert [one["name"] for one in describe("methods", name)["settings"]] == fields


def test_defaults_are_the_entrys_own() -> None:
    def default(kind: str, name: str, setting: str) -> Any:
        return {one["name"]: one["default"] for one in describe(kind, name)["settings"]}[setting]

    assert [default("attacks", name, "steps") for name in ("pgd", "fgsm")] == [10, 1]
    assert default("methods", "center-loss-at", "base") == "at"
    assert default("models", "wrn-34-10", "depth") == 34
    assert describe("attacks", "autoattack-plus")["members"][0] == {"name": "apgd-ce", "settings": {"restarts": 5}}
    assert describe("attacks", "corruptions")["norms"] == ["corruptions"]
    assert describe("methods", "act")["recipe"]["inner.init"] == "gauss"
    assert describe("methods", "act")["presets"]["paper"]["epochs"] == 200


def test_a_page_of_80_columns(cli: Any) -> None:
    ran = cli("list", "attacks", "pgd")
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "pgd" and max(map(len, lines)) <= 80
    text = " ".join(ran.out.split())
    assert "norms linf, l2, l1, fourier-linf" in text and "arXiv:1706.06083" in text
    assert "rel_step 0.25 step size / eps [number from 0]" in text
    assert "advbench evaluate --attack pgd --eps 8/255 --set steps=10" in text
    of_act = " ".join(cli("list", "methods", "act").out.split())
    assert "preset paper epochs=200, batch_size=128," in of_act and "schedule.milestones=0.295,0.595,0.795" in of_act
    for kind, name in ENTRIES:
        if kind in ("methods", "analyses"):
            wide = [line for line in cli("list", kind, name).out.splitlines() if len(line) > 80]
            assert not wide, wide


def test_a_model_of_robustbench_goes_by_its_short_name_too(cli: Any) -> None:
    ran = cli("list", "models", "robustbench:Carmon2019Unlabeled")
    assert ran.code == 0 and ran.out.startswith("robustbench:cifar10/Linf/Carmon2019Unlabeled\n")
    assert "did you mean Carmon2019Unlabeled" in cli("list", "models", "robustbench:Carmon2019").err


def test_a_flag(cli: Any) -> None:
    ran = cli("list", "flags", "square-wins")
    assert ran.code == 0 and ran.out.startswith("square-wins\n")
    text = " ".join(ran.out.split())
    assert "the black-box attack square alone" in text and "suspect above 10 %" in text and "what to do" in text
    rows = json.loads(cli("list", "flags", "--json").out)
    assert len(rows) > 40 and all(row["severity"] and row["what_to_do"] for row in rows)
    assert "zero-gradient" in cli("list", "flags").out


@pytest.mark.parametrize("kind", ALL)
def test_as_json(cli: Any, kind: str) -> None:
    name = json.loads(cli("list", kind, "--json").out)[0]["name"]
    found = json.loads(cli("list", kind, name, "--json").out)
    assert found["kind"] == kind and found["name"] == name and found["example"].startswith("advbench ")


def test_an_unknown_name_is_one_line_with_near_ones(cli: Any) -> None:
    for words, near in {
        ("attacks", "pdg"): "did you mean pgd?",
        ("methods", "pgdat"): "pgd-at",
        ("flags", "sqare-wins"): "square-wins",
        ("models", "resnet19"): "see advbench list models",
        ("flag", "square-wins"): "flags",
        ("attacks", "pgd", "--filter", "x"): "--filter is for lists",
    }.items():
        ran = cli("list", *words)
        assert ran.is_one_clear_line and near in ran.err, ran.err
    assert len(cli("list", "models", "robust").err) < 300


def parts(model: type[BaseModel]) -> set[type[BaseModel]]:
    inside = {
        kind
        for field in model.model_fields.values()
        for kind in (field.annotation, *typing.get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }
    return {model, *(part for kind in inside for part in parts(kind))}


@pytest.mark.parametrize("part", sorted(parts(Recipe) | parts(Record), key=lambda part: part.__name__))
def test_every_field_of_recipes_and_records_has_a_meaning(part: type[BaseModel]) -> None:
    tables = {name for name, field in part.model_fields.items() if part is Recipe and field.annotation in parts(Recipe)}
    assert set(part.model_fields) - set(meanings(part.__doc__)) - tables - {"init", "schema_version"} == set()


def test_meanings_are_read_from_docstrings() -> None:
    text = """A thing. `x` is not explained.

    `a`: first; 0 is off. `b`, `c` (l1 only): both, such as `a`. `d` and `e`: the rest
    of the line.

    - `f`: an item: with a colon.
    - `g`: another.

    A paragraph of its own.
    """
    assert meanings(text) == {
        "a": "first; 0 is off",
        "b": "(l1 only) both, such as `a`",
        "c": "(l1 only) both, such as `a`",
        "d": "the rest of the line",
        "e": "the rest of the line",
        "f": "an item: with a colon",
        "g": "another",
    }


def test_types_in_words() -> None:
    kinds = (Count, Share, NotNegative | None, Fractions, tuple[float, float], typing.Literal["a", "b"], bool)
    assert [written(kind) for kind in kinds] == [
        "whole number from 1",
        "number from 0 to 1",
        "number from 0 or none",
        "list of numbers from 0 to 1",
        "2 numbers",
        "a | b",
        "true or false",
    ]


def test_formulas_stay_and_prose_flows() -> None:
    text = f"{'word ' * 18}\nends.\n\nx  = 1\ny  = 2\n\n- one\n  more\n- two"
    assert paragraphs(text) == [
        (True, f"{'word ' * 18}ends."),
        (False, "x  = 1\ny  = 2"),
        (True, "- one more"),
        (True, "- two"),
    ]
