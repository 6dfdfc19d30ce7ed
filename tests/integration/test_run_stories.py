"""Stories of the plan through a whole run: selected, recorded, told; and a marker that names none is a mistake of its file."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from labctl.store.reader import read_run
from tests.temporary_lab import TemporaryLab

SUITE = """
import pytest

pytestmark = pytest.mark.story("US-14")


def test_create(target): ...


@pytest.mark.story("US-15", "US-16")
@pytest.mark.parametrize("how", ["soft", "hard"])
def test_stop(target, how):
    if how == "soft":
        pytest.skip("the guest has no ACPI")
"""
OTHER = "def test_nothing(target): ...\n"


@pytest.fixture(scope="module")
def lab(new_lab: Callable[[], TemporaryLab]) -> TemporaryLab:
    lab = new_lab()
    lab.suite("vm", SUITE)
    lab.suite("other", OTHER)
    lab.write("stories.toml", 'schema = 1\n[stories]\nUS-14 = "Create a VM"\nUS-40 = "Audit log"\n')
    return lab


def test_a_story_is_selected_recorded_and_told(lab: TemporaryLab) -> None:
    ran = lab.run("--story", "US-15")
    assert ran.status == 0, ran.err
    assert list(ran.cells) == ["debian/vm"]
    run = read_run(lab.runs[-1])
    tests = {test.name: (test.outcome.value, test.stories) for test in run.cells[0].tests}
    assert tests == {
        "test_vm.py::test_stop[soft]": ("skip", ("US-14", "US-15", "US-16")),
        "test_vm.py::test_stop[hard]": ("pass", ("US-14", "US-15", "US-16")),
    }
    assert run.stories == {"US-14": "Create a VM", "US-40": "Audit log"}
    cases = ElementTree.parse(run.folder / "junit.xml").getroot().iter("testcase")
    told = {case.get("name"): [p.get("value") for p in case.iter("property") if p.get("name") == "story"] for case in cases}
    assert told == {name: list(stories) for name, (_, stories) in tests.items()}


def test_what_passed_of_some_stories_does_not_stand_for_the_whole_suite(lab: TemporaryLab) -> None:
    assert lab.run("--story", "US-14", "--suite", "vm").status == 0
    again = lab.run("--suite", "vm")
    assert again.cells["debian/vm"]["reused_from"] is None
    assert len(read_run(lab.runs[-1]).cells[0].tests) == 3


def test_a_story_is_proven_where_all_its_tests_were(new_lab: Callable[[], TemporaryLab]) -> None:
    """Also by those that the run left out: of a story one suite alone proves a part."""
    lab = new_lab()
    lab.suite("vm", SUITE)
    lab.suite("more", 'import pytest\n\n\n@pytest.mark.story("US-14", "US-40")\ndef test_more(target): ...\n')
    table = {row["story"]: row for row in lab.run("--suite", "more").data["stories"]}
    assert {story: row["state"] for story, row in table.items()} == {"US-14": "partly", "US-40": "proven"}
    assert [(part["test"], part["outcome"]) for part in table["US-14"]["parts"]] == [
        ("more/test_more.py::test_more", "pass"),
        ("vm/test_vm.py::test_create", "not run"),
        ("vm/test_vm.py::test_stop", "not run"),
    ]
    told = lab.labctl("report", "stories", "--tests")
    assert "US-14 debian (1 of 3 tests): not run: vm/test_create, vm/test_stop" in told.out
    assert "  not run vm/test_vm.py::test_create" in told.out
    table = {row["story"]: row for row in lab.run().data["stories"]}
    assert {story: row["state"] for story, row in table.items()} == dict.fromkeys(("US-14", "US-15", "US-16"), "partly") | {
        "US-40": "proven"
    }
    assert "skipped vm/test_stop[soft]: the guest has no ACPI" in lab.labctl("report", "stories").out


def test_a_marker_of_a_wrong_form_is_a_mistake_of_its_file(new_lab: Callable[[], TemporaryLab]) -> None:
    lab = new_lab()
    lab.suite("vm", 'import pytest\n\n\n@pytest.mark.story("us14")\ndef test_create(target): ...\n')
    ran = lab.run()
    assert ran.status == 2
    assert "test_vm.py::test_create: @pytest.mark.story: found 'us14'; allowed: a story such as US-14: US-, then its number" in ran.err
    assert "Traceback" not in ran.err
