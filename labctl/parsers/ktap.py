"""KTAP, the report of a kernel's own tests: console bytes → what became of each test.

Format: https://docs.kernel.org/dev-tools/ktap.html (KTAP 1); TAP 13 and 14 are read too. Pure. The bytes are a guest's: lines of others may
stand between those of the report, numbers may be missing, the end may never come; what is said is safe to print, and bounded.

kselftest's runner (tools/testing/selftests/kselftest/runner.sh) names each program in a line ``# selftests: DIR: PROGRAM``, puts ``# ``
before all that it prints, and then says what became of it: a report behind ``# `` is a group below that result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from labctl.model import Outcome
from labctl.parsers.text import visible

MOST_RESULTS = 10_000
"""More tests than that are a flood."""
MOST_DEPTH = 16
NAME_WIDTH = 160
LINE_WIDTH = 1024
"""Characters of a line that are looked at."""
_MOST_DIGITS = 9
"""Of a test's number: nothing has so many."""
_LONGEST = 4 * LINE_WIDTH
"""Bytes of them."""
_MOST_LATE = 5
_MOST_TOLD = 5
_NO_REASON = "nothing to test"
_NO_BAIL_REASON = "without a reason"
_NO_SKIP_REASON = "skipped by the kernel"
DETAIL_LINES = 60
DETAIL_WIDTH = 240

_STAMP = re.compile(rb"^\[ *[0-9]{1,7}\.[0-9]{1,9}\](?:\[ *[TC][0-9]+\])? ")
# Whoever wrote before may have left the line unfinished.
_VERSION = re.compile(r"^( *)(?:.*?)K?TAP version [0-9]+$")
_PLAN = re.compile(r"^( *)1\.\.([0-9]{1,18})$")
_RESULT = re.compile(r"^( *)(not )?ok(?: +([0-9]+))?(?: +(?:- )?(.*))?$")
_PROCESS = re.compile(r"^\[[0-9]{1,9}\] (?=\S)")
"""Before a name: who says it (clone3 of kselftest's). The same test is another process in each run."""
_SUBTEST = re.compile(r"^( *)# Subtest: *(.*)$")
_DIRECTIVE = re.compile(r"^(SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b[:\s]*(.*)$", re.IGNORECASE)
_BAIL = re.compile(r"^ *Bail out!\s*(.*)$")
_RUN_BY_KSELFTEST = re.compile(r"^( *)# (selftests: .+)$")
_YAML_BEGINS = re.compile(r"^( +)---$")
_YAML_MESSAGE = re.compile(r"^ *message: *(.*)$")
_YAML_BLOCK = re.compile(r"^[|>][+-]?$")
"""Its value is in the lines below."""
_FIGURE = re.compile(r"^# bench ([A-Za-z0-9_.-]{1,80})=([0-9]{1,18}(?:\.[0-9]{1,9})?) ([A-Za-z0-9/%]{1,16})$")
_GLUED_PLAN = re.compile(r"^.*[^0-9.]1\.\.([0-9]{1,9})$")
_GLUED_RESULT = re.compile(r"( *)(not )?ok +([0-9]{1,9})(?: +(?:- )?(.*)|[^0-9 ].*)?$")
_STAMP_INSIDE = re.compile(r"\[ *[0-9]{1,7}\.[0-9]{6}\](?:\[ *[TC][0-9]+\])? .*$")
"""A message of the kernel's, which waits for nobody to end a line."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one test."""

    path: tuple[str, ...]
    """Names of the groups around it, then its own."""
    outcome: Outcome
    """pass, fail or skip. A failure that its author expects (TODO, XFAIL) is a skip."""
    reason: str = ""
    details: str = ""
    """What was said since the result before: diagnostics and whatever else was on the console, its last lines."""
    end: int = 0
    """Offset behind its line in what was fed."""

    @property
    def name(self) -> str:
        return "/".join(self.path)


@dataclass(frozen=True)
class Report:
    results: tuple[Result, ...]
    """Of the tests that hold no others; a group only where it failed by itself or holds none."""
    complete: bool
    """All that the plan promises is there, or the kernel gave up and said so."""
    problems: tuple[str, ...]
    """Why the report can't be believed as it is: tests that the plan promises and that are missing, numbers out of order, ``Bail out!``."""
    bail: str = ""

    @property
    def wrong(self) -> str:
        """Why it is no pass, for the message of an ``assert not report.wrong``: the first failures, then the problems. Empty if all is
        well."""
        failed = [f"{result.name}: {result.reason}".rstrip(": ") for result in self.results if result.outcome is Outcome.FAIL]
        told = [f"{len(failed)} of {len(self.results)} failed: {'; '.join(failed[:_MOST_TOLD])}"] if failed else []
        return "; ".join((*told, *self.problems[:_MOST_TOLD]))

    @property
    def skipped(self) -> str:
        """Why nothing was tested, by the first result; empty if something was."""
        if not self.results or any(result.outcome is not Outcome.SKIP for result in self.results):
            return ""
        return self.results[0].reason


