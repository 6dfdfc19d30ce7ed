"""Shell: a command's status and its exact output, whatever else is on the channel."""

from __future__ import annotations

import io
import random
import string
import time

import pytest

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, KernelCrash, TargetFailure, TargetHung
from labctl.machine.protocols import Files, Shell
from labctl.machine.session import Session

ROLE = Shell
pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("true", 0, ""),
        ("false", 1, ""),
        ("exit 255", 255, ""),
        ("sh -c 'kill -9 $$'", 137, None),
        ("no-such-command", 127, None),
        ("echo one; echo two >&2; exit 3", 3, "one\ntwo\n"),
        ("printf 'no line end'", 0, "no line end"),
        ("printf '\\n\\n  a \\n\\n'", 0, "\n\n  a \n\n"),
        ("echo 'é ü 漢字 🙂'", 0, "é ü 漢字 🙂\n"),
        ("printf '\\000\\001\\033[2J\\377\\r\\n'", 0, "\x00\x01\x1b[2J\ufffd\r\n"),
        ("echo '[    1.234567] not the kernel'", 0, "[    1.234567] not the kernel\n"),
        ("echo 'labctl<12345678'; echo :0:abc; echo 'labctl>12345678'", 0, "labctl<12345678\n:0:abc\nlabctl>12345678\n"),
        ("cat <<'END'\n$HOME `pwd` \"quoted\" \\ back\nEND", 0, '$HOME `pwd` "quoted" \\ back\n'),
        ("cat", 0, ""),
        ("echo 'Kernel panic - not syncing: only words'", 0, "Kernel panic - not syncing: only words\n"),
        ("seq 1 40000", 0, "".join(f"{i}\n" for i in range(1, 40001))),
        ('echo $((6 * 7)) | { read x; echo "got $x"; }', 0, "got 42\n"),
    ],
)
def test_status_and_output_are_exact(session: Session, shell: Shell, command: str, status: int, output: str | None) -> None:
    result = shell.run(command, Deadline.after(30))
    assert result.status == status
    assert output is None or result.output + result.stderr == output
    assert 0 < result.duration_s < 30


@pytest.mark.parametrize("size", [300, 523, 524, 525, 526, 1050, 5000, 20000])
def test_a_long_command(session: Session, shell: Shell, size: int) -> None:
    text = "".join(random.Random(size).choices(string.ascii_letters + string.digits + ' éß$"`\\;|&<>()*', k=size))
    quoted = text.replace("'", "")
    assert shell.run(f"printf %s '{quoted}'", Deadline.after(30)).output == quoted


def test_errors_are_kept_apart_where_the_channel_can(session: Session, shell: Shell) -> None:
    result = shell.run("echo one; echo two >&2", Deadline.after(10))
    assert (result.output, result.stderr) in {("one\ntwo\n", ""), ("one\n", "two\n")}


def test_files_both_ways_where_the_channel_can(session: Session, shell: Shell) -> None:
    if not isinstance(shell, Files):
        pytest.skip("this channel carries no files")
    content = random.Random(1).randbytes(300_001)
    shell.put(io.BytesIO(content), "/tmp/file", Deadline.after(30), 0o750)
    assert shell.run("wc -c </tmp/file; stat -c %a /tmp/file; ls /tmp | grep -c file", Deadline.after(10)).output == "300001\n750\n1\n"
    back = io.BytesIO()
    shell.get("/tmp/file", back, Deadline.after(30))
    assert back.getvalue() == content
    for path in ("/nowhere/file", "/tmp"):
        with pytest.raises(CommandFailed, match=path):
            shell.get(path, back, Deadline.after(10))
    with pytest.raises(CommandFailed, match="/nowhere/file"):
        shell.put(io.BytesIO(content), "/nowhere/file", Deadline.after(10))
    assert shell.run("echo on", Deadline.after(10)).output == "on\n"


def test_commands_do_not_see_each_other(session: Session, shell: Shell) -> None:
    shell.run("cd /tmp; X=1; set -e; trap 'echo trapped' EXIT", Deadline.after(10))
    assert shell.run("echo $X:$(pwd); false; echo on", Deadline.after(10)).output == ":/root\non\n"


def test_what_a_command_leaves_running_does_not_talk_into_the_next(session: Session, shell: Shell) -> None:
    assert shell.run("(sleep 1; echo late) & echo first", Deadline.after(10)).output == "first\n"
    assert shell.run("echo second; sleep 2", Deadline.after(10)).output == "second\n"


def test_outputs_do_not_pile_up_in_the_machine(session: Session, shell: Shell) -> None:
    for _ in range(5):
        shell.run("seq 1 1000", Deadline.after(10))
    assert int(shell.run("ls /tmp/.labctl* 2>/dev/null | wc -l", Deadline.after(10)).output) <= 3


def test_kernel_messages_break_nothing(session: Session, shell: Shell) -> None:
    """Fifty commands, short and long, while the kernel floods the same console as fast as it can."""
    flood = "echo on >/proc/sys/kernel/printk_devkmsg; dmesg -n 8; while :; do echo flood of words >/dev/kmsg; done"
    since = session.transcript.size
    shell.run(f"({flood}) >/dev/null 2>&1 & echo $! >/tmp/flood", Deadline.after(10))
    began = time.monotonic()
    for i in range(50):
        size = 10 if i % 5 else 3000
        result = shell.run(f"echo {'x' * size}; seq {i} {i + size}; exit {i}", Deadline.after(30))
        assert result.output == "x" * size + "\n" + "".join(f"{n}\n" for n in range(i, i + size + 1))
        assert result.status == i
    took = time.monotonic() - began
    shell.run("kill $(cat /tmp/flood); dmesg -n 1", Deadline.after(30))
    assert session.transcript.read(since).count(b"flood of words") > 100
    assert took < 60


def test_a_command_that_never_ends_and_a_fresh_boot_after_it(session: Session) -> None:
    session.run("true")
    boots = len(session.boots)
    began = time.monotonic()
    with pytest.raises(TargetHung, match="did not end within 2 s") as error:
        session.run("sleep 1000", deadline=2)
    assert 1.9 < time.monotonic() - began < 5
    assert error.value.target == session.name
    assert session.run("echo back").output == "back\n"
    assert len(session.boots) == boots + 1


def test_a_panic_in_the_middle_of_a_command(session: Session) -> None:
    """It is told as a panic, with its title, and not when the command's time is over."""
    session.run("true")
    began = time.monotonic()
    with pytest.raises(TargetFailure) as error:
        session.run("echo before; echo c >/proc/sysrq-trigger; sleep 100", deadline=30)
    assert isinstance(error.value, KernelCrash)
    assert "sysrq triggered crash" in error.value.title
    assert "Call Trace" in error.value.excerpt
    assert time.monotonic() - began < 10
    assert session.run("echo back").output == "back\n"


def test_a_machine_that_powers_off_in_the_middle_of_a_command(session: Session) -> None:
    session.run("true")
    began = time.monotonic()
    with pytest.raises(TargetFailure, match=r"went off in the middle of .*the guest powered the machine off"):
        session.run("poweroff -f; sleep 100", deadline=30)
    assert time.monotonic() - began < 10
    assert session.run("echo back").output == "back\n"
