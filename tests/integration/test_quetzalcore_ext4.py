"""The reference kernel's ext4 as a program of this host, on images that mke2fs makes: what it writes, e2fsck finds clean and debugfs reads."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("rustc", "mke2fs", "e2fsck", "debugfs")), reason="the host lacks rustc or e2fsprogs"
)

SOURCE = Path(__file__).parents[2] / "kernel/quetzalcore/host/ext4.rs"
LAYOUTS = {
    "blocks of 1 KiB": (),
    "blocks of 4 KiB": ("-b", "4096"),
    "without checksums": ("-O", "^metadata_csum"),
    "many small groups": ("-b", "1024", "-g", "1024", "-N", "4096"),
    "small inodes and descriptors": ("-b", "2048", "-I", "128", "-O", "^64bit,^has_journal"),
    "all that a newer mke2fs has": ("-O", "metadata_csum_seed,sparse_super2,^resize_inode"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the checks of a debug build: an overflow is a panic here."""
    made = tmp_path_factory.mktemp("ext4") / "ext4"
    checks = ["-Copt-level=2", "-Coverflow-checks=on", "-Cdebug-assertions=on"]
    subprocess.run(["rustc", "--edition", "2024", *checks, "-o", str(made), str(SOURCE)], check=True, timeout=300)
    return made


