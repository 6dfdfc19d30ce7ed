"""Tools for the machine: the real compiler, the real apt and an archive of our own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from labctl.build import cpio, elf, kernelmodules, rootimage
from labctl.build.cache import Cache
from labctl.build.equipment import tools_archive
from labctl.build.obtain import describe, obtain
from labctl.build.suite import check, with_suite
from labctl.build.tools.obtain import tool
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import BuildFailed, ConfigError, HostToolMissing, InfraError, StorageError
from labctl.machine.polling import until
from labctl.model import Build, Provenance
from tests.debian_archive import Archive
from tests.kernels import bzimage

pytestmark = pytest.mark.skipif(not shutil.which("apt-get") or not shutil.which("gcc"), reason="the host has no apt or no gcc")

HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n'


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "lab"
    (root / "guest/tools").mkdir(parents=True)
    (root / "suites/s").mkdir(parents=True)
    (root / "suites/s/test_s.py").write_text("")
    (root / "lab.toml").write_text("schema = 1\n")
    return Lab.find(root)


def recipe(lab: Lab, name: str, text: str, **sources: str) -> None:
    (lab.root / f"guest/tools/{name}.toml").write_text(f"schema = 1\n{text}")
    for file, content in sources.items():
        (lab.root / f"guest/tools/{file}.c").write_text(content)
    lab.__dict__.pop("tool_files", None)


# --- c


def test_a_program_in_c_is_static_and_the_same_wherever_it_lies(lab: Lab, tmp_path: Path) -> None:
    recipe(lab, "hello", 'builder = "c"\n', hello=HELLO)
    made = tool(lab, "hello").obtain()
    program = made.files["usr/bin/hello"]
    found = elf.parse(program.read_bytes())
    assert (found.interpreter, found.needed, found.machine) == ("", (), elf.MACHINES["x86_64"])
    copy = shutil.copy(program, tmp_path / "hello")
    Path(copy).chmod(0o755)
    assert subprocess.run([copy], capture_output=True, check=True).stdout == b"hello\n"
    shutil.copytree(lab.root, tmp_path / "other")
    shutil.rmtree(tmp_path / "cache")
    assert tool(Lab.find(tmp_path / "other"), "hello").obtain().digests == made.digests


def test_a_header_beside_it_counts(lab: Lab) -> None:
    recipe(lab, "hello", 'builder = "c"\n', hello='#include "words.h"\n' + HELLO.replace('"hello"', "WORDS"))
    header = lab.root / "guest/tools/words.h"
    header.write_text('#define WORDS "one"\n')
    first = tool(lab, "hello").obtain()
    header.write_text('#define WORDS "two"\n')
    assert tool(lab, "hello").obtain().digests != first.digests


def test_what_does_not_compile_is_told_by_the_compilers_first_error(lab: Lab) -> None:
    recipe(lab, "broken", 'builder = "c"\n', broken="int main(void) {\n  int unused;\n  return x;\n}\n")
    with pytest.raises(BuildFailed, match=r"^tool broken: .*broken\.toml does not compile: broken\.c:3:10: error: .x. undeclared"):
        tool(lab, "broken").obtain()
    recipe(lab, "broken", 'builder = "c"\n', broken="int gone(void);\nint main(void) { return gone(); }\n")
    with pytest.raises(BuildFailed, match=r"undefined reference to .gone."):
        tool(lab, "broken").obtain()


def test_an_architecture_without_a_compiler_names_the_package(lab: Lab) -> None:
    if shutil.which("riscv64-linux-gnu-gcc"):
        pytest.skip("the host has that compiler")
    recipe(lab, "hello", 'builder = "c"\n', hello=HELLO)
    with pytest.raises(HostToolMissing) as caught:
        tool(lab, "hello", "riscv64").obtain()
    assert caught.value.remedy == "apt-get install -y gcc-riscv64-linux-gnu libc6-dev-riscv64-cross"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('builder = "cc"\n', "builder: unknown builder 'cc'; did you mean 'c'? (known: c, deb, linux, source)"),
        ('builder = "deb"\n[deb]\npackage = "pp"\n', "deb: found {'package': 'pp'}; at least one entry in files or in data"),
        ('builder = "c"\n[c]\nsource = ["a.c"]\n', "c.source: unknown key; did you mean 'sources'"),
        ('builder = "c"\n[c]\nsources = ["../../etc/passwd"]\n', "c.sources.0: found '../../etc/passwd'"),
        ('builder = "c"\n[c]\nfreestanding = "nowhere.ld"\n', "freestanding: nowhere.ld cannot be read: No such file or directory"),
        ('builder = "c"\n[c]\nsources = ["nowhere.c"]\n', "sources: nowhere.c cannot be read: No such file or directory"),
    ],
)
def test_mistakes_of_a_recipe_name_the_key(lab: Lab, text: str, said: str) -> None:
    recipe(lab, "wrong", text, wrong=HELLO)
    with pytest.raises(ConfigError) as caught:
        tool(lab, "wrong").obtain()
    assert "guest/tools/wrong.toml" in str(caught.value)
    assert said in str(caught.value)


def test_a_suites_mistakes_are_told_with_the_nearest_name(lab: Lab) -> None:
    recipe(lab, "pinger", 'builder = "c"\n', pinger=HELLO)
    file = lab.root / "suites/s/suite.toml"
    file.write_text('schema = 1\ntools = ["pingr"]\n')
    with pytest.raises(ConfigError, match=r"suites/s/suite\.toml: tools: unknown tool 'pingr'; did you mean 'pinger'"):
        check(lab, "s")
    file.write_text('schema = 1\ntool = ["pinger"]\n')
    with pytest.raises(ConfigError, match="tool: unknown key; did you mean 'tools'"):
        check(lab, "s")


def test_the_tiny_guest_starts_without_an_operating_system_and_beats(lab: Lab) -> None:
    """On this host's emulator: it says that it is ready, beats by its own timer, answers, and its memory stays what it was filled with."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("the host has no QEMU")
    with pytest.raises(ConfigError, match=r"tinyguest\.toml: c\.freestanding: a machine of riscv64; such a program is for x86_64"):
        tool(lab, "tinyguest", "riscv64").obtain()
    program = tool(lab, "tinyguest").obtain().files["usr/bin/tinyguest"]
    words = ["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=on", "-accel", "tcg", "-m", "8", "-nodefaults", "-display", "none"]
    machine = ["qemu-system-x86_64", *words, "-serial", "stdio", "-kernel", str(program), "-append", "hz=50 fill=7"]
    with subprocess.Popen(machine, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin
        assert running.stdout
        try:
            said: list[bytes] = []
            for line in running.stdout:
                said.append(line.strip())
                if line.startswith((b"tiny: beat 3 ", b"tiny: pong")):
                    running.stdin.write(b"d" if b"pong" in line else b"p")
                    running.stdin.flush()
                if len(said) > 1000 or (b"tiny: pong" in said and line.startswith(b"tiny: digest")):
                    break
        finally:
            running.kill()
    assert re.fullmatch(rb"tiny: digest [0-9a-f]{16}", said[0])
    assert said[1] == b"tiny: ready"
    assert said[-1] == said[0]
    beats = [line.split() for line in said if line.startswith(b"tiny: beat ")]
    numbers, stamps = [int(words[2]) for words in beats], [int(words[3]) for words in beats]
    assert numbers == sorted(set(numbers))
    assert stamps == sorted(set(stamps))


# --- deb


def shared(tmp_path: Path) -> tuple[bytes, bytes]:
    """A library that only the archive has, and a program that needs it."""
    (tmp_path / "own.c").write_text("int own(void) { return 7; }\n")
    (tmp_path / "main.c").write_text("int own(void);\nint main(void) { return own(); }\n")
    words = ["-nostdlib", "-shared", "-Wl,-soname,libown.so.1", "-o", "libown.so.1", "own.c"]
    subprocess.run(["gcc", *words], cwd=tmp_path, check=True)
    subprocess.run(
        ["gcc", "-nostartfiles", "-Wl,-e,main", "-o", "prog", "main.c", "./libown.so.1", "-Wl,--no-as-needed", "-lc"],
        cwd=tmp_path,
        check=True,
    )
    return (tmp_path / "prog").read_bytes(), (tmp_path / "libown.so.1").read_bytes()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    archive = Archive(tmp_path, monkeypatch)
    prog, library = shared(tmp_path)
    archive.put_files("prog", "1.0-1", {"usr/sbin/prog": prog, "usr/sbin/also": Path("prog"), "etc/prog.conf": b"x\n"}, "libown1, dropped")
    archive.put_files(
        "libown1",
        "1.2-1",
        {"usr/lib/x86_64-linux-gnu/libown.so.1.2": library, "usr/lib/x86_64-linux-gnu/libown.so.1": Path("libown.so.1.2")},
        "libc6 (>= 2.0) | other",
        "libs",
    )
    archive.put_files(
        "libc6", "2.36-1", {"lib64/ld-linux-x86-64.so.2": library, "lib/x86_64-linux-gnu/libc.so.6": library + b"\0"}, section="libs"
    )
    archive.put_files("dropped", "1.0-1", {"usr/bin/dropped": b"#!/bin/sh\n"})
    archive.put_source("tiny", "1.5", {"tiny.c": HELLO, "Makefile": "tiny:\n\tgcc $(CFLAGS) -static -o tiny tiny.c\n"})
    archive.update()
    yield archive
    archive.close()


PROG = 'builder = "deb"\n[deb]\npackage = "prog"\nfiles = ["/usr/sbin/prog", "/usr/sbin/also"]\ndata = ["/etc/prog.conf"]\n'


def test_a_packages_program_comes_with_the_archives_own_libraries(lab: Lab, archive: Archive) -> None:
    recipe(lab, "prog", PROG)
    made = tool(lab, "prog").obtain()
    library = (archive.pool.parent / "libown.so.1").read_bytes()
    assert set(made.files) == {
        "usr/bin/prog",
        "usr/bin/also",
        "etc/prog.conf",
        "usr/lib/x86_64-linux-gnu/libown.so.1",
        "lib64/ld-linux-x86-64.so.2",
        "lib/x86_64-linux-gnu/libc.so.6",
    }
    # The C library is the archive's, not the host's.
    assert made.files["lib/x86_64-linux-gnu/libc.so.6"].read_bytes() == library + b"\0"
    assert made.files["usr/lib/x86_64-linux-gnu/libown.so.1"].read_bytes() == library
    assert dict(made.provenance.details) == {"prog": "1.0-1", "libown1": "1.2-1", "libc6": "2.36-1"}


def test_a_library_that_no_package_has_names_tool_library_and_package(lab: Lab, archive: Archive) -> None:
    archive.remove("libown1", "1.2-1")
    archive.update()
    recipe(lab, "prog", PROG)
    with pytest.raises(BuildFailed) as caught:
        tool(lab, "prog").obtain()
    assert str(caught.value).startswith("tool prog: ")
    assert "usr/bin/prog of prog 1.0-1 needs " in str(caught.value)


def test_without_the_archive_a_warm_cache_serves_and_a_cold_one_says_so(lab: Lab, archive: Archive, tmp_path: Path) -> None:
    recipe(lab, "prog", PROG)
    recipe(lab, "tiny", TINY)
    made = {name: tool(lab, name).obtain().digests for name in ("prog", "tiny")}
    archive.close()
    assert {name: tool(lab, name).obtain().digests for name in ("prog", "tiny")} == made
    # The packages are kept: another tool of them needs no network.
    recipe(lab, "conf", 'builder = "deb"\n[deb]\npackage = "prog"\nfiles = ["/usr/sbin/prog"]\n')
    tool(lab, "conf").obtain()
    shutil.rmtree(tmp_path / "cache")
    for name in ("prog", "tiny"):
        with pytest.raises(InfraError) as caught:
            tool(lab, name).obtain()
        assert caught.value.message.startswith(f"tool {name}: ")
        assert caught.value.remedy == "check the network and apt's proxy"


def test_mistakes_about_packages_are_told_apart(lab: Lab, archive: Archive) -> None:
    recipe(lab, "prog", PROG.replace("/usr/sbin/prog", "/usr/bin/prog"))
    with pytest.raises(ConfigError, match=r"deb\.files: prog 1\.0-1 has no file /usr/bin/prog; it has /usr/sbin/prog"):
        tool(lab, "prog").obtain()
    recipe(lab, "prog", PROG.replace('"prog"', '"prgo"'))
    with pytest.raises(ConfigError, match=r"deb\.package: apt has no package 'prgo' for amd64"):
        tool(lab, "prog").obtain()
    recipe(lab, "tiny", TINY.replace('"tiny"', '"tinny"', 1))
    with pytest.raises(ConfigError, match=r"source\.package: apt has no source package 'tinny'"):
        tool(lab, "tiny").obtain()


def test_a_package_gone_from_the_archive_is_told_as_that(lab: Lab, archive: Archive) -> None:
    recipe(lab, "prog", PROG)
    archive.remove("prog", "1.0-1", listed=True)
    (archive.pool / "tiny_1.5.tar.gz").unlink()
    recipe(lab, "tiny", TINY)
    for name in ("prog", "tiny"):
        with pytest.raises(BuildFailed, match="in apt's lists but no longer in the archive"):
            tool(lab, name).obtain()


# --- source

TINY = 'builder = "source"\n[source]\npackage = "tiny"\ncommands = ["make tiny"]\nfiles = ["tiny"]\n'


def test_a_source_package_is_built_by_its_recipe(lab: Lab, archive: Archive) -> None:
    recipe(lab, "tiny", TINY)
    made = tool(lab, "tiny").obtain()
    assert made.version == "1.5"
    assert elf.parse(made.files["usr/bin/tiny"].read_bytes()).needed == ()
    archive.put_source("tiny", "1.10", {"tiny.c": HELLO, "Makefile": "tiny:\n\techo 'int x' > tiny.c; gcc -c tiny.c\n"})
    archive.update()
    with pytest.raises(BuildFailed, match=r"tool tiny: .*tiny\.toml: 'make tiny' failed: tiny\.c:1:"):
        tool(lab, "tiny").obtain()


def test_a_source_may_lie_as_an_archive_in_a_package(lab: Lab, archive: Archive, tmp_path: Path) -> None:
    for path, content in {"kernel-9/tests/a/a.c": HELLO, "kernel-9/drivers/b.c": "no C\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(content)
    subprocess.run(["tar", "-cJf", "kernel-9.tar.xz", "kernel-9"], cwd=tmp_path, check=True)
    archive.put_files("kernel-source", "9-1", {"usr/src/kernel-9.tar.xz": (tmp_path / "kernel-9.tar.xz").read_bytes()})
    archive.update()
    text = 'builder = "source"\n[source]\npackage = "kernel-source"\narchive = "/usr/src/kernel-9.tar.xz"\nparts = ["tests"]\nneeds = []\n'
    recipe(lab, "a", text + 'commands = ["test ! -e drivers", "{gcc} -static -o a tests/a/a.c"]\nfiles = ["a"]\n')
    made = tool(lab, "a").obtain()
    assert (made.version, list(made.files)) == ("9-1", ["usr/bin/a"])
    recipe(lab, "b", text.replace("kernel-9.tar", "kernel-8.tar") + 'commands = ["true"]\nfiles = ["a"]\n')
    with pytest.raises(ConfigError, match=r"archive: kernel-source 9-1 has no file /usr/src/kernel-8\.tar\.xz"):
        tool(lab, "b").obtain()
    recipe(lab, "c", text.replace('"tests"', '"nowhere"') + 'commands = ["true"]\nfiles = ["a"]\n')
    with pytest.raises(BuildFailed, match="kernel-source cannot be unpacked"):
        tool(lab, "c").obtain()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("gcc -o tiny tiny.c", "tiny is not static: it needs libc.so.6"),
        ("true", "the commands left no file tiny"),
        ("./nowhere", "'./nowhere' cannot be run"),
    ],
)
@pytest.mark.usefixtures("archive")
def test_what_a_recipe_leaves_is_looked_at(lab: Lab, command: str, said: str) -> None:
    recipe(lab, "tiny", TINY.replace("make tiny", command))
    with pytest.raises((BuildFailed, ConfigError)) as caught:
        tool(lab, "tiny").obtain()
    assert said in str(caught.value)


