"""Builder `xen` against the real apt and an archive of our own, and where what it makes can be booted."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.build import vmlinux
from labctl.build.obtain import describe, obtain
from labctl.build.suite import with_suite
from labctl.config import Lab
from labctl.errors import BuildFailed, ConfigError, DeployError
from labctl.machine import registry
from labctl.machine.session import Session
from labctl.run.prepare import Request, plan
from tests.debian_archive import CONFIG, Archive
from tests.kernels import bzimage, elf

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="the host has no apt")

RECIPE = """schema = 1
builder = "xen"
hypervisor = "xl"
append = "console=hvc0"
[xen]
package = "xen-hypervisor-4.17-amd64"
dom0 = "linux-image-6.1.*[0-9]-amd64"
append = "console=com1 com1=115200,8n1"
"""
QEMU = 'schema = 1\ncpus = 1\nmemory = "512M"\nappend = "console=ttyS0,115200"\n[drivers.qemu]\n'


def kernel_with(inside: bytes) -> bytes:
    """A bzImage whose payload is this, as xz: behind 4 sectors of setup code, since the header names none."""
    payload = lzma.compress(inside, check=lzma.CHECK_CRC32) + struct.pack("<I", len(inside))
    image = bytearray(bzimage("6.1.0-10-amd64"))
    struct.pack_into("<II", image, 0x248, 0x1000 - 5 * 512, len(payload))
    return bytes(image) + payload


def put_dom0(archive: Archive, name: str, version: str, config: str) -> None:
    release = name.removeprefix("linux-image-")
    home = f"lib/modules/{release}"
    files = {
        f"boot/vmlinuz-{release}": kernel_with(elf()),
        f"boot/config-{release}": (CONFIG + config).encode(),
        f"{home}/modules.builtin": b"",
        f"{home}/kernel/early.ko": b"\0depends=\0",
        f"{home}/kernel/later.ko": b"\0depends=early\0",
    }
    archive.put_files(name, version, files, "", "kernel")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    archive = Archive(tmp_path, monkeypatch)
    archive.put_files("xen-hypervisor-4.17-amd64", "4.17.7-1", {"boot/xen-4.17-amd64.gz": gzip.compress(elf(machine=3))}, "", "kernel")
    put_dom0(archive, "linux-image-6.1.0-9-amd64", "6.1.9-1", "CONFIG_XEN_DOM0=y\n")
    put_dom0(archive, "linux-image-6.1.0-10-amd64", "6.1.10-1", "CONFIG_XEN_DOM0=y\n")
    put_dom0(archive, "linux-image-6.1.0-10-cloud-amd64", "6.1.10-1", "# CONFIG_XEN_DOM0 is not set\n")
    archive.update()
    yield archive
    archive.close()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "lab"
    for folder in ("hypervisor", "targets", "suites/s"):
        (root / folder).mkdir(parents=True)
    (root / "lab.toml").write_text("schema = 1\n")
    (root / "hypervisor/xen.toml").write_text(RECIPE)
    (root / "suites/s/test_s.py").write_text("")
    monkeypatch.chdir(root)
    return Lab.find(root)


@pytest.mark.usefixtures("archive")
def test_xen_comes_with_the_kernel_of_its_first_machine(lab: Lab, tmp_path: Path) -> None:
    build = obtain(lab, "xen")
    assert build.dom0 is not None
    assert (build.kernel.read_bytes(), build.dom0.read_bytes()) == (elf(machine=3), elf())
    assert (build.version, build.append, build.xen_append) == ("6.1.0-10-amd64", "console=hvc0", "console=com1 com1=115200,8n1")
    assert describe(lab, "xen")["digest"] == build.digest
    (lab.root / "hypervisor/xen.toml").write_text(RECIPE.replace("[xen]", '[xen]\nposition = "newest-1"'))
    assert obtain(lab, "xen").digest == build.digest  # another package with the same kernel in it boots the same
    (lab.root / "targets/pc.toml").write_text(QEMU)
    (tmp_path / "work").mkdir()
    with Session(lab.target("pc"), build, tmp_path / "work") as session:
        words = session.reproduce
    assert f"-append 'console=com1 com1=115200,8n1' -initrd '{build.dom0} console=ttyS0,,115200 console=hvc0" in words
    assert f",{build.initrd}'" in words


@pytest.mark.usefixtures("archive")
def test_modules_are_those_of_the_first_machine_and_are_loaded_or_only_lie_there(lab: Lab) -> None:
    (lab.root / "hypervisor/xen.toml").write_text(RECIPE.replace("[xen]", 'modules = ["early"]\nmore_modules = ["later"]\n[xen]'))
    build = obtain(lab, "xen")
    assert build.initrd is not None
    archive = build.initrd.read_bytes()
    assert archive.count(b"modprobe -a early\n") == 1
    assert b"kernel/later.ko: kernel/early.ko\n" in archive
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\nmodules = ["later"]\n')
    more = with_suite(lab, build, "s").initrd
    assert more is not None
    assert b"modprobe -a early later\n" in more.read_bytes()
    (lab.root / "hypervisor/xen.toml").write_text(RECIPE.replace("[xen]", 'modules = ["earlier", "early", "latest"]\n[xen]'))
    with pytest.raises(ConfigError, match=r"hypervisor/xen\.toml: modules: linux-image-6\.1\.0-10-amd64 .* has no module earlier") as told:
        obtain(lab, "xen")
    assert [problem.found.partition(" has no module ")[2].partition(",")[0] for problem in told.value.problems] == ["earlier", "latest"]
    assert told.value.problems[0].allowed.startswith("did you mean 'early'? (known: ")
    (lab.root / "hypervisor/xen.toml").write_text(RECIPE.replace("[xen]", 'modules = ["early"]\nmore_modules = ["laterr"]\n[xen]'))
    with pytest.raises(ConfigError, match=r"hypervisor/xen\.toml: more_modules: .* has no module laterr, .*; did you mean 'later'\?"):
        obtain(lab, "xen")


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("*[0-9]-amd64", "*-cloud-amd64", r"xen\.dom0: linux-image-6\.1\.0-10-cloud-amd64 6\.1\.10-1 cannot be the first machine of Xen"),
        ("*[0-9]-amd64", "*-rt-amd64", r"xen\.dom0: found 'linux-image-6\.1\.\*-rt-amd64', but apt has no such kernel for amd64"),
        ("xen-hypervisor-4.17", "xen-hypervisor-4.71", r"xen\.package: apt has no package 'xen-hypervisor-4\.71-amd64'"),
        ("[xen]", '[xen]\nposition = "oldest"', r"xen\.position: found 'oldest'; newest, or how many before it"),
        ('dom0 = "', 'domO = "', r"xen\.dom0: missing"),
        ("schema = 1", 'schema = 1\narch = "aarch64"', r"arch: found 'aarch64'; x86_64"),
    ],
)
def test_mistakes_name_file_and_key(lab: Lab, old: str, new: str, said: str) -> None:
    (lab.root / "hypervisor/xen.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(ConfigError, match=rf"hypervisor/xen\.toml: {said}"):
        obtain(lab, "xen")


def test_a_package_without_a_hypervisor_is_told(lab: Lab, archive: Archive) -> None:
    archive.put_files("xen-hypervisor-4.17-amd64", "4.17.8-1", {"boot/xen-4.17-amd64.gz": b"\x1f\x8bgarbage"}, "", "kernel")
    archive.update()
    with pytest.raises(BuildFailed, match=r"xen-4\.17-amd64\.gz of xen-hypervisor-4\.17-amd64 4\.17\.8-1 cannot be unpacked"):
        obtain(lab, "xen")
    archive.put_files("xen-hypervisor-4.17-amd64", "4.17.9-1", {"boot/readme": b""}, "", "kernel")
    archive.update()
    with pytest.raises(BuildFailed, match=r"4\.17\.9-1 holds 0 files boot/xen-\*\.gz instead of one"):
        obtain(lab, "xen")


def test_what_is_inside_a_kernel_is_found_or_left_as_it_is() -> None:
    assert vmlinux.inflated(kernel_with(elf())) == elf()
    assert vmlinux.inflated(kernel_with(b"no ELF")) is None
    assert vmlinux.inflated(bzimage()) is None
    assert vmlinux.inflated(elf()) is None
    for cut in range(0, 0x1100, 7):
        vmlinux.inflated(kernel_with(elf())[:cut])


def test_a_machine_that_cannot_run_hypervisors_is_left_out_with_the_reason(lab: Lab) -> None:
    for name, options in {
        "good": 'cpu = "EPYC,svm=on"',
        "plain": "",
        "intel": 'cpu = "Haswell"',
        "off": 'cpu = "EPYC,svm=off"',
        "small": 'machine = "microvm"',
    }.items():
        (lab.root / f"targets/{name}.toml").write_text(f"{QEMU}accel = 'tcg'\n{options}\n")
    whys = {n: registry.why_not_hypervisor(lab.target(n), multiboot=True) for n in lab.target_files}
    assert whys == {
        "good": "",
        "plain": "",
        "intel": "its emulated CPU Haswell has neither SVM nor VMX, which a hypervisor needs",
        "off": "its emulated CPU EPYC,svm=off has neither SVM nor VMX, which a hypervisor needs",
        "small": "QEMU's microvm boots no kernel by multiboot, as Xen is",
    }
    assert registry.why_not_hypervisor(lab.target("small"), multiboot=False) == ""
    planned = plan(lab, Request(builds=("xen",)))
    assert sorted(cell.target for cell in planned.cells) == ["good", "plain"]
    assert {left.cell.target: left.reason for left in planned.left_out} == {n: why for n, why in whys.items() if why}
    with pytest.raises(
        ConfigError, match=r"targets/off\.toml: drivers: xen cannot run there: its emulated CPU .*; a target with SVM or VMX"
    ):
        plan(lab, Request(builds=("xen",), targets=("off",)))


@pytest.mark.usefixtures("archive")
def test_a_driver_that_boots_linux_alone_refuses_xen_before_any_power(lab: Lab, tmp_path: Path) -> None:
    (lab.root / "targets/pc.toml").write_text(QEMU)
    build = obtain(lab, "xen")
    (tmp_path / "work").mkdir()
    with Session(lab.target("pc"), build, tmp_path / "work") as session:
        object.__setattr__(session.machine.deploy, "boots_dom0", False)
        with pytest.raises(DeployError, match="xen is Xen, which is booted by multiboot"):
            session.power_on()
