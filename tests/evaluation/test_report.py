"""A report is written, read back and drawn."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tristep.evaluation.asr import Hypothesis, evaluate_asr
from tristep.evaluation.report import (
    AsrReport,
    Edit,
    alignment,
    as_table,
    read_json,
    write_html,
    write_report,
)
from tristep.evaluation.suites import Clip

WRITTEN = {
    "the cat sat on the mat": "the hat sat on mat",
    "a dog barked": "a big dog barked",
    "nobody came": "nobody came",
    "salt & pepper <b>": "",
}


@pytest.fixture
def report() -> AsrReport:
    clips = [Clip(f"clip {index}", Path("a.wav"), text, "en", duration_s=3.0) for index, text in enumerate(WRITTEN)]
    return evaluate_asr(
        lambda clips: [Hypothesis(WRITTEN[clip.text], seconds=0.3) for clip in clips],
        clips,
        suite="four <clips>",
        model="known mistakes",
        progress=False,
    )


def test_a_report_read_back_equals_the_one_written(report: AsrReport, tmp_path: Path) -> None:
    data, page = write_report(report, tmp_path / "new" / "report.json")
    assert read_json(data) == report
    assert page == tmp_path / "new" / "report.html"
    assert page.exists()


def test_a_report_with_an_unknown_field_is_refused(report: AsrReport, tmp_path: Path) -> None:
    data, _ = write_report(report, tmp_path / "report.json")
    data.write_text(json.dumps(json.loads(data.read_text()) | {"surprise": 1}))
    with pytest.raises(ValueError, match="surprise"):
        read_json(data)


def test_the_page_would_not_overwrite_the_data(report: AsrReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.html.*JSON"):
        write_report(report, tmp_path / "report.html")


def test_the_table_names_rate_interval_time_and_conditions(report: AsrReport) -> None:
    console = Console(width=250, file=io.StringIO())
    with console.capture() as capture:
        console.print(as_table(report))
    text = capture.get()
    [suite] = report.suites
    for piece in (
        f"{suite.rate:.2%}",
        f"{suite.low:.2%} - {suite.high:.2%}",
        "0.100",
        "whisper-normalizer",
        "torch",
    ):
        assert piece in text


def test_the_worst_clips_come_first_and_perfect_ones_not_at_all(report: AsrReport) -> None:
    assert [clip.id for clip in report.suites[0].worst()] == ["clip 3", "clip 0", "clip 1"]
    assert len(report.suites[0].worst(num_clips=2)) == 2


def test_an_alignment_spells_out_both_texts() -> None:
    edits = alignment("the cat sat on the mat", "the hat sat on mat")
    assert edits == [
        Edit("equal", "the", "the"),
        Edit("substitute", "cat", "hat"),
        Edit("equal", "sat on", "sat on"),
        Edit("delete", "the", ""),
        Edit("equal", "mat", "mat"),
    ]
    assert alignment("", "a b") == [Edit("insert", "", "a b")]
    assert alignment("", "") == []
    assert alignment("a b", "") == [Edit("delete", "a b", "")]


class Page(HTMLParser):
    """Collects tags, and fails on one that is closed without having been opened."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(report: AsrReport, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not [link for link in page.links if not link.startswith("#")]
    assert not re.search(r"<script|<link|@import|url\(http", text)


def test_the_page_draws_a_histogram_and_colours_the_edits(report: AsrReport, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 1
    assert '<span class="substitute"><del>cat</del> <ins>hat</ins></span>' in text
    assert '<span class="insert"><ins>big</ins></span>' in text
    assert "four &lt;clips&gt;" in text
    assert "four <clips>" not in text
    assert "<del>salt pepper</del>" in text
