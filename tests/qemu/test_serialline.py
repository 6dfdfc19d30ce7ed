"""QEMU's serial port takes what the machine says, also while nobody reads it."""

from __future__ import annotations

import array
import fcntl
import os
import subprocess
import termios
import time
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine.serialline import by_pipes
from labctl.process import start

pytestmark = pytest.mark.qemu
COUNT = 60_000
BLIND = f"""
.code16
.globl _start
_start:
    mov $0x3fa, %dx
    mov $1, %al
    out %al, %dx            # the FIFOs of a 16550
    mov $0x3f8, %dx
    mov ${COUNT}, %ecx
1:  mov %cl, %al
    out %al, %dx            # whether there is room or not
    dec %ecx
    jnz 1b
2:  hlt
    jmp 2b
.org 510
.word 0xaa55
"""


def test_a_machine_that_does_not_wait_loses_nothing(tmp_path: Path) -> None:
    """So Linux's console does before its clock is calibrated, and after 10 ms later on."""
    sector, made = tmp_path / "blind.img", tmp_path / "blind.o"
    subprocess.run(["as", "--32", "-o", made, "-"], input=BLIND.encode(), check=True)
    link = ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", sector, made]
    subprocess.run(link, check=True, stderr=subprocess.DEVNULL)
    line = by_pipes()
    machine = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-drive", f"file={sector},format=raw,if=ide"]
    child = start([*machine, *line.arguments, "-serial", "chardev:console"], stdin=line.stdin, stdout=line.stdout)
    line.handed_over()
    try:
        waiting, limit = array.array("i", [0]), Deadline.after(30)
        while waiting[0] < COUNT and not limit.expired:
            time.sleep(0.05)
            fcntl.ioctl(line.reads, termios.FIONREAD, waiting)
        assert waiting[0] == COUNT
        said = os.read(line.reads, COUNT)
        assert said == bytes(number & 0xFF for number in range(COUNT, 0, -1))
    finally:
        child.kill()
        line.close()
