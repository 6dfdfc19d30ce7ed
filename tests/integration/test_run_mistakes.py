"""Mistakes of a suite that show before any machine has power."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.temporary_lab import TARGET, TemporaryLab, reasons

SUITES = Path(__file__).parents[2] / "suites"
WARM = "schema = 1\nwarm = true\n"


def test_a_setting_that_is_none(lab: TemporaryLab) -> None:
    """As the user's shell has it: the suite's own conftest reads it, or its tests do. Lines, and no trace into the suite."""
    lab.suite("storage", "def test_nothing(fio):\n    pass\n")
    lab.suite("integrity", "def test_nothing():\n    pass\n")
    for suite, files in {
        "storage": ("conftest.py", "storage_settings.py"),
        "integrity": ("test_power_cuts.py", "test_written_is_read.py", "integrity_settings.py"),
    }.items():
        for name in files:
            shutil.copy(SUITES / suite / name, lab.root / "suites" / suite / name)
    ran = lab.labctl("run", "matrix", STORAGE_SECONDS="abc")
    assert ran.status == 2, ran.err
    assert ran.err.splitlines()[-1] == "labctl: environment: STORAGE_SECONDS: found 'abc'; a number of seconds, from 1 to 86400"
    assert "Traceback" not in ran.err
    assert "conftest" not in ran.err
    assert (lab.runs[-1] / "end.json").exists(), "no run that seems to go on"

    ran = lab.labctl("run", "matrix", STORAGE_SIZE="0", STORAGE_CUTS="-3")
    assert ran.status == 2, ran.err
    assert ran.err.splitlines()[-3:] == [
        "labctl: a suite cannot be read:",
        "environment: STORAGE_SIZE: found '0'; a size such as 512M or 4G, at least 1M",
        "environment: STORAGE_CUTS: found '-3'; a whole number of power cuts, from 1 to 1000",
    ]


def test_what_could_be_read_is_not_run_without_the_rest(lab: TemporaryLab, tmp_path: Path) -> None:
    """One file of one suite cannot be read: no cell is begun, not even of other suites."""
    ran = tmp_path / "ran"
    lab.suite("well", f"def test_well():\n    open({str(ran)!r}, 'w')\n")
    lab.suite("broken", "def test_here(:\n")
    refused = lab.labctl("run", "matrix")
    assert refused.status == 2, refused.err
    assert "a suite cannot be read" in refused.err
    assert "test_broken.py" in refused.err
    assert not ran.exists()
    assert not list(lab.runs[-1].glob("cells/*/*")), "no attempt"
    lab.suite("broken", "def test_here():\n    pass\n")
    assert lab.labctl("run", "matrix").status == 0
    assert ran.exists()


@pytest.mark.parametrize("fixture", ["booted", "record_boot", "console", "selftests"])
def test_asking_for_a_boot_at_run_time_in_a_suite_of_copies(lab: TemporaryLab, fixture: str) -> None:
    """Refused whether or not the machine would be a copy (here none has power yet), and not tried again."""
    lab.suite("only", f"def test_x(request):\n    request.getfixturevalue({fixture!r})\n")
    lab.write("suites/only/suite.toml", WARM)
    ran = lab.run("--cold")
    cell = ran.cells["debian/only"]
    assert (cell["outcome"], cell["attempts"]) == ("error", 1), reasons(ran.cells)
    named = "booted" if fixture == "console" else fixture  # which it asks for itself
    assert cell["reason"].startswith(f"suites/only/test_only.py::test_x, of a suite with warm = true, asks for '{named}'"), cell["reason"]
    assert ran.status == 3


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ('hypervisor=["Teleports"]', "unknown: Teleports; known: Consoles, "),
        ('hypervisor="Snapshots"', "found 'Snapshots'; a list, such as"),
        ("cpu=2", "@pytest.mark.requires(cpu=…): unknown; known: cpus, "),
    ],
)
def test_a_requirement_that_does_not_exist(lab: TemporaryLab, requirement: str, words: str) -> None:
    """Told with the file, and no other cell is begun: a machine would have been booted for tests that say something else."""
    lab.suite("mine", f"import pytest\n\n@pytest.mark.requires({requirement})\ndef test_x():\n    pass\n")
    lab.suite("well", "def test_x():\n    pass\n")
    ran = lab.labctl("run", "matrix")
    assert ran.status == 2, (ran.status, ran.err)
    assert "suites/mine/test_mine.py::test_x: " in ran.err
    assert words in ran.err
    assert not list(lab.runs[-1].glob("cells/*/*")), "no attempt"


def test_every_wrong_value_of_every_requirement_is_told_at_once(lab: TemporaryLab) -> None:
    """Of all tests of all suites, each with its place, by a dry run and before any other cell is begun."""
    lab.suite(
        "mine",
        "import pytest\n\npytestmark = pytest.mark.requires(driver='kwm')\n\n"
        "@pytest.mark.requires(tags='gpu', memory='1Q')\ndef test_x():\n    pass\n\n"
        "class TestMore:\n    @pytest.mark.requires(cpus='two', build=3)\n    @pytest.mark.parametrize('a', [1, 2])\n    def test_y(self, a):\n        pass\n",
    )
    lab.suite("other", "import pytest\n\n@pytest.mark.requires(1, channel='wal', disk=-1)\ndef test_z(nosuch):\n    pass\n")
    lab.suite("well", "def test_x():\n    pass\n")
    for how in ("--dry-run", "--fresh"):
        ran = lab.labctl("run", "matrix", how)
        assert ran.status == 2, (how, ran.status, ran.err)
        said = [line.strip() for line in ran.err[ran.err.index("a suite cannot be read:") :].splitlines()[1:]]
        assert [line.partition(";")[0].partition(": known")[0] for line in said] == [
            "suites/mine/test_mine.py: @pytest.mark.requires(driver=…): found 'kwm'",
            "suites/mine/test_mine.py::test_x: @pytest.mark.requires(tags=…): found 'gpu'",
            "suites/mine/test_mine.py::test_x: @pytest.mark.requires(memory=…): found '1Q'",
            "suites/mine/test_mine.py::TestMore::test_y: @pytest.mark.requires(cpus=…): found 'two'",
            "suites/mine/test_mine.py::TestMore::test_y: @pytest.mark.requires(build=…): found 3",
            "suites/other/test_other.py::test_z: @pytest.mark.requires: found 1 without a name",
            "suites/other/test_other.py::test_z: @pytest.mark.requires(channel=…): found 'wal'",
            "suites/other/test_other.py::test_z: @pytest.mark.requires(disk=…): found -1",
            "suites/other/test_other.py::test_z asks for 'nosuch'",
        ], said
        assert not lab.runs or not list(lab.runs[-1].glob("cells/*/*")), "no attempt"


@pytest.mark.parametrize("strict", [True, False])
def test_a_marker_that_does_not_exist(lab: TemporaryLab, strict: bool) -> None:
    """Told with its test and the marker that was meant, whatever pytest's settings say, and with the file's other mistakes."""
    settings = "filterwarnings = error::pytest.PytestUnknownMarkWarning\nmarkers =\n    mine(n): of the lab's own\n" + (
        "addopts = --strict-markers\n" if strict else ""
    )
    lab.write("pytest.ini", f"[pytest]\n{settings}")
    lab.suite(
        "mine",
        "import pytest\n\n@pytest.mark.mine(2)\n@pytest.mark.benchmrk\ndef test_x():\n    pass\n\n"
        "@pytest.mark.requires(memory='1Q')\n@pytest.mark.xyz\ndef test_y():\n    pass\n",
    )
    lab.suite("well", "import pytest\n\n@pytest.mark.mine(1)\n@pytest.mark.skipif('False', reason='no')\ndef test_z():\n    pass\n")
    for how in ("--dry-run", "--fresh"):
        ran = lab.labctl("run", "matrix", how)
        assert ran.status == 2, (how, ran.status, ran.err)
        told = [line.strip() for line in ran.err[ran.err.index("a suite cannot be read:") :].splitlines()[1:]]
        assert [line.partition(";")[0] for line in told] == [
            "suites/mine/test_mine.py::test_x: @pytest.mark.benchmrk: unknown",
            "suites/mine/test_mine.py::test_y: @pytest.mark.xyz: unknown",
            "suites/mine/test_mine.py::test_y: @pytest.mark.requires(memory=…): found '1Q'",
        ], told
        assert "; did you mean 'benchmark'? " in told[0]
        assert not lab.runs or not list(lab.runs[-1].glob("cells/*/*")), "no attempt"
    assert lab.labctl("run", "matrix", "--suite", "well").status == 0


def test_a_wrong_requirement_that_a_conftest_adds(lab: TemporaryLab) -> None:
    """It is not there yet when the files are read: told before the machine has power, as the file's mistake and not Python's."""
    lab.suite("mine", "def test_x(shell):\n    pass\n")
    lab.write(
        "suites/mine/conftest.py",
        "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n"
        "    for item in items:\n        item.add_marker(pytest.mark.requires(memory='1Q'))\n",
    )
    cell = lab.run().cells["debian/mine"]
    assert (cell["outcome"], cell["attempts"]) == ("error", 1), cell
    assert cell["reason"].startswith("suites/mine/test_mine.py::test_x: @pytest.mark.requires(memory=…): found '1Q'; a size"), cell
    assert not list(lab.runs[-1].glob("cells/*/*/console.log")), "no machine had power"


def test_a_hypervisor_that_nobody_can_speak_to(lab: TemporaryLab) -> None:
    """Its recipe's mistake, told by a dry run too."""
    lab.suite("mine", "def test_x(hypervisor):\n    pass\n")
    for name, file in (("mine", "hypervisor/mine/build.toml"), ("alone", "hypervisor/alone.toml")):
        lab.write(file, f'schema = 1\nbuilder = "path"\nhypervisor = "kvmm"\n[path]\nkernel = "{lab.root}/kernel"\n')
        ran = lab.labctl("run", "matrix", "--dry-run", "--build", name)
        assert ran.status == 2, (ran.status, ran.err)
        assert f"{file}: hypervisor: unknown hypervisor 'kvmm'; did you mean 'kvm'?" in ran.err


