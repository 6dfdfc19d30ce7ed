"""JUnit XML and CSV: read back with other people's readers."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from labctl.errors import StorageError
from labctl.model import Outcome
from labctl.report.junit import write_junit
from labctl.report.output import replacing
from labctl.report.printable import excerpt, one_line
from labctl.report.samples_csv import COLUMNS, write_csv
from labctl.result import TestResult
from tests.report_runs import HOSTILE, PANIC, failing_run, hostile_run, ordinary_run


def junit(kind: object, folder: Path) -> ET.Element:
    run = kind(folder)  # type: ignore[operator]
    write_junit(run, folder / "junit.xml")
    return ET.parse(folder / "junit.xml").getroot()


def test_every_cell_is_a_suite_and_every_outcome_has_its_element(tmp_path: Path) -> None:
    root = junit(failing_run, tmp_path)
    suites = {s.get("name"): s for s in root}
    assert len(suites) == 13 + 2
    failed = suites["debian-cloud-previous/qemu-4c-2g/boot"].find("testcase/failure")
    assert failed is not None
    assert failed.get("type") == "KernelCrash"
    assert "Kernel panic" in (failed.get("message") or "")
    assert PANIC in (suites["debian-cloud-previous/qemu-4c-2g/boot"].findtext("system-out") or "")
    error = suites["debian-cloud/qemu-1c-512m/storage"].find("testcase/error")
    assert error is not None, "a cell that failed before any test must not read as passed"
    assert error.get("type") == "TargetBusy"
    invalid = suites["debian-cloud/qemu-4c-2g/storage"].find("testcase/error")
    assert invalid is not None
    assert invalid.get("type") == "MeasurementInvalid"
    assert suites["debian-cloud/qemu-2c-1g/storage"].find("testcase/skipped") is not None
    flaky = suites["debian-cloud/qemu-8c-4g/boot"].find("testcase/flakyFailure")
    assert flaky is not None
    assert flaky.get("type") == "ConsoleLost"
    assert suites["debian-cloud/qemu-8c-4g/boot"].get("failures") == "0"
    left_out = suites["debian-cloud-previous/qemu-2c-1g/storage"].find("testcase/skipped")
    assert left_out is not None
    assert "excluded" in (left_out.get("message") or "")


def test_of_several_attempts_only_the_tests_that_failed_are_flaky(tmp_path: Path) -> None:
    """Nor is one test's cause another's: of two that failed each has its own kind."""
    run = ordinary_run(tmp_path)
    cell = run.cells[0]
    last = cell.attempts[-1]
    bad = TestResult("test_a.py::test_bad", Outcome.FAIL, 1.0, "Kernel panic - not syncing: x")
    first = replace(last, number=1, outcome=Outcome.FAIL, error="KernelCrash", reason=f"on a copy: {bad.reason} (and 1 more)",
                    tests=(TestResult("test_a.py::test_also", Outcome.FAIL, 1.0, "AssertionError: 3 is not 4"), bad))  # fmt: skip
    good = tuple(TestResult(f"test_a.py::test_{name}", Outcome.PASS, 1.0) for name in ("also", "bad", "later"))
    told = replace(cell, attempts=(first, replace(last, number=2, tests=good)))
    write_junit(replace(run, cells=(told,)), tmp_path / "junit.xml")
    flaky = {c.get("name"): c.find("flakyFailure") for c in ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")}
    kinds = {name: None if found is None else found.get("type") for name, found in flaky.items()}
    assert kinds == {"test_a.py::test_also": "TargetFailure", "test_a.py::test_bad": "KernelCrash", "test_a.py::test_later": None}


def test_counts_are_those_of_the_elements(tmp_path: Path) -> None:
    for kind in (ordinary_run, failing_run, hostile_run):
        root = junit(kind, tmp_path)
        cases = root.findall("testsuite/testcase")
        assert int(root.get("tests", "")) == len(cases)
        assert int(root.get("failures", "")) == len(root.findall(".//failure"))
        assert int(root.get("errors", "")) == len(root.findall(".//error"))
        assert int(root.get("skipped", "")) == len(root.findall(".//skipped"))
        for suite in root:
            assert int(suite.get("tests", "")) == len(suite.findall("testcase"))


def test_hostile_text_is_well_formed_xml(tmp_path: Path) -> None:
    root = junit(hostile_run, tmp_path)
    messages = [f.get("message") or "" for f in root.iter("failure")]
    assert HOSTILE[0] in messages
    assert "␛[31mred" in "".join(messages)
    assert "\x1b" not in (tmp_path / "junit.xml").read_text()


def test_csv_has_every_sample_of_every_attempt(tmp_path: Path) -> None:
    run = failing_run(tmp_path)
    write_csv(run, tmp_path / "samples.csv")
    frame = pd.read_csv(tmp_path / "samples.csv")
    assert tuple(frame.columns) == COLUMNS
    samples = [s for c in run.cells for a in c.attempts for s in a.samples]
    assert len(frame) == len(samples)
    assert frame["value"].tolist() == [s.value for s in samples]
    assert [json.loads(text) for text in frame["conditions"].dropna()] == [dict(s.conditions) for s in samples if s.conditions]
    assert frame[frame["attempt_outcome"] == Outcome.INVALID.value]["metric"].tolist() == ["storage.iops"]


def test_csv_bears_hostile_text_and_runs_no_formula(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    write_csv(run, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(a.samples) for c in run.cells for a in c.attempts)
    numbers = {"repeat", "attempt", "value", "index", "at"}
    assert not [v for row in rows for k, v in row.items() if k not in numbers and v.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert "'" + HOSTILE[9] in {row["metric"] for row in rows}
    assert math.isnan(float(next(row["value"] for row in rows if row["value"] == "nan")))


@pytest.mark.parametrize("write", [write_csv, write_junit])
def test_a_place_that_cannot_be_written_is_the_labs_fault(write: object, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the report"):
        write(ordinary_run(tmp_path), tmp_path / "file" / "x")  # type: ignore[operator]


def test_a_full_disk_is_named_with_the_space_left(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"r\.xml: No space left on device \(\d+\.\d MiB free there\)") as caught,
        replacing(tmp_path / "r.xml"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "labctl report run" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_long_text_is_cut_and_it_is_said() -> None:
    assert one_line("A" * 10_000, 50) == "A" * 50 + "… (+9,950 characters)"
    assert one_line("A" * 62, 50) == excerpt("A" * 62, 1, 50) == "A" * 62, "what is cut off must be longer than what says so"
    assert one_line("a\n\n  b\tc\x1b") == "a ⏎ b c␛"
    assert excerpt("\n".join(map(str, range(100))), 3) == "… 97 lines above\n97\n98\n99"


def test_an_excerpt_is_around_the_cause() -> None:
    lines = [f"[    {i}.000000] message number {i}" for i in range(50)]
    lines[20] = "[   20.000000] Kernel panic - not syncing: VFS"
    found = excerpt("\n".join(lines), 8, cause="KernelCrash: Kernel panic - not syncing: VFS").split("\n")
    assert found[0] == "… 18 lines above"
    assert found[3] == lines[20]
    assert found[-1] == "… 24 lines below"
    assert len(found) == 10
