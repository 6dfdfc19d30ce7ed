"""A command that did not end: told in its own words."""

from __future__ import annotations

from labctl.machine.unended import Process, Unended, processes

STATE = """\
90 S do_wait sh -c echo waiting; sleep 1000 | cat
91 S hrtimer_nanosleep sleep 1000
92 S pipe_read cat
"""


def test_which_process_is_waited_for() -> None:
    """Not the shell that waits for it, nor what reads what it says."""
    told = Unended("job", 3, b"begun\nwaiting\n", b"", processes(STATE))
    assert told.title == (
        "the command 'job' did not end within 3 s: it last said 'waiting'; sleep 1000 (process 91) sleeps in hrtimer_nanosleep"
    )
    assert told.details.splitlines() == [
        "--- it said",
        "begun",
        "waiting",
        "--- its processes",
        "sh -c echo waiting; sleep 1000 | cat (process 90) sleeps in do_wait",
        "sleep 1000 (process 91) sleeps in hrtimer_nanosleep",
        "cat (process 92) sleeps in pipe_read",
    ]
    assert (
        "dd (process 7) waits for what cannot be interrupted in io_schedule"
        in Unended("x", 1, b"", b"", processes(f"{STATE}7 D io_schedule dd\n")).title
    )
    assert Unended("x", 1, b"", b"", processes(f"{STATE}93 R - sh\n")).title.endswith("it said nothing; sh (process 93) runs")


def test_both_of_its_outputs() -> None:
    told = Unended("x" * 300, 0.5, b"one\n\n", b"warn\n")
    assert told.title == f"the command '{'x' * 199}…' did not end within 0.5 s: it last said 'one' and 'warn' on stderr"
    assert told.details == "--- stdout\none\n--- stderr\nwarn"
    assert Unended("x", 1, b"").details == ""


def test_what_a_guest_says_is_bounded_and_safe_to_print() -> None:
    told = Unended(
        "x", 1, b"\x1b[2J" + b"y" * 1_000_000, b"\xff\x00\n", processes("1 S x \x1b]0;title\x07" + "z" * 5000 + "\nnonsense\n" * 100)
    )
    assert "\x1b" not in told.title + told.details
    assert len(told.title) < 700
    assert len(processes("1 S x y\n" * 1000)) <= 16
    assert processes("x S y z\n1 SS y z\n1 S 0x12 z\n1 S y\n") == ()
    assert processes("1 S - a b\n") == (Process(1, "S", "-", "a b"),)
