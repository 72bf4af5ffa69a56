"""The page of a measurement, as text: it holds the tables, whole and escaped, and loads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from layerstats.errors import MissingError, UsageError
from layerstats.report import Page, page_of, to_html, write_report
from layerstats.report.page import Part
from layerstats.report.statistics import statistics_page
from layerstats.report.tables import from_records
from layerstats.stats import LayerStats
from tests.report.pages import Parsed, make_schedule, make_stats

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=hack()>{{data}}&amp;\u2028"


def listed(frame: pd.DataFrame) -> dict[str, list[object]]:
    """A table as lists, None where there is no value."""
    return {
        name: [None if pd.isna(value) else value for value in frame[name].tolist()]
        for name in frame.columns
    }


@pytest.mark.parametrize("experts", [0, 3])
def test_the_page_holds_both_tables_to_the_last_bit(tmp_path: Path, experts: int) -> None:
    stats = make_stats(experts=experts)
    stats.save(tmp_path / "stats")
    file = write_report(tmp_path / "stats", tmp_path / "report.html")
    page = Parsed(file.read_bytes())
    loaded = LayerStats.load(tmp_path / "stats")
    assert page.table("layers") == listed(loaded.layers)
    assert page.table("matrices") == listed(loaded.matrices)
    assert page.data["num_layers"] == 8
    assert not list(tmp_path.glob(".*partial"))


def test_every_chart_draws_columns_that_are_there() -> None:
    page = Parsed(to_html(statistics_page(make_stats(experts=2), make_schedule())))
    assert [chart["id"] for chart in page.data["charts"]] == [
        "lod", "alpha", "norms", "related", "map", "probabilities", "plan",
    ]  # fmt: skip
    for chart in page.data["charts"]:
        columns = page.table(chart["table"])
        for view in chart["views"]:
            for series in view["series"]:
                for name in (series["column"], series["low"], series["high"]):
                    assert name is None or name in columns, (chart["id"], name)
            assert view["x"] == "" or view["x"] in columns
            assert chart["kind"] != "matrix" or view["label"] in columns


def test_the_intervals_drawn_are_those_of_the_table() -> None:
    page = Parsed(to_html(statistics_page(make_stats())))
    charts = {chart["id"]: chart["views"][0]["series"][0] for chart in page.data["charts"][:2]}
    assert (charts["lod"]["low"], charts["lod"]["high"]) == ("lod_m7_lo", "lod_m7_hi")
    assert (charts["alpha"]["low"], charts["alpha"]["high"]) == ("alpha_hill_lo", "alpha_hill_hi")


def test_the_schedule_is_drawn_as_it_is_sampled() -> None:
    plan = make_schedule()
    page = Parsed(to_html(statistics_page(make_stats(), plan)))
    table = page.table("schedule")
    assert table["target"] == list(plan.probabilities)
    assert table["inclusion"] == list(plan.inclusion_probabilities)
    [raster] = [chart for chart in page.data["charts"] if chart["id"] == "plan"]
    assert raster["rows"] == [[at, list(plan.active_layers(at))] for at in range(60)]
    assert "sampling successive does not give the target probabilities" in page.words


def test_the_correlation_on_the_page_is_the_commands() -> None:
    from layerstats.correlation import correlate

    stats = make_stats(12)
    [found] = correlate(stats, ["lod_m7", "heavy_tail"])
    [chart] = [one for one in statistics_page(stats).part.charts if one.id == "related"]
    assert f"rho {found.rho:.3f}, p {found.p_value:.2g}, 12 layers" in chart.views[0].note


def test_warnings_name_gaps_flags_and_what_was_left_out() -> None:
    stats = make_stats()
    words = Parsed(to_html(statistics_page(stats))).words
    ties = int(
        stats.matrices["alpha_flag"].str.contains("tie")[stats.matrices["alpha_hill"].notna()].sum()
    )
    assert f"alpha_flag tie: {ties} of 23 matrices" in words
    assert "1 matrices: alpha_hill: too few eigenvalues" in words
    assert "1 tensors could not be measured: a packed type (packed)" in words
    assert "measured without --trust" in words


def test_verdicts_of_trust_stand_on_the_page() -> None:
    stats = make_stats()
    text = "this ranking of layers is not distinguishable from noise"
    verdict = {
        "distinguishable": False,
        "text": text,
        "overlapping": 5,
        "layers": 8,
        "top_layer": 3,
    }
    trust = {"metrics": {"lod_m7": verdict}, "rules": {"windows": "a rule"}, "bootstrap": 40}
    page = statistics_page(replace(stats, meta={**stats.meta, "trust": trust}))
    overlap = "the 95 % intervals of 5 of 7 other layers overlap that of the first, layer 3"
    assert ("warning", f"lod_m7: {text}; {overlap}") in [
        (notice.level, notice.text) for notice in page.part.notices
    ]
    assert "--trust --bootstrap 40" in page.part.commands[0]


def test_hostile_names_stay_text() -> None:
    plain = Parsed(to_html(statistics_page(make_stats())))
    page = Parsed(to_html(statistics_page(make_stats(odd=HOSTILE))))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.table("matrices")["module"][0] == "self_attn.q_proj" + HOSTILE
    assert f"small{HOSTILE}: statistics by layer" in page.words


@given(st.text(), st.floats())
@example("half a pair \ud800", 0.5)
def test_any_text_and_number_survives_as_strict_json(text: str, number: float) -> None:
    table = from_records([{"name": text, "value": number}], id="t")
    # Without plotly's five million characters a hundred pages are made in a second.
    with patch("layerstats.report.page._plotly", return_value=""):
        page = Parsed(to_html(Page(text, text, 0, Part(tables=(table,)))))
    kept = text.encode("utf-8", "replace").decode("utf-8")
    finite = number == number and abs(number) != float("inf")
    assert page.table("t") == {"name": [kept], "value": [number if finite else None]}


def test_the_page_loads_nothing_and_runs_only_its_own_scripts() -> None:
    page = Parsed(to_html(statistics_page(make_stats(), make_schedule())))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
    assert not re.search(r"https?://", page.text)
    assert not re.search(r"url\(|@import", page.text)
    [policy] = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "'unsafe" not in policy.split("script-src")[1].split(";")[0]


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingError, match=r"pip install 'layerstats\[report\]'"):
        to_html(Page("t", "", 0, Part()))


def test_a_schedule_for_another_model_is_refused_and_one_of_another_name_warned_of() -> None:
    with pytest.raises(UsageError, match="9 layers"):
        statistics_page(make_stats(), make_schedule(9))
    plan = make_schedule()
    other = replace(plan, model=replace(plan.model, id="large"))
    page = statistics_page(make_stats(), other)
    assert "made for large, these statistics are of small" in str(page.part.notices)


def test_statistics_of_one_metric_alone_make_a_page() -> None:
    stats = make_stats()
    layers = stats.layers[["layer", "name", "kind", "frobenius_norm"]]
    page = Parsed(to_html(statistics_page(LayerStats(pd.DataFrame(), layers, {}))))
    assert [chart["id"] for chart in page.data["charts"]] == ["norms"]
    assert json.loads(json.dumps(page.data["num_layers"])) == 8


def test_page_of_names_the_command_that_makes_it(tmp_path: Path) -> None:
    make_stats().save(tmp_path)
    make_schedule().save(tmp_path / "s.json")
    page = page_of(tmp_path, schedule=tmp_path / "s.json")
    assert page.part.commands[-1].startswith(f"layerstats report {tmp_path} --schedule ")
