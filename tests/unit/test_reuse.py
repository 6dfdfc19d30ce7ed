"""What must change for a cell to be run again, and which earlier result stands."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.model import Build, Cell, Channel, Outcome, Provenance, Target, TargetConfig
from labctl.run import reuse
from labctl.run.reuse import deciding, imported, tree_digest
from labctl.store import inputs, layout
from labctl.store.proven import proven
from labctl.store.reader import read_run
from labctl.store.writer import RunWriter

CELL = Cell("b", "t", "s")
HOST = {"cpu": "c", "kernel": "6", "python": "3", "qemu": "7", "memory": "1"}
BUILD = Build("b", "sha256:1", "x86_64", Path("/k"), None, "6.1", "quiet", {}, Provenance("path", "k"))


def a_target(**more: object) -> Target:
    return Target("t", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "64M", "drivers": {"qemu": {}}, **more}))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "suites/s").mkdir(parents=True)
    (tmp_path / "suites/s/test_s.py").write_text("def test(): pass\n")
    (tmp_path / "conftest.py").write_text("")
    return tmp_path


def key(lab: Path, cell: Cell = CELL, build: Build = BUILD, target: Target | None = None, host: dict[str, str] = HOST) -> str:
    return deciding(lab, [cell], {"b": build}, {"t": target or a_target()}, host).keys[cell.id]


def test_the_key_is_the_same_while_nothing_changes(lab: Path) -> None:
    before = key(lab)
    (lab / "suites/s/__pycache__").mkdir()
    (lab / "suites/s/__pycache__/test_s.pyc").write_bytes(b"compiled")
    (lab / "suites/s/test_s.py").touch()
    assert key(lab, host={**HOST, "memory": "2"}) == before


def test_a_variable_of_the_environment_that_a_suite_names(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By it a user says how much the suite does: what passed with one power cut does not stand for a hundred."""
    for name in ("STORAGE_CUTS", "OTHER_CUTS", "SHARED_CUTS"):
        monkeypatch.delenv(name, raising=False)
    (lab / "suites/s/settings.py").write_text('CUTS = from_environment((Number("STORAGE_CUTS", 2, 1, 1000),))\n')
    (lab / "conftest.py").write_text('import os\nos.environ.get("SHARED_CUTS")\n')
    unset = key(lab)
    monkeypatch.setenv("OTHER_CUTS", "1")
    assert key(lab) == unset, "nobody reads it"
    seen = {unset}
    for name, value in (("STORAGE_CUTS", "1"), ("STORAGE_CUTS", "100"), ("SHARED_CUTS", "1")):
        monkeypatch.setenv(name, value)
        assert key(lab) not in seen, (name, value)
        seen.add(key(lab))
    monkeypatch.delenv("STORAGE_CUTS")
    monkeypatch.delenv("SHARED_CUTS")
    assert key(lab) == unset


def test_each_thing_that_decides_a_result_changes_the_key(lab: Path) -> None:
    seen = {key(lab)}

    def is_new(found: str) -> None:
        assert found not in seen
        seen.add(found)

    is_new(key(lab, build=replace(BUILD, digest="sha256:2")))
    is_new(key(lab, build=replace(BUILD, append="")))
    is_new(key(lab, build=replace(BUILD, hypervisor="kvm")))
    is_new(key(lab, build=replace(BUILD, hypervisor="xl")))
    is_new(key(lab, build=replace(BUILD, milestones={"ready": "up"})))
    is_new(key(lab, target=a_target(append="nosmp")))
    is_new(key(lab, target=a_target(drivers={"qemu": {"machine": "microvm"}})))
    is_new(key(lab, replace(CELL, channel=Channel.ICOUNT)))
    for name in ("cpu", "kernel", "python", "qemu"):
        is_new(key(lab, host={**HOST, name: "other"}))
    (lab / "suites/s/test_s.py").write_text("def test(): assert 1\n")
    is_new(key(lab))
    (lab / "suites/s/overlay").mkdir()
    (lab / "suites/s/overlay/tool").write_text("")
    is_new(key(lab))
    (lab / "suites/s/overlay/tool").chmod(0o755)
    is_new(key(lab))
    (lab / "conftest.py").write_text("pytest_plugins = ()")
    is_new(key(lab))
    (lab / "guest").mkdir()
    (lab / "guest/init").write_text("")
    is_new(key(lab))


