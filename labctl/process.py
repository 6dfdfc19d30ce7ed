"""The only place that starts a host process.

`run` waits for a short program and returns its output; `start` gives a long-lived one that dies with its owner, also at ``kill -9``
of the owner (Linux ``PR_SET_PDEATHSIG``, set by util-linux' ``setpriv`` between fork and exec so that no Python runs there).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import traceback
import tty
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, ManagementError

# Debian package of each program that the lab calls, for the line that mends its absence.
PACKAGES: Mapping[str, str] = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "busybox": "busybox-static",
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "dpkg-source": "dpkg-dev",
    "make": "make",
    "patch": "patch",
    "strip": "binutils",
    "gcc": "gcc",
    "git": "git",
    "rustc": "rustc-web rust-web-src",
    "ld.lld": "lld",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "ipmi_sim": "openipmi",
    "ipmitool": "ipmitool",
    "dnsmasq": "dnsmasq-base",
    "mformat": "mtools",
    "mcopy": "mtools",
    "syslinux": "syslinux",
}


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left: exit status (negative: the signal), standard output and error as text."""

    argv: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """The program's own last words, for an error message."""
        return (self.err.strip() or self.out.strip()).splitlines()[-1] if (self.err.strip() or self.out.strip()) else ""


def find(program: str) -> str:
    """Absolute path of a program by name or path. Raises HostToolMissing with the line that installs it."""
    # Debian keeps mke2fs where only root's PATH leads, though anybody may use it.
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        if os.sep in program:
            raise HostToolMissing(f"the host has no program {program}", remedy="see that the file is there and may be executed")
        package = PACKAGES.get(program, program)
        raise HostToolMissing(f"the host has no {program}", remedy=f"apt-get install -y {package}")
    return path


def run(
    argv: Sequence[str],
    deadline: Deadline,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    owned: bool = False,
) -> Completed:
    """Run a program to its end. Raises HostToolMissing, or ManagementError when the deadline passes (it is killed then).

    ``owned``: it is killed too when this process is; for one that runs so long that it would matter.
    """
    find(argv[0])
    bound = [find("setpriv"), "--pdeathsig", "KILL", "--"] if owned else []
    with subprocess.Popen(
        [*bound, *argv],
        cwd=cwd,
        env=None if env is None else dict(env),
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=deadline.left)
        except subprocess.TimeoutExpired:
            raise ManagementError(f"{argv[0]} did not end within {deadline.seconds:g} s") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return Completed(tuple(argv), process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


@dataclass(slots=True)
class Child:
    """A long-lived process of ours. Use as a ``with`` block: it is dead and reaped at the end of it."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self.process.poll()

    def wait(self, deadline: Deadline) -> int | None:
        """Exit status, or None if it still runs when the deadline has passed."""
        try:
            return self.process.wait(timeout=deadline.left)
        except subprocess.TimeoutExpired:
            return None

    def interrupt(self, number: int = signal.SIGTERM) -> None:
        """Ask it to end, as a supervisor does (SIGTERM) or Ctrl-C (SIGINT). Gone already is no error."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> int:
        """Kill and reap; returns the exit status."""
        with suppress(ProcessLookupError):
            self.process.kill()
        return self.process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


def start(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stderr: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stdin: int | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    cpus: Sequence[int] = (),
) -> Child:
    """Start a process that the kernel kills when the calling *thread* ends: call it from a thread that lives as long as the process.

    ``cpus`` pins it. Raises HostToolMissing.
    """
    program = find(argv[0])
    pinned = [find("taskset"), "-c", ",".join(map(str, cpus))] if cpus else []
    return Child(
        subprocess.Popen(
            [find("setpriv"), "--pdeathsig", "KILL", "--", *pinned, program, *argv[1:]],
            pass_fds=tuple(pass_fds),
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=stdout if stdout is not None else subprocess.DEVNULL,
            stderr=stderr if stderr is not None else subprocess.DEVNULL,
            cwd=cwd,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    )


def start_on_terminal(argv: Sequence[str]) -> tuple[Child, int]:
    """Start a program that wants a terminal, as `start` does. Returns it and the other side of that terminal, which is the caller's to
    close: raw, so that every byte passes as it is, and not blocking. Raises HostToolMissing."""
    program, setpriv = find(argv[0]), find("setpriv")
    ours, its = os.openpty()
    try:
        tty.setraw(its)
        os.set_blocking(ours, False)
        child = Child(
            subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", "--", program, *argv[1:]], stdin=its, stdout=its, stderr=its, start_new_session=True
            )
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(its)
    return child, ours


def detach(argv: Sequence[str], keep_fds: Sequence[int], log: Path) -> None:
    """Start a process that outlives this one, in a session of its own, with some of our file descriptors; its words go to ``log``."""
    with log.open("wb") as output:
        subprocess.Popen(  # not waited for: init adopts it
            list(argv), pass_fds=tuple(keep_fds), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
        )


def fork(work: Callable[[], None]) -> int:
    """A copy of this process, which must have one thread only, that does ``work`` with nothing at its standard input and output, and
    ends. Returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        devnull = os.open(os.devnull, os.O_RDWR)
        os.dup2(devnull, 0)
        os.dup2(devnull, 1)
        os.close(devnull)
        work()
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:  # noqa: BLE001  # nothing of it may run on in the copy
        traceback.print_exc()
    finally:
        os._exit(1)


ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_once(*, always: Collection[signal.Signals] = ()) -> None:
    """From now on the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt, and those after it are ignored: what follows the first is
    the cleaning up, and an impatient second one would break it off. A signal that this process was started to ignore (nohup, a shell's
    background job) stays ignored, unless it is in ``always``."""

    def nothing(*_: object) -> None:
        pass

    def interrupt(*_: object) -> None:
        for each in ENDING_SIGNALS:
            # Not SIG_IGN: Python complains of a second signal that had come by now and finds that.
            signal.signal(each, nothing)
        raise KeyboardInterrupt

    for each in ENDING_SIGNALS:
        if each in always or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, interrupt)
