"""How to make one of each driver: the contract suites run on every driver that fills their role, found through the registry.

A new driver is picked up by itself; until it has a line in `RIGS` its contract tests fail and say so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from labctl.deadline import Deadline
from labctl.machine import registry
from labctl.machine.protocols import ROLES, Carries, Console, Deploy, DriverContext, Power, Shell
from labctl.machine.reader import Reader
from labctl.machine.registry import Machine, assemble
from labctl.machine.session import Session, start
from labctl.machine.transcript import Transcript
from labctl.model import Build, Target, TargetConfig
from labctl.run.equip import equipped
from labctl.virtualserver.client import VirtualServer
from tests import living_system, outlet, ssh_guest
from tests.leftovers import machine_name, our_machines
from tests.person import person
from tests.virtual_servers import virtual_server


@dataclass(frozen=True)
class Rig:
    """A target that holds the driver, and what only this technology can tell."""

    name: str
    drivers: Mapping[str, Mapping[str, Any]]
    first_words: bytes
    """What the console says soon after each power-on and reset, once a boot."""
    left: Callable[[str], list[int]] = lambda target: []
    """Host processes that a target of that name still has; none for a machine that is no process."""
    server: Callable[..., Mapping[str, Mapping[str, Any]]] | None = None
    """For a machine that is no process of its owner: the drivers of a virtual server."""
    beside: Callable[[VirtualServer], AbstractContextManager[Any]] | None = None
    """What stands beside the virtual server; its drivers are made from what that gives."""
    redfish: bool = False
    """Of the virtual server."""
    flood: int = 200_000
    """Lines of eight bytes: by default 1.6 MB, more than the transcript keeps in memory, 5 s of an emulated serial port."""
    resets: bool = True
    """Has a warm reset."""
    ssh: bool = False
    """Its build is one with an SSH server, which the machine is told by `tests.ssh_guest`."""
    agent: bool = False
    """The lab's agent is put behind its build's initramfs."""
    build: Build | None = None
    """Another than the usual one."""
    recipe: str = ""
    """Of another build than the usual one."""
    living: bool = False
    """The server has a Linux on its disk, of `tests.living_system`."""
    slow: bool = False
    """To put a build there takes a boot: what can be asked together is asked once."""
    target_name: str = ""
    serial_port: int = 0

    def target(self) -> Target:
        config = {
            "schema": 1,
            "cpus": 1,
            "memory": "256M",
            "append": "console=ttyS0,115200",
            "boot": {"deadline": 60, "silence": 30},
            "drivers": self.drivers,
        }
        return Target(self.target_name or machine_name(self.name), TargetConfig.model_validate(config))


_Q35 = Rig("q35", {"qemu": {"disk_bus": "none"}, "console_shell": {}}, b"SeaBIOS (version", our_machines)
_MICROVM = Rig("microvm", {"qemu": {"machine": "microvm", "disk_bus": "none"}, "console_shell": {}}, b"Linux version", our_machines)


def _by_ipmi(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    where = {"host": "127.0.0.1", "port": server.settings.bmc_port, "user": "admin"}
    return {"ipmi": {**where, "password": f"file:{server.files.password}"}}


def _by_redfish(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    where = {"url": f"http://127.0.0.1:{server.settings.redfish_port}", "user": "admin"}
    return {"redfish": {**where, "password": f"file:{server.files.password}"}}


def _by_command(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    """An outlet that a command of the host switches."""
    command = f"ipmitool -I lanplus -C 3 -H {{host}} -p {server.settings.bmc_port} -U admin -f '{server.files.password}' power {{verb}}"
    return {"pdu": {"host": "127.0.0.1", "command": command, "verbs": {"on": "on", "off": "off", "state": "status"}, "rest": 0}}


def _by_http(server: VirtualServer, port: int) -> Mapping[str, Mapping[str, Any]]:
    """An outlet that speaks HTTP."""
    password = server.files.folder / "outlet-password"
    password.touch(0o600)
    password.write_text(outlet.PASSWORD)
    url = f"http://{{host}}:{port}/outlet/{{outlet}}/{{verb}}"
    account = {"user": outlet.USER, "password": f"file:{password}"}
    return {"pdu": {"host": "127.0.0.1", "outlet": outlet.OUTLET, "url": url, "method": "POST", "rest": 0, **account}}


def _by_hand(server: VirtualServer, terminal: str) -> Mapping[str, Mapping[str, Any]]:
    return {"manual": {"terminal": terminal, "patience": 30}}


def _by_network(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    return {**_by_ipmi(server), "netboot": {"port": server.settings.boot_server_port}}


def _by_sol(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    drivers = _by_network(server)
    return {**drivers, "sol": drivers["ipmi"], "console_shell": {}}


def _by_ssh_to_the_bmc(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    power = _by_redfish(server)
    key = server.files.public_host_key.read_text().strip()
    console = {**power["redfish"], "host_key": key}
    return {**power, "netboot": {"port": server.settings.boot_server_port}, "redfish_console": console, "console_shell": {}}


def _by_serial(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    """As behind a terminal server."""
    return {**_by_network(server), "serial": {"port": f"socket://127.0.0.1:{server.settings.serial_port}"}, "console_shell": {}}


def _by_disk(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    port, boot_port = server.settings.boot_server_port, server.settings.boot_port
    return {**_by_ipmi(server), "disk": {"port": port, "url": f"http://10.0.2.2:{boot_port}"}}


def _by_kexec(server: VirtualServer) -> Mapping[str, Mapping[str, Any]]:
    """By the console, and fetched."""
    port, url = server.settings.boot_server_port, f"http://10.0.2.2:{server.settings.boot_port}"
    serial = {"port": f"socket://127.0.0.1:{server.settings.serial_port}"}
    return {**_by_ipmi(server), "kexec": {"port": port, "url": url, "ready": living_system.READY}, "serial": serial, "console_shell": {}}


def _server(name: str, drivers: Callable[..., Mapping[str, Mapping[str, Any]]], **more: Any) -> Rig:
    return Rig(name, {}, b"SeaBIOS (version", our_machines, server=drivers, **more)


RIGS: Mapping[str, Sequence[Rig]] = {
    "qemu": (_Q35, _MICROVM),
    "console_shell": (_Q35,),
    "ipmi": (_server("bmc", _by_ipmi),),
    "redfish": (_server("bmc", _by_redfish, redfish=True),),
    "pdu": (_server("command", _by_command, resets=False), _server("http", _by_http, beside=outlet.outlet, resets=False)),
    "manual": (_server("person", _by_hand, beside=person),),
    "netboot": (_server("network", _by_network),),
    "sol": (_server("bmc", _by_sol, flood=50_000),),
    "redfish_console": (_server("ssh", _by_ssh_to_the_bmc, flood=50_000, redfish=True),),
    "serial": (_server("tcp", _by_serial, flood=50_000),),
    "agent": (Rig("virtio", {"qemu": {"disk_bus": "none"}, "agent": {}}, b"SeaBIOS (version", our_machines, agent=True),),
    "ssh": (Rig("guest", {}, b"SeaBIOS (version", our_machines, ssh=True),),
    "disk": (_server("written", _by_disk, recipe=living_system.RECIPE, slow=True),),
    "kexec": (_server("console", _by_kexec, living=True, slow=True),),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A suite says ``ROLE = Power``: its tests run on each rig of each driver that fills that role."""
    if "rig" not in metafunc.fixturenames:
        return
    role = metafunc.module.ROLE
    assert role in ROLES
    drivers = [name for name in registry.names() if role in registry.roles_of(registry.load(name))]
    rigs = [(f"{driver}-{rig.name}", rig) for driver in drivers for rig in RIGS.get(driver, ())]
    rigs += [(driver, None) for driver in drivers if driver not in RIGS]
    metafunc.parametrize("rig", [rig for _, rig in rigs], ids=[name for name, _ in rigs], indirect=True, scope="module")


