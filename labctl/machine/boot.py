"""A boot, as its console tells it: milestones on the way to ``ready``, or the most specific reason why it does not get there.

`wait_for_ready` watches the transcript and nothing else of the machine; it wakes for what the console says, never after a fixed time.
`explain` is for everybody who is about to say that a machine did not answer: a crash on the console is the better answer.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from re import _parser  # type: ignore[attr-defined]  # what re itself parses with: there is no public way to look into a pattern
from types import MappingProxyType

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import BootFailed, ConfigError, ConsoleLost, InfraError, KernelCrash, LabctlError, Problem, StorageError, TargetHung
from labctl.machine.transcript import ConsoleEnded, Match, Pattern, Transcript
from labctl.model import BootExpectation, Milestone
from labctl.parsers.crash import BEFORE_LINES, Crash, find_crash
from labctl.parsers.crash import PATTERNS as CRASHES
from labctl.parsers.dmesg import slow_phases, stamps

_MILESTONES: Mapping[Milestone, tuple[str, ...]] = MappingProxyType(
    {
        # Each with what tells two of a kind apart (version, PCI address): a banner that comes again means that the machine was reset.
        Milestone.FIRMWARE: (
            r"SeaBIOS \(version [^)]*\)",
            r"iPXE \(https?://ipxe\.org\) [0-9a-f:.]*",
            r"UEFI firmware \(version [^)]*\)",
            r"BdsDxe: (?:loading|starting) Boot[0-9A-F]{4}",
            r"OpenSBI v[0-9.]+",
        ),
        # Not only at the start of a line: firmware leaves its last one unfinished.
        Milestone.KERNEL_ENTRY: (r"Linux version [0-9]\S* \(.*", r"QuetzalCore OS v\S+"),
        Milestone.INIT: (r"Run \S+ as init process",),
        Milestone.READY: (r"labctl-guest: ready",),
    }
)
DEFAULT_MILESTONES: Mapping[Milestone, str] = MappingProxyType({name: "|".join(words) for name, words in _MILESTONES.items()})
"""Regular expressions over one line of the console."""


class _Other(Enum):
    """What else is watched for."""

    CRASH = "crash"
    NOTHING_TO_BOOT = "nothing to boot"


# SeaBIOS' last words, and EDK2's.
_NOTHING_TO_BOOT = Pattern(re.compile(rb"No bootable (?:device\.|option or device was found)"), b"No bootable ")


RESETS = 3
"""A banner seen this often in one boot is a reset loop."""

_TICK = 1.0
"""Seconds after which `alive` is asked although the console is silent: a real machine's console outlives its power."""
_QUIET = 0.3
"""Seconds of silence that end a crash report."""
_REPORT_DEADLINE = 2.0
"""Seconds that a crash report may take to be printed, or a machine whose console ended to be seen to be off."""
_DRAIN_QUIET = 0.1
_DRAIN_DEADLINE = 0.3
"""Seconds that what was on its way when something failed may take to arrive."""
_SEARCHED = 8 << 20
"""Bytes at each end of a boot's console that are searched for a crash: a flood in between is not."""
_STAMPED = 256 << 10
"""Bytes of a boot's console that kernel stamps are read from: a kernel says some 30 KB."""
_LAST_WORDS = 4 << 10
_FLOOD = 100_000
"""Bytes in `_FLOOD_SECONDS` that are a flood: nearly all that a serial line of 115,200 baud can carry. A whole boot says less."""
_FLOOD_SECONDS = 10.0
_BANNERS = 64
_STAMP = re.compile(rb"\[ *(\d+\.\d{6})\] $")
_STAMP_WIDTH = 24
_BANNER_WIDTH = 200


