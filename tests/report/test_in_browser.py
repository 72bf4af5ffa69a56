"""The page in headless Chromium: alive, linked, sortable, quiet, and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from layerstats.report import to_html
from layerstats.report.statistics import statistics_page
from layerstats.report.training import run_page
from tests.report.pages import make_run, make_schedule, make_stats

pytestmark = pytest.mark.browser

STATS = make_stats(12, experts=2)
HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>&lt;b<b>bold</b>"
)
#: Marks that each chart has drawn.
DRAWN = """() => Object.fromEntries(
    [...document.querySelectorAll('.js-plotly-plot')].map(plot => [plot.id, plot.querySelectorAll(
        '.scatterlayer .point, .scatterlayer .js-line, .barlayer .point, .heatmaplayer image'
    ).length]))"""
#: The layer that each chart marks: the middle of its rectangle, or the name beside its ring.
MARKED = """() => Object.fromEntries(
    [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
        const shape = plot.layout.shapes[0], ring = plot.data.at(-1).text?.[0];
        const ringed = typeof ring === 'string' ? Number(ring) : null;
        return [plot.id, shape ? (shape.x0 + shape.x1) / 2 : ringed];
    }))"""
COLUMN = """([table, name]) => [...document.querySelectorAll(`#table-${table} th`)]
    .findIndex(th => th.dataset.column === name)"""


class Opener:
    """Opens pages from their bytes and writes down all that they say and ask for."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser = browser
        self.folder = folder
        self.said: list[str] = []
        self.contexts: list[Any] = []

    def __call__(self, html: bytes, *, width: int = 1300, scheme: str = "light") -> Any:
        file = self.folder / "report.html"
        file.write_bytes(html)
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(180_000)
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self._asked(request.url, f"file://{file}"))
        page.goto(f"file://{file}")
        page.wait_for_selector("html[data-ready=yes]")
        return page

    def _asked(self, url: str, own: str) -> None:
        if url != own and not url.startswith(("data:", "blob:")):
            self.said.append(f"asked for {url}")

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Opener]:
    """Opens a page that must have been quiet and alone when the test ends."""
    opener = Opener(browser, tmp_path)
    yield opener
    opener.close()
    assert opener.said == []


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Opener]]:
    """The page of statistics with experts and a schedule; opened once, it is five megabytes."""
    opener = Opener(browser, tmp_path_factory.mktemp("page"))
    yield opener(to_html(statistics_page(STATS, make_schedule(12)))), opener
    opener.close()


@pytest.fixture
def page(opened: tuple[Any, Opener]) -> Iterator[Any]:
    """That page with nothing marked, filtered or pointed at."""
    found, opener = opened
    found.emulate_media(media="screen")
    found.mouse.move(2, 2)
    found.click("#clear")
    found.fill("#table-matrices-filter", "")
    found.uncheck("#table-matrices-only")
    yield found
    assert opener.said == []


def marked(page: Any, layer: int | None) -> None:
    """Wait until all charts, the line at the top and the tables mark a layer, or none."""
    page.wait_for_function(
        f"layer => Object.values(({MARKED})()).every(one => one === layer)", arg=layer
    )
    said = page.inner_text("#marked")
    assert said.startswith(f"Layer {layer}: ") if layer is not None else said == ""
    rows = page.eval_on_selector_all(
        "tr.marked", "rows => rows.map(row => Number(row.dataset.layer))"
    )
    assert set(rows) == ({layer} if layer is not None else set())


def column(page: Any, table: str, name: str) -> list[str]:
    """The texts of a column, as far as the table shows rows."""
    place = page.evaluate(COLUMN, [table, name])
    return page.locator(f"#table-{table} tbody td:nth-child({place + 1})").all_inner_texts()


def drag_layer(page: Any, chart: str) -> Any:
    """Where plotly takes the pointer."""
    page.locator(f"#plot-{chart}").scroll_into_view_if_needed()
    return page.locator(f"#plot-{chart} .nsewdrag").first


def test_all_charts_of_statistics_are_alive(page: Any) -> None:
    drawn = page.evaluate(DRAWN)
    assert list(drawn) == [
        f"plot-{name}"
        for name in ("lod", "alpha", "norms", "related", "map", "probabilities", "plan")
    ]
    assert all(drawn.values()), drawn
    assert drawn["plot-related"] == 12
    # Nothing of plotly's that would send a chart away: its own set of buttons has one.
    names = page.eval_on_selector_all(".modebar-btn", "all => all.map(one => one.dataset.title)")
    assert len(set(names)) == 4
    assert not [name for name in names if "share" in name.lower() or "cloud" in name.lower()]