@dataclass(frozen=True, slots=True)
class Figure:
    """A measurement that a test reports beside its result, as ``# bench NAME=VALUE UNIT``."""

    test: str
    name: str
    value: float
    unit: str


def figures(report: Report) -> list[Figure]:
    """Those of all results, in their order. A line that only looks like one is none."""
    lines = ((result.name, _FIGURE.match(line)) for result in report.results for line in result.details.splitlines())
    return [Figure(test, match[1], float(match[2]), match[3]) for test, match in lines if match]


@dataclass(frozen=True, slots=True)
class _Glued:
    """What may be a result, behind words of others that did not end their line. It is one where the numbers show that it is missing."""

    number: int
    ok: bool
    name: str
    words: str
    line: str
    end: int


@dataclass(frozen=True, slots=True)
class _Quoted:
    """The program of kselftest's runner whose lines stand behind ``# ``, until its result comes."""

    indent: int
    """Of that result."""
    name: str

    @property
    def prefix(self) -> str:
        return " " * self.indent + "# "

    def unquoted(self, text: str) -> str:
        """A line of the program's as one of the group that it reports."""
        return " " * (self.indent + len("# ")) + text.removeprefix(self.prefix)


@dataclass
class _Described:
    """The last result, which TAP 13 describes in YAML from the next line on: no more is read of that than its lines, and its message."""

    group: _Group
    """Its last result is that one."""
    guessed: bool
    """No reason stands in its own line."""
    indent: int | None = None
    """Of the lines, once they have begun."""
    message_follows: bool = False

    def takes(self, text: str) -> bool:
        """Whether the line belongs to it; with its end it has none."""
        if self.indent is None:
            begins = _YAML_BEGINS.match(text)
            if begins is None or len(begins[1]) <= self.group.indent:
                return False
            self.indent = len(begins[1])
        elif text and not text.startswith(" " * self.indent):
            return False
        result = self.group.found[-1]
        lines = [*result.details.splitlines(), text[self.indent :]][-DETAIL_LINES:]
        self.group.found[-1] = replace(result, details="\n".join(line[:DETAIL_WIDTH] for line in lines), reason=self._reason(result, text))
        return True

    def _reason(self, result: Result, text: str) -> str:
        if result.outcome is not Outcome.FAIL or not self.guessed:
            return result.reason
        message = _YAML_MESSAGE.match(text)
        value = (message[1] if message else text if self.message_follows else "").strip()
        self.message_follows = bool(message and _YAML_BLOCK.match(value))
        if not value or self.message_follows:
            return result.reason
        self.guessed = False
        return (value[1:-1] if value[0] == value[-1] and value[0] in "\"'" else value)[:DETAIL_WIDTH]


@dataclass
class _Group:
    """The tests at one indentation, between two results of the group around them."""

    indent: int
    name: str = ""
    plan: int | None = None
    skipped: str = ""
    count: int = 0
    found: list[Result] = field(default_factory=list)
    """Leaves below it, their paths relative to it."""
    problems: list[str] = field(default_factory=list)
    bail: str = ""
    """A program gave up, which does not end what is around it."""
    glued: _Glued | None = None
    """It would be the next one."""
    glued_plan: int | None = None
    """Believed if as many were reported, and no other plan came."""

    @property
    def promised(self) -> int | None:
        """How many it is to hold."""
        return self.plan if self.plan is not None or self.glued_plan != self.reported else self.glued_plan

    @property
    def reported(self) -> int:
        """How many it holds, the glued one too."""
        return self.count + (self.glued is not None)

    def close(self, name: str) -> None:
        """It has ended: is all there?"""
        if self.glued is not None and self.count + 1 == (self.plan if self.plan is not None else self.glued_plan):
            self.adopt()
        if self.plan is not None and self.count != self.plan:
            self.problems.append(f"{name + ': ' if name else ''}{self.plan} tests planned, {self.count} reported")
        if self.bail:
            self.problems.append(f"{name + ': ' if name else ''}Bail out! {self.bail}")

    def adopt(self) -> None:
        """The numbers say that the glued one is missing: it is what it looks like."""
        glued, self.glued = self.glued, None
        if glued is None:
            return
        self.count += 1
        outcome, reason = _judged(glued.ok, glued.words)
        # Nobody can tell whose word a `not` is that stands behind others: with one it is no pass.
        said = reason or f"as far as can be told from {glued.line!r}" if outcome is Outcome.FAIL else reason
        self.found.append(Result((glued.name or f"test {glued.number}",), outcome, said, glued.line, glued.end))

    def take(self, inner: _Group, name: str) -> None:
        """What a group inside of this one found, under its name."""
        inner.close(name)
        self.found += [replace(each, path=(name, *each.path)) for each in inner.found]
        self.problems += inner.problems


