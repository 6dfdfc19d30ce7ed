"""What a kernel says when it crashes: console bytes → the first cause, with a title and an excerpt.

One table, `SIGNATURES`. A title is the kernel's own words without what differs from boot to boot (addresses, pids, CPU numbers), with
the function where that is known, so that the same crash has the same title every night: ``BUG: soft lockup in foo``.

A signature counts only where a kernel message begins: behind a time stamp, or at the start of a line on a console whose kernel prints
no stamps. A program that prints the same words in the middle of a line, or under a kernel that does print stamps, is not believed.

Wordings are those of Linux 4.9 to 6.18 (lib/bug.c, kernel/panic.c, arch/*/kernel/traps.c, mm/oom_kill.c, mm/kasan/report.c ...),
of Xen (xen/common/...) and of Rust's ``PanicInfo``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from labctl.parsers.text import visible

EXCERPT_LINES = 60
BEFORE_LINES = 5
"""Lines that are kept of what the console said before the report."""
EXCERPT_WIDTH = 240
"""Characters kept of one line of an excerpt."""
TITLE_WIDTH = 160

_REPORT = 1 << 15
"""Bytes behind a title that belong to its report at most."""
_BEFORE = 1 << 12
"""Bytes before a title that are looked at for what led to it."""
_LINE = 1 << 10
"""Bytes of a line that a signature is looked for in."""
_CANDIDATES = 10_000
"""Places looked at for one signature: a guest that floods its console with half a signature costs no more."""


class Severity(IntEnum):
    """What a signature means for the machine."""

    NOTE = 0
    """Worth telling; fails nothing and explains nothing (a warning)."""
    STALL = 1
    """Fails nothing by itself, but says why the machine then failed to answer (a lockup, a hung task, a killed process)."""
    FATAL = 2
    """The kernel is broken from here on, even if it goes on."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to crash. ``regex`` is searched in single lines that hold ``literal``; its named groups fill ``title``."""

    kind: str
    literal: bytes
    regex: re.Pattern[bytes]
    title: str
    severity: Severity = Severity.FATAL
    located: bool = True
    """The title gets the function that the report names, if any."""
    linux: bool = True
    """Linux puts its stamp before each message, if it does before any."""


@dataclass(frozen=True)
class Crash:
    """The cause of a crash. ``offset`` is that of the line in the bytes that were searched; texts are safe to print."""

    kind: str
    """Of the signature that names it: ``panic``, ``oops``, ``oom``, ..."""
    title: str
    excerpt: str
    """The report from its title line on: to ``---[ end``, `EXCERPT_LINES` or the end of the console."""
    offset: int
    fatal: bool
    """False for what a kernel survives: warnings, stalls, a process killed for memory."""
    before: str = ""
    """The last `BEFORE_LINES` that the console said before the report, blank ones left out: often what led to it."""

    @property
    def in_context(self) -> str:
        return f"{self.before}\n{self.excerpt}" if self.before else self.excerpt

    @property
    def explains(self) -> bool:
        """It is a better answer than «the machine did not answer»."""
        return self.fatal or any(s.kind == self.kind and s.severity is Severity.STALL for s in SIGNATURES)


STAMP = rb"\[ *[0-9]{1,7}\.[0-9]{6}\](?:\[ *[TC][0-9]+\])? ?"
"""``[    1.234567] ``, with the caller behind it (``[    T1]``) under CONFIG_PRINTK_CALLER. Seconds since kernel entry."""

_STAMPED = re.compile(STAMP)
_LOCATION = rb"(?P<function>[A-Za-z_][\w.$]*)\+0x(?:[0-9a-f]+/0x[0-9a-f]+ (?P<module>\[kvm(?:_amd|_intel)?\]))?"
"""Where the kernel was; of the modules KVM is named, which is the hypervisor: it falls with the kernel that it is a part of."""


def _linux(kind: str, literal: bytes, words: bytes, title: str, severity: Severity = Severity.FATAL, *, located: bool = True) -> Signature:
    regex = re.compile(rb"(?:^|(?P<stamped>" + STAMP + rb"))" + words)
    return Signature(kind, literal, regex, title, severity, located)