def test_all_charts_of_a_run_are_alive(open_page: Opener, tmp_path: Path) -> None:
    page = open_page(to_html(run_page(make_run(tmp_path / "run"))))
    drawn = page.evaluate(DRAWN)
    assert len(drawn) == 8
    assert all(drawn.values()), drawn
    for choice in page.locator("#chart-loss option").all():
        page.select_option("#chart-loss select", label=choice.inner_text())
        assert page.evaluate(DRAWN)["plot-loss"] > 0


def test_every_view_of_every_chart_draws(page: Any) -> None:
    for select in page.locator(".choices select").all():
        for value in select.locator("option").evaluate_all("all => all.map(one => one.value)"):
            select.select_option(value)
            assert all(page.evaluate(DRAWN).values()), value
    experts = page.evaluate("document.getElementById('plot-map').data[0].y")
    assert experts == ["expert 0", "expert 1"]
    picked = page.evaluate("document.getElementById('plot-map').data[0].customdata")
    name = page.locator("#chart-map option:checked").first.inner_text()
    rows = STATS.matrices[STATS.matrices["expert"] == 1].sort_values("layer")
    assert picked[1] == rows[name].tolist()


def test_pointing_at_a_layer_marks_it_everywhere_and_a_click_keeps_it(page: Any) -> None:
    marked(page, None)
    area = drag_layer(page, "norms")
    box = area.bounding_box()
    # Layers 0..11 lie between -0.7 and 11.7.
    place = {"x": box["width"] * (4 + 0.7) / 12.4, "y": box["height"] / 2}
    area.hover(position=place)
    marked(page, 4)
    page.mouse.move(2, 2)
    marked(page, None)
    area.click(position=place)
    page.mouse.move(2, 2)
    marked(page, 4)
    assert page.input_value("#layer") == "4"
    page.click("#clear")
    marked(page, None)


@pytest.mark.parametrize("chart", ["map", "plan"])
def test_cells_of_maps_mark_their_layer(page: Any, chart: str) -> None:
    area = drag_layer(page, chart)
    box = area.bounding_box()
    lo, hi = page.evaluate(f"document.getElementById('plot-{chart}')._fullLayout.xaxis.range")
    area.hover(position={"x": box["width"] * (7 - lo) / (hi - lo), "y": box["height"] / 3})
    marked(page, 7)


def test_a_row_marks_its_layer_and_a_mark_turns_the_tables_page(page: Any) -> None:
    page.locator("#table-layers tbody tr").nth(3).hover()
    marked(page, 3)
    page.locator("#table-layers tbody tr").nth(3).locator("td").nth(1).click()
    page.mouse.move(2, 2)
    marked(page, 3)
    page.select_option("#table-matrices .tools select", "25")
    page.click("#table-matrices th[data-column=layer] button")
    last = page.get_attribute("#table-matrices th[data-column=layer]", "aria-sort") == "ascending"
    assert "page 1 of 3" in page.inner_text("#table-matrices .count")
    page.select_option("#layer", "11" if last else "0")
    marked(page, 11 if last else 0)
    assert "page 3 of 3" in page.inner_text("#table-matrices .count")
    page.select_option("#layer", "11")
    page.check("#table-matrices-only")
    assert set(column(page, "matrices", "layer")) == {"11"}


