"""Archives of our own against the reader that everybody else uses, and against the rules that the kernel has."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.build import cpio
from labctl.build.initramfs import overlay_cpio
from labctl.errors import ConfigError

names = st.lists(st.text("abcXYZ019._- é", min_size=1, max_size=9).filter(lambda s: s not in (".", "..")), min_size=1, max_size=3).map(
    "/".join
)


def members(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Name, mode, content and device of each member, read by the format's description and not by our writer."""
    found, at = [], 0
    while at < len(data):
        if data[at] == 0:
            at += 4
            continue
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, length = fields[1], fields[6], fields[9], fields[10], fields[11]
        assert fields[2:4] == [0, 0], "owned by root"
        assert fields[5] == 0, "time 0"
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = (at + 110 + length + 3) & ~3
        found.append((name, mode, data[start : start + size], (major, minor)))
        at = (start + size + 3) & ~3
    return found


def test_an_archive_says_what_went_in() -> None:
    data = cpio.archive(
        [
            cpio.file("bin/tool", b"abc", 0o755),
            cpio.symlink("bin/sh", "tool"),
            cpio.character_device("dev/console", 5, 1),
            cpio.directory("tmp"),
        ]
    )
    assert members(data) == [
        ("bin", 0o40755, b"", (0, 0)),
        ("bin/sh", 0o120777, b"tool", (0, 0)),
        ("bin/tool", 0o100755, b"abc", (0, 0)),
        ("dev", 0o40755, b"", (0, 0)),
        ("dev/console", 0o20600, b"", (5, 1)),
        ("tmp", 0o40755, b"", (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    assert len(data) % cpio.ALIGNMENT == 0


@pytest.mark.skipif(not shutil.which("busybox"), reason="the host has no busybox to read archives with")
def test_another_program_reads_it(tmp_path: Path) -> None:
    data = cpio.archive([cpio.file("a/b", b"12345"), cpio.symlink("l", "a/b")])
    subprocess.run(["busybox", "cpio", "-id"], input=data, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a/b").read_bytes() == b"12345"
    assert (tmp_path / "l").readlink() == Path("a/b")


@given(st.dictionaries(names, st.binary(max_size=20), max_size=8))
def test_same_entries_same_bytes_in_any_order(contents: dict[str, bytes]) -> None:
    # A name that is a folder of another one cannot be a file too.
    files = {n: d for n, d in contents.items() if not any(o.startswith(f"{n}/") for o in contents)}
    entries = [cpio.file(name, data) for name, data in files.items()]
    shuffled = random.sample(entries, len(entries))
    data = cpio.archive(entries)
    assert data == cpio.archive(shuffled)
    order = [name for name, *_ in members(data)][:-1]
    assert {name: content for name, mode, content, _ in members(data) if mode & 0o100000} == files
    for name in order:
        parent = name.rpartition("/")[0]
        assert not parent or order.index(parent) < order.index(name), "the kernel makes a folder before what it holds"


@pytest.mark.parametrize("path", ["/abs", "../up", "a/../b", "", "nul\0"])
def test_a_path_outside_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        cpio.archive([cpio.file(path, b"")])


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        cpio.archive([cpio.file("a", b""), cpio.file("a", b"")])


def test_an_overlay_does_not_depend_on_owner_time_or_umask(tmp_path: Path) -> None:
    for number, folder in enumerate((tmp_path / "one", tmp_path / "two")):
        (folder / "etc/labctl/rc.d").mkdir(parents=True, mode=0o700 if number else 0o755)
        hook = folder / "etc/labctl/rc.d/10-net.sh"
        hook.write_text("ip link set lo up\n")
        hook.chmod(0o700 if number else 0o775)
        (folder / "link").symlink_to("etc")
        os.utime(hook, (number, number))
    one, two = overlay_cpio(tmp_path / "one"), overlay_cpio(tmp_path / "two")
    assert one == two
    assert ("etc/labctl/rc.d/10-net.sh", 0o100755, b"ip link set lo up\n", (0, 0)) in members(one)
    assert ("link", 0o120777, b"etc", (0, 0)) in members(one)


def test_what_cannot_stand_in_an_overlay_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe: a socket, pipe or device"):
        overlay_cpio(tmp_path)


def test_an_overlay_that_is_not_there_is_the_authors_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        overlay_cpio(tmp_path / "none")
