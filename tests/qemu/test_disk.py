"""A build on a machine's disk: written by the installer, read back, booted; cut in the middle, and gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import ConfigError, DeployError
from labctl.machine.bootserver import diskimage
from labctl.machine.bootserver.loader import SAID
from labctl.machine.bootserver.offer import describe
from labctl.machine.session import Session
from labctl.model import Build, Target, TargetConfig
from labctl.virtualserver.client import VirtualServer
from labctl.virtualserver.machine import OVMF
from tests.virtual_servers import virtual_server

pytestmark = pytest.mark.qemu

RECIPE = """schema = 1
builder = "deb"

[deb]
package = "linux-image-6.1.*-cloud-amd64"
modules = ["virtio_pci", "virtio_net", "virtio_blk"]
"""


@contextmanager
def with_a_disk(root: Path, *, uefi: bool = False) -> Iterator[VirtualServer]:
    with virtual_server(root, memory=512 << 20, uefi=uefi) as running:
        (running.lab_root / "kernel").mkdir()
        (running.lab_root / "kernel/net.toml").write_text(RECIPE)
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualServer]:
    with with_a_disk(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def build(server: VirtualServer) -> Build:
    """With a network and a disk."""
    return obtain(Lab.find(server.lab_root), "net", progress=print)


def target(server: VirtualServer, disk: str = "1G", **more: Any) -> Target:
    s = server.settings
    drivers = {
        "ipmi": {"host": "127.0.0.1", "port": s.bmc_port, "user": "admin", "password": f"file:{server.files.password}", "uefi": s.uefi},
        "serial": {"port": f"socket://127.0.0.1:{s.serial_port}"},
        "console_shell": {},
        "disk": {"port": s.boot_server_port, "url": f"http://10.0.2.2:{s.boot_port}", **more},
    }
    config = {"schema": 1, "cpus": 1, "memory": "512M", "disk": disk, "append": "console=ttyS0,115200", "drivers": drivers}
    return Target(server.name, TargetConfig.model_validate({**config, "boot": {"deadline": 120, "silence": 60}}))


def said(server: VirtualServer) -> str:
    return server.files.serial_log.read_bytes().decode(errors="replace")


def test_cut_in_the_middle_it_goes_on_where_it_was_and_boots_from_the_disk(server: VirtualServer, build: Build, tmp_path: Path) -> None:
    for folder in ("cut", "whole"):
        (tmp_path / folder).mkdir()
    # Kernel, initramfs and loader have some 17 MB: the cut is in the third piece of the image.
    server.fault("lose-network", build.kernel.stat().st_size + build.initrd.stat().st_size + 10_500_000)  # type: ignore[union-attr]
    with (
        Session(target(server, patience=15), build, tmp_path / "cut") as session,
        pytest.raises(DeployError, match="in the middle of the image"),
    ):
        session.booted()
    assert server.status()["power"] == "off"  # type: ignore[index]
    assert not list((tmp_path / "cut").glob("*.image"))
    server.clear()

    before = len(said(server))
    with Session(target(server), build, tmp_path / "whole") as session:
        session.booted()
        words = session.run("cat /proc/cmdline").output
        assert session.append in words
        assert "BOOT_IMAGE=/kernel" in words  # the disk's boot loader says so
    log = said(server)[before:]
    # Four pieces were there, or three, and the fourth in part: an image of the same build is the same, from its first piece on.
    assert "round 1: 3 of 7 pieces written" in log or "round 1: 4 of 7 pieces written" in log
    assert "round 2: 0 of 7 pieces written" in log


@pytest.mark.skipif(not OVMF.exists(), reason="needs Debian's package ovmf")
def test_by_uefi_the_disk_boots_and_a_byte_that_it_lost_is_told(tmp_path: Path) -> None:
    with with_a_disk(tmp_path / "lab", uefi=True) as server:
        build = obtain(Lab.find(server.lab_root), "net", progress=print)
        (tmp_path / "run").mkdir()
        with Session(target(server), build, tmp_path / "run") as session:
            session.booted()
            found = session.run("test -d /sys/firmware/efi && echo by-uefi; cat /proc/cmdline").output.splitlines()
            assert found == ["by-uefi", session.append]
            heard = session.transcript.read(0)
            assert len(SAID.findall(heard)) == 2 * 3  # the installer came over the network, the build from the disk
            # The same image again, to know where on the disk the kernel's bytes are.
            kernel, initrd = (describe(path, "", "") for path in (build.kernel, build.initrd) if path is not None)
            diskimage.make(tmp_path / "image", kernel, initrd, session.append, Deadline.after(60), "")
            at = (tmp_path / "image").read_bytes().index(build.kernel.read_bytes()[1_000_000:1_000_032])
            session.run(f"printf 'lost' | dd of=/dev/vda bs=1 seek={at} conv=notrunc,fsync")
            with pytest.raises(DeployError, match=r"the loader on the disk starts nothing: kernel poly1305:[0-9a-f]{32} is not as sent"):
                session.reset()


def test_what_can_be_known_before_is_said_before_anything_is_powered(server: VirtualServer, build: Build, tmp_path: Path) -> None:
    before = said(server)
    with Session(target(server, disk="8M"), build, tmp_path) as session, pytest.raises(DeployError, match="the machine's disk 8M"):
        session.booted()
    with (
        pytest.raises(ConfigError, match=r"disk\.image: '/no/such\.image' is no file"),
        Session(target(server, image="/no/such.image"), build, tmp_path),
    ):
        pass
    with Session(target(server, service="/nowhere"), build, tmp_path) as session, pytest.raises(ConfigError, match="mac: is missing"):
        session.booted()
    assert said(server) == before
