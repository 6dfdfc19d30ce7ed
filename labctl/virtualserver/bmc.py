"""The BMC: OpenIPMI's ``ipmi_sim``, an IPMI 2.0 implementation of its own, with sensors, event log and inventory.

Its chassis commands call `labctl.virtualserver.chassis`, which asks the keeper; its SOL is a listener of the serial hub.
Formats: ipmi_lan(5) and ipmi_sim_cmd(5) of the Debian package openipmi.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import DeployError, HostToolMissing, InfraError, ManagementError, StorageError
from labctl.machine.compiled import compiled
from labctl.machine.ipmi import Address, session
from labctl.process import Child, find, start
from labctl.virtualserver import chassis
from labctl.virtualserver.settings import LOOPBACK, SIMULATOR, Files, Settings

USER = "admin"
SEL_ENTRIES = 200
"""How many events its log holds."""
_HISTORY = 65536
_LAN = """name "{name}"
set_working_mc 0x20
  startlan 1
    addr {simulator} {bmc_port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{chassis}"
  serial 15 {loopback} {kcs_port} codec VM
  sol "tcp:{simulator}:{serial_port}" 115200 history={history}
  console {loopback} {console_port}
  startnow false
  user 1 false "" "" user 10 none md2 md5 straight
  user 2 true "{user}" "{password}" admin 10 none md2 md5 straight
"""
_COMMANDS = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 {sel} 0x0a
{sensors}
mc_add_fru_data 0x20 0 {fru_size} data {fru}
mc_enable 0x20
"""
_SENSORS = {"CPU Temp": (1, 0x01, 1, 45), "Inlet Temp": (2, 0x01, 1, 24), "Power": (3, 0x0B, 6, 180)}
"""Name → number, sensor type (IPMI 2.0, table 42-3), unit (table 43-15: degrees Celsius, watts), reading."""
_APP = 0x06
_ACTIVATE_SOL = bytes([0x48, 1, 1, 0xC0, 0, 0, 0])
"""Activate Payload: SOL, first instance, encrypted and authenticated. IPMI 2.0, 24.1."""
_ACTIVE = 0x80
"""Completion code of that: the payload is active on another session already."""
_EVENT = "sel_add 0x20 0x02 {time} 0x20 0 0x04 0x01 {number} 0x01 0x59 0x64 0x5a"
"""Temperature sensor NUMBER: upper critical going high. IPMI 2.0, table 32-1."""


def start_simulator(settings: Settings, files: Files, keeper_socket: Path) -> Child:
    """Dies with the calling thread. InfraError with its own words if it does not come up."""
    state = files.folder / "bmc"
    (state / "ipmi_sim" / settings.name).mkdir(parents=True, exist_ok=True)
    for kept in (state / "ipmi_sim" / settings.name).glob("sdr.*"):
        kept.unlink()  # it would add the same sensors again
    program = shlex.join([*_chassis_program(), str(keeper_socket)])
    if '"' in program or "\n" in program:
        raise InfraError(f"the BMC's simulator can't be given a path with a quote in it: {program}")
    lan = files.folder / "lan.conf"
    lan.touch(mode=0o600)
    lan.write_text(
        _LAN.format(
            name=settings.name,
            loopback=LOOPBACK,
            simulator=SIMULATOR,
            bmc_port=settings.bmc_port,
            chassis=program,
            kcs_port=settings.kcs_port,
            serial_port=settings.serial_port,
            console_port=settings.sim_console_port,
            history=_HISTORY,
            user=USER,
            password=files.password.read_text(),
        )
    )
    commands = files.folder / "bmc.emu"
    fru = _fru(settings.name)
    sensors = "\n".join(_sensor(name, *values) for name, values in _SENSORS.items())
    commands.write_text(_COMMANDS.format(sel=SEL_ENTRIES, sensors=sensors, fru_size=len(fru), fru=_hex(fru)))
    log = files.folder / "ipmi_sim.log"
    with log.open("wb") as words:
        # A QEMU that gives up while it starts hangs up on it, and it does not expect that: SIGPIPE would end it.
        patient = ["env", "--ignore-signal=PIPE", find("ipmi_sim")]
        child = start([*patient, "-n", "-c", str(lan), "-f", str(commands), "-s", str(state)], stdout=words, stderr=words)
    deadline = Deadline.after(20)
    while not _answers(settings):
        if child.status is not None or deadline.expired:
            child.kill()
            last = log.read_text(errors="replace").strip().splitlines()
            raise InfraError(f"the BMC's simulator did not start: {last[-1] if last else 'it says nothing'}")
        child.wait(Deadline.after(0.02))
    return child


def _chassis_program() -> list[str]:
    """It is called a dozen times a boot, and Python's start takes more than all else that the simulator does for one; it is the way where
    there is no compiler."""
    try:
        return [str(compiled("chassis", ["chassis.c"], ["-O2"], folder=Path(chassis.__file__).parent))]
    except (HostToolMissing, DeployError, StorageError):
        return [sys.executable, "-I", "-S", chassis.__file__]


def _hex(data: bytes) -> str:
    return " ".join(f"{byte:#04x}" for byte in data)


def _sensor(name: str, number: int, kind: int, unit: int, reading: int) -> str:
    """A threshold sensor and its record: IPMI 2.0, table 43-1 (full sensor record)."""
    what = [
        0x20,
        0,
        number,
        3,
        1,
        0x7F,
        0x68,
        kind,
        1,
        *([0] * 6),
        0,
        unit,
        0,
        0,
        1,
        *([0] * 5),
        0,
        *([0] * 3),
        0xFF,
        0,
        *([0] * 6),
        0,
        0,
        0,
        0,
        0,
    ]
    record = bytes([*what, 0xC0 | len(name)]) + name.encode()
    head = bytes([0, 0, 0x51, 1, len(record)])
    lines = [
        f"main_sdr_add 0x20 {_hex(head + record)}",
        f"sensor_add 0x20 0 {number} {kind:#x} 0x01",
        f"sensor_set_value 0x20 0 {number} {reading} 0",
    ]
    return "\n".join(lines)


def _fru(name: str) -> bytes:
    """Who made it: a product area (IPMI Platform Management FRU Information Storage Definition 1.0, 8 and 12)."""
    fields = b"".join(bytes([0xC0 | len(text)]) + text for text in (b"labctl", b"virtual server", b"1", b"1.0", name.encode()[:32]))
    area = bytes([1, 0, 0]) + fields + b"\xc0\xc0\xc1"
    area += b"\0" * (-(len(area) + 1) % 8)
    area = area[:1] + bytes([(len(area) + 1) // 8]) + area[2:]
    head = bytes([1, 0, 0, 0, 1, 0, 0])
    return _summed(head) + _summed(area)


def _summed(data: bytes) -> bytes:
    """With a byte that makes the sum of all zero."""
    return data + bytes([-sum(data) & 0xFF])


def _answers(settings: Settings) -> bool:
    """An RMCP presence ping (IPMI 2.0, 13.2.3) needs no session."""
    ping = bytes.fromhex("0600ff06000011be80000000")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.settimeout(0.1)
        probe.connect((SIMULATOR, settings.bmc_port))
        probe.send(ping)
        return bool(probe.recv(1024))
    return False


def tell_simulator(settings: Settings, commands: list[str]) -> None:
    """Commands of ipmi_sim_cmd(5). ManagementError with its own words if it refuses one."""
    try:
        with socket.create_connection((LOOPBACK, settings.sim_console_port), timeout=10) as console:
            _prompt(console)  # its first
            for command in commands:
                console.sendall(command.encode() + b"\n")
                _prompt(console)
    except OSError as error:
        raise ManagementError(f"the BMC's simulator takes no commands: {error}") from None


def _prompt(console: socket.socket) -> str:
    said = b""
    while b"\n> " not in said and not said.endswith(b"> "):
        more = console.recv(4096)
        if not more:
            break
        said += more
    return said.decode(errors="replace")


def fill_event_log(settings: Settings) -> None:
    """Until the event log takes no more."""
    now = " ".join(map(str, int(time.time()).to_bytes(4, "little")))
    tell_simulator(settings, [_EVENT.format(time=now, number=number % 8) for number in range(SEL_ENTRIES + 1)])


def hold_sol(settings: Settings, files: Files, leave: threading.Event, inside: Callable[[], object]) -> None:
    """Take the SOL as somebody else would, until ``leave`` is set; calls ``inside`` once it is had. ManagementError if it is not."""
    address = Address(settings.name, SIMULATOR, settings.bmc_port, USER, f"file:{files.password}", 3)
    with session(address, Deadline.after(20)) as ipmi:
        answer = ipmi.send_raw(0, _APP, _ACTIVATE_SOL)
        if answer[0] == _ACTIVE:
            raise ManagementError(
                "another session has the SOL: a run's, labctl console's or another tool's",
                remedy=f"labctl power status {settings.name} says who holds the target; once it is free the fault can be had",
            )
        if answer[0] != 0:
            raise ManagementError(f"the BMC's simulator refuses the SOL: completion code {answer[0]:#04x} (IPMI 2.0, 24.1)")
        inside()
        while not leave.wait(5):
            ipmi.get_chassis_status()  # a session that says nothing is ended
