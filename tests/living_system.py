"""A Linux that lives on a virtual server's disk, with a network and an SSH server: what the driver kexec starts builds from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.machine.bootserver import diskimage
from labctl.machine.bootserver.offer import describe
from labctl.model import Build
from labctl.virtualserver.client import VirtualServer

READY = "labctl-guest: ready"
RECIPE = """schema = 1
builder = "deb"

[deb]
package = "linux-image-6.1.*-cloud-amd64"
modules = ["virtio_pci", "virtio_net", "virtio_blk"]
"""
NETWORK = """ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
"""


def obtained(lab: Path, recipe: str) -> Build:
    (lab / "kernel").mkdir(exist_ok=True)
    (lab / "kernel/net.toml").write_text(recipe)
    return obtain(Lab.find(lab), "net", progress=print)


def build(lab: Path) -> Build:
    """With a network, and no way in but its console."""
    from labctl.build.initramfs import with_overlay

    hook = lab / "overlay/etc/labctl/rc.d/50-network.sh"
    hook.parent.mkdir(parents=True)
    hook.write_text(NETWORK)
    return with_overlay(obtained(lab, RECIPE), lab / "overlay")


def install(server: VirtualServer, build: Build, append: str = "console=ttyS0,115200 quiet") -> None:
    """Put it on the disk of a server that is off."""
    image = server.files.folder / "living.image"
    initrd = describe(build.initrd, build.name, server.name) if build.initrd else None
    diskimage.make(image, describe(build.kernel, build.name, server.name), initrd, append, Deadline.after(60), server.name)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, server.files.disk], check=True)
    subprocess.run(["qemu-img", "resize", "-q", server.files.disk, "1G"], check=True)
    image.unlink()
