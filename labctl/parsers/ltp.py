"""What tests of the Linux Test Project print → what became of each. Pure; the bytes are a guest's.

Format: ``FILE:LINE: TPASS: MESSAGE`` of its C library, ``NAME NUMBER TPASS: MESSAGE`` of its shell library, and
``NAME NUMBER  TPASS  :  MESSAGE`` of the C library before it, which puts ``FILE:LINE: `` before the message of what did not pass
(lib/tst_test.c, testcases/lib/tst_test.sh, lib/tst_res.c). Those of today end with a summary, which is held against what was seen. There is
none where a test ends before the library is up, as one does that was compiled without what it needs (``TST_TEST_TCONF``): there the exit
status tells that it has said all. It is the sum of what a test has met: 1 TFAIL, 2 TBROK, 4 TWARN, 32 TCONF (include/tst_res_flags.h).
"""

from __future__ import annotations

import re

from labctl.model import Outcome
from labctl.parsers.ktap import DETAIL_LINES, DETAIL_WIDTH, LINE_WIDTH, MOST_RESULTS, NAME_WIDTH, Report, Result, unique
from labctl.parsers.text import visible

_COLOUR = re.compile(rb"\x1b\[[0-9;]{0,8}m")
_RESULT = re.compile(
    r"^(?:(?P<file>[\w./+-]{1,80}):(?P<line>[0-9]{1,6}): |(?P<name>[\w.+-]{1,80}) +(?P<number>[0-9]{1,9}) +)"
    r"(?P<kind>TPASS|TFAIL|TBROK|TCONF|TWARN)(?:\+\w+)? *: *(?P<message>.*)$"
)
_PLACE = re.compile(r"^[\w./+-]{1,80}:[0-9]{1,6}: ")
_COUNT = re.compile(r"^(passed|failed|broken|skipped|warnings) +([0-9]{1,9})$")
_COUNTED = {"TPASS": "passed", "TFAIL": "failed", "TBROK": "broken", "TCONF": "skipped", "TWARN": "warnings"}
_BITS = {"TFAIL": 1, "TBROK": 2, "TWARN": 4, "TCONF": 32}
_OUTCOMES = {"TPASS": Outcome.PASS, "TCONF": Outcome.SKIP}


def parse(data: bytes, status: int | None = None) -> Report:
    """All that one program printed, and its exit status where that is known. TBROK and TWARN are failures: the test could not do what it
    is for."""
    results: list[Result] = []
    seen = dict.fromkeys(_COUNTED.values(), 0)
    promised: dict[str, int] = {}
    said: list[str] = []
    summed_up, of_today, end, ended_by = False, False, 0, ""
    for raw in data.splitlines(keepends=True):
        end += len(raw)
        text = visible(_COLOUR.sub(b"", raw[: 4 * LINE_WIDTH]).rstrip(b"\r\n"))[:LINE_WIDTH].rstrip()
        if found := _RESULT.match(text):
            if len(results) == MOST_RESULTS:
                break
            kind, message = found["kind"], found["message"][:DETAIL_WIDTH]
            seen[_COUNTED[kind]] += 1
            of_today = of_today or found["file"] is not None
            ended_by = kind
            where = f"{found['file']}:{found['line']}" if found["file"] else f"{found['name']} {found['number']}"
            why = message if found["file"] else _PLACE.sub("", message)
            reason = why if kind in ("TFAIL", "TCONF") else f"{_COUNTED[kind]}: {why}" if kind != "TPASS" else ""
            results.append(Result((where[:NAME_WIDTH],), _OUTCOMES.get(kind, Outcome.FAIL), reason, "\n".join([*said, message]), end))
            said = []
        elif text == "Summary:":
            summed_up = True
        elif summed_up and (count := _COUNT.match(text)):
            promised[count[1]] = int(count[2])
        elif text:
            said = [*said, text[:DETAIL_WIDTH]][-DETAIL_LINES:]
    whole = not of_today or set(promised) >= {"passed", "failed", "skipped"}
    # Ended by that line, before there was anything to sum up.
    whole = whole or (not summed_up and not seen["passed"] and status is not None and status == _BITS.get(ended_by))
    return Report(unique(results), bool(results) and whole, tuple(_problems(results, seen, promised, whole)))


def words(status: int) -> str:
    """What an exit status tells; empty if it is none of this library's."""
    named = [kind for kind, bit in _BITS.items() if status & bit]
    return ", ".join(named) if named and status < 64 and status & ~sum(_BITS.values()) == 0 else ""


def _problems(results: list[Result], seen: dict[str, int], promised: dict[str, int], whole: bool) -> list[str]:
    if not results:
        return ["no result of an LTP test"]
    if len(results) >= MOST_RESULTS:
        return [f"more than {MOST_RESULTS} results: the rest is not read"]
    if not whole:
        return [f"the report is cut off after {results[-1].name}: it has no summary"]
    return [f"the summary says {name} {count}, {seen[name]} reported" for name, count in promised.items() if count != seen[name]]
