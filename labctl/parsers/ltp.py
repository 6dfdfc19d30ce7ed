"""What tests of the Linux Test Project print → what became of each. Pure; the bytes are a guest's.

Format: ``FILE:LINE: TPASS: MESSAGE`` of its C library, ``NAME NUMBER TPASS: MESSAGE`` of its shell library and of the C library before it
(lib/tst_test.c, lib/tst_res.c, testcases/lib/tst_test.sh). Those of today end with a summary, which is held against what was seen.
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
_COUNT = re.compile(r"^(passed|failed|broken|skipped|warnings) +([0-9]{1,9})$")
_COUNTED = {"TPASS": "passed", "TFAIL": "failed", "TBROK": "broken", "TCONF": "skipped", "TWARN": "warnings"}
_OUTCOMES = {"TPASS": Outcome.PASS, "TCONF": Outcome.SKIP}


def parse(data: bytes) -> Report:
    """All that one program printed. TBROK and TWARN are failures: the test could not do what it is for."""
    results: list[Result] = []
    seen = dict.fromkeys(_COUNTED.values(), 0)
    promised: dict[str, int] = {}
    said: list[str] = []
    summed_up, of_today, end = False, False, 0
    for raw in data.splitlines(keepends=True):
        end += len(raw)
        text = visible(_COLOUR.sub(b"", raw[: 4 * LINE_WIDTH]).rstrip(b"\r\n"))[:LINE_WIDTH].rstrip()
        if found := _RESULT.match(text):
            if len(results) == MOST_RESULTS:
                break
            kind, message = found["kind"], found["message"][:DETAIL_WIDTH]
            seen[_COUNTED[kind]] += 1
            of_today = of_today or found["file"] is not None
            where = f"{found['file']}:{found['line']}" if found["file"] else f"{found['name']} {found['number']}"
            reason = message if kind in ("TFAIL", "TCONF") else f"{_COUNTED[kind]}: {message}" if kind != "TPASS" else ""
            results.append(Result((where[:NAME_WIDTH],), _OUTCOMES.get(kind, Outcome.FAIL), reason, "\n".join([*said, message]), end))
            said = []
        elif text == "Summary:":
            summed_up = True
        elif summed_up and (count := _COUNT.match(text)):
            promised[count[1]] = int(count[2])
        elif text:
            said = [*said, text[:DETAIL_WIDTH]][-DETAIL_LINES:]
    whole = not of_today or set(promised) >= {"passed", "failed", "skipped"}
    return Report(unique(results), bool(results) and whole, tuple(_problems(results, seen, promised, whole)))


def _problems(results: list[Result], seen: dict[str, int], promised: dict[str, int], whole: bool) -> list[str]:
    if not results:
        return ["no result of an LTP test"]
    if len(results) >= MOST_RESULTS:
        return [f"more than {MOST_RESULTS} results: the rest is not read"]
    if not whole:
        return [f"the report is cut off after {results[-1].name}: it has no summary"]
    return [f"the summary says {name} {count}, {seen[name]} reported" for name, count in promised.items() if count != seen[name]]
