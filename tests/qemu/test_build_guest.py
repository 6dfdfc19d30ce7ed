"""What runs inside the machine under test: `guest/init` on a real kernel, watched byte by byte over QEMU's serial line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect.popen_spawn
import pytest

from labctl.build.initramfs import with_overlay
from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.model import Build

pytestmark = pytest.mark.qemu

PROMPT = "labctl# "


class Guest:
    """A booted machine: type a line, read until something is seen."""

    def __init__(self, build: Build) -> None:
        qemu = "qemu-system-x86_64 -M q35 -accel tcg -m 512M -smp 1 -display none -no-reboot -nodefaults -serial stdio"
        words = [*qemu.split(), "-kernel", str(build.kernel), "-initrd", str(build.initrd), "-append", "console=ttyS0,115200 panic=-1"]
        self.line: Any = pexpect.popen_spawn.PopenSpawn(words, timeout=60)
        self.line.expect_exact("Run /init as init process")
        self.line.expect_exact("labctl-guest: ready\r\n")
        self.boot = self.line.before.decode(errors="replace")
        self.line.expect_exact(PROMPT)

    def type(self, text: str, until: str = PROMPT) -> str:
        self.line.sendline(text)
        self.line.expect_exact(until)
        return str(self.line.before.decode(errors="replace"))

    def quiet(self) -> None:
        """No echo, so that the shell edits no lines, and no kernel messages in between: only answers from here on."""
        self.type("stty -echo; dmesg -n 1")

    def said(self) -> list[str]:
        """What was printed between the kernel's start of init and ready, without the kernel's own messages."""
        return [line.strip() for line in self.boot.splitlines() if line.strip() and not line.startswith("[")]

    def close(self) -> None:
        self.line.proc.kill()
        self.line.proc.wait()


@pytest.fixture
def guest(debian: Build) -> Iterator[Guest]:
    guest = Guest(debian)
    yield guest
    guest.close()


def test_a_machine_comes_up_and_serves_its_console(guest: Guest, debian: Build) -> None:
    assert guest.said() == []
    guest.quiet()
    assert guest.type("uname -r") == f"{debian.version}\r\n"
    assert guest.type("tty") == "/dev/console\r\n"
    mounted = guest.type("mount")
    for place in ("/proc type proc", "/sys type sysfs", "/dev type devtmpfs", "/tmp type tmpfs", "/run type tmpfs"):
        assert place in mounted
    assert guest.type("echo $TERM:$HOME:$(pwd)") == "dumb:/root:/root\r\n"
    # Programs that are no shell find the applets too.
    assert guest.type("env ls /init; echo /init | xargs ls; sh -c 'ls /init'") == "/init\r\n" * 3


def test_ctrl_c_reaches_the_command_and_exit_gives_a_new_shell(guest: Guest) -> None:
    guest.quiet()
    # It is the command itself that says that it has begun: a Ctrl-C between two commands would reach the shell.
    guest.line.sendline("""sh -c "echo be''gun; exec sleep 1000" """)
    guest.line.expect_exact("begun")
    guest.line.send("\x03")
    guest.line.expect_exact(PROMPT, timeout=10)
    before = guest.type("echo $$").strip()
    guest.type("exit")
    assert guest.type("echo $$").strip() != before
    guest.line.sendline("poweroff -f")
    guest.line.expect_exact("reboot: Power down", timeout=20)
    assert guest.line.proc.wait(10) == 0


def test_an_overlay_brings_hooks_that_run_before_ready(debian: Build, tmp_path: Path) -> None:
    hooks = tmp_path / "etc/labctl/rc.d"
    hooks.mkdir(parents=True)
    (hooks / "10-first.sh").write_text("echo hook one; exit 1\n")
    (hooks / "20-second.sh").write_text("echo hook two >/tmp/seen; cat /tmp/seen /extra\n")
    (tmp_path / "extra").write_text("from the overlay\n")
    guest = Guest(with_overlay(debian, tmp_path))
    try:
        failed = "labctl-guest: /etc/labctl/rc.d/10-first.sh ended with status 1"
        assert guest.said() == ["hook one", failed, "hook two", "from the overlay"]
    finally:
        guest.close()


@pytest.mark.parametrize("name", ["debian-cloud-previous", "debian-6.12-cloud"])
def test_the_other_recipes_boot_and_say_their_version(repository: Lab, name: str) -> None:
    build = obtain(repository, name, progress=print)
    guest = Guest(build)
    try:
        guest.quiet()
        assert guest.type("uname -r") == f"{build.version}\r\n"
    finally:
        guest.close()
