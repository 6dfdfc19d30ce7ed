"""The page: whole or not at all, nothing from outside, hostile text escaped, limits said. Looked at in a browser elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from labctl.errors import StorageError
from labctl.model import Cell, Outcome
from labctl.report.html import write_html
from labctl.report.view import MOST_TOLD
from labctl.report.write import write_reports
from labctl.result import CellResult, MachineEvent
from tests.report_runs import HOSTILE, PANIC, QEMU, failing_run, hostile_run, large_run, ordinary_run

VOID = {"meta", "link", "img", "br", "input", "use", "circle", "path", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, text outside scripts, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.json = ""
        self.scripts: list[str] = []
        self.stack: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif not self.stack or self.stack[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_what_failed_is_told_first_with_all_that_is_needed(tmp_path: Path) -> None:
    page = page_of(write_html(failing_run(tmp_path), tmp_path / "report.html"))
    assert (
        "13 cells: 1 failed, 1 ended by an error of the lab, 1 invalid, 1 flaky, 1 skipped, 8 passed; 2 left out; took 1 min 42 s."
        in page.text
    )
    assert page.text.index("Kernel panic - not syncing") < page.text.index("Outcome matrix") < page.text.index("Where a boot's time goes")
    assert PANIC in page.text
    assert QEMU in page.text
    assert "got to kernel_entry at 930 ms" in page.text
    assert "excluded by matrix/default.toml" in page.text
    assert "Samples taken in parallel slow each other down" in page.text
    assert "linux-image-6.1.0-56-cloud-amd64" in page.text


def test_nothing_comes_from_outside(tmp_path: Path) -> None:
    for kind in (ordinary_run, failing_run, hostile_run):
        page = page_of(write_html(kind(tmp_path), tmp_path / "report.html"))
        for tag, attributes in page.elements:
            for name in ("src", "srcset", "data", "action", "formaction", "poster"):
                assert name not in attributes, (tag, attributes)
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            if "href" in attributes:
                assert attributes["href"].startswith(("#", "./", "samples.csv", "junit.xml", "data:,")), attributes


def test_only_our_scripts_may_run(tmp_path: Path) -> None:
    page = page_of(write_html(hostile_run(tmp_path), tmp_path / "report.html"))
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    kinds = [s.get("type") for s in page.all("script")]
    assert kinds == ["application/json", None, None]
    for script in page.scripts[1:]:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    path = write_html(hostile_run(tmp_path), tmp_path / "report.html")
    source, page = path.read_text(encoding="utf-8"), page_of(path)
    assert not page.all("img")
    assert HOSTILE[0] in page.text, "a hostile name must be readable, not swallowed"
    assert "{{ 7*7 }}" in page.text
    body = source[source.index("<body>") : source.index('<script type="application/json"')]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff\ud800-\udfff]", body)
    assert "9,600 characters" in page.text, "a line of 10 kB is cut, and it is said"
    json.loads(page.scripts[0])
    assert not set("<>&\u2028\u2029") & set(page.scripts[0])


def test_large_runs_are_cut_and_it_is_said(tmp_path: Path) -> None:
    run = large_run(tmp_path, cells=4000, samples=20_000)
    path = write_html(run, tmp_path / "report.html")
    page = page_of(path)
    assert path.stat().st_size < 3e6
    failed = sum(c.outcome in (Outcome.FAIL, Outcome.ERROR) for c in run.cells)
    assert failed > MOST_TOLD
    assert len(page.all("article")) == MOST_TOLD
    assert "Further failures" in page.text
    assert "more builds and 0 more targets: see junit.xml" in page.text
    assert re.search(r"and [\d,]+ more: see samples\.csv", page.text)


def test_a_table_for_all_that_a_chart_shows(tmp_path: Path) -> None:
    page = page_of(write_html(failing_run(tmp_path), tmp_path / "report.html"))
    options = len(page.all("option"))
    figures = json.loads(page.scripts[0])
    assert options == len(figures["samples"]) > 5
    summaries = re.findall(r"(\S+(?: \(icount\))?) (\d+) series", page.text)
    assert len({name for name, _ in summaries}) == len(summaries) > 2, "a table for each metric"
    drawn = sum(len([row for row in figure["layout"]["yaxis"]["ticktext"] if not row.startswith("<b>")]) for figure in figures["samples"])
    assert sum(int(rows) for _, rows in summaries) == drawn, "a row for each series that the charts show"
    assert len(figures["milestones"]) == 2, "real and virtual time are two charts"


def test_links_lead_to_what_is_there_and_only_there(tmp_path: Path) -> None:
    run = failing_run(tmp_path / "run of today")
    attempt = run.cells[6].attempts[-1]
    attempt.folder.mkdir(parents=True)
    (attempt.folder / "console.log").touch()
    (run.folder / "samples.parquet").touch()
    out = write_reports(run, tmp_path / "reports")
    links = [a["href"] for a in page_of(out).all("a") if not a["href"].startswith("#")]
    assert len(links) == 4
    assert not [link for link in links if "events.jsonl" in link]
    for link in links:
        assert (out.parent / unquote(link)).is_file(), link
    assert {"samples.csv", "junit.xml"} <= set(links)


def test_no_cell_no_sample_no_host(tmp_path: Path) -> None:
    run = replace(ordinary_run(tmp_path), cells=(), host={}, builds={}, targets={}, argv=(), finished=False)
    page = page_of(write_html(run, tmp_path / "report.html"))
    assert "No cell was run" in page.text
    assert "it was killed" in page.text
    without = CellResult(Cell("b", "t", "s"), Outcome.ERROR, 0.0, "never began", ())
    page = page_of(write_html(replace(run, cells=(without,)), tmp_path / "report.html"))
    assert "never began" in page.text


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("the one before")
    broken = replace(ordinary_run(tmp_path), argv=(3,))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_html(broken, out)
    assert out.read_text() == "the one before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_the_labs_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the report") as caught:
        write_html(ordinary_run(tmp_path), tmp_path / "file" / "report.html")
    assert caught.value.remedy


def test_a_full_disk_leaves_the_report_before(tmp_path: Path) -> None:
    """/dev/full refuses every write."""
    out = tmp_path / "report.html"
    out.write_text("the one before")
    real_open = Path.open

    def to_a_full_disk(self: Path, mode: str = "r", **more: object) -> object:
        return real_open(Path("/dev/full"), "w", **more) if mode == "x" else real_open(self, mode, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", to_a_full_disk)
        with pytest.raises(StorageError, match="No space left"):
            write_html(ordinary_run(tmp_path), out)
    assert out.read_text() == "the one before"


def test_what_was_interrupted_is_no_failure(tmp_path: Path) -> None:
    run = ordinary_run(tmp_path)
    first, second = run.cells[:2]
    words = "the run was interrupted in the middle of this attempt"
    cut = replace(first, outcome=Outcome.ERROR, reason=words, attempts=(replace(first.attempts[0], outcome=Outcome.ERROR, complete=False),))
    never = replace(second, outcome=Outcome.ERROR, reason="was not begun", attempts=())
    run = replace(run, cells=(cut, never, *run.cells[2:]), outcome=Outcome.ERROR, interrupted=True)
    page = page_of(write_html(run, tmp_path / "report.html"))
    assert not [a for a in page.all("a") if a.get("href") == "#failures"]
    assert "Without an outcome" in page.text
    assert words in page.text
    assert "was not begun" in page.text
    assert f"{len(run.cells) - 2} pass" in " ".join(page.text.split())


def test_what_the_machine_said_of_itself(tmp_path: Path) -> None:
    run = ordinary_run(tmp_path)
    first = run.cells[0]
    event = MachineEvent(7, 1_700_000_000.0, "temperature, sensor 1: <b>asserted</b>")
    conditions = {"load1": 1.0, "machine_degc": 45.0, "machine_watts": 180.5}
    samples = tuple(replace(s, conditions=conditions) for s in first.attempts[0].samples)
    digests = ("sha256:" + "ab" * 32, "sha256:" + "ab" * 32, "sha256:" + "cd" * 32)
    told = replace(first, attempts=(replace(first.attempts[0], machine_events=(event,), samples=samples, arrived=digests),))
    run = replace(run, cells=(told, *run.cells[1:]))
    text = page_of(write_html(run, tmp_path / "report.html")).text
    assert "temperature, sensor 1: <b>asserted</b>" in text
    assert "2023-11-14 22:13:20" in text
    assert "45 °C" in text
    assert "180.5 W" in text
    words = " ".join(text.split())
    assert "2sha256:" + "ab" * 32 in words
    assert "1sha256:" + "cd" * 32 in words
    assert "What the machines said" not in page_of(write_html(ordinary_run(tmp_path), tmp_path / "report.html")).text