def _xen(literal: bytes, words: bytes, title: str) -> Signature:
    regex = re.compile(rb"^(?:\(XEN\) *)?(?:\[[^\]\r\n]{1,40}\] *)?" + words)
    return Signature("xen", literal, regex, title, located=False, linux=False)


SIGNATURES: tuple[Signature, ...] = (
    # --- the kernel is lost ---------------------------------------------------------------------------------------------
    _linux(
        "panic",
        b"Kernel panic - not syncing",
        rb"Kernel panic - not syncing:? *(?P<text>.*?)(?:\.\s|\.?\r?$)",
        "Kernel panic - not syncing: {text}",
        located=False,
    ),
    _linux(
        "oops",
        b"BUG: ",
        rb"BUG: (?P<text>kernel NULL pointer dereference|[uU]nable to handle [a-zA-Z -]+?)(?: at |, address|: | ?\r|$)",
        "BUG: {text}",
    ),
    _linux(
        "oops",
        b"BUG: ",
        rb"BUG: (?:TASK |IRQ |stack guard |NMI |#DF )+(?:stack guard )?page was hit",
        "BUG: stack guard page was hit",
    ),
    _linux("bug", b"ernel BUG at ", rb"[kK]ernel BUG at (?P<text>[^:!\s]+)", "kernel BUG at {text}"),
    _linux("kasan", b"BUG: KASAN: ", rb"BUG: KASAN: (?P<text>[a-z][a-z-]+)(?: in " + _LOCATION + rb")?", "KASAN: {text}"),
    _linux("kfence", b"BUG: KFENCE: ", rb"BUG: KFENCE: (?P<text>[a-z][a-z -]+?)(?: in " + _LOCATION + rb"|\r|$)", "KFENCE: {text}"),
    _linux("kmsan", b"BUG: KMSAN: ", rb"BUG: KMSAN: (?P<text>[a-z][a-z-]+)(?: in " + _LOCATION + rb")?", "KMSAN: {text}"),
    _linux(
        "oops",
        b"Unable to handle kernel",
        rb"Unable to handle kernel (?P<text>[a-zA-Z -]+?)(?: at | for |\r|$)",
        "Unable to handle kernel {text}",
    ),
    _linux("oops", b"Internal error: ", rb"Internal error: (?P<text>[^:\[\r\n]*).*\[#[0-9]+\]", "Internal error: {text}"),
    # die() of every architecture counts: general protection fault, probably for non-canonical address 0x...: 0000 [#1]
    _linux(
        "oops",
        b" [#",
        rb"(?:Oops: )?(?P<text>[a-zA-Z][a-zA-Z0-9_ -]*?)(?:, (?:probably|maybe) [^:]*)?(?:: [0-9a-f]{1,16}| -)? \[#[0-9]+\]",
        "{text}",
    ),
    _linux("oops", b"Oops: ", rb"Oops: .*\[#[0-9]+\]", "Oops"),
    _linux("oops", b"PANIC: ", rb"(?:traps: )?PANIC: (?P<text>double fault|early exception)", "PANIC: {text}"),
    _xen(b"Panic on CPU ", rb"Panic on CPU [0-9]+:", "Xen: Panic on CPU: {next}"),
    _xen(b"Xen BUG at ", rb"Xen BUG at (?P<text>[\w./-]+)", "Xen BUG at {text}"),
    _xen(b"Dom0 crashed:", rb"(?:Hardware )?Dom0 crashed:", "Xen: Dom0 crashed"),
    # PanicInfo as a kernel prints it. `thread 'main' panicked at` is a program with the standard library.
    Signature(
        "rust",
        b"anicked at ",
        re.compile(
            rb"^(?:(?!thread ')[^\r\n]){0,80}?[pP]anicked at (?:'(?P<quoted>[^'\r\n]*)', ?)?"
            rb"(?P<text>[^\r\n:']+\.rs:[0-9]+)(?::[0-9]+)?:?(?P<message>[^\r\n]*)"
        ),
        "panicked at {text}: {message}",
        located=False,
        linux=False,
    ),
    # --- it stands, or somebody in it does ------------------------------------------------------------------------------
    _linux("soft lockup", b"BUG: soft lockup", rb"(?:NMI )?(?:watchdog: )?BUG: soft lockup", "BUG: soft lockup", Severity.STALL),
    _linux(
        "hard lockup",
        b"detected hard LOCKUP",
        rb"(?:NMI )?(?:watchdog: )?(?:BUG: )?(?:CPU[0-9]+: )?Watchdog detected hard LOCKUP",
        "Watchdog detected hard LOCKUP",
        Severity.STALL,
    ),
    _linux(
        "workqueue lockup",
        b"BUG: workqueue lockup",
        rb"BUG: workqueue lockup",
        "BUG: workqueue lockup",
        Severity.STALL,
        located=False,
    ),
    _linux(
        "rcu stall",
        b"INFO: rcu",
        rb"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stall",
        "INFO: rcu detected stall",
        Severity.STALL,
    ),
    _linux(
        "hung task",
        b"INFO: task ",
        rb"INFO: task (?P<text>[^\r\n]{1,32}?):[0-9]+ (?:blocked|can't die)(?: in I/O wait)? for more than [0-9]+ seconds",
        "INFO: task hung: {text}",
        Severity.STALL,
        located=False,
    ),
    _linux(
        "oom kill",
        b": Killed process ",
        rb"(?:Out of memory|Memory cgroup out of memory)[^:\r\n]*: Killed process [0-9]+ \((?P<text>[^\r\n]{0,32}?)\)",
        "Out of memory: Killed process ({text})",
        Severity.STALL,
        located=False,
    ),
    # --- it goes on -----------------------------------------------------------------------------------------------------
    _linux(
        "warning",
        b"WARNING: CPU: ",
        rb"WARNING: CPU: [0-9]+ PID: [0-9]+ at (?P<text>[^:\s]+):[0-9]+(?: " + _LOCATION + rb")?",
        "WARNING",
        Severity.NOTE,
    ),
    _linux(  # since 6.18
        "warning",
        b"WARNING: ",
        rb"WARNING: (?:\[[^\r\n]{0,200}?\] )?(?P<text>[\w./-]+\.(?:[chS]|rs)):[0-9]+ at (?:" + _LOCATION + rb"|0x)",
        "WARNING",
        Severity.NOTE,
    ),
    _linux(
        "lockdep",
        b"WARNING: ",
        rb"WARNING: (?P<text>possible [a-zA-Z -]+?(?= detected)|suspicious RCU usage|bad unlock balance|inconsistent lock state"
        rb"|held lock freed|[nN]ested lock was not taken|lock held when returning to user space)",
        "WARNING: {text}",
        Severity.NOTE,
        located=False,
    ),
    _linux("ubsan", b"UBSAN: ", rb"UBSAN: (?P<text>[a-zA-Z][a-z -]*? in [^:\s]+)", "UBSAN: {text}", Severity.NOTE, located=False),
    _linux(
        "bug note",
        b"BUG: ",
        rb"BUG: (?P<text>scheduling while atomic|sleeping function called from invalid context|Bad page (?:state|map)"
        rb"|Bad rss-counter state|using [a-z_]+\(\) in preemptible|spinlock [a-z ]+|memory leak|KCSAN: [a-z-]+)",
        "BUG: {text}",
        Severity.NOTE,
    ),
)

