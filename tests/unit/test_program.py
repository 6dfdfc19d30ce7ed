"""A program that reports tests: what is told of one that reports none."""

from __future__ import annotations

from typing import Any

import pytest

from labctl.machine.program import KTAP, LTP, Language, run_program
from labctl.machine.protocols import CommandResult
from labctl.machine.transcript import Transcript


class Machine:
    """What `run_program` asks of a session, where every program says the same."""

    def __init__(self, said: str, status: int) -> None:
        self.transcript = Transcript()
        self.said = f"{said}\n# exit status {status}\n"

    def ready(self) -> None:
        """It is."""

    def run(self, command: str, **_how: Any) -> CommandResult:
        return CommandResult(command, 0, self.said, 0.1)


def problems(said: str, status: int, language: Language = KTAP) -> tuple[str, ...]:
    machine = Machine(said, status)
    try:
        return run_program(machine, "p", language=language, take=lambda _report, _took: None).problems  # type: ignore[arg-type]
    finally:
        machine.transcript.close()


@pytest.mark.parametrize(
    ("said", "status", "told"),
    [
        ("sh: p: not found\n", 127, ("the program exited with 127", "it last said 'sh: p: not found'")),
        ("begins\nSegmentation fault\n\n", 0, ("it last said 'Segmentation fault'",)),
        ("\x1b]0;title\x07" + "x" * 1000, 100, ("the program exited with 100", "it last said '␛]0;title␇" + "x" * 190 + "'")),
        ("", 137, ("the program was killed by signal 9", "it said nothing")),
    ],
)
def test_what_is_said_instead_of_a_report_is_told(said: str, status: int, told: tuple[str, ...]) -> None:
    assert problems(said, status) == ("no KTAP report", *told)
    assert problems(said, status, LTP) == ("no result of an LTP test", *told)


def test_a_plan_is_no_result_yet() -> None:
    assert problems("1..3\nPASS one\n", 0)[-1] == "it last said 'PASS one'"


def test_of_one_that_reports_no_more_is_told_than_what_is_wrong() -> None:
    assert problems("1..1\nok 1 a\nbye\n", 0) == ()
    assert problems("1..1\nok 1 a\nbye\n", 3) == ("no test failed, but the program exited with 3",)


def test_nor_of_one_that_says_itself_why_it_gives_up() -> None:
    assert problems("TAP version 13\n1..3\nBail out! no root\n", 1) == (
        "3 tests planned, 0 reported",
        "Bail out! no root",
        "the program exited with 1",
    )
