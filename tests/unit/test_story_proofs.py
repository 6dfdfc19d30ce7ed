"""Which stories are proven, since when: over runs that pass, fail, skip, say nothing, are reused, or are damaged."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.judge.since import changed, knows_all, red_since
from labctl.judge.stories import Part, Proof, State, proofs
from labctl.model import Cell, Outcome
from labctl.report.html import write_html
from labctl.report.past import Past
from labctl.report.stories import told
from labctl.report.stories_text import stories_json, stories_tests
from labctl.report.text import as_json, show
from labctl.result import Attempt, CellResult, Reused, RunResult, TestResult
from labctl.store import layout, stories
from labctl.store.outcome import LAB_FAILED, NO_BOOT
from labctl.store.past import Conditions, PastCell, PastRun, conditions_of, earlier_runs, present
from labctl.store.reader import end_record
from labctl.store.records import document
from labctl.store.stories import Told
from tests.report_runs import STORIES, hypervisor_history, hypervisor_run

P, F, S, E = Outcome.PASS, Outcome.FAIL, Outcome.SKIP, Outcome.ERROR


def past(number: int, *cells: tuple[str, str, dict[str, Outcome]]) -> PastRun:
    """Build, target, story → outcome; each run a day after the one before."""
    made = {}
    for build, target, found in cells:
        cell = Cell(build, target, "lifecycle")
        outcome = F if F in found.values() else E if E in found.values() else P
        reasons = {s: Told({o: 1}, "" if o is P else f"{s} is {o} on {target}") for s, o in found.items()}
        made[cell.id] = PastCell(cell, outcome, "", reasons)
    return PastRun(f"run-{number}", 86400.0 * number, made)


def series(*outcomes: Outcome | None) -> Proof:
    """Of US-14 on one build; the oldest run first."""
    runs = [past(n, ("kvm", "t", {"US-14": o} if o else {})) for n, o in enumerate(outcomes, 1)][::-1]
    (found,) = proofs(runs[:1], runs[1:], ["US-14"]) or (Proof("US-14", "kvm", State.NOT_RUN, {}, (), None, None, ()),)
    return found


@pytest.mark.parametrize(
    ("outcomes", "state", "since", "runs"),
    [
        ((P,), State.PROVEN, "run-1", 1),
        ((P, P, P), State.PROVEN, "run-1", 3),
        ((P, F, P, P), State.PROVEN, "run-3", 2),
        ((F, F, P), State.PROVEN, "run-3", 1),
        ((P, None, P), State.PROVEN, "run-1", 2),
        ((P, S, E, P), State.PROVEN, "run-1", 2),
        ((P, F, F), State.FAILED, "run-2", 2),
        ((F, S, F), State.FAILED, "run-1", 2),
    ],
)
def test_a_series_goes_back_to_its_first_run(outcomes: tuple[Outcome | None, ...], state: State, since: str, runs: int) -> None:
    found = series(*outcomes)
    assert found.state is state
    assert found.since is not None
    assert (found.since.run, found.since.runs) == (since, runs)


def test_a_failed_story_says_when_it_was_proven_last() -> None:
    found = series(P, P, F)
    assert found.proven is not None
    assert found.proven.run == "run-2"
    assert series(F, F).proven is None


@pytest.mark.parametrize(("outcome", "state"), [(S, State.SKIPPED), (E, State.UNDECIDED), (Outcome.INVALID, State.UNDECIDED)])
def test_what_tells_nothing_has_no_series(outcome: Outcome, state: State) -> None:
    found = series(P, outcome)
    assert (found.state, found.since) == (state, None)
    assert found.reasons == (("t", f"US-14 is {outcome} on t"),)


@pytest.mark.parametrize("why", [LAB_FAILED, NO_BOOT])
def test_a_test_that_was_not_tried_decides_nothing(why: str) -> None:
    cell = PastCell(
        Cell("kvm", "t", "lifecycle"), F, "", {"US-1": Told({S: 2}, f"{why}no prompt"), "US-2": Told({S: 1, P: 1}, f"{why}no prompt")}
    )
    states = {p.story: p.state for p in proofs([PastRun("r", 1.0, {cell.cell.id: cell})])}
    assert states == {"US-1": State.UNDECIDED, "US-2": State.UNDECIDED}


GROUPS, USB, ALONE = "test_passthrough.py::test_groups", "test_with_linux.py::test_usb", "test_passthrough.py::test_without_group"
BEHIND = {"US-25": (f"lifecycle/{USB}", f"passthrough/{GROUPS}", f"passthrough/{ALONE}")}
NO_IOMMU, IOMMU = "needs a target with the tags iommu", "needs a machine without an IOMMU"


def of_passthrough(*cells: tuple[str, str, dict[str, Outcome]]) -> Proof:
    """Target, suite, its tests."""
    made = {}
    for target, suite, tests in cells:
        results = [
            TestResult(n, o, 1.0, (IOMMU if n == ALONE else NO_IOMMU) if o is S else "", stories=("US-25",)) for n, o in tests.items()
        ]
        cell = Cell("kvm", target, suite)
        made[cell.id] = PastCell(cell, P, "", stories.told_of(results))
    (found,) = proofs([PastRun("r", 1.0, made, BEHIND)])
    return found


def test_a_story_of_which_a_part_was_not_tried_is_proven_in_part_only() -> None:
    """A USB device that is attached is no device that is passed through: where no IOMMU is, or its suite was not run."""
    found = of_passthrough(("plain", "lifecycle", {USB: P}), ("plain", "passthrough", {GROUPS: S, ALONE: P}))
    assert (found.state, found.since) == (State.PARTLY, None)
    assert found.parts == (
        Part(f"lifecycle/{USB}", P),
        Part(f"passthrough/{GROUPS}", S, NO_IOMMU),
        Part(f"passthrough/{ALONE}", P),
    )
    (point,) = told([found], {}).rows[0].points  # type: ignore[union-attr]
    assert (point.parts, point.reasons) == ("2 of 3 tests", [f"skipped passthrough/test_groups: {NO_IOMMU}"])

    found = of_passthrough(("plain", "lifecycle", {USB: P}))
    assert found.state is State.PARTLY
    (point,) = told([found], {}).rows[0].points  # type: ignore[union-attr]
    assert (point.parts, point.reasons) == ("1 of 3 tests", ["not run: passthrough/test_groups, passthrough/test_without_group"])


def test_what_is_skipped_on_one_target_and_passes_on_another_is_proven() -> None:
    found = of_passthrough(
        ("plain", "lifecycle", {USB: P}), ("plain", "passthrough", {GROUPS: S, ALONE: P}), ("iommu", "passthrough", {GROUPS: P, ALONE: S})
    )
    assert found.state is State.PROVEN
    assert [part.outcome for part in found.parts] == [P, P, P]
    (point,) = told([found], {}).rows[0].points  # type: ignore[union-attr]
    assert (point.parts, point.reasons) == ("", [])
    failed = of_passthrough(("plain", "passthrough", {GROUPS: S, ALONE: F}), ("iommu", "passthrough", {GROUPS: P, ALONE: S}))
    assert failed.state is State.FAILED


def test_each_of_a_tests_parameters_is_a_part() -> None:
    found = of_passthrough(("t", "lifecycle", {USB: P}), ("t", "passthrough", {f"{GROUPS}[a]": P, f"{GROUPS}[b]": S, ALONE: P}))
    assert (found.state, len(found.parts)) == (State.PARTLY, 4)


def test_in_part_it_neither_ends_a_series_nor_makes_one_longer() -> None:
    runs = [past(n, ("kvm", "t", {"US-14": P})) for n in (3, 2, 1)]
    partly = PastCell(Cell("kvm", "t", "lifecycle"), P, "", {"US-14": Told({P: 1, S: 1}, "no disk", {"a": P, "b": S}, {"b": "no disk"})})
    runs[1] = replace(runs[1], cells={partly.cell.id: partly})
    (found,) = proofs(runs[:2], runs[2:])
    assert (found.state, found.history) == (State.PROVEN, (State.PROVEN, State.PARTLY))
    assert found.since is not None
    assert (found.since.run, found.since.runs) == ("run-1", 2)


def test_of_an_earlier_version_that_kept_no_names_a_skip_is_a_part_too() -> None:
    cell = PastCell(Cell("kvm", "t", "passthrough"), P, "", {"US-25": Told({P: 2, S: 1}, NO_IOMMU)})
    (found,) = proofs([PastRun("r", 1.0, {cell.cell.id: cell}, {"US-25": (f"passthrough/{GROUPS}",)})])
    assert found.state is State.PARTLY
    assert Part("passthrough: skip", S, NO_IOMMU) in found.parts
    assert all(part.outcome is not None for part in found.parts), "what ran, by names that nobody kept, is not said to be missing"


def test_a_failure_on_one_target_fails_the_story_of_the_build() -> None:
    run = past(1, ("kvm", "a", {"US-14": P}), ("kvm", "b", {"US-14": F}), ("xen", "a", {"US-14": P, "US-15": S}))
    found = {(p.story, p.build): p for p in proofs([run])}
    assert {key: p.state for key, p in found.items()} == {
        ("US-14", "kvm"): State.FAILED,
        ("US-14", "xen"): State.PROVEN,
        ("US-15", "kvm"): State.NOT_RUN,
        ("US-15", "xen"): State.SKIPPED,
    }
    assert found["US-14", "kvm"].reasons == (("b", "US-14 is fail on b"),)
    assert found["US-14", "kvm"].tests == {P: 1, F: 1}


def test_titles_add_stories_that_nothing_proves_but_only_where_some_test_names_one() -> None:
    run = past(1, ("kvm", "t", {"US-2": P}))
    assert [(p.story, p.state) for p in proofs([run], titles=["US-10", "US-1"])] == [
        ("US-1", State.NOT_RUN),
        ("US-2", State.PROVEN),
        ("US-10", State.NOT_RUN),
    ]
    assert proofs([past(1, ("kvm", "t", {}))], titles=["US-1"]) == ()


def test_of_several_runs_the_newest_that_tells_counts_and_each_has_its_sign() -> None:
    runs = [past(4, ("kvm", "t", {"US-14": S})), past(3, ("kvm", "t", {"US-14": P})), past(2, ("kvm", "t", {"US-14": F}))]
    (found,) = proofs(runs, [past(1, ("kvm", "t", {"US-14": P}))])
    assert found.state is State.PROVEN
    assert found.history == (State.SKIPPED, State.PROVEN, State.FAILED)
    assert found.since is not None
    assert found.since.run == "run-3"


# --- on disk ----------------------------------------------------------------------------------------------------------


def run_with(folder: Path, began: float, *tests: TestResult, reused: Reused | None = None) -> RunResult:
    outcome = F if any(t.outcome is F for t in tests) else P
    attempt = Attempt(1, "gw0", outcome, began, 1.0, "", "", tests, (), {}, (), "", "", folder, True)
    result = CellResult(Cell("kvm", "t", "lifecycle"), outcome, 1.0, "", () if reused else (attempt,), reused)
    return RunResult(folder.name, folder, "", began, 1.0, outcome, True, False, (), "", {}, {}, {}, (result,), (), stories=STORIES)


def ended(run: RunResult) -> RunResult:
    run.folder.mkdir(parents=True)
    (run.folder / layout.END).write_bytes(document(end_record(run)))
    return run


def test_what_a_run_said_is_read_back_from_its_end(tmp_path: Path) -> None:
    tests = (
        TestResult("a", P, 1.0, stories=("US-14", "US-15")),
        TestResult("b", S, 1.0, "no GPU", stories=("US-14",)),
        TestResult("c", F, 1.0, "no disk\n" * 100, stories=("US-14",)),
        TestResult("d", P, 1.0),
    )
    before = ended(run_with(tmp_path / "20260101-1", 1.0, *tests))
    (read,) = earlier_runs(run_with(tmp_path / "20260102-2", 2.0))
    assert read.id == "20260101-1"
    (cell,) = read.cells.values()
    assert cell.stories == {
        "US-14": Told({P: 1, S: 1, F: 1}, ("no disk\n" * 100)[:300], {"a": P, "b": S, "c": F}, {"b": "no GPU"}),
        "US-15": Told({P: 1}, "", {"a": P}),
    }
    assert present(before).cells[cell.cell.id].stories["US-15"] == cell.stories["US-15"]


def test_only_ended_runs_that_began_before_are_held_against_one(tmp_path: Path) -> None:
    ended(run_with(tmp_path / "20260101-1", 1.0))
    later = ended(run_with(tmp_path / "20260103-3", 3.0))
    (tmp_path / "20260100-killed").mkdir()
    (tmp_path / "20260100-foreign").mkdir()
    (tmp_path / "20260100-foreign" / layout.END).write_text('{"schema": 1, "started_at": 0.5, "cells": [5, {"id": 1}, {"stories": []}]}')
    assert [run.id for run in earlier_runs(run_with(tmp_path / "20260102-2", 2.0))] == ["20260101-1", "20260100-foreign"]
    assert [run.id for run in earlier_runs(later, most_runs=1)] == ["20260101-1"]


def test_a_cell_that_was_not_run_again_proves_what_it_proved_then(tmp_path: Path) -> None:
    ended(run_with(tmp_path / "20260101-1", 1.0, TestResult("a", P, 1.0, stories=("US-14",))))
    ended(run_with(tmp_path / "20260102-2", 2.0, reused=Reused("20260101-1", 1, 1.0)))
    now = run_with(tmp_path / "20260103-3", 3.0, reused=Reused("20260101-1", 1, 1.0))
    found = next(p for p in Past.of(now).proofs if p.story == "US-14")
    assert found.state is State.PROVEN
    assert found.since is not None
    assert (found.since.run, found.since.runs) == ("20260101-1", 3)
    for name in ("../x", "gone", "latest", ""):
        other = run_with(tmp_path / "20260104-4", 4.0, reused=Reused(name, 1, 1.0))
        assert Past.of(other).proofs == ()


@pytest.mark.parametrize("value", [None, 5, [], {"US-14": 5}, {"US-14": {"pass": -1}}, {"x": {"pass": 1}}, {"US-14": {"pass": True}}])
def test_a_damaged_end_says_nothing(value: object) -> None:
    assert stories.read(value) == {}


# --- told -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("results") / "20260921-141320-hyper"
    hypervisor_history(folder)
    (folder.parent / "20260917-141320-past" / "report.html").write_text("")
    return hypervisor_run(folder)


def test_the_page_has_stories_by_build_with_what_each_skip_is_for(run: RunResult, tmp_path: Path) -> None:
    found = told(Past.of(run).proofs, run.stories)
    assert found is not None
    assert found.builds == ["debian-kvm", "debian-xen"]
    rows = {row.story: dict(zip(found.builds, row.points, strict=True)) for row in found.rows}
    assert [*rows, "US-27"] == sorted(STORIES, key=lambda story: (story == "US-27", story))
    assert found.silent == ["US-27 60 frames a second on the desktop"]
    assert rows["US-24"]["debian-kvm"].reasons == ['needs a GPU to pass through: the target declares none (tags = ["gpu"])']
    assert rows["US-14"]["debian-xen"].since == "since 2026-09-12 14:13, 6 runs"
    assert rows["US-25"]["debian-kvm"].parts == "1 of 2 tests"
    assert rows["US-37"]["debian-kvm"].since == "since 2026-09-20 14:13, 2 runs; proven last 2026-09-19 14:13"
    assert rows["US-37"]["debian-xen"].state is State.NOT_RUN
    page = write_html(run, tmp_path / "report.html").read_text()
    assert '<table class="stories">' in page
    assert "xl has no snapshots of running guests" in page


def test_the_first_screen_says_what_is_red_since_when_and_why(run: RunResult, tmp_path: Path) -> None:
    page = write_html(run, run.folder.parent / "x.html").read_text()
    top = page[page.index('<ol class="alarms"') : page.index('<dl class="about">')]
    assert "the destination went off after 61 %" in top
    assert "in 2 runs, since 2026-09-20 14:13 UTC; passed last in " in top
    assert "20260917-141320-past/report.html" in top
    assert "otherwise than then: the build (6.1.0-54 → 6.1.0-56-cloud-amd64), the host&#39;s qemu (7.2.17 → 7.2.19)" in top
    assert ">US-37<" in top


def test_so_do_the_terminal_and_its_json(run: RunResult) -> None:
    out = io.StringIO()
    show(run, None, file=out)
    since = "in 2 runs, since 2026-09-20 14:13 UTC; passed last in 20260917-141320-past; otherwise than then: "
    changed = ["the build (6.1.0-54 → 6.1.0-56-cloud-amd64)", "the host's qemu (7.2.17 → 7.2.19)"]
    assert f"  {since}{', '.join(changed)}\n" in out.getvalue()
    cells = {cell["id"]: cell["red_since"] for cell in as_json(run, None)["cells"]}
    red = {"run": "20260918-141320-past", "runs": 2, "passed_in": "20260917-141320-past", "changed": changed}
    assert cells["debian-kvm/hv-pair/migration"] == red
    never_passed = {"run": "20260910-141320-past", "runs": 6, "passed_in": None, "changed": None}
    assert [since for since in cells.values() if since not in (red, None)] == [never_passed]


def test_a_cell_is_red_since_the_first_run_after_its_last_pass() -> None:
    runs = [past(n, ("kvm", "t", {"US-1": o})) for n, o in ((5, F), (4, E), (3, S), (2, F), (1, P))]
    cell = next(iter(runs[0].cells))
    runs[2] = replace(runs[2], cells={cell: replace(runs[2].cells[cell], outcome=S)})
    (found,) = red_since(runs[0], runs[1:]).values()
    assert (found.run, found.runs, found.passed) == ("run-2", 3, "run-1")
    assert red_since(runs[-1], []) == {}
    assert red_since(runs[0], [])[cell].passed == ""


def test_what_is_otherwise_than_at_the_last_pass_is_named() -> None:
    cell = Cell("kvm", "t", "lifecycle")
    then = Conditions("0.1", {"kernel": "6.1", "cpu": "x"}, {"kvm": {"digest": "a", "version": "1"}}, {"t": {"cpus": 2, "memory": "1G"}})
    assert changed(cell, then, then) == ()
    now = Conditions("0.2", {"kernel": "6.2"}, {"kvm": {"digest": "b", "version": "1"}}, {"t": {"cpus": 4, "disk": "1G", "memory": "1G"}})
    assert changed(cell, then, now) == ("the build", "the target (cpus, disk)", "labctl (0.1 → 0.2)", "the host's kernel (6.1 → 6.2)")
    assert changed(Cell("other", "u", "s"), then, now) == ("labctl (0.1 → 0.2)", "the host's kernel (6.1 → 6.2)")


def test_inputs_on_record_are_named_where_nothing_else_tells_of_them() -> None:
    cell = Cell("kvm", "t", "lifecycle")

    def under(test: str, build: str = "1", suite: str = "suite lifecycle") -> Conditions:
        groups = {
            "every": {"labctl": "1", "the host's kernel": build},
            "build kvm": {"the build's files": build},
            "target t wall": {"the target's file": "1", "the program qemu": build},
            suite: {"suites/lifecycle/test_create.py": test},
        }
        return Conditions("0.1", {"kernel": build}, {"kvm": {"digest": build, "version": build}}, {"t": {}}, groups)

    assert changed(cell, under("a"), under("a")) == ()
    assert knows_all(cell, under("a"), under("a"))
    assert changed(cell, under("a"), under("b")) == ("suites/lifecycle/test_create.py",)
    found = changed(cell, under("a"), under("b", "2"))
    assert found == ("the build (1 → 2)", "the host's kernel (1 → 2)", "suites/lifecycle/test_create.py", "the program qemu")
    assert not knows_all(cell, under("a"), under("a", suite="suite other"))
    assert not knows_all(cell, replace(under("a"), decided_by={}), under("a"))


@pytest.mark.parametrize("run", ["gone", "..", "", "a/b", "latest"])
def test_conditions_of_a_run_that_is_not_there_are_not_known(tmp_path: Path, run: str) -> None:
    assert conditions_of(tmp_path, run) is None


def test_a_run_json_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "run.json")
    assert conditions_of(tmp_path, "run") is None


def test_the_terminal_and_json_say_the_same(run: RunResult) -> None:
    out = io.StringIO()
    show(run, None, file=out)
    assert "US-37 Live migration" in out.getvalue()
    assert "– US-24 debian-kvm: needs a GPU to pass through" in out.getvalue()
    assert "✗ US-37 debian-kvm: HypervisorFailed" in out.getvalue()
    table = as_json(run, None)["stories"]
    assert table == stories_json(Past.of(run).proofs, run.stories)
    (failed,) = [row for row in table if row["state"] == "failed"]
    assert (failed["story"], failed["title"], failed["build"], failed["since"]["runs"]) == ("US-37", "Live migration", "debian-kvm", 2)
    json.dumps(table, allow_nan=False)
    partly = next(row for row in table if (row["story"], row["build"]) == ("US-25", "debian-kvm"))
    assert partly["state"] == "partly"
    assert [part["outcome"] for part in partly["parts"]] == ["pass", "skip"]
    assert "◐ US-25 debian-kvm (1 of 2 tests): skipped lifecycle/test_usb: needs a USB device on the target" in out.getvalue()
    lines = [str(line) for line in stories_tests(Past.of(run).proofs, run.stories)]
    at = next(number for number, line in enumerate(lines) if line.startswith("US-25 ") and "debian-kvm: ◐ partly" in line)
    assert lines[at + 1].startswith("  pass    lifecycle/test_vm.py::test_")
    assert lines[at + 2] == "  skip    lifecycle/test_vm.py::test_usb: needs a USB device on the target"


def test_a_run_that_names_no_story_has_no_table(tmp_path: Path) -> None:
    run = run_with(tmp_path / "r", 1.0, TestResult("a", P, 1.0))
    out = io.StringIO()
    show(run, None, file=out)
    assert "STORY" not in out.getvalue()
    assert "Stories of the plan" not in write_html(run, tmp_path / "report.html").read_text()
