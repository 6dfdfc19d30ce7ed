"""Secrets: read where the reference says, refused where it is not safe, shown nowhere."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from labctl.config import validate
from labctl.deadline import Deadline
from labctl.errors import ConfigError, SecretUnavailable
from labctl.machine.ipmi import Address, Password, session
from labctl.secrets import Secret, reveal

VALUE = "correct-horse-battery"


class Options(BaseModel):
    password: Secret


def refused(reference: object) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Options, {"password": reference}, "targets/rack1.toml", "drivers.ipmi")
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(VALUE + "\n")
    path.chmod(0o600)
    return path


def test_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BMC_PASSWORD", VALUE)
    assert validate(Options, {"password": "env:BMC_PASSWORD"}, "f").password == "env:BMC_PASSWORD"  # the reference, not the secret
    assert reveal("env:BMC_PASSWORD") == VALUE
    monkeypatch.delenv("BMC_PASSWORD")
    assert "drivers.ipmi.password: the environment variable BMC_PASSWORD is not set" in refused("env:BMC_PASSWORD")
    with pytest.raises(SecretUnavailable):
        reveal("env:BMC_PASSWORD")


def test_of_a_file_without_its_line_end(file: Path) -> None:
    assert validate(Options, {"password": f"file:{file}"}, "f").password == f"file:{file}"
    assert reveal(f"file:{file}") == VALUE


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o644, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    said = refused(f"file:{file}")
    assert f"can be read by others (mode {mode:04o}); chmod 600 {file}" in said
    assert VALUE not in said
    with pytest.raises(SecretUnavailable):  # also if it became so after the check
        reveal(f"file:{file}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(file: Path) -> None:
    os.chown(file, 12345, -1)
    assert "belongs to somebody else (uid 12345)" in refused(f"file:{file}")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(f"file:{tmp_path}/none")
    assert "is no file" in refused(f"file:{tmp_path}")
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is no file" in refused(f"file:{tmp_path}/pipe")  # and does not wait for a writer
    empty = tmp_path / "empty"
    empty.touch(0o600)
    with pytest.raises(SecretUnavailable, match="is empty"):
        reveal(f"file:{empty}")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    binary.chmod(0o600)
    assert "is not UTF-8 text" in refused(f"file:{binary}")
    assert stat.S_IMODE(binary.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"one\ntwo\n", b"\none\n", b"one\0two\n", b"one\x1b[31m", b"one\ttwo"])
def test_what_nobody_types_as_a_password_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    file.write_bytes(content)
    assert f"file:{file} holds more than one line, or what is no text; one line of text" in refused(f"file:{file}")
    with pytest.raises(SecretUnavailable, match="more than one line") as caught:
        reveal(f"file:{file}")
    assert "two" not in str(caught.value)
    if b"\0" not in content:
        monkeypatch.setitem(os.environb, b"BMC_PASSWORD", content)
        assert "env:BMC_PASSWORD holds more than one line" in refused("env:BMC_PASSWORD")


def test_one_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environb, b"BMC_PASSWORD", b"\xff\xfe")
    assert "env:BMC_PASSWORD holds more than one line, or what is no text" in refused("env:BMC_PASSWORD")


def test_a_file_that_is_no_password(file: Path) -> None:
    file.write_text("x" * 4096)
    assert reveal(f"file:{file}") == "x" * 4096
    file.write_text("x" * (1 << 20))
    assert f"{file} is longer than 4096 bytes; one line of text" in refused(f"file:{file}")


def test_as_long_as_ipmi_takes(file: Path) -> None:
    class Ipmi(BaseModel):
        password: Password

    for right in ("x" * 20, "ö" * 10):
        file.write_text(right + "\n")
        assert validate(Ipmi, {"password": f"file:{file}"}, "f").password == f"file:{file}"
    for wrong in ("x" * 21, "ö" * 10 + "x"):
        file.write_text(wrong + "\n")
        with pytest.raises(ConfigError, match=rf"password: file:{file} is longer than 20 bytes; as long as IPMI takes") as caught:
            validate(Ipmi, {"password": f"file:{file}"}, "targets/rack1.toml", "drivers.ipmi")
        assert wrong not in str(caught.value)
    assert validate(Ipmi, {"password": "keyring:bmc/admin"}, "f").password == "keyring:bmc/admin"  # which nobody has opened yet


def test_one_that_is_too_long_is_not_sent(file: Path) -> None:
    file.write_text("x" * 21)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        address = Address("rack1", "127.0.0.1", listening.getsockname()[1], "admin", f"file:{file}", 3)
        with pytest.raises(ConfigError, match=r"drivers.ipmi: file:.* is longer than 20 bytes"), session(address, Deadline.after(5)):
            pass
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.recv(1)


@pytest.mark.parametrize(
    "wrong", [VALUE, f"pass:{VALUE}", "", "env:", f"env:{VALUE}", "keyring:service", "vault:secret/x", 12345678, [VALUE]]
)
def test_a_secret_in_the_file_itself_is_refused_and_not_repeated(wrong: object) -> None:
    said = refused(wrong)
    assert "targets/rack1.toml: drivers.ipmi.password: " in said
    assert "env:NAME, file:PATH, keyring:SERVICE/USER or vault:PATH#KEY" in said
    assert VALUE not in said
    assert "12345678" not in said


def test_of_a_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    import keyring
    from keyring.backend import KeyringBackend

    class Dictionary(KeyringBackend):
        """A backend of keyring's own kind; this host has no desktop."""

        priority = 1  # type: ignore[assignment]

        def get_password(self, service: str, username: str) -> str | None:
            return VALUE if (service, username) == ("bmc", "rack1/admin") else None

        def set_password(self, service: str, username: str, password: str) -> None: ...
        def delete_password(self, service: str, username: str) -> None: ...

    before = keyring.get_keyring()
    keyring.set_keyring(Dictionary())
    try:
        assert validate(Options, {"password": "keyring:bmc/rack1/admin"}, "f").password == "keyring:bmc/rack1/admin"
        assert reveal("keyring:bmc/rack1/admin") == VALUE
        with pytest.raises(SecretUnavailable, match="has no bmc/nobody"):
            reveal("keyring:bmc/nobody")
    finally:
        keyring.set_keyring(before)