@pytest.mark.usefixtures("archive")
def test_programs_that_a_recipe_needs_are_named_together(lab: Lab) -> None:
    recipe(lab, "tiny", TINY + 'needs = ["make", "no-such-yacc", "no-such-lex"]\n')
    with pytest.raises(HostToolMissing) as caught:
        tool(lab, "tiny").obtain()
    assert caught.value.remedy == "apt-get install -y no-such-yacc no-such-lex"


@pytest.mark.usefixtures("archive")
def test_a_full_disk_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe(lab, "tiny", TINY.replace("make tiny", "gcc -static -o /dev/full tiny.c"))
    with pytest.raises(StorageError, match="the disk of the cache of builds is full"):
        tool(lab, "tiny").obtain()


# --- image


def test_an_image_holds_the_packages_with_all_that_they_need(lab: Lab, archive: Archive, tmp_path: Path) -> None:
    (lab.root / "guest/images").mkdir()
    (lab.root / "guest/images/prog.toml").write_text('schema = 1\npackages = ["prog"]\nroom = "4M"\n')
    made = rootimage.obtain(lab, "prog", "x86_64", Cache(), Deadline.after(120))
    image = made.files["image"]
    assert dict(made.provenance.details) == {"prog": "1.0-1", "libown1": "1.2-1", "dropped": "1.0-1", "libc6": "2.36-1"}
    e2fs = {"capture_output": True, "text": True, "check": True}
    subprocess.run(["/sbin/e2fsck", "-fn", image], **e2fs)
    listed = subprocess.run(["/sbin/debugfs", "-R", "ls -p /usr/sbin", image], **e2fs).stdout
    assert "/prog/" in listed
    assert "/also/" in listed
    shown = subprocess.run(["/sbin/debugfs", "-R", "cat /sbin/init", image], **e2fs).stdout
    assert "labctl-guest: ready" in shown
    archive.close()
    assert rootimage.obtain(lab, "prog", "x86_64", Cache(), Deadline.after(120)).digests == made.digests