class Ktap:
    """Fed with what the console says, as it comes. `done` tells when the report is over.

    ``alone``: what is fed is nothing but the report, a program's output, so that its plan or first result begins it where the version line
    is missing (TAP 12, and programs that forget it).
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        self._rest = b""
        self._fed = 0
        self._groups: list[_Group] = []
        self._said: list[str] = []
        self._quoted: _Quoted | None = None
        self._described: _Described | None = None
        self._results = 0
        self._bail = ""
        self._restarted = False
        self._late: list[str] = []
        """What was said after the end, and should not have been."""

    @property
    def begun(self) -> bool:
        return bool(self._groups)

    @property
    def done(self) -> bool:
        """Nothing more is to come by what the plan says, or the kernel gave up."""
        if self._over:
            return True
        top = self._groups[0] if len(self._groups) == 1 else None
        return top is not None and top.promised is not None and top.reported >= top.promised

    @property
    def _over(self) -> bool:
        """As `done`, by lines that stand alone: what else comes is too late."""
        if self._bail or self._results >= MOST_RESULTS:
            return True
        return len(self._groups) == 1 and self._groups[0].plan is not None and self._groups[0].count >= self._groups[0].plan

    @property
    def last(self) -> str:
        """Name of the test that ended last, with those of the groups around it; empty before the first."""
        for at in range(len(self._groups) - 1, -1, -1):
            if found := self._groups[at].found:
                return "/".join([*(group.name or "?" for group in self._groups[1 : at + 1]), found[-1].name])
        return ""

    def feed(self, data: bytes) -> None:
        """More of the console. Lines may come in parts."""
        *lines, rest = data.split(b"\n")
        for raw in lines:
            self._fed += len(raw) + 1
            self._take(self._rest + raw)
            self._rest = b""
        self._fed += len(rest)
        self._rest = (self._rest + rest)[:_LONGEST]

    def report(self) -> Report:
        """What was reported so far."""
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        complete = self.done
        if not self._groups:
            return Report((), False, ("no KTAP report",))
        top = self._folded()
        problems = list(top.problems)
        if not complete:
            problems.append(f"the report is cut off{' after ' + self.last if self.last else ''}")
        if self._restarted:
            problems.append("a second report begins before the first one ends")
        if self._bail:
            problems.append(f"Bail out! {self._bail}".strip())
        if self._results >= MOST_RESULTS:
            problems.append(f"more than {MOST_RESULTS} results: the rest is not read")
        if top.skipped == _NO_REASON and not top.found:
            problems.append("the plan is of no test, and gives no reason")
        problems += self._late
        found = top.found or ([Result(("all",), Outcome.SKIP, top.skipped)] if top.skipped else [])
        return Report(unique(found), complete, tuple(dict.fromkeys(problems)), self._bail)

    def _folded(self) -> _Group:
        """All groups as one. Those whose own result never came count all the same, under the name that they gave themselves."""
        inner: _Group | None = None
        for group in reversed(self._groups):
            folded = replace(group, found=list(group.found), problems=list(group.problems))
            if inner is not None:
                folded.take(inner, inner.name or "?")
            inner = folded
        assert inner is not None  # noqa: S101  # the caller has looked
        inner.close("")
        return inner

    # --- one line

    def _take(self, raw: bytes) -> None:
        text = visible(_STAMP.sub(b"", raw[:_LONGEST]).rstrip(b"\r\n")).replace("\t", "    ")[:LINE_WIDTH].rstrip()
        if _RESULT.match(text.partition("#")[0].rstrip()):
            text = _STAMP_INSIDE.sub("", text).rstrip()
        program = self._quoted if self._quoted is not None and text.startswith(self._quoted.prefix) else None
        if self._describes(program.unquoted(text) if program is not None else text):
            return
        if not self._over:
            if program is not None:
                self._line_of_a_program(text, program)
            else:
                self._line(text)
        elif not self._bail and self._results < MOST_RESULTS and len(self._late) < _MOST_LATE and (why := self._too_late(text)):
            self._late.append(why)

    def _describes(self, text: str) -> bool:
        """Whether a line describes the last result. What reads as a line of the report is one there, too."""
        if self._described is None:
            return False
        head = text.partition("#")[0].rstrip()
        of_the_report = _VERSION.match(text) or _BAIL.match(text) or _SUBTEST.match(text) or _PLAN.match(head) or _RESULT.match(head)
        if of_the_report or not self._described.takes(text):
            self._described = None
            return False
        if text.strip() == "...":
            self._described = None
        return True

    def _too_late(self, text: str) -> str:
        """Why a line has no place behind the last one that the plan promises; empty if it has."""
        indent = self._groups[0].indent
        if (version := _VERSION.match(text)) and len(version[1]) <= indent:
            return "a second report begins after the end of the first"
        if bail := _BAIL.match(text):
            return f"after the last test: Bail out! {bail[1][:DETAIL_WIDTH]}".rstrip()
        result = _RESULT.match(text.partition("#")[0].rstrip())
        # With its number: words of others may begin with ok. Nobody says `not ok` of anything else.
        if result and (result[2] or result[3]) and len(result[1]) == indent:
            return f"more than the {self._groups[0].plan} tests that are planned: {text.strip()[:NAME_WIDTH]}"
        return ""

    def _line(self, text: str) -> None:
        head, _, words = text.partition("#")
        head, words = head.rstrip(), words.strip()
        if version := _VERSION.match(text):
            self._begin(len(version[1]))
        elif not self._groups and not (self._alone and (_PLAN.match(head) or _RESULT.match(head))):
            pass  # what the kernel said before its report
        elif bail := _BAIL.match(text):
            self._bail = bail[1][:DETAIL_WIDTH] or _NO_BAIL_REASON
        elif plan := _PLAN.match(head):
            # The runner has no second plan: what began behind `# ` was no program's report, but another one behind a shell's prompt.
            self._restarted = self._restarted or (self._quoted is not None and len(plan[1]) <= self._quoted.indent)
            self._plan(len(plan[1]), int(plan[2]), words)
        elif (runs := _RUN_BY_KSELFTEST.match(text)) and self._quoted is None and len(runs[1]) == self._groups[-1].indent:
            self._quoted = _Quoted(len(runs[1]), runs[2][:NAME_WIDTH])
        elif result := _RESULT.match(head):
            self._result(len(result[1]), result[2] is None, int(result[3]) if result[3] else None, result[4] or "", words)
        elif text:
            self._glue(text)
            if subtest := _SUBTEST.match(text):
                self._name(len(subtest[1]), subtest[2][:NAME_WIDTH])
            self._say(text)

    def _line_of_a_program(self, text: str, program: _Quoted) -> None:
        """As `_line`, of a report within the runner's. Before its first line a program may say what only looks like a result."""
        line = program.unquoted(text)
        head = line.partition("#")[0].rstrip()
        begun = self._groups[-1].indent > program.indent
        result = _RESULT.match(head)
        bail = _BAIL.match(line)
        if bail:
            self._at(self._groups[-1].indent if begun else program.indent + len("# "))
        elif _VERSION.match(line) or _PLAN.match(head) or (result and (begun or result[3])) or (begun and _SUBTEST.match(line)):
            self._line(line)
        else:
            self._say(line if line.lstrip().startswith("#") else text)
        if (group := next((group for group in self._groups if group.indent > program.indent), None)) is not None:
            group.name = group.name or program.name
            group.bail = (bail[1][:DETAIL_WIDTH] or _NO_BAIL_REASON) if bail else group.bail

    def _say(self, text: str) -> None:
        self._said.append(text.strip()[:DETAIL_WIDTH])
        del self._said[:-DETAIL_LINES]

    def _glue(self, text: str) -> None:
        """A result or a plan may stand behind what somebody else has said without an end of the line."""
        group = self._groups[-1]
        for found in _GLUED_RESULT.finditer(text):
            number = int(found[3])
            if number == group.count + 1 and group.indent <= len(found[1]) and (group.plan is None or number <= group.plan):
                name, _, words = (found[4] or "").partition("#")
                group.glued = _Glued(number, found[2] is None, name.strip()[:NAME_WIDTH], words.strip(), text[:DETAIL_WIDTH], self._fed)
                return
        if group.plan is None and not group.count and (plan := _GLUED_PLAN.match(text)):
            group.glued_plan = int(plan[1])

    def _begin(self, indent: int) -> None:
        if self._groups and indent <= self._groups[0].indent:
            self._restarted = True
            self._groups, self._quoted = [], None
        self._at(indent)

    def _at(self, indent: int) -> _Group:
        """The group of an indentation; a deeper one than the present begins a group inside of it."""
        if not self._groups or (indent > self._groups[-1].indent and len(self._groups) < MOST_DEPTH):
            self._groups.append(_Group(indent))
        return next((group for group in reversed(self._groups) if group.indent <= indent), self._groups[0])

    def _name(self, indent: int, name: str) -> None:
        # Before the group's version line by the specification, and in practice also behind it; indented as what it names.
        group = self._at(indent)
        if group is not self._groups[0]:
            group.name = group.name or name

    def _plan(self, indent: int, count: int, words: str) -> None:
        group = self._at(indent)
        if group.plan is None:
            group.plan = count
            if count == 0:
                directive = _DIRECTIVE.match(words)
                group.skipped = (directive[2] if directive else words)[:DETAIL_WIDTH] or _NO_REASON

    def _result(self, indent: int, ok: bool, number: int | None, name: str, words: str) -> None:
        group = self._at(indent)
        if self._quoted is not None and indent <= self._quoted.indent:
            self._quoted = None
        self._results += 1
        if number is not None and number == group.count + 2:
            group.adopt()
        group.glued = None
        group.count += 1
        called = _PROCESS.sub("", name.strip())[:NAME_WIDTH] or f"test {number if number is not None else group.count}"[:NAME_WIDTH]
        if number is not None and number != group.count:
            shown = str(number)
            has = f"number {shown}" if len(shown) <= _MOST_DIGITS else f"a number of {len(shown)} digits"
            group.problems.append(f"{called}: has {has} where {group.count} was to come")
            if number <= MOST_RESULTS:  # a larger one says nothing of how many came
                group.count = max(group.count, number)
        inner: _Group | None = None
        while self._groups[-1] is not group:
            outer = self._groups.pop()
            if inner is not None:
                outer.take(inner, inner.name or "?")
            inner = outer
        details = "\n".join(self._said)
        self._said = []
        outcome, reason = _judged(ok, words)
        below = inner.found if inner is not None else []
        if inner is not None:
            group.take(inner, called)
            if not below and inner.skipped and (outcome is Outcome.PASS or reason == _NO_SKIP_REASON):
                outcome, reason = Outcome.SKIP, inner.skipped
        if not below or (outcome is Outcome.FAIL and all(each.outcome is not Outcome.FAIL for each in below)):
            group.found.append(Result((called,), outcome, reason or _why(outcome, details), details, self._fed))
            self._described = _Described(group, guessed=not reason)


