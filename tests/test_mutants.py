"""The table of mutations fits the code: `make mutations` would stop at a text that is not there any more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def test_every_text_to_be_changed_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import mutations

    try:
        found = mutations.table()
        assert len(found) > 200
        mutations.check(found)  # SystemExit names what is out of date
        with pytest.raises(SystemExit, match="0 times"):
            mutations.check([*found, mutations.Mutation("stale", "advbench/rng.py", "no such text", "", "")])
    finally:
        for name in ("mutations", "mutants"):
            sys.modules.pop(name, None)
