"""Boots as consoles tell them: recorded ones, fed with synthetic times, and those that never get there."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import (
    BootFailed,
    CommandFailed,
    ConfigError,
    ConsoleLost,
    KernelCrash,
    LabctlError,
    TargetFailure,
    TargetHung,
)
from labctl.machine import boot as boot_module
from labctl.machine.boot import DEFAULT_MILESTONES, Boot, check_milestones, explain, literal_of, wait_for_ready
from labctl.machine.transcript import Transcript
from labctl.model import BootExpectation, Milestone

CONSOLES = Path(__file__).parents[1] / "data" / "consoles"
MS = 1_000_000


def console(name: str) -> bytes:
    return gzip.decompress((CONSOLES / f"{name}.txt.gz").read_bytes())


def feed(transcript: Transcript, data: bytes, t0_ns: int) -> dict[int, int]:
    """Line by line, 1 ms of synthetic time apart. Returns offset of each line's end → its time."""
    times = {}
    for number, line in enumerate(data.splitlines(keepends=True)):
        transcript.feed(line, t0_ns + (number + 1) * MS)
        times[transcript.size] = t0_ns + (number + 1) * MS
    return times


@contextmanager
def feeding(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Another thread that talks while the test waits."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def wait(
    transcript: Transcript,
    *,
    t0_ns: int | None = None,
    since: int = 0,
    silence: float = 30,
    deadline: float = 30,
    overrides: dict[str, str] | None = None,
    alive: Callable[[], str | None] | None = None,
    seen: list[tuple[str, float]] | None = None,
) -> Boot:
    return wait_for_ready(
        transcript,
        t0_ns=time.monotonic_ns() if t0_ns is None else t0_ns,
        since=since,
        expectation=BootExpectation(deadline=deadline, silence=silence),
        overrides=overrides or {},
        deadline=Deadline.after(60),
        alive=alive or (lambda: None),
        on_milestone=None if seen is None else lambda name, seconds: seen.append((name, seconds)),
        target="qemu-1c",
    )


# --- boots that get there ---------------------------------------------------------------------------------------------


def test_milestones_of_a_recorded_boot() -> None:
    data, t0 = console("ready"), time.monotonic_ns()
    seen: list[tuple[str, float]] = []
    with Transcript() as transcript:
        times = feed(transcript, data, t0)
        boot = wait(transcript, t0_ns=t0, seen=seen)
    assert list(boot.milestones) == ["firmware", "kernel_entry", "init", "ready"]
    assert seen == list(boot.milestones.items())

    def second(words: bytes) -> float:
        line_end = data.index(b"\n", data.index(words)) + 1
        return (times[line_end] - t0) / 1e9

    assert boot.milestones == {
        "firmware": second(b"SeaBIOS (version"),
        "kernel_entry": second(b"] Linux version"),
        "init": second(b"Run /init as init process"),
        "ready": second(b"labctl-guest: ready"),
    }
    assert boot.kernel_stamps[0] == (0.21114, "at 0.371 s, before: Freeing SMP alternatives memory: 36K")
    # What the machine says after ready belongs to no boot.
    assert not any("power" in text.lower() for _, text in boot.kernel_stamps)
    assert (boot.t0_ns, boot.since) == (t0, 0)
    assert {type(name) for name in boot.milestones} == {str}


@pytest.mark.parametrize(
    ("name", "milestones"),
    [
        ("ready-microvm", ["kernel_entry", "init", "ready"]),
        ("ready-q35-smp4", ["kernel_entry", "init", "ready"]),
        ("ready-quiet", ["ready"]),
        ("hostile", ["kernel_entry", "init", "ready"]),
        ("fault-warning", ["kernel_entry", "init", "ready"]),
        ("oom-kill", ["kernel_entry", "init", "ready"]),
        ("hung-task", ["kernel_entry", "init", "ready"]),
    ],
)
def test_recorded_boot_that_gets_there(name: str, milestones: list[str]) -> None:
    t0 = time.monotonic_ns()
    with Transcript() as transcript:
        feed(transcript, console(name), t0)
        transcript.end("QEMU ended")
        assert list(wait(transcript, t0_ns=t0, alive=lambda: "QEMU ended").milestones) == milestones


