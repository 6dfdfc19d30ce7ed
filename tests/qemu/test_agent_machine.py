"""The agent in a real machine: what only a machine can do to it. The contract of its role is in tests/contract."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, TargetHung
from labctl.machine.drivers.agent import Agent
from labctl.machine.program import KTAP, run_program
from labctl.machine.session import Session
from labctl.model import Build, Target, TargetConfig
from labctl.run.equip import equipped
from tests.leftovers import machine_name

pytestmark = pytest.mark.qemu


def machine(debian: Build, folder: Path, nics: dict[str, object] | None = None, **options: object) -> Session:
    config = {
        "schema": 1,
        "cpus": 1,
        "memory": "256M",
        "append": "console=ttyS0,115200",
        "boot": {"deadline": 60, "silence": 30},
        "nics": nics or {},
        "drivers": {"qemu": {"disk_bus": "none"}, "agent": options},
    }
    target = Target(machine_name("agent"), TargetConfig.model_validate(config))
    return Session(target, equipped(debian, target), folder)


@pytest.fixture(scope="module")
def session(debian: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with machine(debian, tmp_path_factory.mktemp("machine")) as held:
        held.booted()
        yield held


def test_over_tcp(debian: Build, tmp_path: Path) -> None:
    """The card is set up by the machine, the port is the host's choice, and another one after a power cycle."""
    with machine(debian, tmp_path, {"host": {"to": "host", "forward": [7007]}}, channel="tcp") as session:
        for content in (b"one", bytes(100_000)):
            session.put(content, "/tmp/file")
            back = io.BytesIO()
            session.get("/tmp/file", back)
            assert back.getvalue() == content
            assert session.run("echo out; echo err >&2; exit 3", check=False).stderr == "err\n"
            session.boot()


def test_an_agent_that_is_killed_is_told_at_once_and_starts_again(session: Session) -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed, match=r"the agent was killed, and has started anew, in the middle of 'kill -9 \$PPID; sleep 50'"):
        session.run("kill -9 $PPID; sleep 50")
    assert time.monotonic() - began < 10
    assert session.run("echo back").output == "back\n"
    assert len(session.boots) == 1, "the machine is well"


def test_a_disk_that_is_full_is_told_and_keeps_no_half_of_a_file(session: Session) -> None:
    session.run("mkdir -p /tmp/small && mount -t tmpfs -o size=1m none /tmp/small")
    with pytest.raises(CommandFailed, match=r"put /tmp/small/file: .*No space left on device"):
        session.put(bytes(20_000_000), "/tmp/small/file")
    assert session.run("ls -A /tmp/small").output == ""
    session.put(b"it fits", "/tmp/small/file", mode=0o600)
    assert session.run("cat /tmp/small/file; stat -c %a /tmp/small/file").output == "it fits600\n"
    back = io.BytesIO()
    session.get("/tmp/small/file", back)
    assert back.getvalue() == b"it fits"


def test_more_output_than_is_kept_is_no_result(session: Session) -> None:
    with pytest.raises(CommandFailed, match="said more than 16 MiB"):
        session.run("head -c 17000000 /dev/zero")


def test_memory_that_runs_out_takes_the_command_and_not_the_agent(session: Session) -> None:
    result = session.run("dmesg -n 1; tail /dev/zero", check=False)
    assert result.status == 137
    assert session.run("echo on").output == "on\n"


def test_the_clock_and_the_random_numbers(session: Session) -> None:
    agent = session.machine.shell
    assert isinstance(agent, Agent)
    session.run("date -s @1000000000 >/dev/null")
    agent.set_clock(Deadline.after(10))
    assert abs(int(session.run("date +%s").output) - time.time()) < 20
    agent.reseed(bytes(64), Deadline.after(10))
    with pytest.raises(CommandFailed, match="16 to 512"):
        agent.reseed(b"little", Deadline.after(10))


