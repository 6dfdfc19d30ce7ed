"""The command line without a machine: every verb's help, its examples, its errors and exit codes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from labctl.cli import main as cli
from labctl.cli.main import VERBS, app
from labctl.cli.run import _expected
from labctl.cli.verb import complete_build, complete_matrix, complete_suite, complete_target, print_table, printable
from labctl.config import Lab
from labctl.errors import BuildFailed, ManagementError, TargetBusy
from labctl.machine import checkup
from labctl.model import Cell, Target
from labctl.run.prepare import Planned, Request
from labctl.store.writer import RunWriter
from tests.kernels import elf


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def labctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command line in this process, from its arguments to its exit status."""

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["labctl", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return Ran(0 if code is None else int(code), out, err)

    return run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab of three small files, and the working directory in it."""
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/small.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qemu]\n')
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/mine.toml").write_text('builder = "path"\n[path]\nkernel = "bzImage"\n')
    (tmp_path / "matrix").mkdir()
    (tmp_path / "matrix/default.toml").write_text('builds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
    (tmp_path / "suites/boot").mkdir(parents=True)
    (tmp_path / "suites/boot/test_boot.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / ".cache"))
    return tmp_path


def _commands() -> dict[str, object]:
    """Each command that can be typed, by what is typed for it."""
    found: dict[str, object] = {}

    def walk(path: str, command: object) -> None:
        found[path] = command
        if hasattr(command, "list_commands"):
            for name in command.list_commands(None):
                walk(f"{path} {name}".strip(), command.get_command(None, name))

    walk("", get_command(app))
    return found


COMMANDS = _commands()


def _examples(command: object) -> list[str]:
    return [line.strip()[2:] for line in (command.help or "").splitlines() if line.strip().startswith("$ ")]  # type: ignore[attr-defined]


def commands_of(example: str) -> list[list[str]]:
    """The commands of a shell line, without their redirections and comments."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word in ("&&", "||", ";", "|"):
            found.append([])
        elif word in (">", "<", ">>"):
            redirected = True
        elif redirected:
            redirected = False
        else:
            found[-1].append(word)
    return found


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_an_example(path: str) -> None:
    examples = _examples(COMMANDS[path])
    assert examples, f"labctl {path} --help has no `$ labctl …` line"
    if not hasattr(COMMANDS[path], "list_commands"):
        assert any(f"labctl {path}" in each for each in examples)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_exits_0(labctl, path: str) -> None:
    ran = labctl(*path.split(), "--help")
    assert ran.status == 0
    assert ran.out.startswith("Usage: labctl")


@pytest.mark.parametrize("example", sorted({e for c in COMMANDS.values() for e in _examples(c)}))
def test_example_parses(labctl, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example names options and verbs that there are; those that need no machine run in tests/integration."""
    monkeypatch.chdir(tmp_path)
    for words in commands_of(example):
        if words[0] == "labctl":
            assert labctl(*words[1:], "--help").status == 0, words


def test_version(labctl) -> None:
    from labctl import __version__

    ran = labctl("--version")
    assert (ran.status, ran.out) == (0, f"labctl {__version__}\n")


@pytest.mark.parametrize("arguments", [("targest",), ("targets", "shw"), ("targets", "list", "--jsn"), ("init",)])
def test_usage_errors_exit_2(labctl, arguments: tuple[str, ...]) -> None:
    ran = labctl(*arguments)
    assert ran.status == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_mistyped_verb_gets_the_nearest(labctl) -> None:
    assert "did you mean 'targets'" in labctl("targest").err


def test_no_lab(labctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = labctl("targets", "list")
    assert ran.status == 2
    assert "no lab.toml" in ran.err
    assert "try: labctl init" in ran.err


def test_targets_list(labctl, lab: Path) -> None:
    ran = labctl("targets", "list")
    assert ran.status == 0
    assert ran.out.splitlines()[1].split() == ["small", "x86_64", "1", "64M", "-", "qemu", "-"]
    found = json.loads(labctl("targets", "list", "--json").out)
    assert found["schema"] == 1
    assert found["targets"][0]["name"] == "small"
    assert found["targets"][0]["memory"] == "64M"


def test_targets_list_names_every_mistake_and_shows_the_rest(labctl, lab: Path) -> None:
    (lab / "targets/broken.toml").write_text('cpu = 1\nmemory = "lots"\n[drivers.qemu]\n')
    (lab / "targets/twice.toml").write_text("cpus = 1\ncpus = 2\n")
    ran = labctl("targets", "list")
    assert ran.status == 2
    assert "small" in ran.out
    for mistake in ("broken.toml: cpu: unknown key; did you mean 'cpus'", "memory", "cpus: missing", "twice.toml: cpus: stands twice"):
        assert mistake in ran.err
    assert "Traceback" not in ran.err


def test_targets_show(labctl, lab: Path) -> None:
    ran = labctl("targets", "show", "small")
    assert ran.status == 0
    assert "64M" in ran.out
    assert "qemu (Power, Console, Deploy, Counter, Ports)" in ran.out
    assert json.loads(labctl("targets", "show", "small", "--json").out)["roles"]["qemu"] == [
        "Power",
        "Console",
        "Deploy",
        "Counter",
        "Ports",
    ]


BMC = 'host = "192.0.2.9"\nuser = "u"\npassword = "env:BMC_PASSWORD"\n'


def test_each_server_that_is_wrong_has_a_line(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(targets: list[Target], _: Path) -> list[checkup.Found]:
        return [checkup.Found(each.name, wrong=[ManagementError("its BMC does not answer", remedy="see its cable")]) for each in targets]

    monkeypatch.setenv("BMC_PASSWORD", "x")
    monkeypatch.setattr(checkup, "check_all", silent)
    for number in (1, 2):
        own = BMC.replace("192.0.2.9", f"192.0.2.{number}")
        (lab / f"targets/rack{number}.toml").write_text(f'cpus = 1\nmemory = "1G"\n[drivers.ipmi]\n{own}')
    ran = labctl("targets", "check")
    assert ran.status == 3
    assert ran.err == "labctl: rack1: its BMC does not answer\nrack2: its BMC does not answer\n  try: see its cable\n"


def test_two_names_of_one_bmc(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is asked of the BMC; a check finds both of them wrong, whichever it was asked for."""
    monkeypatch.setenv("BMC_PASSWORD", "x")
    for name in ("rack1", "rack2"):
        (lab / f"targets/{name}.toml").write_text(f'cpus = 1\nmemory = "1G"\n[drivers.ipmi]\n{BMC}')
    for verb in (("power", "on"), ("power", "off"), ("power", "cycle"), ("power", "reset"), ("console",)):
        ran = labctl(*verb, "rack1")
        assert ran.status == 2, (verb, ran.err)
        assert "targets/rack2.toml: drivers: names the BMC 192.0.2.9" in ran.err
        assert "as target rack1 does" in ran.err
    for asked in ((), ("rack1",), ("rack2",)):
        ran = labctl("targets", "check", "--offline", "--json", *asked)
        assert ran.status == 2
        state = {target["target"]: target["ok"] for target in json.loads(ran.out)["targets"]}
        assert state == {name: name == "small" for name in asked or ("rack1", "rack2", "small")}


def test_how_a_target_stands_is_shown_where_one_looks(labctl, lab: Path) -> None:
    assert labctl("targets", "reserve", "small", "--note", "looking for the leak").status == 0
    assert labctl("targets", "list").out.splitlines()[1].split()[-1] == "reserved"
    assert "reserved by" in json.loads(labctl("targets", "list", "--json").out)["targets"][0]["standing"]
    assert "looking for the leak" in labctl("power", "status", "small").out
    assert "looking for the leak" in json.loads(labctl("power", "status", "small", "--json").out)["standing"]


@pytest.mark.parametrize("key", ["image", "kernel", "initrd"])
def test_a_file_for_the_disk_that_is_not_there(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("BMC_PASSWORD", "x")
    disk = f'disk = "1M"\n[drivers.ipmi]\n{BMC}[drivers.disk]\n{key} = "{{}}"\n'
    (lab / "targets/rack.toml").write_text('cpus = 1\nmemory = "1G"\n' + disk.format("/nowhere.raw"))
    ran = labctl("targets", "check", "--offline", "rack")
    assert (ran.status, "drivers.disk." + key in ran.err, "'/nowhere.raw' is no file" in ran.err) == (2, True, True)
    (lab / "large.raw").write_bytes(bytes((1 << 20) + 512))
    (lab / "targets/rack.toml").write_text('cpus = 1\nmemory = "1G"\n' + disk.format(lab / "large.raw"))
    ran = labctl("targets", "check", "--offline", "rack")
    assert ("the machine's disk 1M" in ran.err) == (key == "image")


def test_a_check_asks_no_person(labctl, lab: Path) -> None:
    """At night nobody is there, and a target that is switched by hand is no fault."""
    (lab / "targets/bench.toml").write_text('cpus = 1\nmemory = "1G"\n[drivers.manual]\nterminal = "/dev/null/nowhere"\n')
    ran = labctl("targets", "check", "bench")
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[1].split()[:5] == ["bench", "ok", "asks", "a", "person"]


def test_targets_show_unknown(labctl, lab: Path) -> None:
    ran = labctl("targets", "show", "smal")
    assert ran.status == 2
    assert ran.err == "labctl: unknown target 'smal'; did you mean 'small'? (known: small)\n"


def test_targets_check_finds_what_the_host_lacks(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert labctl("targets", "check").status == 0
    (lab / "targets/other.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qemu]\nbinary = "/nope/qemu"\n')
    ran = labctl("targets", "check", "other")
    assert (ran.status, "/nope/qemu" in ran.err) == (3, True)
    assert "ok" not in ran.out
    assert "apt-get" not in ran.err, "no package has such a path"
    (lab / "bin").mkdir()
    monkeypatch.setenv("PATH", str(lab / "bin"))
    ran = labctl("targets", "check", "small")
    assert ran.status == 3
    assert "the host has no qemu-system-x86_64" in ran.err
    assert "apt-get install -y qemu-system-x86" in ran.err


def test_targets_check_finds_unknown_driver_and_option(labctl, lab: Path) -> None:
    (lab / "targets/a.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qmeu]\n')
    (lab / "targets/b.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qemu]\nmachin = "q35"\n')
    ran = labctl("targets", "check")
    assert ran.status == 2
    assert "did you mean 'qemu'" in ran.err
    assert "did you mean 'machine'" in ran.err
    assert json.loads(labctl("targets", "check", "--json").out)["targets"][0] == {
        "target": "a",
        "ok": False,
        "problems": [ran.err.splitlines()[0].removeprefix("labctl: ")],
        "standing": "",
    }


def test_build_all_makes_what_can_be_made_and_names_each_that_cannot(labctl, lab: Path) -> None:
    (lab / "good").write_bytes(elf())
    for name, kernel in {"good": "good", "gone": "nowhere", "mine": "lab.toml"}.items():
        (lab / f"kernel/{name}.toml").write_text(f'builder = "path"\ninitramfs = false\n[path]\nkernel = "{kernel}"\n')
    done = labctl("build", "--all")
    assert done.status == 2
    assert done.err.count("labctl: ") == 2
    assert "kernel/gone.toml: path.kernel:" in done.err
    assert "kernel/mine.toml: path.kernel: lab.toml is not a kernel" in done.err
    (lab / "kernel/gone.toml").unlink()
    (lab / "kernel/mine.toml").unlink()
    assert [build["name"] for build in json.loads(labctl("build", "--all", "--json").out)["builds"]] == ["good"]


@pytest.mark.parametrize("name", ["lab", "target", "build", "matrix", "suite", "tool", "image", "stories"])
def test_schema_accepts_what_labctl_accepts(labctl, name: str) -> None:
    found = json.loads(labctl("schema", name).out)
    assert found["$schema"].startswith("https://json-schema.org/")
    assert "schema" in found["properties"]
    assert "schema_" not in found["properties"]
    assert found["additionalProperties"] is False or name in ("build", "tool")
    assert json.loads(labctl("schema").out)["files"][name] == found


def test_runs_list_of_an_empty_lab(labctl, lab: Path) -> None:
    ran = labctl("runs", "list")
    assert (ran.status, ran.out) == (0, "")
    assert json.loads(labctl("runs", "list", "--json").out) == {"schema": 1, "runs": []}
    assert labctl("runs", "show").status == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [(TargetBusy("held by another", target="small"), 3), (BuildFailed("no artefact"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_status_says_whose_fault_it_is(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("labctl.config.Lab.find", fail)
    ran = labctl("targets", "list")
    assert ran.status == status
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_an_error_cannot_steer_the_terminal(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TargetBusy("held by \x1b[31mred\x07\nand blue", target="small", remedy="wait")

    monkeypatch.setattr("labctl.config.Lab.find", fail)
    assert labctl("targets", "list").err == "labctl: small: held by \\x1b[31mred\\x07\nand blue\n  try: wait\n"


def test_mistake_in_labctl_is_no_verdict_on_a_build(labctl, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labctl.config.Lab.find", lambda: 1 / 0)
    ran = labctl("targets", "list")
    assert ran.status == 3
    assert "ZeroDivisionError" in ran.err
    assert "mistake in labctl itself" in ran.err


def test_init_makes_a_lab_and_keeps_what_is_there(labctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = tmp_path / 'it\'s "new"'
    assert labctl("init", str(new)).status == 0
    for folder in ("targets", "suites", "kernel", "hypervisor", "matrix"):
        assert (new / folder).is_dir()
    assert labctl("init", str(new)).status == 2
    (new / "lab.toml").write_text("schema = 1\nname = 'mine'\n")
    (new / "matrix/default.toml").unlink()
    assert labctl("init", str(new), "--force").status == 0
    assert "mine" in (new / "lab.toml").read_text()
    assert (new / "matrix/default.toml").is_file()
    monkeypatch.chdir(new)
    assert labctl("targets", "list").status == 0


def test_init_says_what_can_be_pasted(labctl, tmp_path: Path) -> None:
    new = tmp_path / "my lab; or $HOME"
    said = labctl("init", str(new)).out.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(said)[:3] == ["cd", str(new), "&&"]


def test_init_where_nothing_can_be_made(labctl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file/lab", tmp_path / "file", Path("/dev/null"), Path("/proc/foo")):
        ran = labctl("init", str(folder))
        assert ran.status == 2, folder
        assert str(folder) in ran.err
        assert "Traceback" not in ran.err


def test_runs_of_another_folder(labctl, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    writer = RunWriter.create(elsewhere, matrix="m", argv=[], version="1", host={}, builds={}, targets={}, cells=[])
    assert json.loads(labctl("runs", "list", "--json").out)["runs"] == []
    assert [run["id"] for run in json.loads(labctl("runs", "list", "--results", str(elsewhere), "--json").out)["runs"]] == [writer.id]
    monkeypatch.chdir("/")  # in no lab
    assert json.loads(labctl("runs", "show", "--results", str(elsewhere), "--json").out)["run"]["id"] == writer.id
    ran = labctl("runs", "list", "--results", str(tmp_path / "none"))
    assert (ran.status, "none is not a folder" in ran.err) == (2, True)


def test_a_guess_is_not_shown_as_history(lab: Path) -> None:
    cells = [Cell("b", "t", suite) for suite in ("known", "like", "new")]
    costs = dict(zip((c.id for c in cells), (11.8, 11.8, None), strict=True))
    sources = dict(zip((c.id for c in cells), ("history", "similar", None), strict=True))
    planned = Planned(Lab.find(lab), Request(), tuple(cells), (), {}, costs, sources)
    assert [_expected(planned, cell) for cell in cells] == ["11.8 s", "~11.8 s (guess)", "? (never run)"]


def test_an_error_names_its_target_once() -> None:
    assert str(TargetBusy("target t is held by root", target="t")) == "target t is held by root"
    assert str(TargetBusy(str(TargetBusy("t: no", target="t")), target="t")) == "t: no"
    assert str(TargetBusy("held", target="t")) == "t: held"


def test_the_size_of_a_build_is_a_number_or_nothing(labctl, lab: Path) -> None:
    (lab / "bzImage").write_bytes(elf())
    (lab / "kernel/mine.toml").write_text('builder = "path"\ninitramfs = false\n[path]\nkernel = "bzImage"\n')
    assert [build["size"] for build in json.loads(labctl("builds", "--json").out)["builds"]] == [None]
    assert labctl("build", "mine").status == 0
    assert [build["size"] for build in json.loads(labctl("builds", "--json").out)["builds"]] == [len(elf())]


def test_completion_knows_the_lab(lab: Path) -> None:
    assert complete_target("s") == ["small"]
    assert complete_build("") == ["mine"]
    assert complete_suite("b") == ["boot"]
    assert complete_matrix("x") == []


def test_completion_is_silent_outside_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_target("") == []


def test_what_a_file_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("\x1b[2Jred\x07") == "\\x1b[2Jred\\x07"
    print_table(("A", "B"), [("\x1b]0;x\x07", 1)])
    assert "\x1b" not in capsys.readouterr().out


def test_verbs_are_in_helps_order(labctl) -> None:
    listed = re.findall(r"^  (\w+)  ", labctl("--help").out.split("Commands:")[1], re.MULTILINE)
    assert listed == [verb for verb in VERBS if verb in listed]