def test_what_a_suite_imports_from_elsewhere_in_the_lab(lab: Path) -> None:
    """pytest has the lab's root and every suite's folder on Python's path: a change there changes what the suite does."""
    for name, text in {
        "suites/s/test_s.py": "import common\nfrom other_settings import LIMIT\nfrom tools.deep import dig\npytest_plugins = ['plugged']\n",
        "common.py": "from far import away\n",
        "far.py": "",
        "plugged.py": "",
        "unused.py": "import common\n",
        "tools/__init__.py": "",
        "tools/deep.py": "",
        "suites/other/other_settings.py": "LIMIT = 1\n",
        "suites/other/test_other.py": "",
    }.items():
        (lab / name).parent.mkdir(parents=True, exist_ok=True)
        (lab / name).write_text(text)
    found = {str(path.relative_to(lab)) for path in imported(lab, lab / "suites/s")}
    expected = {"common.py", "far.py", "plugged.py", "tools/__init__.py", "tools/deep.py", "suites/other/other_settings.py", "conftest.py"}
    assert found == expected
    seen = {key(lab)}
    for name in sorted(found):
        (lab / name).write_text((lab / name).read_text() + "CHANGED = 1\n")
        assert key(lab) not in seen, name
        seen.add(key(lab))
    now = key(lab)
    (lab / "unused.py").write_text("1\n")
    (lab / "suites/other/test_other.py").write_text("1\n")
    assert key(lab) == now