def parse(data: bytes, *, alone: bool = False) -> Report:
    """The report in the whole of what a console said, or, ``alone``, a program."""
    reader = Ktap(alone=alone)
    reader.feed(data)
    return reader.report()


def _judged(ok: bool, words: str) -> tuple[Outcome, str]:
    directive = _DIRECTIVE.match(words)
    if directive is None:
        return (Outcome.PASS, "") if ok else (Outcome.FAIL, words[:DETAIL_WIDTH])
    kind, reason = directive[1].upper(), directive[2][:DETAIL_WIDTH]
    if kind == "SKIP":
        return Outcome.SKIP, reason or _NO_SKIP_REASON
    # Linux's kselftest.h puts `ok` before XFAIL, where the test has failed as it was to; an `ok` before TODO has passed.
    if kind == "XFAIL" or (kind == "TODO" and not ok):
        return Outcome.SKIP, f"fails as expected: {reason or kind}"
    if kind == "TODO":
        return Outcome.PASS, ""
    return Outcome.FAIL, f"{kind.lower()}: {reason}" if reason else kind.lower()


def _why(outcome: Outcome, details: str) -> str:
    """Of a failure that gives no reason itself: the last diagnostic before it."""
    said = [line for line in details.splitlines() if line.startswith("#")] or details.splitlines()
    return said[-1].lstrip("# ") if outcome is Outcome.FAIL and said else ""


def unique(results: list[Result]) -> tuple[Result, ...]:
    """Two tests of one name are two tests."""
    seen: dict[tuple[str, ...], int] = {}
    found = []
    for result in results:
        times = seen[result.path] = seen.get(result.path, 0) + 1
        path = result.path if times == 1 else (*result.path[:-1], f"{result.path[-1]}#{times}")
        found.append(replace(result, path=path))
    return tuple(found)
