"""A DHCP server that is there already, and points to the lab: a UEFI machine's own PXE, iPXE from the lab's TFTP, a build from its boot
server, which starts. On networks of their own, with the lines that docs/real-servers.md gives a site."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.machine.accel import choose
from labctl.machine.bootserver.loader import loaders
from labctl.machine.bootserver.offer import Offer, Shelf, describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.model import Build
from tests.temporary_lab import LABCTL

ROOT = Path(__file__).parents[2]
CODE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
IPXE = Path("/usr/lib/ipxe/ipxe.efi")
MAC = "52:54:00:77:00:01"
_NETWORK = """
set -e
ip link set lo up
ip link add br0 type bridge
ip tuntap add tap0 mode tap
ip link add lab0 type veth peer name site0
for port in tap0 lab0; do ip link set $port master br0 up; done
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
exec {python} -c 'import sys; sys.path.insert(0, "{root}"); from tests.integration.test_site_dhcp import inside; inside("{folder}")'
"""
_SITE = """
set -e
echo apart
while ! ip link show site0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add 10.77.0.2/24 dev site0
ip -6 addr add fd77::2/64 dev site0 nodad
ip link set site0 up
exec dnsmasq --keep-in-foreground --conf-file={file} --pid-file={folder}/site.pid
"""
_SITE_ALONE = """port=0
interface=site0
bind-interfaces
log-facility=-
log-dhcp
dhcp-leasefile={folder}/site.leases
dhcp-authoritative
dhcp-range=10.77.0.50,10.77.0.99,255.255.255.0,1h
enable-ra
dhcp-range=fd77::,ra-only
"""


@pytest.mark.qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces with a tap need root")
@pytest.mark.skipif(not (CODE.exists() and IPXE.exists()), reason="needs Debian's packages ovmf and ipxe")
def test_a_uefi_machine_boots_where_a_sites_dhcp_points_to_the_lab(tmp_path: Path, debian: Build) -> None:
    (tmp_path / "build.json").write_text(json.dumps([str(debian.kernel), str(debian.initrd)]))
    script = _NETWORK.format(python=sys.executable, root=ROOT, folder=tmp_path)
    # `timeout` and not subprocess's: what was said until then is the evidence.
    apart = ["timeout", "150", "unshare", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    done = subprocess.run(apart, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # The firmware's own PXE, by the site's answer; then iPXE, by its other one; then what this machine alone was offered.
    assert re.search(r"Station IP address is 10\.77\.0\.[5-9]\d\s", done.stdout)
    assert re.search(r"Server IP address is 10\.77\.0\.1\s", done.stdout)
    assert "NBP filename is ipxe.efi" in done.stdout
    assert "http://10.77.0.1:8069/boot.ipxe... ok" in done.stdout
    for part in ("kernel", "cmdline", "initrd"):
        assert re.search(rf"labctl-loader: {part} poly1305:[0-9a-f]{{32}} ok$", done.stdout, re.MULTILINE)
    assert "EFI stub: Loaded initrd" in done.stdout


def inside(folder: str) -> None:
    """Runs in the namespace of the lab: the site in another one, the service, an offer for one network card, a machine with it."""
    document = (ROOT / "docs/real-servers.md").read_text()
    (lines,) = re.findall(r"to dnsmasq.*?```\n(.*?)```", document, re.DOTALL)
    with ExitStack() as stack:
        # dnsmasq reads it as nobody, who may not enter a test's folder
        public = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-site-")))
        public.chmod(0o755)
        site = public / "site.conf"
        site.write_text(_SITE_ALONE.format(folder=public) + lines.replace("10.9.0.1", "10.77.0.1"))
        words = _SITE.format(file=site, folder=public)
        server = stack.enter_context(subprocess.Popen(["unshare", "--net", "sh", "-c", words], stdout=subprocess.PIPE))
        stack.callback(server.kill)
        # Not before it has left this network: the kernel is content to move a link to where it is already.
        assert server.stdout is not None
        assert server.stdout.readline() == b"apart\n"
        subprocess.run(["ip", "link", "set", "site0", "netns", str(server.pid)], check=True)
        shelf = Shelf(Path(folder) / "offers")
        argv = [
            "--offers",
            str(shelf.folder),
            "--address",
            "10.77.0.1",
            "--interface",
            "br0",
            "--network",
            "10.77.0.1/24",
            "--dhcp",
            "none",
        ]
        service = stack.enter_context(subprocess.Popen([str(LABCTL), "boot-server", *argv], stdout=subprocess.PIPE, text=True))
        stack.callback(lambda: service.send_signal(signal.SIGTERM))
        assert service.stdout is not None
        assert "boot server: http://10.77.0.1:8069" in service.stdout.readline()
        seal, built = Seal(), json.loads((Path(folder) / "build.json").read_text())
        kernel, initrd = (seal.describe(part, Path(path), "", "") for part, path in zip(("kernel", "initrd"), built, strict=True))
        append = "console=ttyS0,115200"
        cmdline = Path(folder) / "cmdline"
        cmdline.write_text(append)
        files = {
            "kernel": kernel,
            "initrd": initrd,
            "cmdline": seal.describe("cmdline", cmdline, "", ""),
            **{name: describe(program, "", "") for name, program in loaders().items()},
        }
        offer = Offer("rack1", MAC, "", files)
        with shelf.offering(replace(offer, script=boot_script(offer.token, files, seal))):
            _boot(Path(folder))


def _boot(folder: Path) -> None:
    """A machine whose network card has no iPXE of its own."""
    variables = folder / "variables.fd"
    shutil.copyfile(VARIABLES, variables)
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off", "-accel", choose("auto").name]
    words += ["-m", "256M", "-cpu", "max", "-boot", "strict=on", "-serial", "stdio"]
    words += ["-drive", f"if=pflash,format=raw,readonly=on,file={CODE}", "-drive", f"if=pflash,format=raw,file={variables}"]
    words += ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
    words += ["-device", f"virtio-net-pci,netdev=n0,bootindex=0,romfile=,mac={MAC}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        try:
            for line in machine.stdout:
                print(line.decode(errors="replace").rstrip())
                if b"Linux version" in line:
                    return
        finally:
            machine.kill()