def test_a_tool_that_cannot_be_made_is_no_fault_of_the_build(lab: TemporaryLab) -> None:
    lab.suite("mine", "def test_x(shell):\n    pass\n")
    lab.write("suites/mine/suite.toml", 'schema = 1\ntools = ["broken"]\n')
    lab.write("guest/tools/broken.toml", 'schema = 1\nbuilder = "c"\n')
    lab.write("guest/tools/broken.c", "int main(void) { return nowhere; }\n")
    ran = lab.labctl("run", "matrix")
    assert ran.status == 2, (ran.status, ran.err)
    assert "suites/mine/suite.toml" in ran.err
    assert "broken.c:1" in ran.err
    assert not lab.runs, "nothing was begun"


def test_an_image_that_no_disk_holds(lab: TemporaryLab) -> None:
    """Refused before it is made: its tables alone would fill the disk."""
    lab.suite("mine", "def test_x(shell):\n    pass\n")
    lab.write("suites/mine/suite.toml", 'schema = 1\nimage = "huge"\n')
    lab.write("guest/images/huge.toml", 'schema = 1\npackages = ["jq"]\nroom = "100T"\n')
    lab.write(f"targets/{lab.target}.toml", TARGET.replace('disk_bus = "none"', 'disk_bus = "nvme"'))
    ran = lab.labctl("run", "matrix")
    assert ran.status == 3, (ran.status, ran.err)
    assert "needed" in ran.err
    assert not list(lab.cache.rglob("image"))


