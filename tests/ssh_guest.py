"""A guest with an SSH server: Debian's dropbear after the lab's own initramfs, and a key to get in."""

from __future__ import annotations

import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from labctl.build.initramfs import with_overlay
from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.model import Build

RECIPE = """schema = 1
builder = "deb"

[deb]
package = "linux-image-6.1.*-cloud-amd64"
modules = ["virtio_pci", "virtio_net"]
"""
START = """ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
mkdir -p /dev/pts /etc/dropbear
mount -t devpts devpts /dev/pts
chmod 700 /root /root/.ssh
dropbear -R -s -p 22
"""


@dataclass(frozen=True)
class SshGuest:
    build: Build
    key: Path
    """The private key that it lets in."""
    port: int
    """Of this host's loopback: leads to its SSH server, once it is on with `extra`."""

    @property
    def extra(self) -> list[str]:
        """QEMU's arguments for its network."""
        return ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net0,romfile="]


def make(folder: Path) -> SshGuest:
    (folder / "lab/kernel").mkdir(parents=True)
    (folder / "lab/lab.toml").write_text("schema = 1\n")
    (folder / "lab/kernel/net.toml").write_text(RECIPE)
    build = obtain(Lab.find(folder / "lab"), "net", progress=print)
    overlay = folder / "overlay"
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    for program, inside in (("dropbear", "usr/sbin/dropbear"), ("/usr/lib/openssh/sftp-server", "usr/lib/sftp-server")):
        _add(overlay, Path(shutil.which(program) or program), inside)
    for path, text in {
        "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "etc/shells": "/bin/sh\n",
        "etc/labctl/rc.d/50-ssh.sh": START,
        "root/.ssh/authorized_keys": key.with_suffix(".pub").read_text(),
    }.items():
        (overlay / path).parent.mkdir(parents=True, exist_ok=True)
        (overlay / path).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return SshGuest(with_overlay(build, overlay), key, port)


def _add(overlay: Path, program: Path, place: str) -> None:
    """With the libraries that it is linked to."""
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for name, where in [(str(program), place), *((word, word) for word in linked.split() if word.startswith("/"))]:
        inside = overlay / where.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(name).resolve(), inside)
        inside.chmod(0o755)
