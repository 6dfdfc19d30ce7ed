"""The server proper: a QEMU machine with a disk that outlives its power, a network card that can boot, and a line to its BMC.

All methods are called from one thread that lives as long as the keeper, since QEMU dies with the thread that started it.
"""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl.deadline import Deadline
from labctl.errors import HostToolMissing, InfraError, ManagementError, PowerError
from labctl.machine.accel import choose
from labctl.machine.qmp import Qmp
from labctl.machine.serialline import SerialLine, by_pipes
from labctl.process import Child, run, start
from labctl.virtualserver.settings import LOOPBACK, Files, Settings

BINARY = "qemu-system-x86_64"
PXE, DISK, UNSET = "pxe", "default", "none"
"""As the simulator calls the boot devices. Unset it boots from its disk alone, as most servers in a rack are set up."""
VERB = 30.0
"""Seconds that QEMU may take for one verb, on a loaded host."""
OVMF = Path("/usr/share/OVMF")
"""Debian's package ovmf."""
_CODE, _VARIABLES = "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"
HOST = "10.0.2.2"
"""The host's loopback, as QEMU's user network shows it to the machine."""
PROXY = "10.0.2.4"
"""Of the proxy DHCP on that network; QEMU itself has 10.0.2.2 and 10.0.2.3."""


def make_variables(files: Files) -> None:
    """What a UEFI firmware keeps, as it is in a new machine, unless the machine has them already. HostToolMissing without that firmware."""
    for file in (OVMF / _CODE, OVMF / _VARIABLES):
        if not file.exists():
            raise HostToolMissing(f"a virtual server with UEFI needs {file}", remedy="apt-get install -y ovmf")
    if not files.uefi_variables.exists():
        shutil.copyfile(OVMF / _VARIABLES, files.uefi_variables)


def make_disk(files: Files, size: int) -> None:
    """An empty one, unless the machine has one already. InfraError with qemu-img's own words."""
    if not files.disk.exists():
        made = run(["qemu-img", "create", "-q", "-f", "qcow2", str(files.disk), str(size)], Deadline.after(VERB))
        if made.status != 0:
            files.disk.unlink(missing_ok=True)
            raise InfraError(f"qemu-img: {made.words.removeprefix('qemu-img: ')}")


@dataclass
class _Process:
    child: Child
    qmp: Qmp