def test_ready_returns_while_the_console_goes_on() -> None:
    data = console("ready")
    ready = data.index(b"labctl-guest: ready") + len(b"labctl-guest: ready")
    with Transcript() as transcript:
        returned = threading.Event()

        def talk(_: threading.Event) -> None:
            transcript.feed(data[:ready])  # the marker's line is not finished
            returned.wait(5)

        with feeding(talk):
            boot = wait(transcript)
            returned.set()
    assert boot.milestones["ready"] < 5


def test_only_what_this_boot_says_counts() -> None:
    with Transcript() as transcript:
        feed(transcript, console("ready"), time.monotonic_ns())
        feed(transcript, console("fault-bug"), time.monotonic_ns())
        since, t0 = transcript.size, time.monotonic_ns()
        feed(transcript, console("ready-microvm"), t0)
        boot = wait(transcript, t0_ns=t0, since=since)
    assert "firmware" not in boot.milestones
    assert 0 < boot.milestones["kernel_entry"] < 0.01
    assert boot.since == since


def test_a_build_replaces_milestones() -> None:
    with Transcript() as transcript:
        transcript.feed(b"SeaBIOS (version 1.16)\r\nlabctl-guest: ready\r\nQuetzalCore OS v1.0\r\nmm: 512 MiB\r\nshell> ")
        boot = wait(transcript, overrides={"ready": r"^shell> $", "init": r"mm: \d+ MiB"})
    assert list(boot.milestones) == ["firmware", "kernel_entry", "init", "ready"]


def test_cards_that_announce_themselves_are_no_reset() -> None:
    with Transcript() as transcript:
        transcript.feed(b"SeaBIOS (version 1.16)\n" + b"".join(b"iPXE (http://ipxe.org) 00:0%d.0 CA00 PCI2.10\n" % n for n in range(3, 8)))
        transcript.feed(b"kernel: one\nkernel: two\nkernel: three\nkernel: four\nlabctl-guest: ready\n")
        assert wait(transcript, overrides={"kernel_entry": "kernel: "}).milestones


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("sysrq-panic", "Kernel panic - not syncing: sysrq triggered crash"),
        ("panic-no-time", "Kernel panic - not syncing: sysrq triggered crash"),
        ("no-root", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
        ("init-exits", "Kernel panic - not syncing: Attempted to kill init!"),
        ("oom-deadlock", "Kernel panic - not syncing: System is deadlocked on memory"),
        ("hung-task-panic", "INFO: task hung: touch"),
        ("soft-lockup", "BUG: soft lockup in fault_here"),
        ("fault-null", "BUG: kernel NULL pointer dereference in fault_here"),
        ("fault-gpf", "general protection fault in fault_here"),
        ("oops-panic", "BUG: kernel NULL pointer dereference in fault_here"),
    ],
)
def test_a_crash_fails_the_boot(name: str, title: str) -> None:
    with Transcript() as transcript:
        feed(transcript, console(name), time.monotonic_ns())
        transcript.end("QEMU ended with status 0")
        with pytest.raises(KernelCrash) as caught:
            wait(transcript, alive=lambda: "QEMU ended with status 0")
    error = caught.value
    assert error.title == title
    assert error.message.startswith(title)
    assert (error.target, error.exit_code) == ("qemu-1c", 1)
    assert error.last_milestone == ("kernel_entry" if name == "no-root" else "init")
    assert error.excerpt
    assert error.tail == "\n".join(error.excerpt.splitlines()[:15])
    assert error.remedy