def test_mistakes_about_an_image_are_named(lab: Lab, archive: Archive) -> None:
    (lab.root / "guest/images").mkdir()
    (lab.root / "guest/images/prog.toml").write_text('schema = 1\npackages = ["prog", "prgo"]\n')
    with pytest.raises(ConfigError, match=r"guest/images/prog\.toml: packages: apt has no package 'prgo' for amd64"):
        rootimage.obtain(lab, "prog", "x86_64", Cache(), Deadline.after(120))
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\nimage = "porg"\n')
    with pytest.raises(ConfigError, match=r"suites/s/suite\.toml: image: unknown image 'porg'; did you mean 'prog'"):
        check(lab, "s")


# --- together


def test_tools_share_files_and_do_not_contradict_each_other(lab: Lab, archive: Archive) -> None:
    recipe(lab, "prog", PROG)
    made = tool(lab, "prog").obtain()
    again = tools_archive({"a": made, "b": made}, Cache(), Deadline.after(60))
    assert again == tools_archive({"a": made}, Cache(), Deadline.after(60))
    assert again.count(b"usr/bin/prog\0") == 1
    archive.put_files("prog", "2.0-1", {"usr/sbin/prog": b"#!/bin/sh\n", "usr/sbin/also": b"", "etc/prog.conf": b"y\n"})
    archive.update()
    other = tool(lab, "prog").obtain()
    with pytest.raises(BuildFailed, match="the tools a and b bring different files as /"):
        tools_archive({"a": made, "b": other}, Cache(), Deadline.after(60))


