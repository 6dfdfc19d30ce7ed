"""Stories of the plan: how tests name them, how the lab calls them, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labctl.config import Lab, validate
from labctl.errors import ConfigError
from labctl.model import Cell, LabConfig, Outcome, StoriesConfig
from labctl.result import TestResult
from labctl.run.prepare import Request, plan
from labctl.run.stories import behind_stories, by_story, check_form, stories_of, why_no_story
from labctl.store import layout, records
from labctl.store.reader import end_record, read_run
from labctl.store.writer import RunWriter

ROOT = Path(__file__).parents[2]
SUITE = '''
import pytest

pytestmark = pytest.mark.story("US-14")

@pytest.mark.story("US-15", "US-16")
class TestOne:
    @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.story("US-17"))])
    def test_it(self, n): ...

def test_says_story_us_18():
    """US-18 is only spoken of here."""
'''


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [
        (("US-14",), {}, ""),
        (("US-14", "US-40"), {}, ""),
        ((), {}, "names no story; allowed: a story such as US-14: US-, then its number"),
        (("us-14",), {}, "found 'us-14'; allowed: a story such as US-14: US-, then its number"),
        (("US-14", "US-014"), {}, "found 'US-014'; allowed: a story such as US-14: US-, then its number"),
        ((14,), {}, "found 14; allowed: a story such as US-14: US-, then its number"),
        (("US-14\n",), {}, "found 'US-14\\n'; allowed: a story such as US-14: US-, then its number"),
        (("US-14",), {"id": 1}, "id=1; allowed: a story such as US-14: US-, then its number"),
    ],
)
def test_a_marker_names_stories_in_one_form(arguments: tuple[Any, ...], keywords: dict[str, Any], said: str) -> None:
    assert why_no_story(arguments, keywords) == said


def test_the_stories_of_a_suite_are_read_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "test_broken.py").write_text('def (: pytest.mark.story("US-1")')
    (tmp_path / "other.py").write_text('import pytest\npytest.mark.story("US-2")')
    assert stories_of(tmp_path) == {"US-14", "US-15", "US-16", "US-17"}
    both = ("test_it.py::test_it", "test_it.py::test_says_story_us_18")
    assert by_story(tmp_path) == {"US-14": both, **dict.fromkeys(("US-15", "US-16", "US-17"), both[:1])}
    assert behind_stories({"vm": tmp_path})["US-17"] == ("vm/test_it.py::test_it",)


def test_of_this_lab_a_device_is_passed_through_by_more_than_usb() -> None:
    behind = behind_stories(Lab.find(ROOT).suites)
    assert {"lifecycle/test_with_linux.py::test_usb", "passthrough/test_passthrough.py::test_linux_drives_them"} <= {*behind["US-25"]}
    assert Lab.find(ROOT).stories.keys() >= behind.keys()


def test_the_titles_of_this_lab_can_be_read() -> None:
    titles = Lab.find(ROOT).stories
    assert titles["US-14"] == "Create a VM"
    assert {"US-24", "US-37", "US-40"} <= titles.keys()


def test_a_lab_without_the_file_names_no_story(tmp_path: Path) -> None:
    assert Lab(tmp_path, LabConfig(schema=1)).stories == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stories": {"US14": "x"}}, "f: stories.US14: found 'US14'; a story such as US-14: US-, then its number"),
        ({"stories": {"US-14": 5}}, "f: stories.US-14: found 5; text in quotes"),
        ({"stories": {"US-14": ""}}, "f: stories.US-14: found ''; at least 1 character"),
        (
            {"stories": {"US-14": "a\nb"}},
            "f: stories.US-14: found 'a\\nb'; words without control characters (there is '\\n' in it)",
        ),
        ({}, "f: stories: missing; this key is required"),
        ({"stories": {}, "story": {}}, "f: story: unknown key; did you mean 'stories'? (known: schema, stories)"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_its_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(StoriesConfig, given, "f")
    assert str(caught.value) == said


def test_a_test_comes_back_with_its_stories() -> None:
    result = TestResult("test_vm.py::test_create", Outcome.PASS, 1.0, stories=("US-14", "US-15"))
    assert records.test(json.loads(records.document(records.test_record(result)))) == result


@pytest.mark.parametrize("told", [None, 5, "US-14", {}, [1, None, "US-", "<script>", ["US-14"]]])
def test_stories_that_are_none_are_left_out(told: object) -> None:
    record = {**records.test_record(TestResult("t", Outcome.PASS, 1.0)), "stories": told}
    assert records.test(record).stories == ()


def test_a_record_without_stories_is_what_it_was() -> None:
    """Runs of earlier versions read, and earlier versions read those of this one."""
    record = records.test_record(TestResult("t", Outcome.PASS, 1.0))
    assert "stories" not in record
    assert records.test(record).stories == ()


def test_a_run_keeps_the_titles(tmp_path: Path) -> None:
    cell = Cell("b", "t", "s")
    known: dict[str, Any] = {"matrix": "", "argv": [], "version": "0", "host": {}, "builds": {}, "targets": {}, "cells": [cell]}
    with_titles = RunWriter.create(
        tmp_path, **known, stories={"US-14": "Create a VM"}, story_tests={"US-14": ["vm/test_it.py::test_create"]}
    )
    with with_titles.attempt(cell, worker="main") as attempt:
        attempt.test(TestResult("t", Outcome.PASS, 1.0, stories=("US-14",)))
        attempt.finish(Outcome.PASS)
    run = with_titles.finish(Outcome.PASS)
    assert run.stories == {"US-14": "Create a VM"}
    assert run.story_tests == {"US-14": ("vm/test_it.py::test_create",)}
    assert end_record(run)["story_tests"] == run.story_tests
    assert run.cells[0].tests[0].stories == ("US-14",)
    without = RunWriter.create(tmp_path, **known).finish(Outcome.PASS)
    assert without.stories == {}
    asked = json.loads((with_titles.folder / layout.RUN).read_bytes())
    (with_titles.folder / layout.RUN).write_bytes(records.document({**asked, "stories": {"US-14": 5, "x": "y", "US-2": "kept"}}))
    assert read_run(with_titles.folder).stories == {"US-2": "kept"}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    for folder in ("targets", "kernel", "suites/vm", "suites/boot"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "targets/small.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qemu]\n')
    (tmp_path / "kernel/mine.toml").write_text('builder = "path"\n[path]\nkernel = "bzImage"\n')
    (tmp_path / "kernel/bzImage").write_bytes(b"\x7fELF")
    (tmp_path / "suites/vm/test_vm.py").write_text(SUITE)
    (tmp_path / "suites/boot/test_boot.py").write_text("def test_boot(): ...\n")
    return Lab.find(tmp_path)


def planned(lab: Lab, *stories: str, suites: tuple[str, ...] = ()) -> list[str]:
    try:
        return [cell.suite for cell in plan(lab, Request(suites=suites, stories=stories)).cells]
    except ConfigError as error:
        return [str(problem) for problem in error.problems]


def test_a_story_selects_the_suites_that_prove_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labctl.run.prepare.check", lambda *_: None)  # the kernel is none
    assert sorted(planned(lab)) == ["boot", "vm"]
    assert planned(lab, "US-17") == ["vm"]
    (said,) = planned(lab, "US-99")
    assert said.startswith("command line: --story: no test of boot, vm proves US-99; ")
    assert "US-14, US-15, US-16, US-17" in said
    assert planned(lab, "US-17", suites=("boot",)) == ["command line: --story: no test of boot proves US-17; --suite vm has one"]
    assert planned(lab, "14") == ["command line: --story: found '14'; a story such as US-14: US-, then its number"]


def test_a_mistake_in_the_titles_ends_a_run_before_any_power(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labctl.run.prepare.check", lambda *_: None)
    (lab.root / "stories.toml").write_text('[stories]\nUS14 = "x"\n')
    (said,) = planned(lab)
    assert said.endswith("stories.toml: stories.US14: found 'US14'; a story such as US-14: US-, then its number")


def test_the_form_of_a_story_is_checked() -> None:
    check_form(["US-1", "US-99999"], "command line", "--story")
    with pytest.raises(ConfigError, match="found 'US-0'"):
        check_form(["US-0"], "command line", "--story")