def test_the_excerpt_is_complete_although_the_report_comes_slowly() -> None:
    data = console("fault-null")
    cut = data.index(b"\n", data.index(b"BUG: kernel NULL")) + 1
    with Transcript() as transcript:

        def talk(_: threading.Event) -> None:
            transcript.feed(data[:cut])
            for line in data[cut:].splitlines(keepends=True)[:45]:
                time.sleep(0.003)
                transcript.feed(line)

        with feeding(talk), pytest.raises(KernelCrash) as caught:
            wait(transcript)
    assert caught.value.excerpt.splitlines()[-1].endswith("---[ end trace 0000000000000000 ]---")


def test_a_report_that_never_ends_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_module, "_REPORT_DEADLINE", 0.4)
    with Transcript() as transcript:

        def talk(stop: threading.Event) -> None:
            while not stop.wait(0.01):
                transcript.feed(b"[    1.000000] Kernel panic - not syncing: again\r\n")

        start = time.monotonic()
        with feeding(talk), pytest.raises(KernelCrash):
            wait(transcript)
        assert 0.4 < time.monotonic() - start < 2


# --- boots that do not get there ----------------------------------------------------------------------------------------


def test_silence_is_a_hang() -> None:
    t0 = time.monotonic_ns()
    with Transcript() as transcript:
        feed(transcript, console("silent"), t0)
        start = time.monotonic()
        with pytest.raises(
            TargetHung, match=r"silent for 0\.\d s, since 0\.\d s after power-on; last milestone: init at 0\.\d s"
        ) as caught:
            wait(transcript, t0_ns=t0, silence=0.3)
        assert time.monotonic() - start < 2
    assert caught.value.last_milestone == "init"
    assert caught.value.tail.splitlines()[-1].endswith("clocksource: Switched to clocksource tsc")
    assert len(caught.value.tail.splitlines()) == 10


def test_a_console_that_talks_is_not_silent() -> None:
    with Transcript() as transcript:

        def talk(stop: threading.Event) -> None:
            for _ in range(10):
                stop.wait(0.05)
                transcript.feed(b".")
            transcript.feed(b"\nlabctl-guest: ready\n")

        with feeding(talk):
            assert wait(transcript, silence=0.3).milestones["ready"] > 0.4


def test_a_machine_that_says_nothing_hangs_too() -> None:
    with Transcript() as transcript, pytest.raises(TargetHung, match="from power-on; no milestone was reached") as caught:
        wait(transcript, silence=0.2)
    assert "console=" in caught.value.remedy


def test_a_recorded_reset_loop() -> None:
    with Transcript() as transcript:
        t0 = time.monotonic_ns()
        feed(transcript, console("reset-loop"), t0)
        with pytest.raises(TargetHung, match=r"resets for ever: reached firmware 3 times in 0\.0 s") as caught:
            wait(transcript, t0_ns=t0)
    assert caught.value.last_milestone == "firmware"


def test_a_reset_loop_without_firmware() -> None:
    early = console("ready-microvm")[:4000]
    with Transcript() as transcript:
        for _ in range(3):
            transcript.feed(early)
        with pytest.raises(TargetHung, match="reached kernel_entry 3 times"):
            wait(transcript)


def test_two_boots_are_no_loop() -> None:
    data = console("ready-microvm")
    with Transcript() as transcript:
        transcript.feed(data[:4000] + b"\n" + data)
        assert list(wait(transcript).milestones) == ["kernel_entry", "init", "ready"]


def test_nothing_to_boot() -> None:
    with Transcript() as transcript:
        feed(transcript, console("no-boot-device"), time.monotonic_ns())
        with pytest.raises(BootFailed, match="found nothing to boot") as caught:
            wait(transcript)
    assert caught.value.last_milestone == "firmware"


