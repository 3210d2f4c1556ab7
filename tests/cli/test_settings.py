"""Parsing of --set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advbench.cli.settings import parse_settings, split_names, written_settings
from advbench.defaults.analysis import fitted
from advbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("40", 40),
        ("-3", -3),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("8/255", 8 / 255),
        ("2.5/255", 2.5 / 255),
        ("true", True),
        ("False", False),
        ("none", None),
        ("ce", "ce"),
        ("runs/other", "runs/other"),
        ("layer1:8", "layer1:8"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_settings([f"field={text}"])["field"]
    assert found == value and type(found) is type(value)


def test_later_ones_win_and_dots_are_kept() -> None:
    assert parse_settings(["a.b=1", "c = x", "a.b=2"]) == {"a.b": 2, "c": "x"}


@pytest.mark.parametrize("text", ["steps", "=4", "a b=1", ""])
def test_other_forms(text: str) -> None:
    with pytest.raises(UserError, match="FIELD=VALUE"):
        parse_settings([text])


def test_division_by_zero() -> None:
    with pytest.raises(UserError, match="zero"):
        parse_settings(["step_size=1/0"])


def test_comma_lists_of_names() -> None:
    assert split_names(["pgd, square", "pgd"]) == ["pgd", "square"]
    with pytest.raises(UserError, match="comma list"):
        split_names(["pgd,,square"])


def _maker(runs: list[str], *, steps: int = 3, name: str = "a", share: float | None = None, free=None) -> None:  # type: ignore[no-untyped-def]
    """Has fields of several kinds."""


def fit(maker: Any, texts: list[str]) -> dict[str, Any]:
    return fitted(maker, parse_settings(texts), written_settings(texts), apart=["runs"])


def test_values_take_the_type_of_the_parameter() -> None:
    texts = ["steps=4", "name=5", "share=1/4", "free=yes"]
    assert fit(_maker, texts) == {"steps": 4, "name": "5", "share": 0.25, "free": "yes"}
    assert fit(_maker, ["share=none"]) == {"share": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [("stps=4", "did you mean steps"), ("runs=a", "choose from"), ("steps=many", "it must be a whole number")],
)
def test_values_that_do_not_fit(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(_maker, [text])
    with pytest.raises(UserError, match="there are none"):
        fit(lambda: None, [text])


def test_a_setting_on_the_command_line_wins_over_that_of_the_config_alone(cli: Any, run_folder: Path) -> None:
    Path("own.toml").write_text('attack = "pgd"\neps = [0, 0.1]\nn = 20\n[set]\nsteps = 1\nloss = "cw"\n')
    for sets, expected in (([], (1, "cw")), (["--set", "rel_step=0.5"], (1, "cw")), (["--set", "steps=3"], (3, "cw"))):
        ran = cli("evaluate", "--model", run_folder, "--config", "own.toml", "--json", *sets)
        assert ran.code == 0, ran.err
        (pgd,) = json.loads(ran.out.splitlines()[-1])["attack"]
        assert (pgd["settings"]["steps"], pgd["settings"]["loss"]) == expected
    Path("own.toml").write_text("n = true\n")
    ran = cli("evaluate", "--model", run_folder, "--config", "own.toml")
    assert ran.is_one_clear_line and "n is true" in ran.err