def test_a_build_brings_tools_and_files_of_its_own_and_a_suite_adds_what_is_missing(lab: Lab) -> None:
    recipe(lab, "hello", 'builder = "c"\n', hello=HELLO)
    recipe(lab, "other", 'builder = "c"\n', other=HELLO.replace("hello", "other"))
    folder = lab.root / "hypervisor/mine"
    (folder / "overlay/etc").mkdir(parents=True)
    (folder / "overlay/etc/own").write_text("of the build\n")
    (folder / "kernel").write_bytes(bzimage())
    text = 'schema = 1\nbuilder = "path"\nhypervisor = "kvm"\ntools = ["hello"]\n[path]\nkernel = "hypervisor/mine/kernel"\n'
    (folder / "build.toml").write_text(text)
    assert describe(lab, "mine")["digest"] == ""
    build = obtain(lab, "mine")
    assert build.initrd is not None
    archive = build.initrd.read_bytes()
    assert archive.count(b"usr/bin/hello\0") == archive.count(b"of the build\n") == 1
    assert (build.hypervisor, build.tools, describe(lab, "mine")["digest"]) == ("kvm", ("hello",), build.digest)
    assert Build.from_fields(json.loads(json.dumps(asdict(build), default=str))) == build
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\ntools = ["hello"]\n')
    assert with_suite(lab, build, "s") is build
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\ntools = ["hello", "other"]\n')
    more = with_suite(lab, build, "s")
    assert more.initrd is not None
    added = more.initrd.read_bytes()[len(archive) :]
    assert (added.count(b"usr/bin/other\0"), added.count(b"usr/bin/hello\0")) == (1, 0)
    (folder / "overlay/etc/own").write_text("changed\n")
    assert obtain(lab, "mine").digest != build.digest
    (folder / "build.toml").write_text(text.replace('["hello"]', '["helo"]'))
    with pytest.raises(ConfigError, match=r"hypervisor/mine/build\.toml: tools: unknown tool 'helo'; did you mean 'hello'"):
        obtain(lab, "mine")


