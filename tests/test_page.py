"""The page of a leaderboard as a file: small, always the same, inert, and never in the place of another's."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import autoattack, fallen, fates_of, images, made, record_of

from advbench import leaderboard
from advbench.errors import UserError
from advbench.record import Fates, Flag, Record, Trained

EPS = "0,2/255,4/255,6/255,8/255,12/255,16/255"


def many(count: int, n: int, eps: str = EPS) -> list[tuple[Record, Fates]]:
    """`count` models of different strength, with names, flags and costs as long as real ones."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        accuracies = np.linspace(0.95, 0.2, len(eps.split(","))) * generator.uniform(0.7, 1.0)
        fell = generator.permutation(fallen([round(share * n) for share in accuracies], n))
        flag = Flag(name="square-wins", severity="note", eps=8 / 255, k=20, n=n,
                    detail="square alone felled 2.0% of the images at eps 0.0313: gradients may be masked")  # fmt: skip
        record = record_of(
            fates_of(fell), eps, spec=f"runs/{number}", name=f"Author et al., 2024, architecture {number}",
            dataset=images(f"first:{n}"), attack=autoattack(), flags=[flag], seconds=1234.5,
            trained=Trained(method="trades", norm="linf", eps=8 / 255, eps_text="8/255", seed=number, passes=25.0),
            forwards=9_000 * n, backwards=900 * n,
        )  # fmt: skip
        found.append((record, fates_of(fell)))
    return found


MANY_EPS = "0,1/255,2/255,3/255,4/255,5/255,6/255,7/255,8/255,10/255,12/255,14/255,16/255"


def page_of(measured: list[tuple[Record, Fates]]) -> str:
    board = leaderboard.board((record for record, _ in measured), {})
    return leaderboard.to_html({"cifar10-linf": board}, {record.id: fates for record, fates in measured})


def data(page: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    return json.loads(found)


@pytest.mark.parametrize(("n", "eps"), [(1_000, EPS), (10_000, MANY_EPS)])
def test_a_hundred_records_are_small(n: int, eps: str) -> None:
    page = page_of(many(100, n, eps))
    assert len(page.encode()) <= 400_000
    assert eps == MANY_EPS or data(page)[0]["tables"][0]["gains"]["models"] == 100  # every pair can be compared


def test_of_more_models_the_best_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard.page_data, "MAX_BYTES", 2 * 7 * 6 + 1)  # six pairs at seven points
    (table,) = data(page_of(many(9, 1_000)))[0]["tables"]
    assert table["gains"]["models"] == 4 and len(table["models"]) == 9
    assert len(base64.b64decode(table["gains"]["counts"])) == 2 * 7 * 6


def test_without_fates_nothing_is_compared() -> None:
    page = leaderboard.render([made([90, 60, 40])[0]])["index.html"].decode()
    assert data(page)[0]["tables"][0]["gains"]["models"] == 0


class Elements(html.parser.HTMLParser):
    """Counts start tags, and checks that all but void ones are closed in order."""

    void = frozenset({"meta", "link", "input", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.places: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_well_formed_and_links_only_to_its_folder_and_to_papers() -> None:
    hostile = '</script></style><img src=x onerror=alert(1)>" onfocus="x'
    flag = Flag(name="masked", severity="broken", detail=hostile)
    one, fates = made([90, 60, 40], name=hostile, trained=Trained(method=hostile), flags=[flag])
    other, other_fates = made([95, 60, 50], spec="runs/plain", trained=Trained(method="trades"))
    page = page_of([(one, fates), (other, other_fates)])
    elements = Elements(page)
    assert "default-src 'none'; script-src 'sha256-" in page
    assert elements.open == [] and elements.tags.count("script") == 2 and "img" not in elements.tags
    assert all(
        re.fullmatch(r"#[\w-]+|data:,|cifar10-linf\.\w+|records/[\w/.-]+\.json|https://arxiv\.org/abs/[\d.]+", place)
        for place in elements.places
    )
    assert {one for one in elements.places if one.startswith("https")} == {"https://arxiv.org/abs/1901.08573"}


def test_a_page_of_the_folders_owner_stays(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>my own page</p>")
    record, fates = made([90, 60, 40])
    for act in (
        lambda: leaderboard.publish(record, fates, tmp_path),
        lambda: leaderboard.build(tmp_path / "records", tmp_path),
    ):
        with pytest.raises(UserError, match=r"index\.html was not made by advbench"):
            act()
    assert (tmp_path / "index.html").read_text() == "<p>my own page</p>"


def test_a_process_that_leaves_its_board_to_one_that_waits_finds_it_made(tmp_path: Path) -> None:
    """The one that waits publishes on another board."""
    records = [made([90, 60, 40], eps=eps, norm=norm) for norm, eps in (("linf", "0,4/255,8/255"), ("l2", "0,0.5,1"))]
    with leaderboard.locked(tmp_path / ".lock"):
        waiting = threading.Thread(target=leaderboard.publish, args=(*records[0], tmp_path))
        waiting.start()
        deadline = time.monotonic() + 60
        while not (tmp_path / ".turn").exists() or not [*tmp_path.rglob("*.npz")]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)
        leaderboard.publish(*records[1], tmp_path)
    waiting.join()
    assert leaderboard.check(tmp_path) == []


def test_publishing_on_one_board_keeps_the_others_on_the_page(tmp_path: Path) -> None:
    for norm, eps in (("linf", "0,4/255,8/255"), ("l2", "0,0.5,1")):
        record, fates = made([90, 60, 40], eps=eps, norm=norm)
        leaderboard.publish(record, fates, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert [board["name"] for board in data(page)] == ["cifar10-linf", "cifar10-l2"]
    assert leaderboard.check(tmp_path) == []
    leaderboard.retire(tmp_path, record.id, "measured wrongly")
    page = (tmp_path / "index.html").read_text()
    assert "measured wrongly" in page and leaderboard.check(tmp_path) == []
    assert [len(board["tables"]) for board in data(page)] == [1, 0]