def test_a_program_that_hangs_is_told_by_what_it_said_and_what_it_waits_for(debian: Build, tmp_path: Path) -> None:
    with machine(debian, tmp_path) as session:
        with pytest.raises(TargetHung) as told:
            session.run("mkfifo /tmp/fifo; echo begun; echo slow >&2; cat /tmp/fifo", deadline=2)
        assert told.value.title.startswith(
            "the command 'mkfifo /tmp/fifo; echo begun; echo slow >&2; cat /tmp/fifo' did not end within 2 s: it last said 'begun' and "
            "'slow' on stderr; cat /tmp/fifo (process "
        ), told.value.title
        assert told.value.title.endswith(("sleeps in wait_for_partner", "sleeps in fifo_open")), told.value.title
        assert "--- stderr\nslow\n--- its processes\n" in told.value.tail
        assert "--- console\n" in told.value.tail
        with pytest.raises(TargetHung, match=r"it said nothing; .*\(process [0-9]+\) runs"):
            session.run("while :; do :; done", deadline=2)
        with pytest.raises(
            TargetHung, match=r"the command 'echo ok 1 a; sleep 77' did not end .* last said '.*ok 1 a'; sleep 77 \(process"
        ):
            run_program(session, "echo ok 1 a; sleep 77", language=KTAP, take=lambda report, took: None, deadline=2)


def test_an_agent_that_is_killed_for_good_is_told_when_the_time_is_over(session: Session) -> None:
    """The last one on this machine, which would be booted afresh for whatever comes next."""
    with pytest.raises(TargetHung, match="did not end within 2 s"):
        session.run("read -r _ _ _ keeper _ </proc/$PPID/stat; kill -9 $keeper; sleep 50", deadline=2)  # who would start it again
    assert not session.up


def test_an_agent_that_nobody_starts_again_is_not_waited_for(debian: Build, tmp_path: Path) -> None:
    """It and its keeper are killed at once, as by `killall`: the command's own time may be minutes."""
    kill = (
        'for each in /proc/[0-9]*; do [ "$(readlink $each/exe)" = /usr/lib/labctl/agent ] && set -- "$@" ${each#/proc/}; done; kill -9 "$@"'
    )
    with machine(debian, tmp_path) as session:
        began = time.monotonic()
        with pytest.raises(TargetHung, match="the agent is gone, killed with what would start it again, in the middle of"):
            session.run(f"{kill}; sleep 300", deadline=120)
        assert time.monotonic() - began < 60
        assert session.run("echo back").output == "back\n", "on a fresh boot"


def test_a_machine_that_resets_itself_is_told_and_booted_anew(debian: Build, tmp_path: Path) -> None:
    """Its agent starts again with it: that is no agent that was killed."""
    with machine(debian, tmp_path) as session:
        with pytest.raises(CommandFailed, match=r"the machine has reset itself in the middle of 'reboot -f; sleep 50'"):
            session.run("reboot -f; sleep 50")
        assert session.run("echo back").output == "back\n"
        assert len(session.boots) == 2, "what comes next starts from a fresh boot"


def test_so_is_one_whose_commands_go_over_its_console(debian: Build, tmp_path: Path) -> None:
    drivers = {"qemu": {"disk_bus": "none"}, "console_shell": {}}
    config = {"schema": 1, "cpus": 1, "memory": "256M", "append": "console=ttyS0,115200", "drivers": drivers}
    target = Target(machine_name("console"), TargetConfig.model_validate(config))
    with Session(target, equipped(debian, target), tmp_path) as session:
        session.run("dmesg")  # the banner is on the console again, and the machine was not reset
        with pytest.raises(TargetHung, match=r"did not end within 1 s"):
            session.run("dmesg; sleep 50", deadline=1)
        with pytest.raises(CommandFailed, match=r"the machine has reset itself in the middle of 'reboot -f; sleep 50'"):
            session.run("reboot -f; sleep 50", deadline=15)


def test_the_same_over_a_second_serial_port(debian: Build, tmp_path: Path) -> None:
    with machine(debian, tmp_path, channel="serial") as session:
        assert session.run("echo out; echo err >&2; exit 3", check=False).stderr == "err\n"
        assert session.run("seq 1 5000").output == "".join(f"{i}\n" for i in range(1, 5001))
        content = bytes(range(256)) * 100
        session.put(content, "/tmp/file")
        back = io.BytesIO()
        session.get("/tmp/file", back)
        assert back.getvalue() == content
        session.run("echo c >/dev/ttyS1", check=False)  # somebody else's words in between
        assert session.run("echo on").output == "on\n"