PATTERNS: tuple[tuple[re.Pattern[bytes], bytes], ...] = (
    (re.compile(rb"Kernel panic - not syncing"), b"Kernel panic - not syncing"),
    (re.compile(rb" \[#[0-9]+\]"), b" [#"),
    (re.compile(rb"BUG: (?:K(?:ASAN|FENCE|MSAN): |kernel NULL |[uU]nable to handle |(?:\S+ ){1,4}page was hit)"), b"BUG: "),
    (re.compile(rb"PANIC: "), b"PANIC: "),
    (re.compile(rb"Panic on CPU [0-9]"), b"Panic on CPU "),
    (re.compile(rb"Xen BUG at "), b"Xen BUG at "),
    (re.compile(rb"Dom0 crashed:"), b"Dom0 crashed:"),
    (re.compile(rb"[pP]anicked at "), b"anicked at "),
)
"""Few and cheap enough to watch a stream with: (regex, literal that each match contains). Every fatal report holds a line that one of
them matches; whether that line is a crash, and what the first cause was, `find_crash` says."""

# A panic that only says that another finding was made fatal by configuration: that finding is the cause.
_CONSEQUENCES: tuple[tuple[re.Pattern[bytes], frozenset[str]], ...] = (
    (re.compile(rb"hung_task: blocked tasks"), frozenset({"hung task"})),
    (re.compile(rb"softlockup: hung tasks"), frozenset({"soft lockup"})),
    (re.compile(rb"Hard LOCKUP"), frozenset({"hard lockup"})),
    (re.compile(rb"RCU Stall"), frozenset({"rcu stall"})),
    (re.compile(rb"panic_on_warn set|kernel: panic_on_warn"), frozenset({"warning", "lockdep", "ubsan", "bug note"})),
)

