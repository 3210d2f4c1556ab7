"""The page of a leaderboard in a real Chromium, as a reader uses it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import autoattack, fallen, fates_of, images, order, record_of

from advbench import leaderboard, statistics
from advbench.escape import visible
from advbench.record import Corruptions, Fates, Flag, Record, Trained, load_record

HOSTILE = '</script><img src=x onerror="alert(1)"> "q\' &amp; <b> \u202e\x07 http://evil.example'
GRID = "0,4/255,8/255"


def shuffled(accuracies: list[float], eps: str = GRID, seed: int = 0, **parts: Any) -> tuple[Record, Fates]:
    """A record in which images fall in an order of its own, so that pairs of models are discordant."""
    fell = np.random.default_rng(seed).permutation(fallen([round(10 * share) for share in accuracies]))
    fates = fates_of(fell)
    parts = {"dataset": images("first:1000"), "attack": autoattack(), **parts}
    return record_of(fates, eps, spec=f"runs/{parts['name']}", **parts), fates


def method(name: str) -> Trained:
    return Trained(method=name, norm="linf", eps=8 / 255, eps_text="8/255", seed=0, passes=22.0)


def boards() -> list[tuple[Record, Fates]]:
    """Three boards: linf, with two protocols and every reason to stand below the line; l2; and corruptions."""
    doubt = Flag(name="zero-gradient", severity="suspect", eps=8 / 255, k=500, n=1000, detail="no gradient at all")
    note = Flag(name="small-n", severity="note", detail="few images")
    errors = {"fog": (0.1, 0.2, 0.3, 0.4, 0.5)}
    return [
        shuffled([95, 60, 40], seed=1, name="steep", trained=method("pgd-at"), flags=[note]),
        shuffled([90, 55, 50], seed=2, name="flat", trained=method("trades"), forwards=900_000, backwards=100_000),
        shuffled([85, 70, 50.5, 45], "0,2/255,4/255,8/255", seed=3, name="finer", trained=method("mart")),
        shuffled([99, 80, 75], seed=4, name="doubted", trained=method("act"), flags=[doubt]),
        shuffled([92, 65], "0,4/255", seed=5, name="short", trained=method("pgd-at")),
        shuffled([80, 45, 30], seed=6, name=HOSTILE, trained=method(HOSTILE)),
        shuffled([95, 70, 60], seed=7, name="by pgd", attack=autoattack()[:1]),
        shuffled([95, 70, 60], "0,0.5,1", seed=8, name="round", norm="l2"),
        shuffled([95, 90, 80], "0,1,3", seed=9, name="foggy", norm="corruptions",
                 corruptions=Corruptions(errors=errors, mce=0.3)),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    for record, fates in boards():
        record.save(place, fates)
    leaderboard.build(place / "records", place)
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install advbench[dev]")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here: install chromium, chromium-browser or google-chrome")
    with sync.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield found
        found.close()


Opener = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Opener]:
    """`opened("#hash", **context)` is the page, which may ask for nothing and complain of nothing."""
    contexts, asked, said = [], [], []

    def open_page(fragment: str = "", **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **settings})
        contexts.append(context)
        context.route(re.compile("^(?!file:)"), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(f"{(folder / 'index.html').as_uri()}{fragment}")
        return page

    yield open_page
    page_itself = (folder / "index.html").as_uri()
    assert {url.partition("#")[0] for url in asked} == {page_itself} and said == []
    for context in contexts:
        context.close()


def models(page: Any) -> list[tuple[str, str]]:
    """Place and name of each row that is seen, in order."""
    rows = page.locator(".record:visible > tr:first-child").all()
    return [(row.locator("td").first.inner_text().strip(), row.locator("summary").inner_text()) for row in rows]


def slide(page: Any, eps: str) -> None:
    page.locator("#at").focus()
    for _ in range(10):
        shown = page.locator("#size").inner_text()
        if shown == eps:
            return
        points = page.evaluate("view.board.points.map((point) => point[1])")
        page.keyboard.press("ArrowRight" if points.index(shown) < points.index(eps) else "ArrowLeft")
    raise AssertionError(f"the slider does not reach {eps}")


def test_the_slider_ranks_again(opened: Opener, folder: Path) -> None:
    page = opened()
    assert models(page) == [
        ("1", "flat"), ("2", "finer"), ("3", "steep"), ("4", visible(HOSTILE)), ("–", "doubted"), ("–", "short"),
        ("1", "by pgd"),
    ]  # fmt: skip
    assert list(filter(None, page.locator(".why").all_inner_texts())) == [
        "zero-gradient is suspect", "not measured at the ranked eps",
    ]  # fmt: skip
    slide(page, "4/255")
    assert models(page)[:6] == [
        ("1", "doubted"), ("2", "short"), ("3", "steep"), ("4", "flat"), ("5", "finer"), ("6", visible(HOSTILE)),
    ]  # fmt: skip
    assert page.locator("td.at:visible").first.inner_text().startswith("80.0")
    slide(page, "2/255")
    below = ["doubted", "steep", "short", "flat", visible(HOSTILE)]  # by clean accuracy
    assert models(page) == [("1", "finer"), *(("–", name) for name in [*below, "by pgd"])]
    assert page.locator(".line:visible").count() == 2  # above "by pgd" too, whose table ranks all at 8/255
    assert "6 not measured at 2/255" in page.locator("#at-note").inner_text()
    assert page.locator(".ranked-at:visible").inner_text() == "2/255"


def test_sorting_and_filters_are_in_the_hash_and_survive_a_reload(opened: Opener) -> None:
    page = opened()
    slide(page, "4/255")
    page.get_by_role("button", name="clean").first.click()
    names = [name for _, name in models(page)][:6]
    assert names == ["doubted", "steep", "short", "flat", "finer", visible(HOSTILE)]
    head = page.locator("thead th[aria-sort]").first
    assert (head.inner_text().strip(), head.get_attribute("aria-sort")) == ("clean", "descending")
    page.get_by_role("button", name="clean").first.click()
    assert [name for _, name in models(page)][:6] == names[::-1]
    page.get_by_label("method").select_option("pgd-at")
    page.get_by_label("search").fill("S")
    expected = [("3", "steep"), ("2", "short")]
    assert sorted(models(page)) == sorted(expected) and "2 of 7 shown" in page.locator("#at-note").inner_text()
    page.get_by_label("flags").select_option("small-n")
    page.get_by_label("protocol").select_option(index=1)
    page.locator("#r" + page.evaluate("view.board.tables[0].models.find((one) => one.name === 'steep').id")).click()
    before, shown = page.url, models(page)
    assert shown == [("3", "steep")] and "sort=clean" in before and "eps=4%2F255" in before
    page.reload()
    assert page.url == before and models(page) == shown and page.get_by_label("search").input_value() == "S"
    assert page.get_by_label("compare steep").is_checked()
    again = opened(f"#{before.partition('#')[2]}")
    assert models(again) == shown
    again.get_by_role("button", name="Reset").click()
    assert len(models(again)) == 7 and again.url.endswith("#board=cifar10-linf")


@pytest.mark.parametrize(
    "fragment", ["#board=none&eps=7&sort=none&flag=none-such&pair=1,2&method=%00", "#<b>", "#%", "#cifar10-l2"]
)
def test_a_hash_that_names_nothing_shows_the_board(opened: Opener, fragment: str) -> None:
    assert len(models(opened(fragment))) == (1 if "l2" in fragment else 7)


def test_a_row_shows_its_curve_and_band(opened: Opener) -> None:
    page = opened()
    page.locator(".record", has_text="steep").first.hover()
    assert page.get_by_role("img").get_attribute("aria-label") == "steep: 95.0 clean, 60.0 at 4/255, 40.0 at 8/255"
    low, high = statistics.wilson(400, 1000)
    assert f"40.0 ({100 * low:.1f}–{100 * high:.1f}) at 8/255" in page.locator("#legend").inner_text()
    assert len(page.locator(".band").get_attribute("points").split()) == 6
    page.locator(".record", has_text="flat").locator("summary").focus()
    assert page.get_by_role("img").get_attribute("aria-label").startswith("flat: ")
    page.keyboard.press("Enter")
    unfolded = page.locator(".record", has_text="flat").locator("dl")
    assert "1,000 passes an image" in unfolded.inner_text() and "Trade-off between Robustness" in unfolded.inner_text()
    page.locator(".record", has_text="doubted").locator("summary").click()
    assert "What to do: find what cuts it" in page.locator(".record", has_text="doubted").locator("dl").inner_text()


def test_two_chosen_rows_show_what_compare_says(opened: Opener, folder: Path, cli: Any) -> None:
    page = opened()
    page.locator(".record", has_text="steep").locator("td").nth(3).click()
    page.get_by_label("compare finer").check()
    ids = page.url.rpartition("pair=")[2].replace("%2C", ",").split(",")
    steep, finer = (folder / f"records/cifar10/linf/{one}.json" for one in ids)
    rows = {
        row["quantity"]: row for row in json.loads(cli("compare", finer, "--baseline", steep, "--json").out)["rows"]
    }
    cells = page.locator("#pair tbody tr").all()
    assert [cell.locator("th").inner_text() for cell in cells] == ["clean", "4/255", "8/255"]
    for cell in cells:
        size = cell.locator("th").inner_text()
        row = rows["clean" if size == "clean" else f"acc@{size}"]
        before, after, difference, p, _, _ = (td.inner_text().split() for td in cell.locator("td").all())
        assert [*before, *after] == [f"{100 * row['baseline']:.1f}", f"{100 * row['value']:.1f}"]
        assert difference == [
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['low']:+.1f}",
            "to",
            f"{100 * row['high']:+.1f}",
        ]
        assert p == ["<0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"]
    told = page.locator("#pair code").inner_text()
    assert told == f"advbench compare {finer.relative_to(folder)} --baseline {steep.relative_to(folder)}"
    exact = page.evaluate("paired(...((one, two) => [one.table, one.index, two.index])(...view.pair.map(found)))")
    for point, (_, row) in zip(exact, list(rows.items())[:3], strict=True):
        assert (point["p"], *point["interval"]) == pytest.approx((row["p"], row["low"], row["high"]), rel=1e-7)
    page.get_by_label("compare by pgd").focus()
    page.keyboard.press("Space")
    assert page.evaluate("document.activeElement.ariaLabel") == "compare by pgd"  # the next Tab goes on from here
    assert "different protocols" in page.locator("#pair").inner_text()
    page.get_by_label("compare by pgd").uncheck()
    assert page.locator("#pair").inner_text() == ""


def test_the_script_counts_pairs_and_computes_as_python_does(opened: Opener, folder: Path) -> None:
    page = opened()
    places = {path.stem: path for path in (folder / "records/cifar10/linf").glob("*.json")}
    pairs = page.evaluate(
        """boards[0].tables[0].models.flatMap((a, i) => boards[0].tables[0].models.map((b, j) =>
            i === j ? null : [a.id, b.id, paired(boards[0].tables[0], i, j)])).filter(Boolean)"""
    )
    assert len(pairs) == 30
    for one, two, points in pairs:
        (old, old_fates), (new, new_fates) = load_record(places[one]), load_record(places[two])
        common = [eps for eps in old.eps if new.at(eps)]
        assert len(points) == len(common)
        for point, eps in zip(points, common, strict=True):
            a, b = (fates.standing(record.eps.index(eps)) for record, fates in ((old, old_fates), (new, new_fates)))
            assert (point["gains"], point["losses"]) == (int((b & ~a).sum()), int((a & ~b).sum()))
    counts = [(gains, losses) for gains in (0, 1, 4, 300, 5000) for losses in (0, 3, 290)]
    cases = [[*count, n] for n in (1, 7, 1000, 10_000) for count in (*counts, (n, 0), (0, n)) if sum(count) <= n]
    found = page.evaluate("(cases) => cases.map(([g, l, n]) => [mcnemar(l, g), ...tango(g, l, n)])", cases)
    for (gains, losses, n), values in zip(cases, found, strict=True):
        expected = statistics.mcnemar(losses, gains), *statistics.tango(gains, losses, n)
        assert values == pytest.approx(expected, rel=1e-7, abs=1e-11), (gains, losses, n)


def test_names_are_text(opened: Opener) -> None:
    page = opened()
    row = page.locator(".record", has_text="onerror").first
    assert row.locator("summary").inner_text() == visible(HOSTILE)
    row.locator("summary").click()
    page.get_by_label("method").select_option(label=visible(HOSTILE))
    assert len(models(page)) == 1
    page.get_by_label("method").select_option(label="all")
    page.get_by_label(f"compare {visible(HOSTILE)}").check()
    page.get_by_label("compare flat").check()
    assert visible(HOSTILE) in page.locator("#legend").inner_text()
    assert page.locator("img, main script, #panel b").count() == page.locator("dd > b:visible").count() == 0
    assert page.locator("script").count() == 2


def test_it_can_be_read_without_a_script(opened: Opener, folder: Path) -> None:
    page = opened(java_script_enabled=False)
    assert not page.locator("#controls").is_visible() and not page.locator("#panel").is_visible()
    markdown = "".join((folder / f"cifar10-{norm}.md").read_text() for norm in ("linf", "l2", "corruptions"))
    ranked = [len(names) for _, names in order(markdown)]
    shown = [place for place, _ in models(page) if place != "–"]
    assert shown == [str(place + 1) for count in ranked for place in range(count)]
    page.locator(".record", has_text="doubted").locator("summary").click()
    assert "no gradient at all" in page.locator(".record", has_text="doubted").locator("dl").inner_text()


def test_severities_stand_where_eps_do(opened: Opener) -> None:
    page = opened("#cifar10-corruptions")
    assert page.locator("thead th:visible").all_inner_texts()[4:6] == ["severity\n1", "severity\n3"]
    assert page.locator("#size-name").inner_text() == "ranked at severity"
    page.locator(".record:visible").hover()
    assert "accuracy in % against severity" in page.locator("#chart").inner_text()
    page.locator("summary:visible").last.click()
    assert "30.0" in page.locator("dl:visible").inner_text()  # the mean corruption error


def test_print_and_phone(opened: Opener) -> None:
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.locator("#panel").is_visible()
    page.locator(".record", has_text="steep").locator("td").first.tap(position={"x": 2, "y": 20})
    assert page.locator("#panel").is_visible() and "steep" in page.locator("#legend").inner_text()
    page.get_by_role("button", name="close").tap()
    assert not page.locator("#panel").is_visible()
    page.emulate_media(media="print")
    for part in ("#controls", "#panel", "nav", ".ranking input >> nth=0"):
        assert not page.locator(part).is_visible()
    assert len(models(page)) == 7


def test_every_control_has_a_name_and_every_head_a_scope(opened: Opener) -> None:
    page = opened(color_scheme="dark")
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("table.ranking:not([aria-label])").count() == 0
    controls = page.locator("input, select, button, summary, a")
    unnamed = "(all) => all.filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))"
    assert (
        controls.count() > 20 and controls.evaluate_all(f"(all) => ({unnamed})(all).map((one) => one.outerHTML)") == []
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