def test_a_vm_that_fails_is_told_with_the_line_of_the_suite(lab: TemporaryLab) -> None:
    """The cause says what became of the VM; which of the test's steps that was, only its line tells."""
    lab.suite(
        "vms",
        "from labctl.errors import VmFailed\n\n\ndef beat(name):\n    raise VmFailed(f'VM {name}: is off')\n\n\n"
        "def test_first():\n    pass\n\n\ndef test_beats():\n    beat('one')\n    beat('two')\n",
    )
    lines = ["test_vms.py:13: beat('one')", "test_vms.py:5: raise VmFailed(f'VM {name}: is off')"]
    ran = lab.labctl("run", "matrix")
    assert ran.status == 1, ran.err
    told = ran.out[ran.out.index("\u2717 fail debian/") :].splitlines()
    assert told[1:5] == ["  VM one: is off", "  in test_vms.py::test_beats", *(f"    {line}" for line in lines)]
    (failed,) = lab.run().cells["debian/vms"]["failed"]
    assert failed == {"test": "test_vms.py::test_beats", "reason": "VM one: is off", "where": lines}
    junit = (lab.runs[-1] / "junit.xml").read_text()
    assert 'type="VmFailed"' in junit
    assert "\n".join(lines).replace("'", "&#x27;") in junit or "\n".join(lines) in junit
    by_pytest = lab.pytest("suites/vms", "--build", "debian", "--target", lab.target)
    assert "\n".join([*lines, "VmFailed: VM one: is off"]) in by_pytest.out


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def helper():\n    pass\n", "suites/none: no test in it (test_none.py: no function named test_…)"),
        ("import sys\n\nsys.exit(3)\n", "suites/none/test_none.py: ends Python while it is read (test_none.py:3: sys.exit(3))"),
    ],
)
def test_a_suite_that_gives_no_test(lab: TemporaryLab, code: str, told: str) -> None:
    """Told with its cause and before any other cell is begun, by a dry run too, and with nothing of pytest's insides."""
    lab.suite("well", "def test_well():\n    pass\n")
    lab.suite("none", code)
    for how in ("--dry-run", "--fresh"):
        ran = lab.labctl("run", "matrix", how)
        assert ran.status == 2, (how, ran.status, ran.err)
        assert ran.err.splitlines()[-2:] == ["labctl: a suite cannot be read:", told], (how, ran.err)
        assert "INTERNALERROR" not in ran.out + ran.err
    assert not list(lab.runs[-1].glob("cells/*/*")), "no attempt"
    lab.write("suites/none/test_more.py", "def test_more():\n    pass\n")
    assert lab.labctl("run", "matrix").status == (0 if "helper" in code else 2)


