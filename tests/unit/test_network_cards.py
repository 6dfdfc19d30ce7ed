"""Network cards of a target: which of the machine's ports the lab reaches, and where."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from labctl.errors import ConfigError, ConsoleLost
from labctl.machine import qemu_network
from labctl.machine.session import Session
from labctl.model import Build, Nic, Provenance, Target, TargetConfig

# What `info usernet` of QEMU 7.2 says with two cards and a connection through one of the forwards.
USERNET = (
    "Hub -1 (net-host):\r\n"
    "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[ESTABLISHED]   12       127.0.0.1 40001       10.0.2.15  5900     0     0\r\n"
    "  TCP[HOST_FORWARD]   8       127.0.0.1 34043       10.0.2.15  5900     0     0\r\n"
    "  TCP[HOST_FORWARD]   3       127.0.0.1 35503       10.0.2.15  5700     0     0\r\n"
    "Hub -1 (net-other):\r\n"
    "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
    "  TCP[HOST_FORWARD]   9       127.0.0.1 40404       10.0.2.15  5900     0     0\r\n"
)


BUILD = Build("b", "sha256:1", "x86_64", Path("/k"), None, "6.1", "quiet", {}, Provenance("path", "k"))


def session_on(folder: Path, nics: dict[str, object], **drivers: object) -> Session:
    raw = {"schema": 1, "cpus": 1, "memory": "64M", "nics": nics, "drivers": drivers or {"qemu": {}}}
    return Session(Target("t", TargetConfig.model_validate(raw)), BUILD, folder)


def test_where_a_port_is_forwarded_is_what_qemu_says() -> None:
    assert qemu_network.forwarded(USERNET, "host", 5900) == 34043
    assert qemu_network.forwarded(USERNET, "host", 5700) == 35503
    assert qemu_network.forwarded(USERNET, "other", 5900) == 40404
    assert qemu_network.forwarded(USERNET, "other", 5700) is None
    assert qemu_network.forwarded("", "host", 5900) is None


def test_qemu_is_asked_for_any_free_port() -> None:
    nics = {"host": Nic(to="host", forward=(22, 5900)), "second": Nic(to="host", address="192.0.2.7/24", peer="192.0.2.1", forward=(80,))}
    backends = [word for word in qemu_network.arguments("t", nics, "q35", {}) if word.startswith("user,")]
    assert "hostfwd=tcp:127.0.0.1:0-10.0.2.15:22,hostfwd=tcp:127.0.0.1:0-10.0.2.15:5900" in backends[0]
    assert backends[1].endswith("hostfwd=tcp:127.0.0.1:0-192.0.2.7:80")


@pytest.mark.parametrize(
    ("nic", "words"),
    [
        ({"to": "link", "forward": [80]}, 'only on a card to = "host"'),
        ({"to": "host", "forward": [80, 80]}, "a port is there twice"),
        ({"to": "host", "forward": [0]}, "greater than or equal to 1"),
        ({"to": "host", "forward": [65536]}, "less than or equal to 65535"),
    ],
)
def test_ports_that_cannot_be_forwarded(nic: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Nic.model_validate(nic)


def test_a_port_that_no_card_forwards(tmp_path: Path) -> None:
    with session_on(tmp_path, {"host": {"to": "host", "forward": [22]}}) as session:
        assert (session.leads_to(22), session.leads_to(5900)) == ("host", "")
        with pytest.raises(ConfigError, match=r"targets/t\.toml: nics: no card forwards port 5900; forward = \[22, 5900\]"):
            session.endpoint(5900)


def test_a_machine_that_is_off(tmp_path: Path) -> None:
    with session_on(tmp_path, {"host": {"to": "host", "forward": [22]}}) as session, pytest.raises(ConsoleLost, match="port 22"):
        session.endpoint(22)


def test_a_real_machine_is_reached_at_its_own_address(tmp_path: Path) -> None:
    real = {"serial": {"port": "/dev/null"}, "pdu": {"command": "echo off"}}
    card = {"to": "host", "mac": "02:00:00:00:00:01", "forward": [5900]}
    with session_on(tmp_path, {"lan": {**card, "address": "192.0.2.9/24"}}, **real) as session:
        assert session.endpoint(5900) == ("192.0.2.9", 5900)
    with session_on(tmp_path, {"lan": card}, **real) as session, pytest.raises(ConfigError, match=r"nics\.lan\.address"):
        session.endpoint(5900)