class Image:
    def __init__(self, path: Path, program: Path) -> None:
        self.path = path
        self.program = program

    def make(self, size: str, *options: str) -> Image:
        self.path.unlink(missing_ok=True)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, str(self.path), size], check=True, capture_output=True, timeout=60)
        return self

    def ran(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([str(self.program), str(self.path), *command], capture_output=True, timeout=240)

    def do(self, *command: str) -> bytes:
        ended = self.ran(*command)
        assert ended.returncode == 0, (command, ended.stderr)
        return ended.stdout

    def refused(self, *command: str) -> str:
        ended = self.ran(*command)
        assert ended.returncode == 1, (command, ended)
        return ended.stderr.decode().strip()

    def check(self) -> None:
        """Clean, and with nothing that e2fsck would do better, but for nodes that splits left half full, as the kernel's do."""
        ended = subprocess.run(["e2fsck", "-fn", str(self.path)], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout
        assert all("could be narrower" in line for line in ended.stdout.splitlines() if "?" in line), ended.stdout

    def debugfs(self, request: str, *options: str) -> str:
        return subprocess.run(
            ["debugfs", *options, "-R", request, str(self.path)], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def digest(self, name: str) -> str:
        """Of a file's contents, as debugfs reads it."""
        dumped = self.path.with_suffix(".dump")
        self.debugfs(f"dump {name} {dumped}")
        return hashlib.sha256(dumped.read_bytes()).hexdigest()


@pytest.fixture
def image(tmp_path: Path, program: Path) -> Image:
    return Image(tmp_path / "image", program)


@pytest.fixture
def content(tmp_path: Path) -> Callable[[int], Path]:
    def make(size: int) -> Path:
        path = tmp_path / f"content-{size}"
        path.write_bytes(random.Random(size).randbytes(size))
        return path

    return make


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_what_was_written(image: Image, content: Callable[[int], Path], layout: str) -> None:
    image.make("48M", *LAYOUTS[layout])
    large, odd = content(11_000_000), content(123_457)
    image.do("put", "/large", str(large))
    image.do("mkdir", "/directory")
    image.do("put", "/directory/odd", str(odd), "777", "0")  # in pieces that fit no block
    image.check()
    assert image.digest("/large") == sha256(large)
    assert image.digest("/directory/odd") == sha256(odd)
    assert image.do("get", "/large") == large.read_bytes()

    # A hole, then a change in the middle.
    image.do("put", "/directory/odd", str(odd), "4096", "300000")
    image.do("put", "/large", str(odd), "5000", "1234567")
    image.check()
    held = odd.read_bytes()
    assert image.do("get", "/directory/odd") == held + bytes(300_000 - len(held)) + held
    old = large.read_bytes()
    assert image.digest("/large") == hashlib.sha256(old[:1_234_567] + held + old[1_234_567 + len(held) :]).hexdigest()

    image.do("rm", "/large")
    image.do("rm", "/directory/odd")
    image.do("rmdir", "/directory")
    image.check()
    assert b"large" not in image.do("list", "/")


@pytest.mark.parametrize("layout", ["blocks of 1 KiB", "without checksums"])
def test_extent_tree_grows_and_shrinks(image: Image, layout: str) -> None:
    image.make("32M", *LAYOUTS[layout])
    image.do("scatter", "/scattered", "14000")  # 7000 extents: two levels above the leaves
    image.check()
    assert "(ETB1)" in image.debugfs("stat /scattered")
    held = image.do("get", "/scattered")
    for block in range(0, 14_000, 2):
        assert held[block * 1024 : block * 1024 + 1024] == bytes([block % 251]) * 1024
    for size in (4_000_000, 150_000, 3000, 0):
        image.do("truncate", "/scattered", str(size))
        image.check()
        assert image.do("get", "/scattered") == held[:size]


def test_large_directories(image: Image) -> None:
    image.make("48M", "-N", "8000")
    image.do("many", "/many", "5000")
    image.check()
    assert len(image.do("list", "/many").splitlines()) == 5000
    subprocess.run(["e2fsck", "-fyD", str(image.path)], capture_output=True, check=False, timeout=60)
    assert "Indirect levels" in image.debugfs("htree_dump /many")
    # An index survives a removal; a new name turns it into a plain directory.
    image.do("rm", "/many/a-file-with-the-number-77")
    image.check()
    assert "Indirect levels" in image.debugfs("htree_dump /many")
    image.do("mkdir", "/many/new")
    image.check()
    names = {line.split()[1] for line in image.do("list", "/many").decode().splitlines()}
    assert names == {f"a-file-with-the-number-{number}" for number in range(5000) if number != 77} | {"new"}
    assert image.refused("rmdir", "/many") == "the directory is not empty"
    assert image.refused("mkdir", "/many/new") == "the name exists already"


def test_full_disk(image: Image) -> None:
    image.make("8M", "-N", "64")
    assert image.refused("fill", "/full") == "no space left on the disk"
    image.check()
    assert image.refused("mkdir", "/more") == "no space left on the disk"
    image.check()
    image.do("rm", "/full")
    assert image.refused("many", "/many", "100") == "no inodes left in the file system"
    image.check()


@pytest.mark.parametrize(
    ("options", "words"),
    {
        "encrypt": (("-O", "encrypt"), "not supported: encrypt"),
        "inline data": (("-O", "inline_data"), "not supported: inline_data"),
        "bigalloc": (("-O", "bigalloc"), "not supported: bigalloc: writing"),
        "quota": (("-O", "quota"), "not supported: quota: writing"),
        "meta_bg": (("-O", "meta_bg,^resize_inode"), "not supported: meta_bg"),
        "ext3": (("-O", "^extent,^64bit"), "not supported: ext2 or ext3: a file system without the feature extent"),
    }.items(),
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refuses_what_it_does_not_know(image: Image, options: str, words: tuple[tuple[str, ...], str]) -> None:
    image.make("16M", *words[0])
    before = sha256(image.path)
    assert image.refused("mkdir", "/directory") == words[1]
    assert sha256(image.path) == before


def test_refuses_what_is_not_clean(image: Image, content: Callable[[int], Path]) -> None:
    image.make("16M")
    image.do("put", "/kept", str(content(5000)))
    image.do("abandon", "/lost", str(content(2_000_000)))
    assert "was not unmounted cleanly: run e2fsck" in image.refused("list", "/")
    assert subprocess.run(["e2fsck", "-p", str(image.path)], capture_output=True, timeout=60).returncode in (0, 1)
    assert image.do("get", "/kept") == content(5000).read_bytes()
    image.debugfs("feature needs_recovery", "-w")
    assert "the journal needs recovery: run e2fsck" in image.refused("list", "/")
    image.path.write_bytes(bytes(1 << 20))
    assert image.refused("list", "/") == "no ext4 file system on this disk"
    image.path.write_bytes(b"")
    assert image.refused("list", "/") == "no ext4 file system on this disk"


def test_damage_is_found_and_marked(image: Image, content: Callable[[int], Path]) -> None:
    image.make("16M", "-b", "1024")
    image.do("put", "/file", str(content(100_000)))
    place = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", image.debugfs("imap /file"))
    assert place is not None
    data = bytearray(image.path.read_bytes())
    data[int(place[1]) * 1024 + int(place[2], 16) + 4] ^= 0xFF
    image.path.write_bytes(data)
    assert image.refused("rm", "/file") == "corrupt image: checksum of an inode (12)"
    assert "was not unmounted cleanly" in image.refused("list", "/")


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "no checksums"])
def test_hostile_images(image: Image, tmp_path: Path, content: Callable[[int], Path], checksums: bool) -> None:
    """Bytes of the metadata change by chance; the driver may refuse anything, but neither panic nor walk in circles."""
    tree = tmp_path / "tree"
    (tree / "directory/below").mkdir(parents=True)
    for number in range(40):
        (tree / f"directory/a-file-with-a-long-name-that-fills-blocks-{number}").touch()
    (tree / "directory/below/file").write_bytes(content(3000).read_bytes())
    (tree / "link").symlink_to("directory")
    image.make(
        "2M", "-b", "1024", "-N", "128", "-d", str(tree), "-O", "^has_journal,^resize_inode" + ("" if checksums else ",^metadata_csum")
    )
    image.do("scatter", "/scattered", "1000")
    subprocess.run(["e2fsck", "-fyD", str(image.path)], capture_output=True, check=False, timeout=60)
    found = image.do("fuzz", "1", "400" if checksums else "3000").decode()
    assert found.count("corrupt image") > 10, found