@dataclass(frozen=True)
class Boot:
    """A boot that came to ``ready``."""

    t0_ns: int
    """Monotonic time of power-on."""
    since: int
    """Offset in the transcript at which this boot's output begins."""
    milestones: Mapping[str, float]
    """Name → seconds from power-on, in the order in which they were reached. Those that the console did not show are absent. On the
    channel ``icount`` they are of virtual time: an instruction is a nanosecond, and idle time is left out."""
    kernel_stamps: tuple[tuple[float, str], ...]
    """The kernel's own longest silences, longest first; see `slow_phases`."""
    offsets: Mapping[str, int] = field(default_factory=dict)
    """Where in the transcript each milestone begins."""
    kernel_clock: Mapping[str, float] = field(default_factory=dict)
    """The guest's own clock at a milestone, in seconds, where its line begins with it."""
    instructions: Mapping[str, int] = field(default_factory=dict)
    """On the channel ``icount``: instructions of all CPUs from power-on to the first byte of each milestone."""
    instructions_by_cpu: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def wait_for_ready(
    transcript: Transcript,
    *,
    t0_ns: int,
    since: int,
    expectation: BootExpectation,
    overrides: Mapping[str, str] = MappingProxyType({}),
    deadline: Deadline,
    alive: Callable[[], str | None],
    on_milestone: Callable[[str, float], None] | None = None,
    virtual: Callable[[int], float | None] | None = None,
    target: str = "",
) -> Boot:
    """Until ``ready`` is on the console, by the earlier of ``deadline`` and ``expectation.deadline`` from power-on.

    ``overrides`` replaces the usual expression of a milestone (a build's, over one line). ``alive`` says None while the machine is on,
    else how it ended. ``virtual`` gives the seconds of virtual time at an offset of the transcript, for a machine on which real time says
    nothing; milestones are then told in those. Raises ConfigError for an override that is none, KernelCrash, TargetHung (silence, reset
    loop), BootFailed (deadline, early exit) and ConsoleLost (the console ended and the machine did not).
    """
    attempt = _Attempt(transcript, t0_ns, since, expectation, alive, target, virtual)
    meanings, patterns = _patterns(overrides)
    with transcript.watch(patterns, since) as watch:
        limit = deadline.sooner(t0_ns / 1e9 + expectation.deadline - time.monotonic())
        while True:
            match: Match | None = None
            try:
                match = watch.next(limit.sooner(attempt.patience))
            except DeadlineExpired:
                attempt.check_patience()
            except ConsoleEnded as end:
                raise attempt.explained(attempt.early_end(end.reason)) from None
            if match is not None:
                match meaning := meanings[match.pattern]:
                    case _Other.CRASH:
                        attempt.check_crash(match)
                    case _Other.NOTHING_TO_BOOT:
                        raise attempt.nothing_to_boot()
                    case Milestone():
                        if attempt.reach(meaning, match) and on_milestone is not None:
                            on_milestone(meaning.value, attempt.milestones[meaning])
                        if meaning is Milestone.READY:
                            return attempt.boot(match)
            if limit.expired:
                raise attempt.explained(attempt.too_late())


def explain(transcript: Transcript, since: int, fallback: LabctlError, *, heard_since: int | None = None) -> LabctlError:
    """The most specific cause: a crash on the console since offset ``since``, else ``fallback``.

    That something was not heard says nothing of a machine whose console has a gap after ``heard_since`` (``since`` if absent): the
    lab's own fault then.

    What is still being said is waited for, but not for long. A stall (lockup, hung task, killed process) explains that a target
    failed; it does not take the blame for the lab's own faults, a fatal crash does.
    """
    if isinstance(fallback, KernelCrash | ConfigError):
        return fallback
    _settle(transcript, _DRAIN_QUIET, _DRAIN_DEADLINE)
    crash = _find(transcript, since)
    if crash is None or not (crash.fatal or (crash.explains and not isinstance(fallback, InfraError))):
        gap = transcript.gap_since(since if heard_since is None else heard_since)
        if gap and isinstance(fallback, BootFailed | TargetHung):
            return ConsoleLost(f"{gap}; without them: {fallback.message}", target=fallback.target, cell=fallback.cell, tail=fallback.tail)
        return fallback
    return _kernel_crash(transcript, since, crash, fallback)


def _kernel_crash(transcript: Transcript, since: int, crash: Crash, fallback: LabctlError) -> KernelCrash:
    """``crash`` as an error, once its report is complete; who and when are those of ``fallback``."""
    _settle(transcript, _QUIET, _REPORT_DEADLINE)
    crash = _find(transcript, since) or crash
    last = getattr(fallback, "last_milestone", "")
    return KernelCrash(
        f"{crash.title} (last milestone: {last})" if last else crash.title,
        title=crash.title,
        excerpt=crash.in_context,
        last_milestone=last,
        target=fallback.target,
        cell=fallback.cell,
        tail="\n".join(crash.in_context.splitlines()[: 10 + BEFORE_LINES]),
        remedy="the excerpt is the kernel's own report; the whole console is in the log of the attempt",
    )


