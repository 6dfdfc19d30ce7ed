"""SSH: who is let in, who is believed, files both ways, and errors that name the mistake."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from labctl.deadline import Deadline
from labctl.errors import CommandFailed, ConfigError, ConsoleLost, TargetHung
from labctl.machine.drivers.ssh import Ssh
from labctl.machine.protocols import DriverContext
from labctl.machine.session import Session
from labctl.machine.transcript import Transcript
from labctl.model import Target, TargetConfig
from tests import ssh_guest
from tests.leftovers import machine_name

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> ssh_guest.SshGuest:
    return ssh_guest.make(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def session(guest: ssh_guest.SshGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    drivers = {"qemu": {"disk_bus": "none", "extra": guest.extra}, "console_shell": {}}
    config = {"schema": 1, "cpus": 1, "memory": "256M", "append": "console=ttyS0,115200", "drivers": drivers}
    with Session(Target(machine_name("ssh"), TargetConfig.model_validate(config)), guest.build, tmp_path_factory.mktemp("machine")) as held:
        held.booted()
        yield held


@pytest.fixture
def in_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _soon(true: Callable[[], bool]) -> bool:
    """Whether it becomes so within 20 s."""
    until = Deadline.after(20)
    while not true() and not until.expired:
        time.sleep(0.02)
    return true()


def ssh(session: Session, guest: ssh_guest.SshGuest, **options: object) -> Ssh:
    given = {"port": guest.port, "key": str(guest.key), "host_key": "any", **options}
    return Ssh(session.transcript, DriverContext(session.target, session.workdir), "127.0.0.1", **given)  # type: ignore[arg-type]


def test_files_both_ways(session: Session, guest: ssh_guest.SshGuest, tmp_path: Path) -> None:
    shell = ssh(session, guest)
    shell.open(Deadline.after(30))
    content = bytes(range(256)) * 4000
    shell.put(io.BytesIO(content), "/tmp/file", Deadline.after(30), 0o600)
    assert shell.run("wc -c </tmp/file; stat -c %a /tmp/file", Deadline.after(10)).output == f"{len(content)}\n600\n"
    back = io.BytesIO()
    shell.get("/tmp/file", back, Deadline.after(30))
    assert back.getvalue() == content
    with pytest.raises(CommandFailed, match=r"get /nowhere: .*No such file"):
        shell.get("/nowhere", back, Deadline.after(30))
    shell.close()
    shell.close()


def test_a_key_that_is_not_let_in(session: Session, guest: ssh_guest.SshGuest, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    with pytest.raises(ConfigError, match=rf"drivers\.ssh\.key: root@127\.0\.0\.1:{guest.port} refuses the key .*other"):
        ssh(session, guest, key=str(tmp_path / "other")).open(Deadline.after(30))
    with pytest.raises(ConfigError, match="nowhere is no file; a private key"):
        ssh(session, guest, key="/nowhere").open(Deadline.after(30))


def test_a_password_that_is_refused_is_not_shown(session: Session, guest: ssh_guest.SshGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_PASSWORD", "open-sesame")
    with pytest.raises(ConfigError, match=r"drivers\.ssh\.password: .* refuses the password of env:SSH_PASSWORD") as error:
        ssh(session, guest, key="", password="env:SSH_PASSWORD").open(Deadline.after(30))
    assert "open-sesame" not in str(error.value)


def test_the_first_host_key_is_kept_and_another_refused(session: Session, guest: ssh_guest.SshGuest, in_a_lab: Path) -> None:
    for _ in range(2):
        shell = ssh(session, guest, host_key="pinned")
        shell.open(Deadline.after(30))
        shell.close()
    (pin,) = (in_a_lab / ".labctl/host-keys").iterdir()
    known = pin.read_text()
    pin.write_text(known[:40] + "AAAA" + known[44:])
    with pytest.raises(ConfigError, match=r"drivers\.ssh\.host_key: .* shows another host key than before"):
        ssh(session, guest, host_key="pinned").open(Deadline.after(30))
    shell = ssh(session, guest, host_key=known.strip())
    shell.open(Deadline.after(30))
    shell.close()


def test_a_channel_that_the_server_closes_before_it_has_a_program_is_asked_for_again(
    session: Session, guest: ssh_guest.SshGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dropbear does so when a program of an earlier channel ends just then, as an SFTP server does after its channel was closed."""
    shell = ssh(session, guest)
    shell.open(Deadline.after(30))
    closed: list[str] = []

    def when_closed(name: str) -> None:
        begin = getattr(paramiko.Channel, name)

        def later(channel: paramiko.Channel, *what: str) -> None:
            if name not in closed:
                closed.append(name)
                assert _soon(lambda: channel.closed)
            begin(channel, *what)

        monkeypatch.setattr(paramiko.Channel, name, later)

    for name in ("exec_command", "invoke_subsystem"):
        with shell._connection.transport.open_session() as leaves_a_program:
            leaves_a_program.exec_command("sleep 0.5")
        when_closed(name)
        if name == "exec_command":
            assert shell.run("echo once", Deadline.after(30)).output == "once\n"
        else:
            shell.put(io.BytesIO(b"here"), "/tmp/here", Deadline.after(30))
            assert shell.run("cat /tmp/here", Deadline.after(30)).output == "here"
    assert closed == ["exec_command", "invoke_subsystem"]


def test_a_server_that_never_answers_a_channel(session: Session, guest: ssh_guest.SshGuest) -> None:
    shell = ssh(session, guest)
    pid = shell.run("awk '{ print $4 }' /proc/$PPID/stat", Deadline.after(30)).output.strip()  # the shell's parent's parent is the server
    session.run(f"kill -STOP {pid}")
    try:
        began = time.monotonic()
        with pytest.raises(ConsoleLost, match="Timeout opening channel"):
            shell.run("echo", Deadline.after(1))
        assert time.monotonic() - began < 5
    finally:
        session.run(f"kill -CONT {pid}")


def test_nobody_there(session: Session, guest: ssh_guest.SshGuest, tmp_path: Path) -> None:
    with Transcript(tmp_path) as transcript:
        shell = Ssh(transcript, DriverContext(session.target, tmp_path), "127.0.0.1", port=1, key=str(guest.key))
        with pytest.raises(TargetHung, match=r"no SSH on root@127\.0\.0\.1:1 within 1 s: .*refused|Unable to connect"):
            shell.open(Deadline.after(1))