@dataclass
class Vault:
    url: str
    asked: list[str]


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """The few answers of HashiCorp Vault's HTTP interface for KV version 2 (mount ``secret``) and version 1 (mount ``old``)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, answer = 404, {"errors": []}
            if self.headers["X-Vault-Token"] != "good":
                status, answer = 403, {"errors": ["permission denied"]}
            elif self.path == "/v1/secret/data/rack1/bmc":
                status, answer = 200, {"data": {"data": {"password": VALUE}, "metadata": {"version": 1}}}
            elif self.path.endswith("/sealed"):
                status, answer = 503, {"errors": ["Vault is sealed"]}
            elif self.path == "/v1/old/rack1":
                status, answer = 200, {"data": {"password": VALUE}}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("VAULT_ADDR", url)
        monkeypatch.setenv("VAULT_TOKEN", "good")
        yield Vault(url, asked)
        server.shutdown()


def test_of_a_vault(vault: Vault) -> None:
    assert reveal("vault:secret/rack1/bmc#password") == VALUE
    assert vault.asked == ["/v1/secret/data/rack1/bmc"]
    assert reveal("vault:old/rack1#password") == VALUE


def test_a_vault_that_gives_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SecretUnavailable, match="has no text user in secret/rack1/bmc"):
        reveal("vault:secret/rack1/bmc#user")
    with pytest.raises(SecretUnavailable, match="has no secret/none"):
        reveal("vault:secret/none#password")
    with pytest.raises(SecretUnavailable, match="has failed: VaultDown"):
        reveal("vault:secret/sealed#password")
    monkeypatch.setenv("VAULT_TOKEN", "bad")
    with pytest.raises(SecretUnavailable, match="does not let us read secret/rack1/bmc"):
        reveal("vault:secret/rack1/bmc#password")
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:9")
    with pytest.raises(SecretUnavailable, match="does not answer"):
        reveal("vault:secret/rack1/bmc#password")