def test_a_conftest_that_ends_python(lab: TemporaryLab) -> None:
    lab.suite("mine", "def test_x():\n    pass\n")
    lab.write("suites/mine/conftest.py", "import sys\n\nsys.exit(0)\n")
    for how in ("--dry-run", "--fresh"):
        ran = lab.labctl("run", "matrix", how)
        assert ran.status == 2, (how, ran.status, ran.err)
        assert "a conftest.py ends Python while it is read (conftest.py:3: sys.exit(0))" in ran.err, ran.err
    assert (lab.runs[-1] / "end.json").exists(), "no run that seems to go on"


def test_a_file_that_skips_itself_is_a_skip_with_its_reason(lab: TemporaryLab) -> None:
    """Alone in its suite, and beside a file that passes, of which the cell has its outcome: neither is lost."""
    lab.suite("alone", "import pytest\n\npytest.skip('not today', allow_module_level=True)\n\ndef test_x():\n    pass\n")
    lab.suite("beside", "def test_x():\n    pass\n")
    lab.write("suites/beside/test_lacking.py", "import pytest\n\npytest.importorskip('nosuchlib')\n")
    assert lab.labctl("run", "matrix", "--dry-run").status == 0
    ran = lab.run()
    assert ran.status == 0, ran.err
    cells = ran.cells
    assert (cells["debian/alone"]["outcome"], cells["debian/alone"]["reason"]) == ("skip", "not today"), reasons(cells)
    assert cells["debian/beside"]["outcome"] == "pass", reasons(cells)
    (events,) = lab.runs[-1].glob("cells/*beside*/*/events.jsonl")
    tests = [event for line in events.read_text().splitlines() if (event := json.loads(line)).get("name", "").startswith("test_lacking.py")]
    assert [(test["name"], test["outcome"]) for test in tests] == [("test_lacking.py", "skip")], events.read_text()
    assert "could not import 'nosuchlib'" in tests[0]["reason"]
    assert "not today" in (lab.runs[-1] / "junit.xml").read_text()
