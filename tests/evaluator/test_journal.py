"""The journal of an evaluation is resumed as a whole, or refused and left unchanged."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.attacks.pgd import PGD
from advbench.engine.attack import Samples
from advbench.engine.oracle import Oracle
from advbench.engine.search import Search
from advbench.errors import Interrupted, UserError
from advbench.evaluator import Journal, journal
from advbench.files import write_sealed

ASKED = {"model": "a", "eps": [0.1, 0.2], "attacks": [{"name": "pgd", "settings": {"steps": 3}}], "seed": 0}


def begun(path: Path, stages: int = 3, stop: int = 99) -> list[dict[str, Any]]:
    """The results of `stages` pieces of work, of which number `stop` is asked to stop."""
    asked = itertools.count()
    kept = Journal(path, stop=lambda: next(asked) == stop)
    kept.begin(ASKED, resume=True)
    return [kept.once(lambda stage=stage: {"fell": torch.tensor([stage])}) for stage in range(stages)]  # type: ignore[misc]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with pytest.raises(Interrupted, match="stopped and saved"):
        begun(tmp_path / "journal", stop=2)
    return tmp_path / "journal"


def test_finished_work_is_not_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Journal(path)
    assert kept.begin(ASKED, resume=True)
    done = [kept.once(lambda: {"fell": torch.tensor([-1])})["fell"].item() for _ in range(3)]
    assert done == [0, 1, -1]
    kept.finish()
    assert not path.exists()


def test_every_changed_byte_is_noticed_and_nothing_is_overwritten(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged") as caught:
            Journal(path).begin(ASKED, resume=True)
        assert "\n" not in str(caught.value) and path.read_bytes() == damaged
    path.write_bytes(whole)
    assert Journal(path).begin(ASKED, resume=True)


@given(st.binary(max_size=80))
def test_any_content_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Journal(path).begin(ASKED, resume=True)
    write_sealed(path, content)
    with pytest.raises(UserError, match="not written by this version"):
        Journal(path).begin(ASKED, resume=True)


@pytest.mark.parametrize("saved", [{"asked": ASKED, "ended": []}, [1], 3, {}])
def test_a_journal_of_another_form_is_refused(tmp_path: Path, saved: Any) -> None:
    stream = io.BytesIO()
    torch.save(saved, stream)
    write_sealed(tmp_path / "x", stream.getvalue())
    with pytest.raises(UserError, match="not written by this version"):
        Journal(tmp_path / "x").begin(ASKED, resume=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "b"}, "model was 'a', is 'b'"),
        ({"eps": [0.1]}, r"eps was \[0.1, 0.2\], is \[0.1\]"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"attacks": [{"name": "pgd", "settings": {"steps": 4}}]}, "attacks.0.settings.steps was 3, is 4"),
        ({"advbench": "9"}, "advbench was None, is '9'"),
    ],
)
def test_another_question_is_refused_with_the_difference(path: Path, change: dict[str, Any], says: str) -> None:
    before = path.read_bytes()
    with pytest.raises(UserError, match=says):
        Journal(path).begin({**ASKED, **change}, resume=True)
    assert path.read_bytes() == before


def test_a_kill_loses_no_more_than_the_contract_grants() -> None:
    assert journal._SAVE_INTERVAL <= 45


def test_slow_saves_are_made_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a round takes 1 s and a save 30 s: a save every 20 s would take more than half of the time."""
    now = [0.0]
    monkeypatch.setattr(journal.time, "monotonic", lambda: now[0])
    saved: list[float] = []

    def slow(content: object) -> None:
        now[0] += 30
        saved.append(now[0])
        kept._saved_at = now[0]

    kept = Journal(tmp_path / "journal", progress=lambda forecast: now.__setitem__(0, now[0] + 1))
    monkeypatch.setattr(kept, "_save", slow)
    kept.begin(ASKED, resume=False)
    x = torch.rand(4, 1, 2, 2)
    oracle = Oracle(torch.nn.Flatten(), slots=4)
    logits = oracle.logits(x)
    samples = Samples(lambda rows: x[rows], logits.argmax(1), torch.arange(4), torch.zeros(4).double(), logits)
    kept.run("pgd", Search(PGD(name="pgd", steps=1300), samples, oracle, norm="linf", seed=0))
    assert len(saved) >= 3 and all(later - sooner > 600 for sooner, later in itertools.pairwise(saved[:-1]))
