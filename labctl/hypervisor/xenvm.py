"""A VM's specification → what xl is told of it, and the scripts on the machine under test that xl and `vmkeeper` run for it.

Every VM is PVH: no firmware and no emulated devices, a kernel that knows Xen. Syntax: xl.cfg(5), xl-disk-configuration(5),
xl-network-configuration(5); what scripts are given: Xen's docs/misc/block-scripts.txt and its own /etc/xen/scripts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from labctl.hypervisor.protocols import VmDisk, VmNic, VmSpec
from labctl.hypervisor.qemuvm import bridge, disk_file, mac

SCRIPTS = "/run/labctl/xen"
MOST_DISKS = 26

_RUN = """\
# One VM from its start to its end, whose process this is for vmkeeper: standard input and output are the VM's console.
cd "$1" || exit 2
exec 3<>up 5<&0
read -r seconds words <how
timeout -s KILL $seconds xl $words </dev/null >said 2>&1 3<&- 5<&-
status=$?
if [ $status = 0 ]; then
	id=$(xl domid "$2") && tty=$(xenstore-read /local/domain/$id/console/tty) || exit 3
	echo $seconds create -q config >how
	echo domain $id >&3
	exec 3<&-
	cat <&5 >$tty &
	exec cat $tty 5<&-
fi
echo failed $status >&3
exit 4
"""
"""Its end is the end of the console: xenconsoled closes it when the domain is gone."""

_BLOCK = """\
#!/bin/sh
# A disk of a VM: its file through a loop device.
case $1 in
add)
	file=$(xenstore-read $XENBUS_PATH/params)
	if [ -b "$file" ]; then
		device=$file
	else
		device=$(losetup -f) && losetup $device "$file" || exit 1
		xenstore-write $XENBUS_PATH/labctl-loop $device
	fi
	xenstore-write $XENBUS_PATH/node $device $XENBUS_PATH/physical-device $(stat -L -c %t:%T $device) $XENBUS_PATH/hotplug-status connected
	;;
remove)
	device=$(xenstore-read $XENBUS_PATH/labctl-loop 2>/dev/null) && losetup -d $device
	exit 0
	;;
esac
"""

_VIF = """\
#!/bin/sh
# A card of a VM: its device on the machine becomes a part of its network's bridge.
case $1 in
online)
	bridge=$(xenstore-read $XENBUS_PATH/bridge)
	ip link set $vif up && brctl addif $bridge $vif && xenstore-write $XENBUS_PATH/hotplug-status connected
	;;
offline) ip link set $vif down 2>/dev/null; exit 0 ;;
esac
"""

_SCRIPTS: Mapping[str, str] = {"run": _RUN, "block": _BLOCK, "vif": _VIF}


def scripts() -> Iterator[str]:
    """Commands that put the scripts in their place."""
    yield f"mkdir -p {SCRIPTS}"
    for name, text in _SCRIPTS.items():
        file = f"{SCRIPTS}/{name}"
        yield f"[ -e {file} ] || {{ printf %s {shlex.quote(text)} >{file} && chmod 755 {file}; }}"


def program(vm: str, folder: str) -> list[str]:
    """What `vmkeeper` keeps."""
    return ["sh", f"{SCRIPTS}/run", folder, vm]


def config(spec: VmSpec, folder: str) -> str:
    """The file that ``xl create`` reads. What has ended is not started again by xl: `vmkeeper` does that, and counts."""
    words: dict[str, str] = {
        "name": _quoted(spec.name),
        "type": '"pvh"',
        "kernel": _quoted(spec.kernel),
        "memory": str(-(-spec.memory >> 20)),
        "vcpus": str(spec.cpus),
        **dict.fromkeys(("on_poweroff", "on_reboot", "on_crash", "on_watchdog"), '"destroy"'),
    }
    if spec.initrd:
        words["ramdisk"] = _quoted(spec.initrd)
    if spec.append:
        words["cmdline"] = _quoted(spec.append)
    if spec.pinned:
        words["cpus"] = _quoted(cpus(spec.pinned))
    if spec.disks:
        words["disk"] = _list(disk(each, folder, device(number)) for number, each in enumerate(spec.disks))
    if spec.nics:
        words["vif"] = _list(nic(spec.name, each) for each in spec.nics)
    return "".join(f"{key} = {value}\n" for key, value in words.items())


def device(number: int) -> str:
    """The name by which a guest knows its disk of that number, from 0."""
    return f"xvd{chr(ord('a') + number)}"


def disk(disk: VmDisk, folder: str, name: str) -> str:
    """The file comes last: everything behind its key belongs to it."""
    return f"format=raw,vdev={name},access=rw,backendtype=phy,script={SCRIPTS}/block,target={disk_file(disk, folder)}"


def nic(vm: str, nic: VmNic) -> str:
    return f"mac={mac(vm, nic)},bridge={bridge(nic.network)},script={SCRIPTS}/vif"


def cpus(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, sorted(set(numbers))))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _list(items: Iterator[str]) -> str:
    return f"[{', '.join(map(_quoted, items))}]"
