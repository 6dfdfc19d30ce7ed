"""The real agent, run on the host over a socket: what it does, what hostile bytes do to it, and what a hostile one does to the client."""

from __future__ import annotations

import io
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labctl.build.agent import _binary
from labctl.build.cache import Cache
from labctl.deadline import Deadline, DeadlineExpired
from labctl.machine.agentclient import AgentClient, AgentLost, AgentRefused, StreamEnded, as_stream
from labctl.machine.agentframe import Decoder, encode


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = _binary(os.uname().machine, Cache(), Deadline.after(120), print).files["agent"]
    runs = tmp_path_factory.mktemp("agent") / "agent"  # nothing in the cache is to be run
    runs.write_bytes(made.read_bytes())
    runs.chmod(0o755)
    return runs


@pytest.fixture(scope="module")
def stream(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    ours, its = socket.socketpair()
    home = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home"))}
    with subprocess.Popen([binary, "--stay", f"fd:{its.fileno()}"], pass_fds=[its.fileno()], env=home) as process:
        its.close()
        try:
            yield ours
        finally:
            ours.close()
            assert process.wait(20) == 0, "it ends with its stream, and not by a fault of its own"


@pytest.fixture
def agent(stream: socket.socket) -> AgentClient:
    client = AgentClient(stream)
    client.synchronise(soon())
    return client


def test_what_a_command_says_and_how_it_ends(agent: AgentClient) -> None:
    ended = agent.execute("echo out; echo err >&2; exit 7", soon())
    assert (ended.status, ended.out, ended.err, ended.late, ended.cut) == (7, b"out\n", b"err\n", False, False)
    assert agent.execute("kill -9 $$", soon()).status == 137
    assert agent.execute("cat", soon()).out == b""
    assert agent.execute("seq 1 100000", soon()).out == b"".join(b"%d\n" % i for i in range(1, 100_001))


def test_output_is_bounded_and_said_to_be(agent: AgentClient) -> None:
    ended = agent.execute("seq 1 100000; seq 1 10 >&2", soon(), most=1000)
    assert (len(ended.out), len(ended.err), ended.cut, ended.status) == (1000, 21, True, 0)


def test_a_command_that_is_late_dies_with_all_that_it_started(agent: AgentClient, tmp_path: Path) -> None:
    command = f"sleep 1000 & echo $! >{tmp_path}/pid; sleep 1000"
    began = time.monotonic()
    ended = agent.execute(command, Deadline.after(1))
    assert (ended.late, ended.status) == (True, 137)
    assert 0.9 < time.monotonic() - began < 10
    pid = int((tmp_path / "pid").read_text())
    assert _gone(pid)


def _gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_what_is_left_running_is_not_waited_for(agent: AgentClient) -> None:
    began = time.monotonic()
    assert agent.execute("(sleep 3; echo late) & echo first", soon()).out == b"first\n"
    assert time.monotonic() - began < 2.5
    assert agent.execute("echo second", soon()).out == b"second\n"


@pytest.mark.parametrize("size", [0, 1, 32719, 32720, 32721, 3_000_001])
def test_files_both_ways(agent: AgentClient, tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    path = tmp_path / "a file with blanks"
    agent.put(as_stream(content), str(path), 0o640, soon())
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o640
    back = io.BytesIO()
    agent.get(str(path), back, soon())
    assert back.getvalue() == content
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_that_becomes_shorter_while_it_is_read_is_no_short_file(agent: AgentClient, tmp_path: Path) -> None:
    """What /sys says of its own files' sizes is no promise."""
    path = tmp_path / "shrinks"
    path.write_bytes(bytes(4_000_000))

    class Cuts(io.BytesIO):
        def write(self, data: Any) -> int:
            os.truncate(path, 1)
            return super().write(data)

    with pytest.raises(AgentRefused, match=r"it became shorter while it was read: \d+ of 4000000 bytes"):
        agent.get(str(path), Cuts(), soon())
    for known in (Path("/sys/kernel/mm/transparent_hugepage/enabled"), Path("/sys/kernel/uevent_seqnum")):
        if known.is_file():
            back = io.BytesIO()
            agent.get(str(known), back, soon())
            assert 0 < len(back.getvalue()) < known.stat().st_size


def test_files_that_are_refused(agent: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(2000))
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        ("nowhere", "No such file"),
        ("", "it is a folder"),
        ("fifo", "it is no regular file"),
        ("large", "bytes, more than the"),
    ):
        with pytest.raises(AgentRefused, match=why):
            agent.get(f"{tmp_path}/{path}", io.BytesIO(), soon(), most=1000)
    with pytest.raises(AgentRefused, match="No such file"):
        agent.put(as_stream(b"x"), f"{tmp_path}/none/file", 0o644, soon())
    with pytest.raises(AgentRefused, match="at most"):
        agent.execute("x" * 70_000, soon())
    with pytest.raises(AgentRefused, match="NUL"):
        agent.execute("a\0b", soon())
    agent.ping(soon())


def test_a_disk_that_fills_on_put(binary: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which write(2) tells in the same way."""
    ours, its = socket.socketpair()
    limited = f"ulimit -f 100; exec {binary} --stay fd:{its.fileno()}"
    with subprocess.Popen(["sh", "-c", limited], pass_fds=[its.fileno()], preexec_fn=_ignore_the_signal) as process:
        its.close()
        with ours:
            client = AgentClient(ours)
            client.synchronise(soon())
            with pytest.raises(AgentRefused, match=r"file: File too large"):
                client.put(as_stream(bytes(30_000_000)), f"{tmp_path}/file", 0o644, soon())
            assert list(tmp_path.iterdir()) == [], "no half of it is left"
            client.ping(soon())
        process.wait(20)


def _ignore_the_signal() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_put_that_is_broken_off_leaves_nothing(agent: AgentClient, stream: socket.socket, tmp_path: Path) -> None:
    agent._send(encode(5, "put", b"644\n%s/file" % os.fsencode(tmp_path)), soon())
    agent._reply(5, "ready", deadline=soon())
    agent._send(encode(5, "data", b"some of it"), soon())
    agent.synchronise(soon())
    assert list(tmp_path.iterdir()) == []
    agent._send(encode(6, "put", b"644\n%s/file" % os.fsencode(tmp_path)) + encode(6, "data", b"x") + encode(6, "close", b"0" * 64), soon())
    with pytest.raises(AgentRefused, match="digest"):
        agent._reply(6, "done", deadline=soon())
    assert list(tmp_path.iterdir()) == []


def test_requests_that_are_none(agent: AgentClient) -> None:
    for kind, payload in (
        ("nonsense", b""),
        ("exec", b"echo"),
        ("exec", b"1 x\necho"),
        ("exec", b"-1 5\necho"),
        ("put", b"rw\n/tmp/x"),
        ("put", b"644\n"),
        ("get", b"/tmp/x"),
        ("clock", b"soon"),
        ("reseed", b"short"),
        ("get", b"10\n/a\0b"),
    ):
        with pytest.raises(AgentRefused):
            agent._reply(agent._ask(kind, payload, soon()), "none", deadline=soon())
    agent.ping(soon())


def test_a_frame_that_is_cut_off_is_given_up(agent: AgentClient, stream: socket.socket) -> None:
    agent._send(encode(9, "ping", bytes(5000))[:1000], soon())
    began = time.monotonic()
    agent.synchronise(soon())
    assert time.monotonic() - began < 15


requests = st.builds(
    lambda id_, kind, payload: encode(id_, kind, payload),
    st.integers(0, 0xFFFFFFFF),
    # Not `exec`, `put` and `clock`: what these would do to the host that runs the tests is theirs to do.
    st.sampled_from(["ping", "sync", "data", "close", "get", "kill", "reseed", "zzz"]),
    st.one_of(st.binary(max_size=200), st.sampled_from([b"9\n/etc/passwd", b"99999999999999999999999\n/", b"5\n"])),
)
broken = st.one_of(
    st.binary(max_size=300),
    requests,
    st.builds(lambda data, keep: data[:keep], requests, st.integers(0, 100)),
    st.sampled_from([b"LABCTL 1 ping 99999 00000000\n", b"LABCTL 1 ping 65536 00000000\n", b"LABCTL ", b"LABCTL 1 ping 4294967297 0\n"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(broken, max_size=20))
def test_hostile_bytes_do_not_move_the_agent(stream: socket.socket, pieces: list[bytes]) -> None:
    """Random bytes, frames cut off, lengths that nothing has: the next call is answered. Line ends fill up what was said to come."""
    client = AgentClient(stream)
    for piece in pieces:
        client._send(piece, soon())
    client._send(b"\n" * 65600, soon())
    client.synchronise(soon())
    assert client.ping(soon(), b"alive") < 20


# --- the client, with an agent that is none


def answering(answer: Callable[[bytes], bytes]) -> tuple[AgentClient, threading.Thread]:
    """A client whose peer answers the first thing that it hears with ``answer(its id)``, and is silent from then on."""
    ours, its = socket.socketpair()

    def serve() -> None:
        decoder = Decoder()
        while True:
            for frame in decoder.feed(its.recv(65536)):
                with suppress(OSError):  # the client has heard enough
                    its.sendall(answer(frame.id))  # type: ignore[arg-type]
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = AgentClient(ours)
    client.peer = its  # type: ignore[attr-defined]  # kept open
    return client, thread


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda i: encode(0, "hello", b"1 77"), "killed, and has started anew"),
        (lambda i: encode(i, "out", b"half")[:20] + encode(0, "hello", b"1 77"), "killed, and has started anew"),
        (lambda i: encode(i, "out", bytes(60_000)) + encode(i, "out", bytes(60_000)), "more than it was asked for"),
        (lambda i: encode(i, "end", b"nonsense"), "ends a command with"),
        (lambda i: encode(i, "end", b"0 done 5 0 1"), "output is missing"),
        (lambda i: encode(i, "end", b"0 done -1 0 1"), "output is missing"),
    ],
)
def test_answers_that_are_none(answer: Callable[[int], bytes], why: str) -> None:
    client, thread = answering(answer)  # type: ignore[arg-type]
    with pytest.raises(AgentLost, match=why):
        client.execute("true", soon(20), most=100_000)
    thread.join(5)


def test_one_that_only_talks_while_it_is_to_listen() -> None:
    client, _ = answering(lambda i: encode(i, "ready") + encode(7, "pong") * 300_000)  # type: ignore[arg-type]
    with pytest.raises(AgentLost, match="nobody has asked for"):
        client.put(as_stream(bytes(10_000_000)), "/x", 0o644, soon())


def test_an_answer_that_never_ends_is_told_in_time() -> None:
    client, _ = answering(lambda i: encode(i, "out", b"half of it")[:30])  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(DeadlineExpired):
        client.execute("true", Deadline.after(1))
    assert time.monotonic() - began < 10


def test_a_stream_that_ends_is_told_at_once() -> None:
    client, thread = answering(lambda i: encode(i, "out", b"x"))  # type: ignore[arg-type]
    threading.Timer(0.3, lambda: client.peer.shutdown(socket.SHUT_RDWR)).start()  # type: ignore[attr-defined]
    with pytest.raises(StreamEnded):
        client.execute("true", soon())
    thread.join(5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.sampled_from(["out", "end", "error", "data", "done", "pong"])), max_size=20))
def test_a_hostile_agent_against_the_client(pieces: list[bytes | str]) -> None:
    """Whatever comes: an answer, or one of the three ways to say that there is none; never anything else, and never for long."""

    def answer(number: int) -> bytes:
        return b"".join(piece if isinstance(piece, bytes) else encode(number, piece, b"0 done 0 0 1") for piece in pieces)

    client, thread = answering(answer)  # type: ignore[arg-type]
    began = time.monotonic()
    with suppress(AgentRefused, AgentLost, DeadlineExpired):
        client.get("/x", io.BytesIO(), Deadline.after(0.05))
    assert time.monotonic() - began < 10
    thread.join(5)
    client.stream.close()


def test_a_flood_is_known_before_the_agent_says_so(agent: AgentClient) -> None:
    """Where it is kept from answering, what came until then tells."""
    ended = agent.execute("yes", Deadline.after(0.5), most=1 << 14)
    assert (ended.late, ended.cut, agent.heard.full) == (True, True, True)
    agent.execute("echo few", soon())
    assert not agent.heard.full