def test_the_deadline_names_the_last_milestone() -> None:
    t0 = time.monotonic_ns()
    with Transcript() as transcript:
        feed(transcript, console("silent"), t0)
        with pytest.raises(BootFailed, match=r"did not reach ready in 0\.[56] s; last milestone: init at 0\.3 s") as caught:
            wait(transcript, t0_ns=t0, deadline=0.5)
    assert (caught.value.last_milestone, caught.value.target) == ("init", "qemu-1c")
    assert "\nnow silent\n" in caught.value.tail
    assert "boot.deadline" in caught.value.remedy


@pytest.mark.parametrize(
    "flood", [b"x" * 4096, b"all work and no play\r\n" * 200, b"[    1.000000] \x00\xff [#1\n" * 200, b"BUG: \r\n" * 600]
)
def test_a_flood_ends_at_the_deadline(flood: bytes) -> None:
    with Transcript() as transcript:

        def talk(stop: threading.Event) -> None:
            while not stop.wait(0.0005):
                transcript.feed(flood)

        start = time.monotonic()
        with (
            feeding(talk),
            pytest.raises(BootFailed, match=r"no milestone was reached; the console was flooded: \d+\.\d MB in the last \d s"),
        ):
            wait(transcript, deadline=0.3)
        # The deadline, and the search of what was said for a crash.
        assert time.monotonic() - start < 2


def test_a_flood_of_banners_is_a_reset_loop_at_once() -> None:
    with Transcript() as transcript:
        transcript.feed(b"[    0.000000] Linux version 6.1.0 (gcc)\r\n" * 100_000)
        start = time.thread_time()
        with pytest.raises(TargetHung):
            wait(transcript)
        assert time.thread_time() - start < 3


def test_an_early_exit() -> None:
    with Transcript() as transcript:
        feed(transcript, console("poweroff"), time.monotonic_ns())
        transcript.end("end of file")
        with pytest.raises(
            BootFailed, match=r"ended before ready, 0\.\d s after power-on: powered off by the guest; last milestone: init"
        ) as caught:
            wait(transcript, alive=lambda: "powered off by the guest")
    assert "reboot: Power down" in caught.value.tail
    assert "powered itself off" in caught.value.remedy


def test_a_triple_fault() -> None:
    with Transcript() as transcript:
        feed(transcript, console("fault-triple"), time.monotonic_ns())
        transcript.end("end of file")
        with pytest.raises(BootFailed, match="QEMU ended with status 0; last milestone: init") as caught:
            wait(transcript, alive=lambda: "QEMU ended with status 0")
    assert "triple fault" in caught.value.remedy


def test_a_kernel_that_is_none() -> None:
    with Transcript() as transcript:
        transcript.end("end of file")
        with pytest.raises(BootFailed, match="QEMU ended with status 1: qemu: invalid kernel header; no milestone") as caught:
            wait(transcript, alive=lambda: "QEMU ended with status 1: qemu: invalid kernel header")
    assert "is it a kernel for this machine" in caught.value.remedy


def test_a_machine_may_be_seen_to_be_off_a_little_after_its_console() -> None:
    answers = iter([None, None, None])
    with Transcript() as transcript:
        transcript.end("end of file")
        with pytest.raises(BootFailed, match="QEMU exited with status 1"):
            wait(transcript, alive=lambda: next(answers, "QEMU exited with status 1"))


def test_a_machine_that_goes_while_its_console_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_module, "_TICK", 0.1)
    with Transcript() as transcript:
        feed(transcript, console("poweroff"), time.monotonic_ns())
        start = time.monotonic()
        with pytest.raises(BootFailed, match="powered off"):
            wait(transcript, alive=lambda: "powered off by somebody")
        assert time.monotonic() - start < 3


def test_a_console_that_ends_alone_is_the_labs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_module, "_REPORT_DEADLINE", 0.05)
    with Transcript() as transcript:
        transcript.feed(b"SeaBIOS (version 1.16)\n")
        transcript.end("the SOL session was taken over")
        with pytest.raises(ConsoleLost, match="the SOL session was taken over") as caught:
            wait(transcript)
    assert caught.value.exit_code == 3


