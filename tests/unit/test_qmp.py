"""QMP against a peer on the other end of a socket pair: replies, events in between, and every way to be gone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from labctl.deadline import Deadline
from labctl.errors import ManagementError
from labctl.machine.qmp import Qmp

GREETING = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""}, "capabilities": []}}\r\n'


@pytest.fixture
def pair() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    client = Qmp(ours)
    yield client, theirs
    client.close()
    theirs.close()


def test_handshake_and_events_between_replies(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    peer.sendall(GREETING + b'{"return": {}}\r\n')
    assert client.handshake(Deadline.after(1)) == "7.2.22"
    assert json.loads(peer.recv(4096)) == {"execute": "qmp_capabilities"}
    peer.sendall(b'{"event": "RESUME", "timestamp": {}}\r\n{"return": {"running": true}}\r\n')
    assert client.command("query-status", Deadline.after(1)) == {"running": True}
    assert client.wait_event("RESUME", Deadline.after(1))["event"] == "RESUME"


def test_an_event_is_waited_for_by_what_it_says(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    for status in ("setup", "active", "completed"):
        peer.sendall(json.dumps({"event": "MIGRATION", "data": {"status": status}, "timestamp": {}}).encode() + b"\n")
    assert client.wait_event("MIGRATION", Deadline.after(1))["data"]["status"] == "setup"
    assert client.wait_event("MIGRATION", Deadline.after(1), lambda data: data["status"] == "completed")["data"]["status"] == "completed"
    with pytest.raises(ManagementError, match="did not answer"):
        client.wait_event("MIGRATION", Deadline.after(0.05), lambda data: data["status"] == "failed")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"error": {"class": "GenericError", "desc": "no such thing"}}\n', "no such thing"),
        (b"this is not JSON\n", "no JSON"),
        (b"[1]\n", "no object"),
    ],
)
def test_bad_answers(pair: tuple[Qmp, socket.socket], answer: bytes, words: str) -> None:
    client, peer = pair
    peer.sendall(answer)
    with pytest.raises(ManagementError, match=words):
        client.command("x", Deadline.after(1))


def test_a_peer_that_is_silent_and_one_that_is_gone(pair: tuple[Qmp, socket.socket]) -> None:
    client, peer = pair
    with pytest.raises(ManagementError, match="did not answer"):
        client.command("x", Deadline.after(0.05))
    peer.sendall(b'{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}\n')
    peer.close()
    with pytest.raises(ManagementError, match="gone"):
        client.command("x", Deadline.after(1))
    assert [event["event"] for event in client.drain()] == ["SHUTDOWN"]
