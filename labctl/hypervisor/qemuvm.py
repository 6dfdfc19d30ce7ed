"""A VM's specification → QEMU's command line on the machine under test, and the names of the devices in it.

One kind of PC for all (``pc``: what is attached while it runs is seen by its guest at once); qboot, the smallest firmware, but where a
screen needs SeaBIOS to be set up.
"""

from __future__ import annotations

import hashlib

from labctl.hypervisor.protocols import VmDisk, VmNic, VmSpec


def arguments(spec: VmSpec, folder: str, incoming: str = "") -> list[str]:
    """The program and its words; ``{console}`` stands for the descriptor that is its console. ``incoming``: what ``-incoming`` is told."""
    words = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-name", spec.name),
        *("-machine", "pc", "-accel", "kvm", "-cpu", "host", "-smp", str(spec.cpus), "-m", f"{spec.memory // 1024}K"),
        *("-kernel", spec.kernel, "-append", spec.append),
        *("-chardev", "socket,id=console,fd={console}", "-serial", "chardev:console"),
        *("-qmp", f"unix:{monitor(folder)},server=on,wait=off"),
    ]
    if spec.initrd:
        words += ["-initrd", spec.initrd]
    if spec.display is None:
        words += ["-bios", "qboot.rom"]
    else:
        screen, number = spec.display, spec.display.port - 5900
        websocket = f",websocket={screen.websocket}" if screen.websocket else ""
        if screen.clipboard:
            words += ["-device", "virtio-serial-pci", "-chardev", "qemu-vdagent,id=clipboard,name=vdagent,clipboard=on"]
            words += ["-device", "virtserialport,chardev=clipboard,name=com.redhat.spice.0"]
        words += ["-device", "VGA" if screen.adapter == "vga" else "virtio-vga", "-vnc", f"{screen.address}:{number}{websocket}"]
    for disk in spec.disks:
        words += ["-blockdev", _pairs(blockdev(disk, folder)), "-device", _pairs(disk_device(disk.name))]
    for nic in spec.nics:
        words += ["-netdev", _pairs(netdev(spec.name, nic, folder)), "-device", _pairs(nic_device(spec.name, nic))]
    for number, device in enumerate(spec.devices):
        words += ["-device", f"vfio-pci,host={device},id=pci-{number}"]
    if incoming:
        words += ["-incoming", incoming]
    # What comes from another machine goes on when it is there; what comes from a file waits to be resumed.
    if spec.paused or incoming == "defer":
        words += ["-S"]
    return words


def monitor(folder: str) -> str:
    """The socket at which QEMU listens for QMP."""
    return f"{folder}/qmp"


def disk_file(disk: VmDisk, folder: str) -> str:
    return disk.file or f"{folder}/disk-{disk.name}.raw"


def blockdev(disk: VmDisk, folder: str) -> dict[str, str]:
    return {"driver": "raw", "node-name": f"disk-{disk.name}", "file.driver": "file", "file.filename": disk_file(disk, folder)}


def disk_device(name: str) -> dict[str, str]:
    return {"driver": "virtio-blk-pci", "drive": f"disk-{name}", "id": f"blk-{name}", "serial": name[:20]}


def netdev(vm: str, nic: VmNic, folder: str) -> dict[str, str]:
    return {"type": "tap", "id": f"net-{nic.name}", "ifname": tap(vm, nic.name), "script": up_script(nic, folder), "downscript": "no"}


def nic_device(vm: str, nic: VmNic) -> dict[str, str]:
    # Without a ROM: none boots from its card.
    return {"driver": "virtio-net-pci", "netdev": f"net-{nic.name}", "id": f"nic-{nic.name}", "mac": mac(vm, nic), "romfile": ""}


def up_script(nic: VmNic, folder: str) -> str:
    """What QEMU runs with the name of a card's device on the machine, each time it is made."""
    return f"{folder}/up-{nic.name}"


def mac(vm: str, nic: VmNic) -> str:
    """Its own, else one of those that are given out locally, another for each card of each VM."""
    if nic.mac:
        return nic.mac
    digest = hashlib.sha256(f"{vm}\0{nic.name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0x01, *digest[:3]))


def tap(vm: str, nic: str) -> str:
    """The device on the machine that is the other end of a card; a device's name has 15 letters at most."""
    return f"tap{hashlib.sha256(f'{vm}{chr(0)}{nic}'.encode()).hexdigest()[:10]}"


def bridge(network: str) -> str:
    """The device on the machine that a network of VMs is."""
    return f"net{hashlib.sha256(network.encode()).hexdigest()[:10]}"


def _pairs(options: dict[str, str]) -> str:
    """``driver,key=value``, as QEMU's command line has it; a comma in a value is doubled."""
    head = [options[key] for key in ("type",) if key in options]
    words = [f"{key}={value.replace(',', ',,')}" for key, value in options.items() if key != "type"]
    return ",".join([*head, *words])