@dataclass
class Machine:
    settings: Settings
    files: Files
    boot_device: str = UNSET
    """For the next boot only."""
    _process: _Process | None = field(default=None, init=False)

    @property
    def is_on(self) -> bool:
        return self._process is not None and self._process.child.status is None

    def prepare(self) -> tuple[SerialLine, socket.socket]:
        """Start QEMU before its first instruction; returns its serial port, and a line to its network that carries every frame."""
        self._discard()
        make_disk(self.files, self.settings.disk)
        serial = by_pipes()
        network, network_qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        qmp, qmp_qemu = socket.socketpair()
        log = self.files.folder / "qemu.log"
        with network_qemu, qmp_qemu, log.open("ab") as words:
            child = start(
                [
                    BINARY,
                    *self._arguments(),
                    "-S",
                    *("-netdev", f"socket,id=proxy0,fd={network_qemu.fileno()}", "-netdev", "hubport,id=hub1,hubid=0,netdev=proxy0"),
                    *(*serial.arguments, "-serial", "chardev:console"),
                    *("-chardev", f"socket,id=qmp,fd={qmp_qemu.fileno()}", "-mon", "chardev=qmp,mode=control"),
                ],
                pass_fds=[network_qemu.fileno(), qmp_qemu.fileno()],
                stdin=serial.stdin,
                stdout=serial.stdout,
                stderr=words,
            )
            serial.handed_over()
        self._process = _Process(child, Qmp(qmp))
        try:
            self._process.qmp.handshake(Deadline.after(VERB))
        except ManagementError as error:
            serial.close()
            network.close()
            child.wait(Deadline.after(0.5))
            last = log.read_text(errors="replace").strip().splitlines()
            self._discard()
            raise PowerError(f"QEMU did not start: {last[-1] if last else error.message}") from None
        return serial, network

    def run(self) -> None:
        """Let a prepared machine go. What it boots from next time is settled at once: a boot device is for one boot."""
        self._qmp("cont")
        if self.boot_device != UNSET:
            self.boot_device = UNSET
            self._order(UNSET)

    def off(self) -> None:
        if self._process is None:
            return
        if self.is_on:
            with suppress(ManagementError):
                self._process.qmp.command("quit", Deadline.after(5))  # writes the disk image's metadata
            self._process.child.wait(Deadline.after(5))
        self._discard()

    def reset(self) -> None:
        """`forget_boot_device` is to be called once the firmware speaks: SeaBIOS resets the machine up to four times more before that,
        and each reset gives it the order anew."""
        if not self.is_on:
            raise PowerError("the machine is off")
        self._order(self.boot_device)
        self.boot_device = UNSET
        self._renew_network()
        self._qmp("system_reset")

    def forget_boot_device(self) -> None:
        """The next reset that the machine does by itself is another boot."""
        self._order(UNSET)

    def ask_to_shut_down(self) -> None:
        """As a short press of the power button does."""
        self._qmp("system_powerdown")

    def plug(self, plugged: bool) -> None:
        """The network cable."""
        if self.is_on:
            self._qmp("set_link", name="n0", up=plugged)

    def _renew_network(self) -> None:
        """Connections of before the reset are none any more. QEMU's user network keeps what nobody closed, and a new connection from the
        port of an old one then gets no answer. Seen with iPXE by UEFI, which closes none."""
        self._qmp("netdev_del", id="hub0")
        self._qmp("netdev_del", id="user0")
        self._qmp("netdev_add", type="user", id="user0", hostfwd=[{"str": self._forwarded}])
        self._qmp("netdev_add", type="hubport", id="hub0", hubid=0, netdev="user0")

    @property
    def _forwarded(self) -> str:
        return f"tcp:{LOOPBACK}:{self.settings.ssh_port}-:22"

    def _qmp(self, command: str, **arguments: Any) -> Any:
        if self._process is None or not self.is_on:
            raise PowerError("the machine is off")
        self._process.qmp.events.clear()
        return self._process.qmp.command(command, Deadline.after(VERB), **arguments)

    def _order(self, first: str) -> None:
        """What the firmware tries at the next reset. No two devices may have one place, so both leave theirs before."""
        places = {"nic0": 0, "disk0": 1} if first == PXE else {"nic0": -1, "disk0": 0}
        for device in places:
            self._qmp("qom-set", path=f"/machine/peripheral/{device}", property="bootindex", value=-1)
        for device, place in places.items():
            self._qmp("qom-set", path=f"/machine/peripheral/{device}", property="bootindex", value=place)

    def _arguments(self) -> list[str]:
        s = self.settings
        accelerator = choose("auto").name
        network = f"user,id=user0,hostfwd={self._forwarded}"
        firmware = []
        if s.uefi:
            code = {"driver": "file", "node-name": "code0", "filename": str(OVMF / _CODE), "read-only": True}
            variables = {"driver": "file", "node-name": "vars0", "filename": str(self.files.uefi_variables)}
            firmware = ["-blockdev", json.dumps(code), "-blockdev", json.dumps(variables)]
        disk = {"driver": "qcow2", "node-name": "d0", "file": {"driver": "file", "filename": str(self.files.disk)}}
        pxe = self.boot_device == PXE
        # An emulated CPU that hands each notice of its network card to another thread waits for that thread some thousand times a boot.
        notices = ",ioeventfd=off" if accelerator == "tcg" else ""
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-name", s.name),
            *firmware,
            *("-machine", "q35,graphics=off" + (",pflash0=code0,pflash1=vars0" if s.uefi else "")),
            *("-accel", "tcg,thread=single" if accelerator == "tcg" else accelerator),
            *("-cpu", "host" if accelerator == "kvm" else "max"),
            *("-smp", str(s.cpus), "-m", f"{s.memory // 1024}K", "-boot", "strict=on"),
            *("-netdev", network, "-netdev", "hubport,id=hub0,hubid=0,netdev=user0", "-netdev", "hubport,id=n0,hubid=0"),
            *("-device", f"virtio-net-pci,id=nic0,netdev=n0{notices}" + (",bootindex=0" if pxe else "")),
            *("-blockdev", json.dumps(disk), "-device", f"virtio-blk-pci,id=disk0,drive=d0,bootindex={int(pxe)}"),
            *("-chardev", f"socket,id=ipmi0,host={LOOPBACK},port={s.kcs_port},reconnect=1"),
            *("-device", "ipmi-bmc-extern,id=bmc0,chardev=ipmi0", "-device", "isa-ipmi-kcs,bmc=bmc0,irq=5"),
        ]

    def _discard(self) -> None:
        if self._process is not None:
            self._process.child.kill()
            self._process.qmp.close()
            self._process = None