# --- overrides ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"ready": "(unclosed"}, "milestones: ready: '(unclosed' is not a regular expression"),
        ({"redy": "x"}, "milestones: redy: unknown milestone; known: firmware, kernel_entry, init, ready"),
        ({"ready": ".*"}, "milestones: ready: '.*' fits a line that says nothing"),
    ],
)
def test_an_override_that_is_none(overrides: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_milestones(overrides)
    assert words in str(caught.value)
    with Transcript() as transcript, pytest.raises(ConfigError):
        wait(transcript, overrides=overrides)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_milestones({"ready": "(", "init": "["})
    assert [problem.key for problem in caught.value.problems] == ["ready", "init"]


def test_the_defaults_are_fine() -> None:
    check_milestones({str(name): words for name, words in DEFAULT_MILESTONES.items()})
    assert list(DEFAULT_MILESTONES) == list(Milestone)


@pytest.mark.parametrize(
    ("words", "literal"),
    [
        ("labctl-guest: ready", b"labctl-guest: ready"),
        (r"Run \S+ as init process", b" as init process"),
        (r"ab?cde*f", b"cd"),
        (r"(?i)Ready", b""),
        (r"one|two", b""),
        (r"\d+", b""),
        (r"login: $", b"login: "),
        ("größe", "größe".encode()),
    ],
)
def test_the_literal_of_an_expression(words: str, literal: bytes) -> None:
    assert literal_of(words) == literal


# --- explain ------------------------------------------------------------------------------------------------------------


def test_a_crash_is_a_better_answer_than_a_lost_console() -> None:
    with Transcript() as transcript:
        transcript.feed(console("sysrq-panic"))
        transcript.end("end of file")
        error = explain(transcript, 0, ConsoleLost("gone", target="rack-7", cell="a/b/c"))
    assert isinstance(error, KernelCrash)
    assert (error.target, error.cell, error.title) == ("rack-7", "a/b/c", "Kernel panic - not syncing: sysrq triggered crash")


def test_a_crash_that_is_still_on_its_way_is_waited_for() -> None:
    with Transcript() as transcript:

        def talk(stop: threading.Event) -> None:
            stop.wait(0.03)
            transcript.feed(b"[    9.000000] Kernel panic - not syncing: late\r\n")

        with feeding(talk):
            assert isinstance(explain(transcript, 0, TargetHung("no answer")), KernelCrash)


@pytest.mark.parametrize(
    ("name", "fallback", "explained"),
    [
        ("hung-task", TargetHung("no answer"), True),
        ("hung-task", ConsoleLost("gone"), False),
        ("oom-kill", CommandFailed("fio exited with 137", status=137), True),
        ("fault-warning", TargetHung("no answer"), False),
        ("ready", TargetHung("no answer"), False),
        ("sysrq-panic", ConfigError("a mistake"), False),
    ],
)
def test_what_explains_what(name: str, fallback: LabctlError, explained: bool) -> None:
    with Transcript() as transcript:
        transcript.feed(console(name))
        error = explain(transcript, 0, fallback)
    assert (error is not fallback) is explained
    assert isinstance(error, KernelCrash) is explained


def test_a_crash_before_is_not_this_boots() -> None:
    with Transcript() as transcript:
        transcript.feed(console("sysrq-panic"))
        fallback = TargetHung("no answer")
        assert explain(transcript, transcript.size, fallback) is fallback


def test_a_crash_behind_a_flood_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_module, "_SEARCHED", 1 << 16)
    with Transcript() as transcript:
        for _ in range(100):
            transcript.feed(b"all work and no play\r\n" * 500)
        transcript.feed(b"[    9.000000] Kernel panic - not syncing: late\r\n")
        transcript.end("end of file")
        error: TargetFailure | LabctlError = explain(transcript, 0, TargetHung("no answer"))
    assert error.title == "Kernel panic - not syncing: late"