_FUNCTIONS = (
    re.compile(rb"\b[RE]IP: (?:0010|e030|0060):(?:\[<[0-9a-f]+>\] *(?:\[<[0-9a-f]+>\])? *)?" + _LOCATION),
    re.compile(rb"\bIP: (?:\[<[0-9a-f]+>\] *)?" + _LOCATION),
    re.compile(rb"\b(?:pc|epc) : " + _LOCATION),
    re.compile(rb"\bPC is at " + _LOCATION),
    re.compile(rb"\bNIP \[[0-9a-f]+\] " + _LOCATION),
)
# What Xen says when the Linux that is its first machine has crashed: the machine is lost with it.
_DOM0_CRASHED = re.compile(rb"^\(XEN\) *(?:\[[^\]\r\n]{1,40}\] *)?(?:Hardware )?Dom0 crashed:", re.MULTILINE)
_COMPILER_SUFFIX = re.compile(r"\.(?:cold|isra|part|constprop|llvm|lto_priv)\b.*|\.\d+$")
_VARIABLE = re.compile(r"\s*exitcode=0x[0-9a-f]+|\s*\b0x[0-9a-fA-F]{5,}|\s*\b[0-9a-f]{16}\b|\+0x[0-9a-f]+/0x[0-9a-f]+")
_END = re.compile(rb"---\[ end[^\n]*")


