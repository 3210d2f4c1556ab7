"""The documentation: it builds without a warning, everything in the code has its place, and it works offline."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

import advbench
from advbench.cli import app
from advbench.files import locked
from advbench.recipe.recipe import field_names
from advbench.record import FLAG_NAMES, Record, record_files
from advbench.registry import entries

ROOT = Path(__file__).parents[1]
BOARDS = ROOT / "leaderboards"
KINDS = {"methods": "methods", "attacks": "attacks", "models": "models", "data": "datasets", "analyses": "analyses"}
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Page(HTMLParser):
    """The anchors of a page, its links, and what a browser loads for it."""

    ids: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        self.links |= {given["href"]} if tag == "a" and "href" in given else set()
        self.loaded |= {given[LOADED[tag]]} if LOADED.get(tag, "") in given else set()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built once for all test processes."""
    missing = [
        name for name in ("sphinx", "myst_nb", "furo", "sphinx_copybutton") if not importlib.util.find_spec(name)
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install 'advbench[docs]'")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    out, log = shared / "site", shared / "site.log"
    with locked(shared / "site.lock", timeout=1200):
        if not log.exists():
            command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-W", "--keep-going", "-n"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            ran = subprocess.run(
                [*command, str(ROOT / "docs"), str(out)], capture_output=True, text=True, env=environment, timeout=1200
            )
            log.write_text(f"{ran.returncode}\n{ran.stdout}{ran.stderr}", encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    assert text.startswith("0\n"), text
    return out


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, Page]:
    found = {}
    for file in site.rglob("*.html"):
        if "_static" not in file.parts:
            page = Page()
            page.feed(file.read_text(encoding="utf-8"))
            found[file.relative_to(site).as_posix()] = page
    assert len(found) > 30
    return found


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def lacking(page: Page, names: Iterator[str] | set[str]) -> set[str]:
    return {name for name in names if slug(name) not in page.ids}


@pytest.mark.parametrize("folder", KINDS)
def test_every_entry_has_its_place(pages: dict[str, Page], folder: str) -> None:
    kind, page = KINDS[folder], pages[f"reference/{KINDS[folder]}.html"]
    assert lacking(page, {f"{kind}-{name}" for name in entries(folder)}) == set()


@pytest.mark.parametrize("folder", ["methods", "attacks"])
def test_every_setting_has_its_place(pages: dict[str, Page], folder: str) -> None:
    """With one of the entries that one class makes."""
    ids = pages[f"reference/{folder}.html"].ids
    by_maker: dict[Any, list[str]] = {}
    for name, entry in entries(folder).items():
        by_maker.setdefault(entry.load(), []).append(name)
    for maker, names in by_maker.items():
        settings = maker.setting_names() if folder == "attacks" and isinstance(maker, type) else []
        settings += [one.name for one in dataclasses.fields(maker) if one.init] if folder == "methods" else []
        for one in settings:
            assert any(slug(f"{folder}-{name}-{one}") in ids for name in names), (names, one)


def test_every_flag_of_every_command_has_its_place(pages: dict[str, Page]) -> None:
    group: Any = typer.main.get_command(app)
    names = {f"{name}-{one.name}" for name, command in group.commands.items() for one in command.params}
    assert len(names) > 100
    assert (
        lacking(pages["reference/commands.html"], {*names, *(f"commands-{name}" for name in group.commands)}) == set()
    )


def test_every_field_column_and_flag_has_its_place(pages: dict[str, Page]) -> None:
    assert lacking(pages["reference/recipe.html"], {f"recipe-{name}" for name in field_names()}) == set()
    stored = {
        name
        for file in record_files(BOARDS / "records")
        for name in paths(json.loads(file.read_text(encoding="utf-8")))
    }
    named = {one.alias or name for name, one in Record.model_fields.items()}
    assert lacking(pages["reference/record.html"], {f"record-{name}" for name in stored | named}) == set()
    with (BOARDS / "digits-linf.csv").open(encoding="utf-8", newline="") as stream:
        assert lacking(pages["reference/csv.html"], {f"csv-{name}" for name in next(csv.reader(stream))}) == set()
    flags = {f"flags-{name}" for name in (*FLAG_NAMES, "NAME-wins")} | {"square-wins"}
    assert lacking(pages["reference/flags.html"], flags) == set()
    public = {f"python-{name}" for name in advbench.__all__ if name != "__version__"}
    assert lacking(pages["reference/python.html"], public) == set()


def paths(tree: Any, prefix: str = "") -> set[str]:
    """The dotted names of a record's fields, without what parts that take any field hold beside their own."""
    if isinstance(tree, list):
        return {name for one in tree for name in paths(one, prefix)}
    if not isinstance(tree, dict):
        return {prefix.rstrip(".")}
    free = {"model.settings.", "attack.settings.", "model.trained.", "environment.", "corruptions.errors."}
    return (
        {prefix.rstrip(".")}
        if prefix in free
        else {name for key in tree for name in paths(tree[key], f"{prefix}{key}.")}
    )


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = set()
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or not link or link == "#":
                continue
            file = (site / name).parent.joinpath(unquote(parts.path)).resolve() if parts.path else site / name
            target = pages.get(file.relative_to(site.resolve()).as_posix() if parts.path else name)
            if not file.is_file() or (parts.fragment and target and unquote(parts.fragment) not in target.ids):
                broken.add((name, link))
    assert broken == set()


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    elsewhere = {(name, one) for name, page in pages.items() for one in page.loaded if re.match(r"\w+:|//", one)}
    assert {(name, one) for name, one in elsewhere if not one.startswith("data:")} == set()
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", text), style


def test_a_browser_without_a_network(site: Path, pages: dict[str, Page]) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    browser_file = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_file is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    heard: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("requestfailed", lambda request: heard.append(f"failed: {request.url}"))
        page.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
        for name in ("index.html", "tutorial.html", "reference/attacks.html", "reference/python.html"):
            page.goto((site / name).as_uri())
        page.goto(f"{(site / 'search.html').as_uri()}?q=square-wins")
        found = page.locator("#search-results a", has_text="square-wins").first
        found.wait_for(timeout=20_000)
        found.click()
        page.wait_for_url(re.compile(r"reference/flags\.html"))
        assert page.locator("#square-wins").count() or page.locator("#flags-name-wins").count()
        browser.close()
    assert heard == []