def module(folder: Path, path: str, **info: str) -> None:
    file = folder / "kernel" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0" + b"".join(f"{key}={value}\0".encode() for key, value in info.items()))


def test_modules_come_with_what_they_need_in_order(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme-core.ko\n")
    module(tmp_path, "drivers/top.ko", depends="mid-dle,base", softdep="pre: hash")
    module(tmp_path, "drivers/mid-dle.ko", depends="base,ext4")
    module(tmp_path, "drivers/base.ko", depends="")
    module(tmp_path, "arch/x86/crypto/hash-fast.ko", depends="", alias="hash")
    module(tmp_path, "crypto/hash_generic.ko", depends="", alias="hash")
    module(tmp_path, "drivers/round.ko", depends="trip")
    module(tmp_path, "drivers/trip.ko", depends="round")
    chosen = kernelmodules.selected(tmp_path, ["top", "nvme_core"])
    assert list(chosen) == [f"kernel/{name}.ko" for name in ("drivers/base", "drivers/mid-dle", "crypto/hash_generic", "drivers/top")]
    assert chosen["kernel/drivers/top.ko"].needs[-1] in ("kernel/drivers/base.ko", "kernel/crypto/hash_generic.ko")
    assert set(kernelmodules.selected(tmp_path, ["round"])) == {"kernel/drivers/round.ko", "kernel/drivers/trip.ko"}
    with pytest.raises(LookupError, match="nowhere"):
        kernelmodules.selected(tmp_path, ["nowhere"])
    with pytest.raises(LookupError) as all_at_once:
        kernelmodules.selected(tmp_path, ["no-such", "top", "no_such", "nowhere"])
    assert all_at_once.value.args == ("no_such", "nowhere")


def test_what_a_module_needs_and_likes_is_loaded_after_what_both_need(tmp_path: Path) -> None:
    """As Debian's crc-t10dif, which NVMe needs: it likes a module that needs what it needs itself."""
    (tmp_path / "modules.builtin").write_text("")
    module(tmp_path, "lib/crc.ko", depends="common", softdep="pre: sum")
    module(tmp_path, "crypto/sum_generic.ko", depends="common", alias="sum")
    module(tmp_path, "crypto/common.ko", depends="")
    module(tmp_path, "block/pi.ko", depends="crc")
    chosen = kernelmodules.selected(tmp_path, ["pi"])
    for file, found in chosen.items():
        loaded = [*reversed(found.needs), file]
        for each in loaded:
            before = set(loaded[: loaded.index(each)])
            assert set(chosen[each].needs) <= before, f"{each} is loaded before what it needs, for {file}"
    assert len(chosen) == 4


def test_a_kernel_of_which_the_modules_are_not_known_is_refused_before_any_power(lab: Lab, tmp_path: Path) -> None:
    (lab.root / "suites/s/suite.toml").write_text('schema = 1\nmodules = ["virtio-blk"]\n')
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"")
    build = Build("mine", "sha256:1", "x86_64", tmp_path / "k", initrd, "", "", {}, Provenance("path", "k"))
    with pytest.raises(ConfigError, match=r"suites/s/suite\.toml: modules: mine \(builder path\) has no modules"):
        with_suite(lab, build, "s")
    listing = tmp_path / "modules.builtin"
    listing.write_text("kernel/drivers/block/virtio_blk.ko\n")
    told = Build(
        "mine", "sha256:1", "x86_64", tmp_path / "k", initrd, "", "", {}, Provenance("make", "k", details={"modules_builtin": str(listing)})
    )
    assert with_suite(lab, told, "s") is told


