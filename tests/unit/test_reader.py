"""The always-on reader: takes bytes as they come, stamps them, and says why it ended."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.machine.reader import Reader
from labctl.machine.transcript import Transcript

SOON = 5.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def soon() -> Deadline:
    return Deadline.after(SOON)


def test_bytes_come_with_the_time_at_which_they_were_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with Transcript() as transcript, Reader(ours.fileno(), transcript):
        before = time.monotonic_ns()
        theirs.send(b"first;")
        first = transcript.wait([b"first;"], deadline=soon())
        between = time.monotonic_ns()
        theirs.send(b"second;")
        second = transcript.wait([b"second;"], since=first.end, deadline=soon())
        assert before <= first.t_ns <= between <= second.t_ns <= time.monotonic_ns()


def test_the_end_of_a_socket_has_the_reason_that_its_owner_gives(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    names: list[str] = []

    def why() -> str:
        names.append(threading.current_thread().name)
        return "QEMU exited with status 3"

    with Transcript() as transcript, Reader(ours.fileno(), transcript, on_end=why):
        theirs.send(b"last words")
        theirs.close()
        assert transcript.wait_end(soon()) == "QEMU exited with status 3"
        assert transcript.read(0) == b"last words"
        assert names == [f"console-{ours.fileno()}"]


def test_the_end_of_a_pty_and_of_a_connection_that_was_reset() -> None:
    leader, follower = os.openpty()
    with Transcript() as transcript, Reader(leader, transcript):
        os.write(follower, b"hello")
        os.close(follower)
        assert transcript.wait_end(soon()) == "the console is gone: Input/output error"
        assert transcript.read(0) == b"hello"
    os.close(leader)

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with Transcript() as transcript, Reader(ours.fileno(), transcript):
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            assert transcript.wait_end(soon()) == "the console is gone: Connection reset by peer"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_whoever_waits_is_woken_though_the_owner_fails_to_say_why(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def why() -> str:
        raise RuntimeError("the owner's own bug")

    with Transcript() as transcript, Reader(ours.fileno(), transcript, on_end=why):
        theirs.close()
        assert transcript.wait_end(soon())


def test_stop_takes_what_is_there_already(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    for _ in range(50):
        with Transcript() as transcript:
            reader = Reader(ours.fileno(), transcript)
            reader.start()
            theirs.sendall(b"x" * 50_000)
            reader.stop()
            assert transcript.size == 50_000
            assert transcript.ended == "reading it was stopped"
            reader.stop()


def test_stop_ends_though_the_guest_never_does() -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    with Transcript() as transcript:
        with Reader(fd, transcript):
            transcript.wait([b"\0"], deadline=soon())
            began = time.monotonic()
        assert time.monotonic() - began < SOON
        assert transcript.ended == "reading it was stopped"
    os.close(fd)


def test_a_second_connection_goes_on_where_the_first_ended() -> None:
    with Transcript() as transcript:
        for words in (b"one", b"two"):
            ours, theirs = socket.socketpair()
            with ours, theirs, Reader(ours.fileno(), transcript):
                theirs.send(words)
                assert transcript.wait([words], deadline=soon()).t_ns
                assert transcript.ended is None
            assert transcript.ended == "reading it was stopped"
        assert transcript.read(0) == b"onetwo"


def test_a_descriptor_that_does_not_block_is_read_too(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    with Transcript() as transcript, Reader(ours.fileno(), transcript):
        theirs.send(b"hello")
        transcript.wait([b"hello"], deadline=soon())


def test_no_descriptor_stays_open(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with Transcript() as transcript, Reader(ours.fileno(), transcript):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