def test_what_a_link_leads_to_counts(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file, a folder and the suite itself may lie elsewhere, and change there."""
    away = tmp_path_factory.mktemp("away")
    (away / "folder").mkdir()
    (away / "file.py").write_text("A = 1\n")
    (away / "folder/data").write_text("1\n")
    (lab / "suites/s/file.py").symlink_to(away / "file.py")
    (lab / "suites/s/folder").symlink_to(away / "folder")
    (lab / "suites/s/folder/back").symlink_to(away)  # round and round
    (lab / "suites/s/nowhere").symlink_to(away / "nowhere")
    seen = {key(lab)}
    for name in ("file.py", "folder/data"):
        (away / name).write_text("A = 2\n")
        assert key(lab) not in seen, name
        seen.add(key(lab))
    (lab / "suites/s").rename(away / "s")
    (lab / "suites/s").symlink_to(away / "s")
    seen.add(key(lab))
    (away / "s/test_s.py").write_text("def test(): assert 0\n")
    assert key(lab) not in seen


def test_what_changes_pytests_command_line(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    seen = {key(lab)}
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k one")
    assert key(lab) not in seen
    seen.add(key(lab))
    unset = key(lab)
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    empty = key(lab)
    monkeypatch.delenv("PYTEST_ADDOPTS")
    assert (key(lab), unset in seen) == (empty, True), "pytest takes an empty one like none"
    for name in ("tox.ini", "setup.cfg", ".pytest.ini", "pytest.toml", "suites/pytest.ini", "suites/tox.ini"):
        (lab / name).write_text("[pytest]\n")
        assert key(lab) not in seen, name
        seen.add(key(lab))


def test_the_emulator_that_a_target_names(lab: Path, tmp_path: Path) -> None:
    """Not only the one that the host's PATH leads to."""
    (tmp_path / "own-qemu").write_text("#!/bin/sh\n")
    (tmp_path / "own-qemu").chmod(0o755)
    own = a_target(drivers={"qemu": {"binary": str(tmp_path / "own-qemu")}})
    before = key(lab, target=own)
    (tmp_path / "own-qemu").write_text("#!/bin/sh\n# another version\n")
    reuse._program.cache_clear()
    assert key(lab, target=own) != before


def test_a_driver_of_another_package(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/driver_of_ours.py").write_text("class Driver:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    driver = importlib.import_module("driver_of_ours").Driver
    monkeypatch.setattr("labctl.machine.registry.load", lambda name: driver)
    ours = a_target(drivers={"ours": {}})
    before = key(lab, target=ours)
    (tmp_path / "elsewhere/driver_of_ours.py").write_text("class Driver:\n    changed = True\n")
    assert key(lab, target=ours) != before


def test_what_has_changed_since_another_run_is_told_by_its_name(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_CUTS", "1")
    (lab / "suites/s/gone.py").write_text("")
    (lab / "suites/s/settings.py").write_text('CUTS = "STORAGE_CUTS"\n')
    suited = {"b": BUILD, "b/s": replace(BUILD, digest="sha256:3")}

    def record(**more: object) -> inputs.Groups:
        given = {"builds": {"b": BUILD}, "targets": {"t": a_target()}, "host": HOST, **more}
        return inputs.read(json.loads(json.dumps(inputs.record(deciding(lab, [CELL], **given).inputs))))  # type: ignore[arg-type]

    then = record()
    assert inputs.changed(CELL, then, record()) == ()
    assert inputs.changed(CELL, then, record(builds={"b": replace(BUILD, append="x", digest="sha256:2")})) == (
        "the build's command line",
        "the build's files",
    )
    assert inputs.changed(CELL, then, record(builds=suited)) == ("what the suite adds to the build",)
    rebuilt = {"b": replace(BUILD, digest="sha256:2"), "b/s": replace(BUILD, digest="sha256:4")}
    assert inputs.changed(CELL, record(builds=suited), record(builds=rebuilt)) == ("the build's files",)
    assert inputs.changed(CELL, then, record(targets={"t": a_target(append="nosmp")})) == ("the target's file",)
    assert inputs.changed(CELL, then, record(host={**HOST, "kernel": "7"})) == ("the host's kernel",)
    (lab / "suites/s/gone.py").unlink()
    (lab / "suites/s/new.py").write_text("")
    (lab / "conftest.py").write_text("A = 1\n")
    monkeypatch.setenv("STORAGE_CUTS", "2")
    expected = ("the variable STORAGE_CUTS", "suites/s/gone.py", "suites/s/new.py", "conftest.py")
    assert inputs.changed(CELL, then, record()) == expected, "what is nearest to the suite first"
    assert inputs.listed(expected, 2) == "the variable STORAGE_CUTS, suites/s/gone.py and 2 more"
    assert inputs.changed(CELL, {}, record(), unknown=["suite s"]) is None
    assert inputs.changed(CELL, then, record(), unknown=["suite s"]) == ("conftest.py",)
    assert inputs.changed(CELL, {}, then) is inputs.changed(replace(CELL, channel=Channel.ICOUNT), then, then) is None


def test_what_labctl_brings_for_the_machine_is_named_where_the_lab_has_its_own(lab: Path) -> None:
    """In labctl's own checkout it is in the lab itself, and told by its files."""

    def names(root: Path) -> set[str]:
        return {name for name in deciding(root, [], {}, {}, HOST).inputs["every"] if name.startswith("labctl")}

    assert names(lab) == {"labctl", "labctl's guest/"}
    assert names(Path(reuse.__file__).parents[2]) == {"labctl"}


def test_of_a_suite_of_very_many_files_the_rest_is_one(lab: Path) -> None:
    (lab / "suites/s/overlay").mkdir()
    for number in range(300):
        (lab / f"suites/s/overlay/{number:03}").write_text("")

    def record() -> inputs.Groups:
        return inputs.record(deciding(lab, [CELL], {"b": BUILD}, {"t": a_target()}, HOST).inputs)

    then = record()
    assert len(then["suite s"]) == 201
    (lab / "suites/s/overlay/299").write_text("x")
    assert inputs.changed(CELL, then, record()) == ("a file beyond the first 200",)


@pytest.mark.parametrize("torn", [None, [], "x", {"every": 7}, {"every": {"labctl": []}}, {"suite s": None}])
def test_inputs_of_another_form_are_not_known(torn: object) -> None:
    assert inputs.changed(CELL, inputs.read(torn), inputs.read(torn)) is None


def test_each_repeat_of_a_cell_has_its_key(lab: Path) -> None:
    repeated = [CELL, replace(CELL, repeat=2)]
    assert deciding(lab, repeated, {"b": BUILD}, {"t": a_target()}, HOST).keys == dict.fromkeys(("b/t/s", "b/t/s#2"), key(lab))


def test_names_do_not_run_into_contents(tmp_path: Path) -> None:
    for folder, name, content in (("one", "a", "bc"), ("two", "ab", "c")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    assert tree_digest(tmp_path / "one") != tree_digest(tmp_path / "two")


def a_run(
    results: Path, run_id: str, outcome: Outcome | None, key: str = "k1", *, benchmark: bool = False, first: Outcome | None = None
) -> RunWriter:
    writer = RunWriter.create(
        results, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=[CELL], keys={CELL.id: key}, run_id=run_id
    )
    for each in filter(None, (first, outcome)):
        with writer.attempt(CELL, worker="w", benchmark=benchmark) as attempt:
            attempt.finish(each)
    writer.finish(outcome or Outcome.ERROR, interrupted=outcome is None)
    return writer


@pytest.mark.parametrize(
    ("history", "stands"),
    [
        ([("pass", "k1")], "1"),
        ([("pass", "k2")], None),
        ([("pass", "k1"), ("fail", "k2")], "1"),
        ([("pass", "k1"), ("fail", "k1")], None),
        ([("fail", "k1"), ("pass", "k1")], "2"),
        ([("pass", "k1"), ("error", "k1")], "1"),
        ([("pass", "k1"), ("skip", "k1")], "1"),
        ([("pass", "k1"), ("invalid", "k1")], None),
        ([], None),
    ],
)
def test_the_newest_result_under_the_same_key_decides(tmp_path: Path, history: list[tuple[str, str]], stands: str | None) -> None:
    for number, (outcome, key) in enumerate(history, 1):
        a_run(tmp_path, str(number), Outcome(outcome), key)
    found = proven(tmp_path, {CELL.id: "k1"})
    assert (found[CELL.id].run if found else None) == stands


def test_neither_benchmarks_nor_retries_nor_runs_without_a_key_stand(tmp_path: Path) -> None:
    a_run(tmp_path, "1", Outcome.PASS, benchmark=True)
    a_run(tmp_path, "2", Outcome.PASS, "")
    assert proven(tmp_path, {CELL.id: "k1"}) == proven(tmp_path, {CELL.id: ""}) == {}
    a_run(tmp_path, "3", Outcome.PASS, first=Outcome.ERROR)  # flaky
    a_run(tmp_path, "4", None)
    assert proven(tmp_path, {CELL.id: "k1"}) == {}


@pytest.mark.parametrize(("outcomes", "stands"), [(["pass"], "1"), (["pass", "fail"], None), (["fail", "pass"], None), (["error"], "1")])
def test_a_part_of_a_cell_or_a_repeat_speaks_against_it_and_never_for_it(tmp_path: Path, outcomes: list[str], stands: str | None) -> None:
    """A test of the suite that was run alone has failed since it passed as a whole, or one of five repeats: the pass proves nothing."""
    cells = [replace(CELL, repeat=number + 1) for number in range(len(outcomes))]
    tried = {cell.id: "k1" for cell in cells}

    def parts(run_id: str) -> None:
        writer = RunWriter.create(
            tmp_path, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=cells, tried=tried, run_id=run_id
        )
        for cell, outcome in zip(cells, outcomes, strict=True):
            with writer.attempt(cell, worker="w") as attempt:
                attempt.finish(Outcome(outcome))
        writer.finish(Outcome.PASS)

    parts("0")
    assert proven(tmp_path, {CELL.id: "k1"}) == {}
    a_run(tmp_path, "1", Outcome.PASS)
    parts("2")
    found = proven(tmp_path, {CELL.id: "k1"})
    assert (found[CELL.id].run if found else None) == stands
    assert read_run(tmp_path / "2").cells[0].key == "k1"
    assert not read_run(tmp_path / "2").cells[0].proves


def test_a_reused_result_names_the_run_in_which_the_cell_was_run(tmp_path: Path) -> None:
    a_run(tmp_path, "1", Outcome.PASS)
    for run_id in ("2", "3"):
        found = proven(tmp_path, {CELL.id: "k1"})
        assert found[CELL.id].run == "1"
        writer = RunWriter.create(
            tmp_path, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=[CELL], keys={CELL.id: "k1"}, reused=found,
            run_id=run_id,
        )  # fmt: skip
        (result,) = writer.finish(Outcome.PASS).cells
        assert (result.outcome, result.reused, result.attempts) == (Outcome.PASS, found[CELL.id], ())
        assert read_run(tmp_path / run_id).cells == (result,)
    (tmp_path / "1" / layout.END).unlink()  # what is not there any more proves nothing
    assert proven(tmp_path, {CELL.id: "k1"}) == {}


@pytest.mark.parametrize("torn", ['{"run": 7}', '{"run": "../../etc"}', '{"run": ""}', "[]", '"x"'])
def test_damaged_records_prove_nothing(tmp_path: Path, torn: str) -> None:
    a_run(tmp_path, "1", Outcome.PASS)
    end = json.loads((tmp_path / "1" / layout.END).read_text())
    end["cells"][0]["reused"] = json.loads(torn)
    (tmp_path / "1" / layout.END).write_text(json.dumps(end))
    assert proven(tmp_path, {CELL.id: "k1"}) == {}
