"""The table of crashes: over consoles of real kernels, and over the wordings of machines that are not at hand."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from labctl.parsers.crash import EXCERPT_LINES, EXCERPT_WIDTH, PATTERNS, SIGNATURES, Severity, find_crash

CONSOLES = Path(__file__).parents[1] / "data" / "consoles"


def console(name: str) -> bytes:
    return gzip.decompress((CONSOLES / f"{name}.txt.gz").read_bytes())


FATAL = {
    "sysrq-panic": ("panic", "Kernel panic - not syncing: sysrq triggered crash"),
    "panic-no-time": ("panic", "Kernel panic - not syncing: sysrq triggered crash"),
    "init-exits": ("panic", "Kernel panic - not syncing: Attempted to kill init!"),
    "init-killed": ("panic", "Kernel panic - not syncing: Attempted to kill init!"),
    "no-init": ("panic", "Kernel panic - not syncing: No working init found"),
    "no-root": ("panic", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
    "oom-deadlock": ("panic", "Kernel panic - not syncing: System is deadlocked on memory"),
    "oom-panic": ("panic", "Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled"),
    "hung-task-panic": ("hung task", "INFO: task hung: touch"),
    "xen-dom0-crashed": ("panic", "Xen: Dom0 crashed: Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"),
    "xen-panic-no-dom0": ("xen", "Xen: Panic on CPU: Could not construct domain 0"),
    "xen-panic-nmi": ("xen", "Xen: Panic on CPU: FATAL TRAP: vec 2, NMI[0000]"),
    "soft-lockup": ("soft lockup", "BUG: soft lockup in fault_here"),
    "rcu-stall": ("rcu stall", "INFO: rcu detected stall in fault_here"),
    "fault-null": ("oops", "BUG: kernel NULL pointer dereference in fault_here"),
    "fault-page": ("oops", "BUG: unable to handle page fault for address in fault_here"),
    "fault-gpf": ("oops", "general protection fault in fault_here"),
    "fault-divide": ("oops", "divide error in fault_here"),
    "fault-bug": ("bug", "kernel BUG at drivers/faults/faults.c in fault_here"),
    "oops-panic": ("oops", "BUG: kernel NULL pointer dereference in fault_here"),
}
SURVIVED = {
    "fault-warning": ("warning", "WARNING in fault_here", False),
    "oom-kill": ("oom kill", "Out of memory: Killed process (tail)", True),
    "hung-task": ("hung task", "INFO: task hung: touch", True),
}
WELL = (
    "ready",
    "ready-quiet",
    "ready-microvm",
    "ready-q35-smp4",
    "poweroff",
    "silent",
    "hostile",
    "reset-loop",
    "fault-cli",
    "fault-triple",
    "no-boot-device",
)


def test_every_recorded_console_is_judged() -> None:
    assert {p.name.removesuffix(".txt.gz") for p in CONSOLES.glob("*.gz")} == {*FATAL, *SURVIVED, *WELL}


@pytest.mark.parametrize("name", FATAL)
def test_recorded_crash(name: str) -> None:
    data = console(name)
    crash = find_crash(data)
    assert crash is not None
    assert (crash.kind, crash.title) == FATAL[name]
    assert crash.fatal
    assert crash.explains
    first = crash.excerpt.splitlines()[0]
    line = data[crash.offset :].split(b"\r\n")[0].decode().rstrip("\r")  # two on the console of a first machine under Xen
    assert first == line[:EXCERPT_WIDTH]
    assert len(crash.excerpt.splitlines()) <= EXCERPT_LINES
    assert any(regex.search(line) and literal in line for line in data.split(b"\n") for regex, literal in PATTERNS)


@pytest.mark.parametrize("name", SURVIVED)
def test_recorded_finding_that_the_kernel_survives(name: str) -> None:
    crash = find_crash(console(name))
    assert crash is not None
    assert (crash.kind, crash.title, crash.explains) == SURVIVED[name]
    assert not crash.fatal


@pytest.mark.parametrize("name", WELL)
def test_recorded_console_without_a_crash(name: str) -> None:
    assert find_crash(console(name)) is None


def test_the_report_ends_with_its_own_end() -> None:
    crash = find_crash(console("fault-null"))
    assert crash is not None
    lines = crash.excerpt.splitlines()
    assert "BUG: kernel NULL pointer dereference, address: 0000000000000010" in lines[0]
    assert "---[ end trace 0000000000000000 ]---" in lines[-1]
    assert any("RIP: 0010:fault_here" in line for line in lines)


STAMP = "[    1.234567] "
WORDINGS = {
    # arm64, riscv, powerpc
    "[  10.000001] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008\n"
    "[  10.000002] Internal error: Oops: 0000000096000006 [#1] PREEMPT SMP\n"
    "[  10.000003] pc : unlock_page+0x14/0x20\n": "Unable to handle kernel NULL pointer dereference in unlock_page",
    "[  10.000001] Internal error: synchronous external abort: 96000010 [#1] PREEMPT SMP\n"
    "[  10.000003] pc : __raw_readb+0x4/0x8\n": "Internal error: synchronous external abort in __raw_readb",
    "[  10.000001][    T1] Unable to handle kernel access to user memory without uaccess routines at virtual address 000000000cc6b0d0\n"
    "[  10.000002][    T1] Oops [#1]\n"
    "[  10.000003][    T1] epc : schedule_tail+0x72/0xb2\n": (
        "Unable to handle kernel access to user memory without uaccess routines in schedule_tail"
    ),
    "[  10.000001] Oops - illegal instruction [#1]\n": "Oops - illegal instruction",
    "[  10.000001] BUG: Unable to handle kernel data access at 0x8000000041a25f20\n": "BUG: Unable to handle kernel data access",
    # x86, other versions
    "[  10.000001] Oops: general protection fault, probably for non-canonical address 0xdffffc0000000004: 0000 [#1] SMP KASAN PTI\n"
    "[  10.000002] RIP: 0010:__se_sys_mremap+0x1/0x2\n": "general protection fault in __se_sys_mremap",
    "[  10.000001] BUG: unable to handle kernel paging request at ffff88002bde1e40\n"
    "[  10.000002] IP: [<ffffffff82d4e304>] __memset+0x24/0x30\n": "BUG: unable to handle kernel paging request in __memset",
    "[  10.000001] divide_error: 0000 [#1] PREEMPT SMP KASAN\n"
    "[  10.000002] RIP: 0010:tabledist.part.0+0x22a/0x2a0\n": "divide_error in tabledist",
    "[  10.000001] Oops: 0002 [#1] PREEMPT SMP\n": "Oops",
    "[  10.000001] traps: PANIC: double fault, error_code: 0x0\n": "PANIC: double fault",
    "[  10.000001] BUG: TASK stack guard page was hit at ffffc9000e4aff58 (stack is ..)\n": "BUG: stack guard page was hit",
    "[  10.000001] Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: do_one+0x12/0x30\n": (
        "Kernel panic - not syncing: stack-protector: Kernel stack is corrupted in: do_one"
    ),
    # KVM: the function's module says that it is the hypervisor that fell
    "[  10.000001] BUG: kernel NULL pointer dereference, address: 0000000000000028\n"
    "[  10.000002] RIP: 0010:svm_vcpu_run+0x34/0x5a0 [kvm_amd]\n": "BUG: kernel NULL pointer dereference in svm_vcpu_run [kvm_amd]",
    "[  10.000001] kernel BUG at arch/x86/kvm/x86.c:512!\n[  10.000002] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI\n"
    "[  10.000003] RIP: 0010:kvm_spurious_fault+0xa/0x10 [kvm]\n": "kernel BUG at arch/x86/kvm/x86.c in kvm_spurious_fault [kvm]",
    "[  10.000001] general protection fault, probably for non-canonical address 0xdead000000000110: 0000 [#1] SMP\n"
    "[  10.000002] RIP: 0010:vmx_vcpu_load_vmcs.isra.0+0x1c/0x300 [kvm_intel]\n": (
        "general protection fault in vmx_vcpu_load_vmcs [kvm_intel]"
    ),
    "[  10.000001] BUG: kernel NULL pointer dereference, address: 0000000000000028\n"
    "[  10.000002] RIP: 0010:tun_get_user+0x34/0x5a0 [tun]\n": "BUG: kernel NULL pointer dereference in tun_get_user",
    # sanitizers
    "[  10.000001] BUG: KASAN: slab-out-of-bounds in foo.isra.0+0x12/0x30 [bar]\n": "KASAN: slab-out-of-bounds in foo",
    "[  10.000001] BUG: KFENCE: out-of-bounds read in test_read+0xa6/0x234\n": "KFENCE: out-of-bounds read in test_read",
    "[  10.000001] BUG: KMSAN: uninit-value in strstr+0x1/0x2\n": "KMSAN: uninit-value in strstr",
    # Xen, and kernels in Rust
    "(XEN) Panic on CPU 0:\r\n(XEN) FATAL PAGE FAULT\r\n": "Xen: Panic on CPU: FATAL PAGE FAULT",
    "(XEN) [    3.969657] Xen BUG at drivers/passthrough/arm/iommu_helpers.c:49\n": "Xen BUG at drivers/passthrough/arm/iommu_helpers.c",
    "(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n": "Xen: Dom0 crashed",
    "panicked at src/main.rs:12:5:\nout of frames\n": "panicked at src/main.rs:12: out of frames",
    "KERNEL PANIC: panicked at 'out of frames', src/mm/frame.rs:7:9\n": "panicked at src/mm/frame.rs:7: out of frames",
    "Kernel Panicked at src/main.rs:23 Hello\n": "panicked at src/main.rs:23: Hello",
    "[  23.717039][  T298] rust_kernel: panicked at drivers/android/binder/node.rs:877:13:\n"
    "[  23.717040][  T298] attempt to subtract with overflow\n": (
        "panicked at drivers/android/binder/node.rs:877: attempt to subtract with overflow"
    ),
}
MILD_WORDINGS = {
    "[  10.000001] NMI watchdog: BUG: soft lockup - CPU#1 stuck for 123s! [a:3996]\n": (Severity.STALL, "BUG: soft lockup"),
    "[  10.000001] watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3\n": (Severity.STALL, "Watchdog detected hard LOCKUP"),
    "[  10.000001] NMI watchdog: Watchdog detected hard LOCKUP on cpu 0\n": (Severity.STALL, "Watchdog detected hard LOCKUP"),
    "[  10.000001] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 34s!\n": (Severity.STALL, "BUG: workqueue lockup"),
    "[  10.000001] rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 1-... }\n": (Severity.STALL, "INFO: rcu detected stall"),
    "[  10.000001] INFO: task udevd:5612 blocked in I/O wait for more than 143 seconds.\n": (Severity.STALL, "INFO: task hung: udevd"),
    "[  10.000001] Memory cgroup out of memory: Killed process 7 (fio) total-vm:1kB\n": (
        Severity.STALL,
        "Out of memory: Killed process (fio)",
    ),
    "[  10.000001] WARNING: [cond] io_uring/io_uring.c:3026 at io_ring_exit_work+0x44c/0xbc0, CPU#0: kworker/1\n": (
        Severity.NOTE,
        "WARNING in io_ring_exit_work",
    ),
    "[  10.000001] UBSAN: array-index-out-of-bounds in drivers/x.c:12:3\n": (
        Severity.NOTE,
        "UBSAN: array-index-out-of-bounds in drivers/x.c",
    ),
    "[  10.000001] WARNING: possible circular locking dependency detected\n": (
        Severity.NOTE,
        "WARNING: possible circular locking dependency",
    ),
    "[  10.000001] BUG: scheduling while atomic: a/1/0x00000002\n": (Severity.NOTE, "BUG: scheduling while atomic"),
}


@pytest.mark.parametrize(("text", "title"), WORDINGS.items())
def test_fatal_wording(text: str, title: str) -> None:
    crash = find_crash(f"boot\n{text}rest\n".encode())
    assert crash is not None
    assert (crash.title, crash.fatal) == (title, True)
    assert any(regex.search(line) for line in text.encode().split(b"\n") for regex, _ in PATTERNS) or title.endswith("data access")


@pytest.mark.parametrize(("text", "expected"), MILD_WORDINGS.items())
def test_wording_that_is_not_fatal(text: str, expected: tuple[Severity, str]) -> None:
    crash = find_crash(text.encode())
    assert crash is not None
    severity, title = expected
    assert (crash.title, crash.fatal, crash.explains) == (title, False, severity is Severity.STALL)


def test_the_same_crash_has_the_same_title_each_time() -> None:
    first = find_crash(b"[    1.000001] BUG: unable to handle page fault for address: ffffc90123456000\n")
    second = find_crash(b"[   91.030001][   T77] BUG: unable to handle page fault for address: ffff8880deadbeef\r\n")
    assert first is not None
    assert second is not None
    assert first.title == second.title == "BUG: unable to handle page fault for address"


def test_the_first_cause_names_the_crash() -> None:
    oops = b"[    1.000001] BUG: kernel NULL pointer dereference, address: 0000000000000010\n"
    panic = b"[    1.000002] Kernel panic - not syncing: Fatal exception\n"
    crash = find_crash(oops + panic)
    assert crash is not None
    assert crash.title == "BUG: kernel NULL pointer dereference"
    assert crash.offset == 0
    crash = find_crash(panic + oops)
    assert crash is not None
    assert crash.title == "Kernel panic - not syncing: Fatal exception"


def test_a_fatal_crash_wins_over_an_earlier_warning() -> None:
    warning = b"[    1.000001] WARNING: CPU: 0 PID: 84 at a.c:42 foo+0x0/0xff8\n"
    crash = find_crash(warning + b"[    2.000001] Kernel panic - not syncing: VFS: Unable to mount root fs on x\n")
    assert crash is not None
    assert crash.title == "Kernel panic - not syncing: VFS: Unable to mount root fs on x"
    crash = find_crash(warning + b"[    2.000001] Kernel panic - not syncing: panic_on_warn set ...\n")
    assert crash is not None
    assert (crash.title, crash.fatal) == ("WARNING in foo", True)


@pytest.mark.parametrize(
    "line",
    [
        b"test: Kernel panic - not syncing: said by a program\n",
        b"Kernel panic - not syncing: at the start of a line, but this kernel prints stamps\n",
        b"echo BUG: kernel NULL pointer dereference, address: 0\n",
        b"thread 'main' panicked at src/main.rs:2:5:\nboom\n",
        b"thread 'main' (77) panicked at src/main.rs:2:5:\nboom\n",
        b"[    1.000002] Command line: console=ttyS0 oops=panic softlockup_panic=1\n",
        b"[    1.000002] ima: Kernel panic - not syncing: quoted\n",
        b"BUG: \xff\xfe\x00 [#1\n",
    ],
)
def test_an_echo_is_no_crash(line: bytes) -> None:
    assert find_crash(b"[    0.000000] Linux version 6.1\n" + line) is None


def test_a_message_behind_an_unfinished_line_counts() -> None:
    crash = find_crash(b"# half a line[    1.000001] Kernel panic - not syncing: x\n")
    assert crash is not None
    assert crash.offset == len("# half a line")


def test_what_was_said_before_a_crash_is_told_too() -> None:
    said = b"".join(b"[    0.%06d] line %d \x1b[2J\r\n\r\n" % (n, n) for n in range(9))
    crash = find_crash(said + b"[    1.000001] Kernel panic - not syncing: x\n")
    assert crash is not None
    assert crash.title == "Kernel panic - not syncing: x"
    assert crash.excerpt.splitlines()[0] == "[    1.000001] Kernel panic - not syncing: x"
    assert crash.before.splitlines() == [f"[    0.{n:06}] line {n} ␛[2J" for n in range(4, 9)]
    assert crash.in_context == f"{crash.before}\n{crash.excerpt}"


def test_a_crash_in_mid_report_is_found_already() -> None:
    crash = find_crash(b"[    1.000001] Kernel panic - not syncing: Fatal")
    assert crash is not None
    assert crash.excerpt == "[    1.000001] Kernel panic - not syncing: Fatal"


def test_title_and_excerpt_are_safe_and_bounded() -> None:
    nasty = b"[    1.000001] Kernel panic - not syncing: \x1b]0;owned\x07\xe2\x80\xae<script>" + b"A" * 9000 + b"\n"
    crash = find_crash(nasty + (b"\x1b[2J" + b"B" * 500 + b"\n") * 500)
    assert crash is not None
    assert "\x1b" not in crash.title + crash.excerpt
    assert "\u202e" not in crash.title + crash.excerpt
    assert len(crash.title) <= 160
    assert len(crash.excerpt.splitlines()) <= EXCERPT_LINES
    assert max(map(len, crash.excerpt.splitlines())) <= EXCERPT_WIDTH


@pytest.mark.parametrize(
    "flood", [b"BUG: ", b" [#", b"[    1.000001] ", b"anicked at ", b"panicked at '", b"WARNING: [", b"INFO: task a", b"\xff\x00"]
)
def test_a_flood_costs_little(flood: bytes) -> None:
    data = flood * ((1 << 20) // len(flood))
    start = time.thread_time()
    assert find_crash(data) is None
    assert time.thread_time() - start < 2


def test_every_literal_is_in_what_its_expression_finds() -> None:
    texts = [*WORDINGS, *MILD_WORDINGS, *(console(name).decode("latin-1") for name in {**FATAL, **SURVIVED})]
    lines = [line.encode() for text in texts for line in text.split("\n")]
    for signature in SIGNATURES:
        hits = [line for line in lines if signature.regex.search(line)]
        assert hits, f"no test of {signature.kind}: {signature.title}"
        assert all(signature.literal in line for line in hits)