@dataclass
class _Attempt:
    """One boot under way."""

    transcript: Transcript
    t0_ns: int
    since: int
    expectation: BootExpectation
    alive: Callable[[], str | None]
    target: str
    virtual: Callable[[int], float | None] | None = None
    milestones: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    kernel_clock: dict[str, float] = field(default_factory=dict)
    banners: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    # --- what the console says ------------------------------------------------------------------------------------------

    def reach(self, name: Milestone, match: Match) -> bool:
        """Note a milestone; True for its first match. Raises TargetHung for a reset loop."""
        if name in (Milestone.FIRMWARE, Milestone.KERNEL_ENTRY):
            self._count(name, match)
        if name in self.milestones:
            return False
        counted = self.virtual(match.offset) if self.virtual is not None else None
        self.milestones[name.value] = (match.t_ns - self.t0_ns) / 1e9 if counted is None else counted
        self.offsets[name.value] = match.offset
        if stamp := _STAMP.search(self.transcript.read(max(self.since, match.offset - _STAMP_WIDTH), match.offset)):
            self.kernel_clock[name.value] = float(stamp[1])
        return True

    def _count(self, name: Milestone, match: Match) -> None:
        # By the line and not by the milestone: two network cards, or a pattern that fits more than the banner, are no reset.
        line = self.transcript.read(match.offset, match.offset + _BANNER_WIDTH).partition(b"\n")[0].rstrip()
        if (name, line) not in self.banners and len(self.banners) >= _BANNERS:
            return
        self.banners[name.value, line] += 1
        if (times := self.banners[name, line]) >= RESETS:
            raise self.explained(
                self._hung(
                    f"resets for ever: reached {name} {times} times in {(match.t_ns - self.t0_ns) / 1e9:.1f} s",
                    "panic=-1 with -no-reboot ends the machine instead of booting it again; a reset without a word is often a triple fault",
                )
            )

    def check_crash(self, match: Match) -> None:
        """Raise KernelCrash if ``match`` belongs to a fatal crash, once its report is complete."""
        crash = find_crash(self.transcript.read(max(self.since, match.offset - (1 << 16)), match.end + (1 << 10)))
        if crash is not None and crash.fatal:
            known = BootFailed(crash.title, last_milestone=self.last, target=self.target)
            raise _kernel_crash(self.transcript, self.since, crash, known)

    def boot(self, ready: Match) -> Boot:
        said = self.transcript.read(self.since, min(ready.end, self.since + _STAMPED))
        return Boot(
            self.t0_ns,
            self.since,
            MappingProxyType(dict(self.milestones)),
            slow_phases(stamps(said)),
            MappingProxyType(dict(self.offsets)),
            MappingProxyType(dict(self.kernel_clock)),
        )

    # --- what it does not say -------------------------------------------------------------------------------------------

    @property
    def _silence(self) -> float:
        """Seconds since the last byte, or since power-on."""
        return time.monotonic() - max(self.transcript.last_ns, self.t0_ns) / 1e9

    @property
    def patience(self) -> float:
        """Seconds after which silence must be looked into."""
        return max(0.0, min(_TICK, self.expectation.silence - self._silence))

    def check_patience(self) -> None:
        """Raise if the machine has gone, or was silent for too long."""
        if (how := self.alive()) is not None:
            raise self.explained(self.early_end(how))
        if (silence := self._silence) >= self.expectation.silence:
            if self.transcript.size > self.since:
                start = f"since {self._seconds(self.transcript.last_ns)} after power-on"
                remedy = "if it is only slow, raise boot.silence of the target"
            else:
                start = "from power-on"
                remedy = "a kernel must be one for this machine, and be told its console (console=ttyS0 on its command line)"
            raise self.explained(self._hung(f"silent for {round(silence, 1):g} s, {start}; {self._reached}", remedy))

    def early_end(self, reason: str) -> LabctlError:
        """Why the machine, or only its console, ended before ``ready``."""
        limit = Deadline.after(_REPORT_DEADLINE)
        # An emulator closes its console some milliseconds before it is gone; nothing but its state tells.
        pause = threading.Event()
        while (how := self.alive()) is None and not limit.expired:
            pause.wait(0.01)
        if how is None:
            return ConsoleLost(
                f"the console ended ({reason}) and the machine did not; {self._reached}",
                target=self.target,
                tail=self._tail,
                remedy="look at the machine's management interface; another reader of the same console ends this one",
            )
        if b"reboot: Power down" in self.transcript.read(max(self.since, self.transcript.size - _LAST_WORDS)):
            remedy = "it powered itself off: what its init did is in the console's log"
        elif Milestone.KERNEL_ENTRY in self.milestones:
            remedy = "gone without a word, as after a triple fault: QEMU's -d int,cpu_reset shows where"
        else:
            remedy = "is it a kernel for this machine? no kernel said a word (a kernel with `quiet` says none either)"
        return self._failed(f"ended before ready, {self._seconds(time.monotonic_ns())} after power-on: {how}; {self._reached}", remedy)

    def nothing_to_boot(self) -> LabctlError:
        return self._failed("the firmware found nothing to boot", "is the build deployed to where the firmware looks for it?")

    def too_late(self) -> LabctlError:
        took = (time.monotonic_ns() - self.t0_ns) / 1e9
        return self._failed(
            f"did not reach ready in {round(took, 1):g} s; {self._reached}{self._flooded}",
            "if it is only slow, raise boot.deadline of the target",
        )

    # --- how it is told -------------------------------------------------------------------------------------------------

    @property
    def last(self) -> str:
        """Name of the milestone reached last; empty before the first."""
        return next(reversed(self.milestones), "")

    @property
    def _reached(self) -> str:
        return f"last milestone: {self.last} at {self.milestones[self.last]:.1f} s" if self.milestones else "no milestone was reached"

    @property
    def _flooded(self) -> str:
        """That the console was busy with something else than a boot; empty if it was not. StorageError is not worth telling here."""
        begin = max(self.t0_ns, time.monotonic_ns() - int(_FLOOD_SECONDS * 1e9))
        with suppress(StorageError):
            said = range(self.since, self.transcript.size)
            octets = len(said) - bisect_left(said, begin, key=self.transcript.time_of)
            if octets >= _FLOOD:
                return f"; the console was flooded: {octets / 1e6:.1f} MB in the last {min(_FLOOD_SECONDS, self._age):.0f} s"
        return ""

    @property
    def _age(self) -> float:
        """Seconds since power-on."""
        return (time.monotonic_ns() - self.t0_ns) / 1e9

    @property
    def _tail(self) -> str:
        return self.transcript.tail(10, self.since)

    def _seconds(self, t_ns: int) -> str:
        return f"{max(0, t_ns - self.t0_ns) / 1e9:.1f} s"

    def _failed(self, message: str, remedy: str) -> BootFailed:
        return BootFailed(message, last_milestone=self.last, target=self.target, tail=self._tail, remedy=remedy)

    def _hung(self, message: str, remedy: str) -> TargetHung:
        return TargetHung(message, last_milestone=self.last, target=self.target, tail=self._tail, remedy=remedy)

    def explained(self, error: LabctlError) -> LabctlError:
        return explain(self.transcript, self.since, error)


