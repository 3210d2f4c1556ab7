"""Plug-ins: code from outside is announced before it runs, and its errors are one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from advbench.errors import CodeRuns, UserError
from advbench.models import external
from advbench.registry import find


def test_code_from_outside_is_announced_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_a.py").write_text("raise RuntimeError('it\\nran')")
    monkeypatch.syspath_prepend(tmp_path)
    said = "outside_a:x is code outside advbench, which runs now"
    with pytest.warns(CodeRuns, match=said), pytest.raises(UserError, match="cannot load method 'outside_a:x': it ran"):
        find("methods", "outside_a:x")
    with pytest.warns(CodeRuns, match=said), pytest.raises(UserError, match="it ran"):
        external.load("outside_a:x")


@pytest.mark.parametrize("name", [":x", ".a:b", "a b:c", "nosuch:x", "os:nosuch", "os:", "::", "\n:x"])
@pytest.mark.parametrize("kind", ["methods", "attacks", "analyses", "data"])
def test_names_that_import_nothing_are_one_line(kind: str, name: str) -> None:
    with pytest.raises(UserError, match="cannot load") as caught:
        find(kind, name)
    assert "\n" not in str(caught.value)


def test_our_own_are_not_announced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find("methods", "act").load()


def test_a_command_announces_it_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from advbench.cli import run

    (tmp_path / "outside_b.py").write_text(
        "import torch\ndef net(num_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    argv = ["evaluate", "--model", "outside_b:net", "--dataset", "digits", "--eps", "0.1", "-n", "8"]
    argv += ["--attack", "fgsm"]
    assert run(argv) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[0] == "warning: outside_b:net is code outside advbench, which runs now"
    assert "note: model: outside_b:net ran its own code" in told.out