def test_the_verb_builds(lab: Lab) -> None:
    recipe(lab, "hello", 'builder = "c"\n', hello=HELLO)
    command = [str(Path(sys.executable).with_name("labctl")), "tools", "build", "hello", "--json"]
    done = subprocess.run(command, cwd=lab.root, capture_output=True, text=True, check=True)
    assert list(json.loads(done.stdout)["tools"][0]["files"]) == ["usr/bin/hello"]
    unknown = subprocess.run([*command[:3], "helo"], cwd=lab.root, capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "unknown tool 'helo'; did you mean 'hello'" in unknown.stderr
    several = subprocess.run([*command[:3], "helo", "hello", "nonesuch"], cwd=lab.root, capture_output=True, text=True, check=False)
    assert several.returncode == 2
    assert [name for name in ("helo", "nonesuch") if f"unknown tool '{name}'" in several.stderr] == ["helo", "nonesuch"]


def test_an_overlay_with_a_missing_library_is_told_before_any_power(lab: Lab, tmp_path: Path) -> None:
    folder = lab.root / "suites/s/overlay/usr/bin"
    folder.mkdir(parents=True)
    (folder / "tool.c").write_text(HELLO)
    subprocess.run(["gcc", "-o", folder / "tool", folder / "tool.c"], check=True)
    (folder / "damaged").write_bytes((folder / "tool").read_bytes()[:100])
    initrd = tmp_path / "initrd"
    initrd.write_bytes(cpio.archive([cpio.file("bin/busybox", b"")]))
    build = Build("mine", "sha256:1", "x86_64", tmp_path / "k", initrd, "", "", {}, Provenance("path", "k"))
    with pytest.raises(ConfigError) as told:
        with_suite(lab, build, "s")
    found = [(problem.where, problem.found) for problem in told.value.problems]
    assert ("suites/s/overlay/usr/bin/tool", "it needs libc.so.6, which the machine does not have") in found
    assert {where for where, _ in found} == {"suites/s/overlay/usr/bin/tool"}

    needs = elf.parse((folder / "tool").read_bytes())
    at_its_place = lab.root / "suites/s/overlay/lib"
    at_its_place.mkdir()
    (at_its_place / "libc.so.6").write_bytes(b"")
    initrd.write_bytes(cpio.archive([cpio.file("bin/busybox", b"")]) + cpio.archive([cpio.file(needs.interpreter.lstrip("/"), b"")]))
    assert with_suite(lab, build, "s").initrd != initrd
    (at_its_place / "libc.so.6").unlink()
    initrd.write_bytes(b"\x1f\x8b of a build that brings its own")
    assert with_suite(lab, build, "s").initrd != initrd, "nobody can look into it"


def test_a_script_without_its_interpreter_and_a_link_to_nothing_are_told_too(lab: Lab, tmp_path: Path) -> None:
    folder = lab.root / "suites/s/overlay/usr/bin"
    folder.mkdir(parents=True)
    for name, begins in {
        "shell": "/bin/sh -e",
        "snake": "/usr/bin/python3",
        "by-env": "/usr/bin/env perl",
        "by-env-with-more": "/usr/bin/env -S perl -w",
        "of-windows": "/bin/sh\r",
    }.items():
        (folder / name).write_bytes(f"#!{begins}\n".encode())
        (folder / name).chmod(0o755)
    (folder / "read").write_text("#!/usr/bin/python3\nby whoever is given it: not executable\n")
    for name, to in {
        "there": "../../bin/busybox",
        "own": "shell",
        "nowhere": "../lib/mine/tool",
        "state": "/run/mine",
        "ring": "gnir",
        "gnir": "ring",
    }.items():
        (folder / name).symlink_to(to)
    hooks = lab.root / "suites/s/overlay/etc/labctl/rc.d"
    hooks.mkdir(parents=True)
    (hooks / "20-hook.sh").symlink_to("/nope")
    (folder.parent / "share").mkdir()
    (folder.parent / "share/later").symlink_to("made-by-a-test")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(
        cpio.archive([cpio.file("bin/busybox", b""), cpio.symlink("bin/sh", "busybox"), cpio.symlink("usr/bin/env", "/bin/busybox")])
    )
    build = Build("mine", "sha256:1", "x86_64", tmp_path / "k", initrd, "", "", {}, Provenance("path", "k"))
    with pytest.raises(ConfigError) as told:
        with_suite(lab, build, "s")
    assert {Path(problem.where).name: problem.found for problem in told.value.problems} == {
        "snake": "it is to be run by /usr/bin/python3, which the machine does not have",
        "by-env": "it is to be run by perl, which the machine does not have",
        "nowhere": "it is a link to /usr/lib/mine/tool, which the machine does not have",
        "of-windows": "it is to be run by '/bin/sh\\r', which the machine does not have",
        "ring": "it is a link to /usr/bin/gnir, which the machine does not have",
        "gnir": "it is a link to /usr/bin/ring, which the machine does not have",
        "20-hook.sh": "it is a link to /nope, which the machine does not have",
    }
    for name in ("snake", "by-env", "nowhere", "of-windows", "ring", "gnir"):
        (folder / name).unlink()
    (hooks / "20-hook.sh").unlink()
    assert with_suite(lab, build, "s").initrd != initrd


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_verb_that_is_ended_says_so_and_leaves_nothing_half_made(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    recipe(lab, "hello", 'builder = "c"\n', hello=HELLO)
    (tmp_path / "bin").mkdir()
    slow = tmp_path / "bin/gcc"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *hello*) echo $$ >{tmp_path}/begun; exec sleep 60;; esac\nexec {shutil.which("gcc")} "$@"\n')
    slow.chmod(0o755)
    command = [str(Path(sys.executable).with_name("labctl")), "tools", "build", "hello"]
    environment = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(command, cwd=lab.root, env=environment, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 30
        while not (begun := tmp_path / "begun").is_file() or not begun.read_text():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said.splitlines()[-1]) == (130, "labctl: interrupted")
    assert list((tmp_path / "cache/tmp").iterdir()) == []
    assert until(lambda: not _runs(int(begun.read_text())), Deadline.after(5)), "the compiler has ended too"


def _runs(pid: int) -> bool:
    """Whether the process is there and has not ended: one whose owner is gone waits for init to look at it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