def _settle(transcript: Transcript, quiet: float, most: float) -> None:
    """Until the console is over or was silent for ``quiet`` seconds; ``most`` seconds at most."""
    limit = Deadline.after(most)
    with suppress(ConsoleEnded):
        while transcript.wait_beyond(transcript.size, limit.sooner(quiet)) and not limit.expired:
            pass


def _find(transcript: Transcript, since: int) -> Crash | None:
    """The first crash since an offset, a fatal one rather than another."""
    stop = transcript.size
    found = find_crash(transcript.read(since, min(stop, since + _SEARCHED)))
    if (found is None or not found.fatal) and stop - since > _SEARCHED:
        late = find_crash(transcript.read(max(since + _SEARCHED, stop - _SEARCHED), stop))
        return late if late is not None and (found is None or late.fatal) else found
    return found


# --- patterns ---------------------------------------------------------------------------------------------------------


def _patterns(overrides: Mapping[str, str]) -> tuple[list[Milestone | _Other], list[Pattern]]:
    """What to watch for, and what each of it means."""
    check_milestones(overrides)
    meanings: list[Milestone | _Other] = []
    patterns: list[Pattern] = []
    for milestone, usual in _MILESTONES.items():
        for words in (overrides[milestone],) if milestone in overrides else usual:
            meanings.append(milestone)
            patterns.append(Pattern(re.compile(words.encode()), literal_of(words)))
    meanings += [_Other.CRASH] * len(CRASHES) + [_Other.NOTHING_TO_BOOT]
    patterns += [*(Pattern(regex, literal) for regex, literal in CRASHES), _NOTHING_TO_BOOT]
    return meanings, patterns


def check_milestones(overrides: Mapping[str, str]) -> None:
    """Raise ConfigError if an override is none, each mistake named. For whoever wants to know before power is applied."""
    if problems := list(_problems(overrides)):
        raise ConfigError(problems, remedy="milestones are regular expressions of Python over one line of the console")


def _problems(overrides: Mapping[str, str]) -> Iterator[Problem]:
    known = ", ".join(Milestone)
    for name, words in overrides.items():
        if name not in _MILESTONES:
            yield Problem("milestones", name, "unknown milestone", f"known: {known}")
            continue
        try:
            empty = re.compile(words.encode()).match(b"") is not None
        except re.error as error:
            yield Problem("milestones", name, f"{words!r} is not a regular expression: {error}", "a regular expression over one line")
            continue
        if empty:
            yield Problem("milestones", name, f"{words!r} fits a line that says nothing", "an expression that only the milestone fits")


def literal_of(words: str) -> bytes:
    """The longest text that every match of the regular expression ``words`` contains; empty if none can be told."""
    parsed = _parser.parse(words.encode())
    if parsed.state.flags & re.IGNORECASE:
        return b""
    runs = [bytearray()]
    for operation, argument in parsed:
        if str(operation) == "LITERAL":
            runs[-1].append(argument)
        else:
            runs.append(bytearray())
    return bytes(max(runs, key=len))