_STANDSTILLS = (
    *(s for s in SIGNATURES if s.kind in ("soft lockup", "hard lockup", "workqueue lockup", "rcu stall")),
    _linux(
        "clock",
        b"clocksource: ",
        rb"clocksource: (?:timekeeping watchdog on CPU[0-9]+: )?Marking clocksource '(?P<text>[\w-]{1,32})' as unstable",
        "clocksource {text} is unstable",
        Severity.NOTE,
    ),
)
_MOST_STANDSTILLS = 100
"""Of a kind."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """The kernel says that time has passed in which it could not get on: its own fault, or that of whoever gives it its time."""

    title: str
    offset: int
    """Of the line, in the bytes that were searched."""


@dataclass(frozen=True, slots=True)
class _Finding:
    signature: Signature
    start: int
    """Of the message, its stamp included."""
    match: re.Match[bytes]


def find_crash(data: bytes) -> Crash | None:
    """The cause of the first crash in ``data``; without a fatal one the first stall, else the first warning; None if all is well.

    The first report of several is the cause: an oops, and not the panic that it led to. A panic that only makes another finding
    fatal (``panic_on_warn set``) gives way to that finding.
    """
    stamped = _STAMPED.search(data) is not None
    fatal: _Finding | None = None
    others: list[_Finding] = []
    for signature in SIGNATURES:
        if signature.severity is Severity.FATAL:
            fatal = _first(data, signature, stamped, len(data) if fatal is None else fatal.start) or fatal
        elif (found := _first(data, signature, stamped, len(data))) is not None:
            others.append(found)
    if fatal is not None:
        return _crash(data, _cause(fatal, others), fatal=True)
    if others:
        return _crash(data, min(others, key=lambda f: (-f.signature.severity, f.start)), fatal=False)
    return None


def standstills(data: bytes) -> tuple[Standstill, ...]:
    """All that a console tells of lockups, stalls and of a clock that has jumped, as they were said. None where the kernel is broken in
    another way: then that is what it stood still for."""
    crash = find_crash(data)
    if crash is not None and crash.fatal and crash.kind not in {signature.kind for signature in _STANDSTILLS}:
        return ()
    stamped = _STAMPED.search(data) is not None
    found: list[Standstill] = []
    for signature in _STANDSTILLS:
        start = 0
        for _ in range(_MOST_STANDSTILLS):
            if (finding := _first(data[start:], signature, stamped, len(data))) is None:
                break
            text = (finding.match.groupdict().get("text") or b"").decode("ascii", "replace")
            found.append(Standstill(signature.title.format(text=text), start + finding.start))
            start += finding.start + len(finding.match.group())
    return tuple(sorted(found, key=lambda each: each.offset))


def _first(data: bytes, signature: Signature, stamped: bool, stop: int) -> _Finding | None:
    """The first place of a signature before ``stop``."""
    searched = 0
    for _ in range(_CANDIDATES):
        at = data.find(signature.literal, searched, stop)
        if at < 0:
            return None
        begin = max(data.rfind(b"\n", max(0, at - _LINE), at), data.rfind(b"\r", max(0, at - _LINE), at), at - _LINE, -1) + 1
        end = data.find(b"\n", at, at + _LINE)
        match = signature.regex.search(data[begin : end if end >= 0 else at + _LINE])
        if match is not None and not (stamped and signature.linux and match.groupdict().get("stamped") is None):
            return _Finding(signature, begin + match.start(), match)
        searched = end if end >= 0 else at + _LINE // 2
    return None


def _cause(finding: _Finding, others: list[_Finding]) -> _Finding:
    """What ``finding`` is the consequence of, else itself."""
    if finding.signature.kind == "panic":
        for words, kinds in _CONSEQUENCES:
            if words.search(finding.match.group()):
                causes = [f for f in others if f.signature.kind in kinds and f.start < finding.start]
                return min(causes, key=lambda f: f.start, default=finding)
    return finding


def _crash(data: bytes, finding: _Finding, *, fatal: bool) -> Crash:
    report = data[finding.start : finding.start + _REPORT]
    lines = list(_report_lines(report))
    signature, groups = finding.signature, finding.match.groupdict()
    words = {name: (groups.get(name) or b"").decode("utf-8", "replace").strip() for name in ("text", "quoted", "message")}
    following = visible(_STAMPED.sub(b"", lines[1], count=1)).removeprefix("(XEN)").strip() if len(lines) > 1 else ""
    title = signature.title.format(text=words["text"], message=words["quoted"] or words["message"] or following, next=following)
    if signature.located:
        found = groups if groups.get("function") else _place(b"\n".join(lines))
        if function := found.get("function"):
            title = f"{title} in {_COMPILER_SUFFIX.sub('', function.decode('ascii', 'replace'))}"
            title += f" {module.decode('ascii')}" if (module := found.get("module")) else ""
    if signature.linux and fatal and _DOM0_CRASHED.search(report):
        title = f"Xen: Dom0 crashed: {title}"
    title = _shorten(_VARIABLE.sub("", visible(title)).strip(" :\t"), TITLE_WIDTH)
    excerpt = "\n".join(_shorten(visible(line), EXCERPT_WIDTH) for line in lines)
    return Crash(signature.kind, title, excerpt, finding.start, fatal, _before(data[max(0, finding.start - _BEFORE) : finding.start]))


def _before(said: bytes) -> str:
    lines = [line.rstrip() for line in visible(said).split("\n")]
    return "\n".join(_shorten(line, EXCERPT_WIDTH) for line in [line for line in lines if line][-BEFORE_LINES:])


def _report_lines(report: bytes) -> Iterator[bytes]:
    for number, line in enumerate(report.split(b"\n")):
        if number == EXCERPT_LINES:
            return
        yield line.rstrip(b"\r")
        if _END.search(line):
            return


def _place(report: bytes) -> Mapping[str, bytes | None]:
    """Where the kernel was, by its own report: function and module; user-space addresses are not looked at."""
    found = [match for regex in _FUNCTIONS if (match := regex.search(report))]
    return min(found, key=lambda match: match.start()).groupdict() if found else {}


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
