"""Builder `deb` against the real apt and an archive of our own: packages come, go, change and break as in Debian's."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labctl.build import debversion
from labctl.build.agent import equip
from labctl.build.obtain import describe, obtain
from labctl.build.suite import with_suite
from labctl.config import Lab
from labctl.errors import BuildFailed, ConfigError, HostToolMissing, InfraError, StorageError
from tests.debian_archive import Archive
from tests.kernels import bzimage

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="the host has no apt")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    archive = Archive(tmp_path, monkeypatch)
    for minor in (8, 9, 10):
        archive.put(f"linux-image-6.1.0-{minor}-cloud-amd64", f"6.1.{minor}-1")
    archive.put("linux-image-6.1.0-99-cloud-amd64-unsigned", "6.1.99-1")
    archive.put("linux-image-6.1.0-99-cloud-amd64-dbg", "6.1.99-1")
    archive.put("linux-image-6.12.3+deb12-cloud-amd64", "6.12.3-1~deb12u1")
    archive.put("linux-image-6.1.x-cloud-amd64", "6.1.99-1", depends="linux-image-6.1.0-10-cloud-amd64 (= 6.1.10-1)")
    archive.update()
    yield archive
    archive.close()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "lab"
    (root / "kernel").mkdir(parents=True)
    (root / "lab.toml").write_text("schema = 1\n")
    for name, package, position in (
        ("newest", "linux-image-6.1.*-cloud-amd64", "newest"),
        ("previous", "linux-image-6.1.*-cloud-amd64", "newest-1"),
        ("sixth", "linux-image-6.1.*-cloud-amd64", "newest-5"),
        ("any", "linux-image-*-cloud-amd64", "newest"),
        ("all", "linux-image-6.1.*", "newest"),
        ("unsigned", "linux-image-6.1.*-unsigned", "newest"),
        ("named", "linux-image-6.1.0-8-cloud-amd64", "newest"),
        ("gone", "linux-image-6.1.0-7-cloud-amd64", "newest"),
    ):
        (root / f"kernel/{name}.toml").write_text(f'schema = 1\nbuilder = "deb"\n[deb]\npackage = "{package}"\nposition = "{position}"\n')
    return Lab.find(root)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("newest", "6.1.0-10-cloud-amd64"),  # 10 is after 9, and neither the metapackage nor the unsigned one counts
        ("previous", "6.1.0-9-cloud-amd64"),
        ("any", "6.12.3+deb12-cloud-amd64"),
        ("all", "6.1.0-10-cloud-amd64"),
        ("unsigned", "6.1.0-99-cloud-amd64"),
        ("named", "6.1.0-8-cloud-amd64"),
    ],
)
@pytest.mark.usefixtures("archive")
def test_a_position_is_resolved_against_apt(lab: Lab, name: str, version: str) -> None:
    assert describe(lab, name)["version"] == version
    build = obtain(lab, name)
    assert build.version == version
    assert build.kernel.read_bytes() == bzimage(version)


@pytest.mark.usefixtures("archive")
def test_provenance_says_where_it_came_from(lab: Lab, archive: Archive) -> None:
    found = obtain(lab, "newest").provenance
    deb = archive.pool / "linux-image-6.1.0-10-cloud-amd64_6.1.10-1_amd64.deb"
    assert (found.builder, found.source, found.version) == ("deb", "linux-image-6.1.0-10-cloud-amd64", "6.1.10-1")
    assert found.toolchain == "gcc-12 (Debian) 12.2.0"
    assert found.details["deb_sha256"] == hashlib.sha256(deb.read_bytes()).hexdigest()
    assert found.details["debian_source"] == "linux-signed"
    assert found.details["banner"].startswith("6.1.0-10-cloud-amd64 (builder@test)")


def test_an_update_brings_the_newer_one(lab: Lab, archive: Archive) -> None:
    assert obtain(lab, "newest").version == "6.1.0-10-cloud-amd64"
    archive.put("linux-image-6.1.0-11-cloud-amd64", "6.1.11-1")
    archive.update()
    assert obtain(lab, "newest").version == "6.1.0-11-cloud-amd64"
    assert obtain(lab, "previous").version == "6.1.0-10-cloud-amd64"


def test_what_is_cached_needs_neither_network_nor_a_process(lab: Lab, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    before = obtain(lab, "newest")
    archive.close()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a process was started for a build that is in the cache")

    monkeypatch.setattr("subprocess.Popen", forbidden)
    assert obtain(lab, "newest") == before


def test_a_kernel_is_downloaded_once_for_all_that_is_made_of_its_package(lab: Lab, archive: Archive) -> None:
    """The kernel itself, the modules of a suite, those of the agent."""
    release = "6.1.0-13-cloud-amd64"
    archive.put_files(
        f"linux-image-{release}",
        "6.1.13-1",
        {
            f"boot/vmlinuz-{release}": bzimage(release),
            f"lib/modules/{release}/modules.builtin": b"kernel/virtio_pci.ko\nkernel/virtio_console.ko\n",
            f"lib/modules/{release}/kernel/early.ko": b"\x7fELF\0name=early\0depends=\0",
        },
        section="kernel",
    )
    archive.update()
    (lab.root / "suites/s").mkdir(parents=True)
    (lab.root / "suites/s/test_s.py").touch()
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\nmodules = ["early"]\n')
    said: list[str] = []
    build = with_suite(lab, obtain(lab, "newest", progress=said.append), "s", progress=said.append)
    equip(build, "virtio:agent", said.append)
    assert len([line for line in said if "downloading linux-image" in line]) == 1, said


@pytest.mark.parametrize("lost", ["apt", "lists"])
def test_without_apt_the_last_answer_holds_and_is_said(lab: Lab, archive: Archive, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    before = obtain(lab, "newest")
    shutil.rmtree(archive.apt / "lists")
    if lost == "apt":
        busybox = archive.apt / "bin"
        busybox.mkdir()
        (busybox / "busybox").symlink_to(shutil.which("busybox") or "/bin/busybox")
        monkeypatch.setenv("PATH", str(busybox))
    said: list[str] = []
    assert obtain(lab, "newest", progress=said.append) == before
    (line,) = said
    assert "it named linux-image-6.1.0-10-cloud-amd64 on " in line
    assert ("no apt-config" if lost == "apt" else "no lists of packages") in line


def test_without_lists_the_one_line_is_said(lab: Lab, archive: Archive) -> None:
    shutil.rmtree(archive.apt / "lists")
    with pytest.raises(HostToolMissing, match="no lists of packages") as caught:
        obtain(lab, "newest")
    assert caught.value.remedy == "apt-get update"


@pytest.mark.usefixtures("archive")
def test_too_few_says_what_there_is(lab: Lab) -> None:
    with pytest.raises(ConfigError) as caught:
        obtain(lab, "sixth")
    (problem,) = caught.value.problems
    assert problem.where.endswith("kernel/sixth.toml")
    assert problem.key == "deb.position"
    assert problem.found == "found 'newest-5', but apt has only 3 of linux-image-6.1.*-cloud-amd64"
    assert problem.allowed == "newest (linux-image-6.1.0-10-cloud-amd64) … newest-2 (linux-image-6.1.0-8-cloud-amd64)"
    assert "apt-get update" in caught.value.remedy


@pytest.mark.usefixtures("archive")
def test_a_package_that_apt_does_not_know_gets_the_nearest(lab: Lab) -> None:
    with pytest.raises(ConfigError) as caught:
        obtain(lab, "gone")
    (problem,) = caught.value.problems
    assert problem.key == "deb.package"
    assert problem.found == "found 'linux-image-6.1.0-7-cloud-amd64', but apt has no such kernel for amd64"
    assert problem.allowed.startswith("did you mean 'linux-image-6.1.0-")


def test_lists_without_any_kernel_are_no_mistake_of_the_recipe(lab: Lab, archive: Archive) -> None:
    archive.records.clear()
    archive.put("busybox-static", "1", kernel=b"")
    archive.update()
    with pytest.raises(InfraError, match="gone: apt's lists hold no kernels for amd64") as caught:
        obtain(lab, "gone")
    assert caught.value.remedy.startswith("apt-get update")


def test_an_apt_that_cannot_answer_is_no_mistake_of_the_recipe(lab: Lab, archive: Archive) -> None:
    (archive.apt / "etc/sources.list").write_text("this is no source\n")
    with pytest.raises(InfraError, match="newest: apt-cache cannot read apt's lists: E: ") as caught:
        obtain(lab, "newest")
    assert not isinstance(caught.value, HostToolMissing)


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache on a real filesystem of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=False).returncode:
        pytest.skip("needs the right to mount a small filesystem")
    monkeypatch.setenv("LABCTL_CACHE", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("size", "step"), [(6 << 20, "download"), (5 << 19, "unpack")])
def test_a_full_disk_is_named_and_not_the_network(lab: Lab, archive: Archive, small_cache: Path, size: int, step: str) -> None:
    """A package that is larger than the disk, and one that fits but whose content does not fit beside it."""
    archive.put("linux-image-6.1.0-13-cloud-amd64", "6.1.13-1", kernel=bzimage("6.1.0-13-cloud-amd64") + bytes(size))
    archive.update()
    said: list[str] = []
    with pytest.raises(StorageError) as caught:
        obtain(lab, "newest", progress=said.append)
    assert any("unpacking" in line for line in said) == (step == "unpack")
    assert caught.value.message.startswith(f"newest: the disk of the cache of builds is full: {small_cache}: ")
    assert " MiB free" in caught.value.message
    assert "LABCTL_CACHE" in caught.value.remedy


def test_an_archive_that_cannot_be_reached_is_not_taken_for_a_full_disk(lab: Lab, archive: Archive, small_cache: Path) -> None:
    assert small_cache.is_dir()
    archive.close()
    with pytest.raises(InfraError, match="could not download") as caught:
        obtain(lab, "newest")
    assert not isinstance(caught.value, StorageError)


def test_a_package_that_left_the_archive(lab: Lab, archive: Archive) -> None:
    archive.remove("linux-image-6.1.0-10-cloud-amd64", "6.1.10-1", listed=True)
    with pytest.raises(
        BuildFailed, match=r"linux-image-6.1.0-10-cloud-amd64 6.1.10-1 is in apt's lists but no longer in the archive"
    ) as caught:
        obtain(lab, "newest")
    assert caught.value.remedy == "apt-get update"
    archive.records.pop("linux-image-6.1.0-10-cloud-amd64 6.1.10-1")
    archive.update()
    assert obtain(lab, "newest").version == "6.1.0-9-cloud-amd64", "the remedy works"


def test_an_archive_that_cannot_be_reached_is_no_fault_of_the_build(lab: Lab, archive: Archive) -> None:
    archive.close()
    with pytest.raises(InfraError, match="could not download"):
        obtain(lab, "newest")


def test_a_package_that_is_not_what_was_signed(lab: Lab, archive: Archive) -> None:
    deb = archive.pool / "linux-image-6.1.0-10-cloud-amd64_6.1.10-1_amd64.deb"
    deb.write_bytes(deb.read_bytes()[:-1] + b"!")
    with pytest.raises(InfraError, match="could not download"):
        obtain(lab, "newest")


def test_a_package_whose_kernel_is_none(lab: Lab, archive: Archive) -> None:
    archive.put("linux-image-6.1.0-12-cloud-amd64", "6.1.12-1", kernel=b"#!/bin/sh\n")
    archive.update()
    with pytest.raises(BuildFailed, match="is not a kernel: it starts with '#!/bin/s'"):
        obtain(lab, "newest")


def test_our_order_of_versions_is_dpkgs() -> None:
    versions = [
        "1.0~~",
        "1.0~rc1-1",
        "1.0",
        "1.0-1~bpo1",
        "1.0-1",
        "1.0-1+b1",
        "1.0a-1",
        "1.0+x-1",
        "1.10-1",
        "6.12.3-1~deb12u1",
        "1:0.1",
        "0~",
        "",
        "0a",
    ]
    for one, other in itertools.product([v for v in versions if v], repeat=2):
        relation = "lt" if debversion.sort_key(one) < debversion.sort_key(other) else "ge"
        done = subprocess.run(["dpkg", "--compare-versions", one, relation, other], check=False, env={**os.environ, "LC_ALL": "C"})
        assert done.returncode == 0, f"{one} {relation} {other}"
