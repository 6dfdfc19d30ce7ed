"""Console: bytes in and out; nothing is lost while nobody looks."""

from __future__ import annotations

import re
import time

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConsoleLost
from labctl.machine.protocols import Console
from labctl.machine.session import Session
from tests.contract.conftest import Bench, Rig

ROLE = Console
pytestmark = pytest.mark.qemu


def test_nothing_is_lost_while_nobody_looks(rig: Rig, session: Session) -> None:
    count = rig.flood
    session.run("true")  # the BMC simulator may lose the first packet that is typed at it; a shell asks again
    since = session.transcript.size
    session.machine.console.write(f'seq 100000 {100000 + count}; echo "the ""end"\n'.encode())
    # Nobody looks at the bytes: only how many there are is asked for.
    assert session.transcript.wait_beyond(since + count * 8, Deadline.after(120))
    session.transcript.wait([b"the end"], since=since, deadline=Deadline.after(30))
    said = session.transcript.read(since)
    session.transcript.flush()
    assert said == (session.workdir / "console.log").read_bytes()[since : since + len(said)]
    numbers = [int(line) for line in re.findall(rb"^(\d{6})\r$", said, re.MULTILINE)]
    assert numbers == list(range(100000, 100000 + count + 1))


def test_what_is_typed_arrives(session: Session) -> None:
    session.booted()
    since = session.transcript.size
    session.machine.console.write('echo "<"\'a é "b" $HOME\'">"\n'.encode())
    found = session.transcript.wait([re.compile(rb"^<.*>\r?$")], since=since, deadline=Deadline.after(10))
    assert found.text.rstrip() == '<a é "b" $HOME>'.encode()


def test_attached_already_is_no_error(session: Session) -> None:
    session.booted()
    for _ in range(2):
        session.machine.console.attach(Deadline.after(5))
    since = session.transcript.size
    session.machine.console.write(b'echo "still ""here"\n')
    session.transcript.wait([b"still here"], since=since, deadline=Deadline.after(10))
    # One reader only: nothing comes twice.
    assert session.transcript.read(since).count(b"still here") == 1


def test_times_are_those_of_the_reading(session: Session) -> None:
    """A byte that nobody looked at for a while has the time at which it came."""
    session.booted()
    since = session.transcript.size
    session.machine.console.write(b'echo "in ""time"\n')
    asked = time.monotonic_ns()
    session.transcript.wait_beyond(since + 20, Deadline.after(10))
    time.sleep(0.5)
    found = session.transcript.wait([b"in time"], since=since, deadline=Deadline.after(10))
    assert asked - 1_000_000_000 < found.t_ns < asked + 450_000_000


def test_nobody_takes_what_is_typed_at_a_machine_that_is_off(bench: Bench) -> None:
    if bench.rig.server is not None:
        pytest.skip("its line is there when it is off")
    with pytest.raises(ConsoleLost, match="off"):
        bench.console.write(b"hello\n")
    bench.power.on(bench.deadline())
    bench.console.write(b"hello\n")
    bench.power.off(bench.deadline())
    with pytest.raises(ConsoleLost, match="off"):
        bench.console.write(b"hello\n")


def test_detached_it_keeps_what_was_read(bench: Bench) -> None:
    bench.console.attach(bench.deadline())
    bench.power.on(bench.deadline())
    found = bench.transcript.wait([bench.rig.first_words], deadline=bench.deadline())
    bench.console.detach()
    bench.console.detach()
    size = bench.transcript.size
    assert found.text in bench.transcript.read(0)
    assert bench.transcript.ended is not None
    assert not bench.transcript.read(size)
