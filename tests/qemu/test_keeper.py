"""``labctl power`` and ``labctl console``: a machine that outlives the command that switched it on."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.leftovers import gone_within, our_machines
from tests.temporary_lab import LABCTL, Ran, TemporaryLab

pytestmark = pytest.mark.qemu


@pytest.fixture
def lab(new_lab: Callable[[], TemporaryLab]) -> Iterator[TemporaryLab]:
    made = new_lab()
    yield made
    _power(made, "off")
    assert gone_within(1.0, made.target)


def _power(lab: TemporaryLab, *words: str) -> Ran:
    """A command after which the machine may stay on."""
    return _labctl(lab, "power", words[0], lab.target, "--json", *words[1:])


def _labctl(lab: TemporaryLab, *arguments: str, stdin: str = "") -> Ran:
    with lab.start(*arguments, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(stdin, timeout=60)
    return Ran(process.returncode, out, err)


def test_on_status_cycle_reset_off(lab: TemporaryLab) -> None:
    assert _power(lab, "status").data["state"] == "off"
    on = _power(lab, "on")
    assert on.status == 0, on.err
    assert on.data["state"] == "on"
    (first,) = our_machines(lab.target)
    status = _power(lab, "status").data
    assert status["state"] == "on"
    assert [holder["why"] for holder in status["holders"]] == ["labctl power on"]
    assert _power(lab, "on").data["state"] == "on"  # on already
    assert our_machines(lab.target) == [first]
    assert _power(lab, "reset").data["state"] == "on"
    assert our_machines(lab.target) == [first]
    assert _power(lab, "cycle").data["state"] == "on"
    (second,) = our_machines(lab.target)
    assert second != first
    time.sleep(1)  # a machine that dies with a thread of the keeper's dies now
    assert our_machines(lab.target) == [second]
    assert _power(lab, "off").data["state"] == "off"
    assert our_machines(lab.target) == []
    assert _power(lab, "off").data["state"] == "off"
    assert _power(lab, "status").data["holders"] == []


def test_two_that_switch_it_on_at_once_share_one_machine(lab: TemporaryLab) -> None:
    with lab.start("power", "on", lab.target, "--json") as one, lab.start("power", "on", lab.target, "--json") as other:
        for process in (one, other):
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
    assert len(our_machines(lab.target)) == 1
    assert _power(lab, "off").data["state"] == "off"
    assert our_machines(lab.target) == []


@pytest.mark.parametrize("verb", ["cycle", "reset"])
def test_a_machine_that_is_off_is_not_cycled(lab: TemporaryLab, verb: str) -> None:
    ran = _power(lab, verb)
    assert ran.status == 3
    assert f"labctl power on {lab.target}" in ran.err


def test_a_target_that_is_kept_is_busy(lab: TemporaryLab) -> None:
    lab.write(f"targets/{lab.target}.toml", (lab.root / f"targets/{lab.target}.toml").read_text().replace("instances = 4", ""))
    _power(lab, "on")
    lab.suite("ready", "def test_ready(booted):\n    pass\n")
    with lab.start("run", "matrix", "--json") as process:
        events = lab.root / "results"
        end = time.monotonic() + 30
        while not any("labctl power on" in e.read_text() for e in events.glob("*/cells/*/attempt-1/events.jsonl")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        assert _power(lab, "off").status == 0  # free at once: the run goes on
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["outcome"] == "pass"


def test_piped_commands_on_the_console(lab: TemporaryLab) -> None:
    ran = _labctl(lab, "console", lab.target, stdin='echo "ans""wer"; uname -r; poweroff -f\n')
    assert ran.status == 0, ran.err
    assert "answer" in ran.out
    assert lab.debian.version in ran.out
    assert gone_within(1.0, lab.target)
    assert _power(lab, "status").data["state"] == "off"


@pytest.mark.parametrize(
    ("typed", "answer"), [("", "labctl-guest: ready"), ("sleep 2; echo one$((1))\necho two$((2))", "two2"), ("exit\n", "exit")]
)
def test_a_piped_console_ends_with_its_input(lab: TemporaryLab, typed: str, answer: str) -> None:
    """Once the answer is there, with the machine that it booted."""
    ran = _labctl(lab, "console", lab.target, stdin=typed)
    assert ran.status == 0, ran.err
    assert answer in ran.out
    assert "left the console" in ran.err
    assert _power(lab, "status").data == {"schema": 1, "target": lab.target, "state": "off", "holders": [], "standing": ""}
    assert our_machines(lab.target) == []


def test_a_piped_console_of_a_silent_guest_ends(lab: TemporaryLab) -> None:
    lab.build("debian", init="echo up; sleep 60")
    started = time.monotonic()
    ran = _labctl(lab, "console", lab.target, "--quiet", "3", stdin="true\n")
    assert ran.status == 0, ran.err
    assert "up" in ran.out
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_console_takes_the_machine_that_it_booted_with_it(lab: TemporaryLab, number: signal.Signals) -> None:
    with lab.start("console", lab.target, stdin=subprocess.PIPE) as process:
        _until(lambda: our_machines(lab.target))
        (holder,) = _power(lab, "status").data["holders"]
        assert holder["why"] == "labctl console"
        process.send_signal(number)
        assert gone_within(3.0, lab.target)
    assert _power(lab, "status").data["holders"] == []


@pytest.mark.parametrize("kept", ["by the console", "by power on"])
def test_a_killed_console_leaves_a_machine_on_that_is_kept(lab: TemporaryLab, kept: str) -> None:
    options = ["--keep"] if kept == "by the console" else []
    with lab.start("console", lab.target, *options, stdin=subprocess.PIPE) as process:
        _until(lambda: our_machines(lab.target))
        if not options:
            assert _power(lab, "on").data["state"] == "on"
        process.kill()
    time.sleep(1)
    assert len(our_machines(lab.target)) == 1
    assert _power(lab, "off").data["holders"] == []  # and not the keeper that is just going


def test_the_terminal_is_as_it_was(lab: TemporaryLab) -> None:
    screen, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with subprocess.Popen(
        [str(LABCTL), "console", lab.target],
        cwd=lab.root,
        env=lab.environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        shown = b""

        def shows(words: bytes) -> bool:
            nonlocal shown
            if select.select([screen], [], [], 0.1)[0]:
                shown += os.read(screen, 65536)
            return words in shown

        _until(lambda: shows(b"labctl# "))
        assert termios.tcgetattr(terminal) != before
        os.write(screen, b"printf 'a\\033[?7lb\\033cd\\033[31m'; poweroff -f\n")
        _until(lambda: shows(b"the machine is off]"))
        assert process.wait(timeout=5) == 0
    os.close(terminal)
    os.close(screen)
    assert b"abd\x1b[31m" in shown
    assert b"\x1b[?7l" not in shown  # SeaBIOS says that too, and resets the terminal
    assert b"\x1bc" not in shown
    assert shown.rindex(b"\x1b[?7h\x1b[0m") > shown.rindex(b"\x1b[31m")


def _until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_console_leaves_a_kept_machine_on(lab: TemporaryLab) -> None:
    """Nothing that the machine said before is lost to who comes later."""
    _power(lab, "on")
    for typed in ("for i in 0 1 2 3 4 5 6 7 8 9; do head -c 2048 /dev/zero | tr '\\0' x; done", "echo one$((1))"):
        ran = _labctl(lab, "console", lab.target, stdin=typed)
        assert ran.status == 0, ran.err
        assert ("Linux version" in ran.out) == (typed[0] == "f")  # later it is too long ago
    assert "one1" in ran.out
    assert len(our_machines(lab.target)) == 1
    assert _power(lab, "status").data["state"] == "on"


def test_a_keeper_that_is_killed_takes_its_machine_with_it(lab: TemporaryLab) -> None:
    _power(lab, "on")
    (holder,) = _power(lab, "status").data["holders"]
    os.kill(holder["pid"], signal.SIGKILL)
    assert gone_within(1.0, lab.target)
    status = _power(lab, "status").data
    assert status["state"] == "off"
    assert status["holders"] == []
    assert _power(lab, "on").data["state"] == "on"


def test_why_it_cannot_be_switched_on(lab: TemporaryLab) -> None:
    file = lab.root / f"targets/{lab.target}.toml"
    file.write_text(file.read_text().replace('accel = "tcg"', 'accel = "tcg"\nextra = ["-no-such-option"]'))
    ran = _power(lab, "on")
    assert ran.status == 3
    assert "no-such-option" in ran.err
    assert "Traceback" not in ran.err