def test_everything_can_be_done_with_the_keyboard(page: Any) -> None:
    page.focus("#plot-lod")
    page.keyboard.press("ArrowRight")
    marked(page, 0)
    page.keyboard.press("ArrowRight")
    marked(page, 1)
    page.keyboard.press("ArrowLeft")
    marked(page, 0)
    page.keyboard.press("Escape")
    marked(page, None)
    page.focus("#table-layers th[data-column=lod_m7] button")
    page.keyboard.press("Enter")
    assert page.get_attribute("#table-layers th[data-column=lod_m7]", "aria-sort") == "ascending"
    page.locator("#table-layers tbody td button").nth(2).focus()
    page.keyboard.press("Enter")
    marked(page, int(column(page, "layers", "layer")[2]))
    stops = "a, button, select, input, [tabindex='0']"
    unreachable = page.eval_on_selector_all(
        stops, "all => all.filter(one => one.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_tables_sort_by_numbers_with_gaps_last(page: Any) -> None:
    page.select_option("#table-matrices .tools select", "50")
    known = STATS.matrices.dropna(subset="alpha_hill")
    for ascending in (True, False):
        page.click("#table-matrices th[data-column=alpha_hill] button")
        names = known.sort_values("alpha_hill", ascending=ascending, kind="stable")["name"].tolist()
        assert column(page, "matrices", "name")[:50] == names[:50]
    page.click("#table-matrices button[aria-label='Next page']")
    assert column(page, "matrices", "alpha_hill")[-1] == "–"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("DOWN_proj", lambda t: t["module"].str.contains("down_proj")),
        ("alpha_hill>3 kind=mlp", lambda t: (t["alpha_hill"] > 3) & (t["kind"] == "mlp")),
        ("layer<=4 expert=1", lambda t: (t["layer"] <= 4) & (t["expert"] == 1).fillna(False)),
        ("status!=ok", lambda t: t["status"] != "ok"),
        ("alpha_flag:edge", lambda t: t["alpha_flag"].str.contains("edge")),
        ("alpha_hill>much", lambda t: t["layer"] < 0),
    ],
)
def test_tables_filter(page: Any, text: str, kept: Callable[[pd.DataFrame], Any]) -> None:
    page.select_option("#table-matrices .tools select", "200")
    page.fill("#table-matrices-filter", text)
    wanted = STATS.matrices[kept(STATS.matrices)]["name"].tolist()
    assert sorted(column(page, "matrices", "name")) == sorted(wanted)
    assert (
        page.inner_text("#table-matrices .count") == f"{len(wanted)} of {len(STATS.matrices)} rows"
    )
    invalid = page.get_attribute("#table-matrices-filter", "aria-invalid") == "true"
    assert invalid == text.endswith("much")


def test_a_saved_table_is_the_table(page: Any, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.click("#table-layers button[aria-label^=Save]")
    download.value.save_as(tmp_path / "layers.csv")
    STATS.save(tmp_path / "stats")
    saved, mine = (
        pd.read_csv(file, dtype=str, keep_default_na=False).set_index("name").sort_index()
        for file in (tmp_path / "layers.csv", tmp_path / "stats" / "layers.csv")
    )
    for name in mine:
        equal = saved[name] == mine[name]
        # JavaScript writes 3.0 as 3.
        numbers = pd.to_numeric(saved[name], errors="coerce") == pd.to_numeric(
            mine[name], errors="coerce"
        )
        assert (equal | numbers).all(), name


def test_colours_follow_the_system_and_the_switch(open_page: Opener) -> None:
    page = open_page(to_html(statistics_page(STATS)), scheme="dark")

    def brightness() -> tuple[float, float]:
        read = "css => css.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 765"
        paper = page.evaluate(f"({read})(getComputedStyle(document.body).backgroundColor)")
        ink = page.evaluate(f"({read})(document.getElementById('plot-lod')._fullLayout.font.color)")
        return paper, ink

    paper, ink = brightness()
    assert paper < 0.3 < 0.7 < ink
    page.select_option("#theme", "light")
    paper, ink = brightness()
    assert ink < 0.3 < 0.7 < paper
    page.select_option("#theme", "")
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'"
    )
    assert brightness()[1] < 0.3


def test_a_narrow_screen_needs_no_sideways_scrolling(open_page: Opener) -> None:
    page = open_page(to_html(statistics_page(STATS, make_schedule(12))), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    widths = page.eval_on_selector_all(
        ".main-svg", "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(widths) <= 390


def test_on_paper_only_what_is_read_is_left(page: Any) -> None:
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.is_visible(".bar")
    assert not page.is_visible("#table-layers .tools")
    assert page.is_visible("#table-layers table")


def test_ten_thousand_matrices_stay_usable(open_page: Opener) -> None:
    stats = make_stats(32, experts=310)
    assert len(stats.matrices) > 10_000
    page = open_page(to_html(statistics_page(stats)))
    assert page.locator("#table-matrices tbody tr").count() == 50
    page.click("#table-matrices th[data-column=frobenius_norm] button")
    page.fill("#table-matrices-filter", "expert=7 layer>=3")
    found = stats.matrices[
        (stats.matrices["expert"] == 7).fillna(False) & (stats.matrices["layer"] >= 3)
    ]
    assert column(page, "matrices", "name") == found.sort_values("frobenius_norm")["name"].tolist()
    assert page.locator("#plot-map").evaluate("plot => plot.data[0].z.length") == 4


def test_hostile_names_are_shown_and_do_nothing(open_page: Opener) -> None:
    page = open_page(to_html(statistics_page(make_stats(odd=HOSTILE))))
    assert column(page, "matrices", "module")[0] == "self_attn.q_proj" + HOSTILE
    labels = page.locator("#plot-map .ytick text").all_text_contents()
    assert "self_attn.q_proj" + HOSTILE in labels
    assert page.evaluate("window.hacked") is None