@pytest.fixture(scope="module")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    found: Rig | None = request.param
    assert found is not None, f"give the driver {request.node.name} a rig in tests/contract/conftest.py"
    if found.ssh:
        guest = ssh_guest.make(tmp_path_factory.mktemp("ssh"))
        account = {"host": "127.0.0.1", "port": guest.port, "key": str(guest.key), "host_key": "any"}
        yield replace(found, drivers={"qemu": {"disk_bus": "none", "extra": guest.extra}, "ssh": account}, build=guest.build)
        return
    if found.server is None:
        yield found
        return
    with (
        virtual_server(tmp_path_factory.mktemp("lab"), redfish=found.redfish, memory=512 << 20) as running,
        found.beside(running) if found.beside else nullcontext() as beside,
    ):
        if found.living:
            living_system.install(running, living_system.build(running.lab_root))
        build = living_system.obtained(running.lab_root, found.recipe) if found.recipe else None
        drivers = found.server(running) if found.beside is None else found.server(running, beside)
        yield replace(found, drivers=drivers, build=build, target_name=running.name, serial_port=running.settings.serial_port)


@dataclass
class Bench:
    """A machine on the bench, off, with the build on it."""

    rig: Rig
    target: Target
    build: Build
    machine: Machine
    transcript: Transcript
    deadline: Callable[[], Deadline] = lambda: Deadline.after(30)

    @property
    def power(self) -> Power:
        return self.machine.power

    @property
    def console(self) -> Console:
        return self.machine.console

    @property
    def deploy(self) -> Deploy:
        return self.machine.deploy

    def start(self) -> None:
        """Boot what was put."""
        start(self.machine, warm=False, deadline=self.deadline())


@pytest.fixture
def bench(rig: Rig, debian: Build, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    target = rig.target()
    with ExitStack() as stack:
        transcript = stack.enter_context(Transcript(tmp_path))
        machine = assemble(DriverContext(target, tmp_path), transcript)
        bench = Bench(rig, target, rig.build or debian, machine, transcript)
        if rig.server is not None:
            machine.power.off(bench.deadline())  # the session of the same tests may have left it on
        # A server boots what its disk holds, without a build; a session of the same tests may still offer it one.
        if machine.has(Deploy) and (rig.server is None or request.module.ROLE is Deploy):
            if isinstance(machine.deploy, Carries):
                stack.callback(machine.deploy.release)
            if not rig.slow:
                machine.deploy.put(bench.build, f"{target.config.append} {bench.build.append}", bench.deadline())
        if machine.has(Console):
            stack.callback(machine.console.detach)
            if rig.living:
                machine.console.attach(bench.deadline())
        else:
            # A driver that only switches: what the machine says is read past it.
            serial = stack.enter_context(socket.create_connection(("127.0.0.1", rig.serial_port)))
            stack.enter_context(Reader(serial.fileno(), transcript))
        stack.callback(lambda: machine.power.off(bench.deadline()))
        yield bench


@pytest.fixture(scope="module")
def session(rig: Rig, debian: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A booted machine, shared by the tests of a module."""
    build = equipped(debian, rig.target()) if rig.agent else rig.build or debian
    with Session(rig.target(), replace(build, append=f"{build.append} quiet"), tmp_path_factory.mktemp("machine")) as held:
        yield held


@pytest.fixture
def shell(session: Session) -> Shell:
    session.booted()
    return session.machine.shell
