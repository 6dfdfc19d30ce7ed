"""What is said of a mistake in a file: in the file's own words, with the key and the line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.config import Lab, read_toml, validate
from labctl.errors import ConfigError, Problem
from labctl.machine import registry
from labctl.model import LabConfig, MatrixConfig, Recipe, SuiteConfig, Target, TargetConfig

TARGET = {"schema": 1, "cpus": 1, "memory": "64M", "drivers": {"qemu": {}}}


def said_of(content: bytes, folder: Path) -> Problem:
    file = folder / "x.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(file)
    (problem,) = caught.value.problems
    assert problem.where == str(file)
    return problem


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a = 1\ncpus = 1\ncpus = 2\nb = 1\n", "cpus", 3),
        ("cpus = 1 # one\ncpus = 2 # two\n", "cpus", 2),
        ("a = 1\r\na = 2\r\nb = 3\r\n", "a", 2),
        ("tags = []\ntags = [\n  1,\n  2,\n]\n", "tags", 2),
        ('a = 1\nd = ""\nd = """\na = 3\n"""\n', "d", 3),
        ('"a b" = 1\n"a b" = 2', '"a b"', 2),
        ("[drivers.qemu]\na = 1\n[drivers.qemu]\n", "drivers.qemu", 3),
        ("[[include]]\n[include]\n", "include", 2),
        ('d = "x"\n\n[d]\n', "d", 3),
        ("x = 1\nboot = { silence = 1, silence = 2 }\n", "silence", 2),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path, text: str, key: str, line: int) -> None:
    problem = said_of(text.encode(), tmp_path)
    assert (problem.key, problem.found) == (key, f"stands twice, the second time in line {line}")


def test_a_value_too_long_to_look_for_its_key_is_said_all_the_same(tmp_path: Path) -> None:
    problem = said_of(b"a = 1\na = [" + b"\n1," * 5000 + b"\n]\n", tmp_path)
    assert "line 5003" in problem.found


def test_what_is_no_toml_is_said_with_its_place(tmp_path: Path) -> None:
    problem = said_of(b"a = 1\nb = \n", tmp_path)
    assert str(problem).endswith("x.toml: not valid TOML: invalid value (at line 2, column 5)")


def test_what_is_no_utf_8_is_said_to_be_that(tmp_path: Path) -> None:
    problem = said_of(b'a = 1\nb = "\xff"\n', tmp_path)
    assert str(problem).endswith("x.toml: is not UTF-8 text: byte 0xff in line 2")


@given(st.text(st.sampled_from("ab=[]{}.'\"\n\r #,1\\"), max_size=60))
def test_no_text_upsets_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(text, newline="")
    said = ""
    try:
        read_toml(file)
    except ConfigError as error:
        said = str(error)
    assert not said or "not valid TOML" in said or "stands twice" in said


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (MatrixConfig, {"builds": "debian", "targets": ["*"], "suites": ["*"]}, "f: builds: found 'debian'; a list, in [ ]"),
        (MatrixConfig, {"builds": [1], "targets": ["*"], "suites": ["*"]}, "f: builds.0: found 1; text in quotes"),
        (MatrixConfig, {"builds": [], "targets": [], "suites": [], "include": [1]}, "f: include.0: found 1; a table"),
        (Recipe, {"builder": "deb", "options": 5}, "f: options: found 5; a table"),
        (Recipe, {"builder": "deb", "initramfs": "x"}, "f: initramfs: found 'x'; true or false"),
        (Recipe, {"builder": "deb", "arch": "x"}, "f: arch: found 'x'; allowed: 'x86_64', 'aarch64' or 'riscv64'"),
        (
            Recipe,
            {"builder": "deb", "milestones": {"redy": "x"}},
            "f: milestones.redy: found 'redy'; allowed: 'firmware', 'kernel_entry', 'init' or 'ready'",
        ),
        (TargetConfig, {**TARGET, "cpus": "many"}, "f: cpus: found 'many'; a whole number"),
        (TargetConfig, {**TARGET, "cpus": 1.5}, "f: cpus: found 1.5; a whole number"),
        (TargetConfig, {**TARGET, "cpus": 0}, "f: cpus: found 0; at least 1"),
        (TargetConfig, {**TARGET, "boot": {"deadline": "x"}}, "f: boot.deadline: found 'x'; a number"),
        (TargetConfig, {**TARGET, "boot": 5}, "f: boot: found 5; a table"),
        (TargetConfig, {**TARGET, "drivers": {}}, "f: drivers: found {}; at least 1 entry"),
        (TargetConfig, {**TARGET, "drivers": {"qemu": 1}}, "f: drivers.qemu: found 1; a table"),
        (TargetConfig, {**TARGET, "memory": "1M"}, "f: memory: found '1M'; at least 16M: no machine starts with less"),
        (TargetConfig, {**TARGET, "disk": 0}, "f: disk: found 0; at least 1M; leave it out for none"),
        (TargetConfig, {**TARGET, "cpus": True}, "f: cpus: found True; a whole number"),
        (TargetConfig, {**TARGET, "schema": True}, "f: schema: found True; a whole number"),
        (TargetConfig, {**TARGET, "disk": True}, "f: disk: found True; a size is a number of bytes or text like 512M, 4G"),
        (TargetConfig, {**TARGET, "boot": {"deadline": True}}, "f: boot.deadline: found True; a number"),
        (Recipe, {"builder": "deb", "icount_cpus": False}, "f: icount_cpus: found False; at least 1"),
        (Recipe, {"builder": "deb", "icount_cpus": True}, "f: icount_cpus: found True; a whole number"),
        (SuiteConfig, {"warm": "yes"}, "f: warm: found 'yes'; true or false"),
        (SuiteConfig, {"reuse": 0}, "f: reuse: found 0; true or false"),
        (Recipe, {"builder": "deb", "initramfs": "off"}, "f: initramfs: found 'off'; true or false"),
        (Recipe, {"builder": "deb", "initramfs": 1.0}, "f: initramfs: found 1.0; true or false"),
        (LabConfig, {"retries": True}, "f: retries: found True; a whole number"),
        (
            TargetConfig,
            {**TARGET, "append": "a\0b"},
            "f: append: found 'a\\x00b'; words without control characters (there is '\\x00' in it)",
        ),
        (Recipe, {"builder": "deb", "append": "a\nb"}, "f: append: found 'a\\nb'; words without control characters (there is '\\n' in it)"),
        (
            TargetConfig,
            {**TARGET, "drivers": {"qemu": {"extra": ["a", "\0"]}}},
            "f: drivers.qemu.extra.1: found '\\x00'; text without the character U+0000",
        ),
    ],
)
def test_a_wrong_value_is_said_in_the_words_of_the_file(model: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(model, given, "f")
    assert str(caught.value) == said


def test_true_and_false_are_values_where_they_are_meant() -> None:
    assert validate(Recipe, {"builder": "deb", "initramfs": False, "options": {"deep": [True]}}, "f").options == {"deep": [True]}
    assert validate(TargetConfig, {**TARGET, "drivers": {"qemu": {"debug_exit": True}}}, "f").drivers["qemu"]["debug_exit"] is True


@pytest.mark.parametrize("name", ["firmware_console", "debug_exit", "disk_slot", "icount_disk"])
@pytest.mark.parametrize("value", ["yes", "true", "0", 1])
def test_a_word_is_no_true_among_the_options_of_a_driver(name: str, value: object) -> None:
    target = Target("t", validate(TargetConfig, {**TARGET, "drivers": {"qemu": {name: value}}}, "f"))
    with pytest.raises(ConfigError, match=rf"drivers\.qemu\.{name}: found {value!r}; true or false"):
        registry.check(target)


def test_a_number_is_no_true_where_a_path_is_meant_too() -> None:
    options = {"url": "https://bmc", "user": "u", "password": "env:X"}

    def check(verify: object) -> None:
        registry.check(Target("t", validate(TargetConfig, {**TARGET, "drivers": {"redfish": {**options, "verify": verify}}}, "f")))

    with pytest.raises(ConfigError, match=r"drivers\.redfish\.verify: found 1; true or false"):
        check(1)
    for right in (False, "/etc/ca.pem"):
        with pytest.raises(ConfigError) as caught:
            check(right)
        assert "verify" not in str(caught.value), "only that the target has no console"


@pytest.mark.parametrize("path", ["lab.toml", "targets/x.toml", "kernel/x.toml", "kernel/x/build.toml", "matrix/x.toml"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, path: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / path)
    lab = Lab(tmp_path, LabConfig(schema=1))
    readers = {"lab.toml": lambda _: Lab.find(tmp_path), "targets": lab.target, "kernel": lab.recipe, "matrix": lab.matrix}
    with pytest.raises(ConfigError, match=rf"{path}: is not a regular file"):
        readers[path.partition("/")[0]]("x")


@pytest.mark.parametrize("name", ["fe2,q=", "a b", "ä", "-n", "x\n", "x" * 65])
def test_a_file_whose_name_cannot_be_that_of_a_target(tmp_path: Path, name: str) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / f"targets/{name}.toml").write_text('schema = 1\ncpus = 1\nmemory = "64M"\n[drivers.qemu]\n')
    lab = Lab(tmp_path, LabConfig(schema=1))
    with pytest.raises(ConfigError) as caught:
        lab.target(name)
    (problem,) = caught.value.problems
    assert problem.where.endswith(f"targets/{name}.toml")
    assert problem.allowed.startswith("letters, digits and")


def test_the_smallest_machine_is_allowed() -> None:
    config = validate(TargetConfig, {**TARGET, "memory": "16M", "disk": "1M"}, "f")
    assert (config.memory, config.disk) == (16 << 20, 1 << 20)


def test_outside_of_a_lab_it_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Lab.find(tmp_path)
    assert caught.value.message == f"{tmp_path}: is not in a lab: there is no lab.toml here or in any folder above"


@pytest.mark.parametrize("kind", ["target", "matrix", "suite"])
def test_an_unknown_name_is_said_once(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(Lab(tmp_path, LabConfig(schema=1)), kind)("nope")
    assert caught.value.message == f"unknown {kind} 'nope'; there is none yet"
