"""From a recipe's text to what would be built: options, kinds of kernels, versions, configs, and every mistake that an author can make."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.build import debversion, image, kconfig
from labctl.build.builders import builders
from labctl.build.cache import Cache
from labctl.build.obtain import check, describe, obtain, recipes
from labctl.config import Lab
from labctl.errors import ConfigError, HostToolMissing
from labctl.run.prepare import Request, plan
from tests.kernels import arm64_image, bzimage, elf

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """An empty lab with a cache of its own; the working directory."""
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "lab"
    (root / "kernel").mkdir(parents=True)
    (root / "lab.toml").write_text("schema = 1\n")
    monkeypatch.chdir(root)
    return Lab.find(root)


def recipe(lab: Lab, text: str, name: str = "mine") -> None:
    (lab.root / "kernel" / f"{name}.toml").write_text(f"schema = 1\n{text}")


def test_the_recipes_of_the_repository_are_right() -> None:
    lab = Lab.find(REPOSITORY)
    debian = [name for name in lab.recipe_files if name.startswith("debian-")]
    assert len(debian) >= 2
    for name in lab.recipe_files:
        found = lab.recipe(name)
        builders()[found.builder].options.model_validate(found.options)


def test_an_unknown_table_is_told_the_name_of_the_builders_own(lab: Lab) -> None:
    """Not that of the field which it becomes."""
    (lab.root / "guest/tools").mkdir(parents=True)
    (lab.root / "guest/tools/t.toml").write_text('schema = 1\nbuilder = "c"\n[deb]\npackages = ["x"]\n')
    with pytest.raises(ConfigError) as caught:
        lab.tool("t")
    assert str(caught.value) == "guest/tools/t.toml: deb: unknown key; known: [c], builder, description, schema"
    recipe(lab, 'builder = "path"\n[options]\nkernel = "x"\n')
    with pytest.raises(ConfigError, match=r"mine.toml: options: unknown key; a builder's options stand in the table \[path\]"):
        lab.recipe("mine")
    recipe(lab, 'builder = "path"\ntag = ["x"]\n[deb]\npackage = "x"\n')
    with pytest.raises(ConfigError) as caught:
        lab.recipe("mine")
    told = {problem.key: problem.allowed for problem in caught.value.problems}
    assert told["deb"].startswith("known: [path], append, arch, ")
    assert told["tag"].startswith("did you mean 'tags'? (known: [path], append, ")


def test_the_builders_are_found_by_name() -> None:
    assert set(builders()) == {"deb", "make", "path", "rust", "xen"}


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ('builder = "dep"', "builder", "did you mean 'deb'"),
        ('builder = "cache"', "builder", "unknown builder 'cache'"),
        ('builder = "debb"\n[deb]\npackage = "linux-image-x"', "builder", "unknown builder 'debb'; did you mean 'deb'"),
        ('builder = "Deb"\n[deb]\npackage = "linux-image-x"', "builder", "unknown builder 'Deb'; did you mean 'deb'"),
        ('builder = "deb"', "deb.package", "missing"),
        ('builder = "deb"\n[deb]\npackage = "linux-image-x"\npositon = "newest"', "deb.positon", "did you mean 'position'"),
        ('builder = "deb"\n[deb]\npackage = "linux-image-x"\nposition = "newst"', "deb.position", "found 'newst'; newest, or how many"),
        ('builder = "deb"\n[deb]\npackage = "linux-image-x"\nposition = 1', "deb.position", "found 1; text in quotes"),
        ('builder = "deb"\n[deb]\npackage = "-oAPT::x=y"', "deb.package", "-oAPT"),
        ('builder = "path"\n[path]\nkernel = 5', "path.kernel", "text in quotes"),
        ('builder = "path"\n[path]\nkernel = "none"', "path.kernel", "cannot be read: No such file"),
        ('builder = "path"\n[path]\nkernel = "lab.toml"', "path.kernel", "not a kernel: it starts with 'schema"),
        ('builder = "path"\narch = "riscv64"\n[path]\nkernel = "bz"', "path.kernel", "is a kernel for x86_64"),
        ('builder = "path"\n[path]\nkernel = "bz"\ninitrd = "none"', "path.initrd", "cannot be read"),
        ('builder = "make"\n[make]\nsource = "."', "make.source", "not a Linux source tree"),
        ('builder = "make"\n[make]\nsource = "tree"\nconfig = "my/config"', "make.config", "not a file"),
        ('builder = "make"\n[make]\nsource = "tree"\nfragments = ["none"]', "make.fragments", "cannot be read"),
        ('builder = "make"\n[make]\nsource = "tree"\nfragments = ["lab.toml"]', "make.fragments", "line 1: 'schema = 1'"),
        ('builder = "make"\n[make]\nsource = "tree"\ntarget = "-f/etc/x"', "make.target", "-f/etc/x"),
        ('builder = "make"\n[make]\nsource = "tree"\noptions = { FOO = "y" }', "make.options.FOO", "FOO"),
    ],
)
def test_an_authors_mistake_names_file_and_key(lab: Lab, text: str, key: str, word: str) -> None:
    (lab.root / "bz").write_bytes(bzimage())
    (lab.root / "tree").mkdir()
    for file in ("Makefile", "Kconfig"):
        (lab.root / "tree" / file).touch()
    recipe(lab, text)
    with pytest.raises(ConfigError) as caught:
        obtain(lab, "mine")
    (problem,) = caught.value.problems
    assert problem.where == "kernel/mine.toml"
    assert problem.key.startswith(key)
    assert word in str(caught.value)


def test_an_unknown_builder_hides_no_other_mistake(lab: Lab) -> None:
    recipe(lab, 'builder = "debb"\narhc = "x"\n[deb]\npackage = "linux-image-x"')
    with pytest.raises(ConfigError) as caught:
        check(lab, "mine")
    assert [problem.key for problem in caught.value.problems] == ["builder", "arhc"]


def test_a_check_starts_no_process_and_looks_at_the_options(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a process was started to check a file")

    monkeypatch.setattr("subprocess.Popen", forbidden)
    recipe(lab, 'builder = "deb"\n[deb]\npackage = "linux-image-x"\nposition = "newst"', "wrong")
    recipe(lab, 'builder = "deb"\n[deb]\npackage = "linux-image-x"\nposition = "newest-3"', "right")
    check(lab, "right")
    with pytest.raises(ConfigError, match=r"kernel/wrong.toml: deb.position: found 'newst'"):
        check(lab, "wrong")
    with pytest.raises(ConfigError, match="did you mean 'right'"):
        check(lab, "rigth")
    assert not Cache().root.exists()


def test_the_mistakes_of_all_recipes_come_at_once(lab: Lab) -> None:
    recipe(lab, 'builder = "debb"\n[deb]\npackage = "x"', "one")
    recipe(lab, 'builder = "path"\nbuilder = "deb"', "two")
    recipe(lab, 'builder = "path"\n[path]\nkernel = "x"', "three")
    with pytest.raises(ConfigError) as caught:
        recipes(lab)
    assert [(p.where, p.key) for p in caught.value.problems] == [("kernel/one.toml", "builder"), ("kernel/two.toml", "builder")]


def test_a_plan_finds_the_mistakes_in_every_recipe_that_it_uses(lab: Lab) -> None:
    for name in ("one", "two", "unused"):
        recipe(lab, 'builder = "deb"\n[deb]\npackage = "linux-image-x"\nposition = "newst"', name)
    (lab.root / "targets").mkdir()
    (lab.root / "targets/small.toml").write_text('cpus = 1\nmemory = "64M"\n[drivers.qemu]\n')
    (lab.root / "suites/boot").mkdir(parents=True)
    (lab.root / "suites/boot/test_boot.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        plan(lab, Request(builds=("one", "two")))
    assert [(p.where, p.key) for p in caught.value.problems] == [(f"kernel/{n}.toml", "deb.position") for n in ("one", "two")]


def test_an_unknown_build_gets_the_nearest_name(lab: Lab) -> None:
    recipe(lab, 'builder = "path"', "mainline")
    with pytest.raises(ConfigError, match="did you mean 'mainline'"):
        obtain(lab, "mainlin")


def test_a_file_just_built_is_a_build(lab: Lab) -> None:
    (lab.root / "bzImage").write_bytes(bzimage("6.9.1+"))
    build = obtain(lab, "./bzImage")
    assert (build.name, build.version, build.arch) == ("bzimage", "6.9.1+", "x86_64")
    assert build.kernel.read_bytes() == bzimage("6.9.1+")
    assert build.kernel.stat().st_mode & 0o777 == 0o444
    assert build.initrd is not None
    assert build.initrd.read_bytes().startswith(b"070701")
    assert build.provenance.builder == "path"
    assert build.provenance.source == str(lab.root / "bzImage")
    assert obtain(lab, "bzImage") == build, "without a slash too, where no recipe has the name"
    assert describe(lab, "bzImage")["digest"] == build.digest


def test_a_file_that_is_built_again_is_another_build(lab: Lab) -> None:
    file = lab.root / "bzImage"
    file.write_bytes(bzimage(filling=b"1"))
    os.utime(file, (1, 1))
    before = obtain(lab, "./bzImage")
    file.write_bytes(bzimage(filling=b"2"))
    os.utime(file, (1, 1))
    after = obtain(lab, "./bzImage")
    assert before.digest != after.digest
    assert before.kernel.read_bytes() == bzimage(filling=b"1"), "the old one stays what it was"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("vmlinuz-6.1.0", "vmlinuz-6.1.0"),
        ("my Kernel (2)", "my-kernel-2-"),
        ("_.x", "x"),
        ("é", "kernel"),
        ("K" * 90, "k" * 56),
        ("taken", "taken-file"),
    ],
)
def test_a_files_name_becomes_a_builds_name(lab: Lab, file: str, name: str) -> None:
    recipe(lab, 'builder = "path"', "taken")
    (lab.root / file).write_bytes(bzimage())
    assert obtain(lab, f"./{file}").name == name


@pytest.mark.parametrize(("file", "word"), [("none", "No such file"), ("lab.toml", "is not a kernel"), ("kernel", "directory")])
def test_a_file_that_is_no_kernel_is_the_users_mistake(lab: Lab, file: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        obtain(lab, f"./{file}")


def test_an_initrd_of_the_recipe_replaces_the_labs_own(lab: Lab) -> None:
    (lab.root / "bz").write_bytes(bzimage())
    (lab.root / "rd").write_bytes(b"mine")
    recipe(lab, 'builder = "path"\nappend = "quiet"\nmilestones = { ready = "up" }\n[path]\nkernel = "bz"\ninitrd = "rd"')
    recipe(lab, 'builder = "path"\ninitramfs = false\n[path]\nkernel = "bz"', "bare")
    build, bare = obtain(lab, "mine"), obtain(lab, "bare")
    assert build.initrd is not None
    assert build.initrd.read_bytes() == b"mine"
    assert (build.append, build.milestones) == ("quiet", {"ready": "up"})
    assert bare.initrd is None
    assert bare.digest != build.digest
    assert bare.kernel == build.kernel, "one kernel is stored once"


def test_no_initramfs_is_made_for_a_machine_that_this_busybox_is_not_for(lab: Lab) -> None:
    (lab.root / "Image").write_bytes(arm64_image())
    with pytest.raises(HostToolMissing, match=r"image: .*not for aarch64"):
        obtain(lab, "./Image")


def test_without_busybox_the_remedy_installs_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.root / "bzImage").write_bytes(bzimage())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostToolMissing) as caught:
        obtain(lab, "./bzImage")
    assert caught.value.remedy == "apt-get install -y busybox-static"


def test_a_busybox_that_needs_libraries_is_refused(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.root / "bzImage").write_bytes(bzimage())
    (tmp_path / "bin").mkdir()
    shutil.copy(shutil.which("true") or "/bin/true", tmp_path / "bin/busybox")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(HostToolMissing, match="needs shared libraries"):
        obtain(lab, "./bzImage")


def test_what_is_cached_costs_little(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.root / "bzImage").write_bytes(bzimage())
    first = obtain(lab, "./bzImage")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a process was started for a build that is in the cache")

    monkeypatch.setattr("subprocess.Popen", forbidden)
    assert obtain(lab, "./bzImage") == first


def test_progress_names_the_build(lab: Lab) -> None:
    (lab.root / "bzImage").write_bytes(bzimage())
    said: list[str] = []
    obtain(lab, "./bzImage", progress=said.append)
    assert said == ["bzimage: making the initramfs"]


def test_describe_builds_nothing(lab: Lab) -> None:
    (lab.root / "bz").write_bytes(bzimage("6.5.0"))
    recipe(lab, 'builder = "path"\n[path]\nkernel = "bz"')
    described = describe(lab, "mine")
    assert described == {
        "name": "mine", "builder": "path", "source": str(lab.root / "bz"), "version": "6.5.0", "digest": "", "size": "", "cached": "",
    }  # fmt: skip
    assert not Cache().root.exists()


# --- kinds of kernels -------------------------------------------------------------------------------------------------


def test_a_bzimage_tells_its_release() -> None:
    found = image.identify(bzimage("6.1.0-56-cloud-amd64"))
    assert (found.kind, found.arch, found.release) == ("bzImage", "x86_64", "6.1.0-56-cloud-amd64")
    assert found.banner == "6.1.0-56-cloud-amd64 (builder@test) #1 SMP"


def test_a_bzimage_may_be_silent_or_lie() -> None:
    assert image.identify(bzimage("")).release == ""
    outside = bytearray(bzimage())
    outside[0x20E:0x210] = b"\xff\xff"
    assert image.identify(bytes(outside)).release == ""
    assert image.identify(bzimage("6.1\x1b[2Jevil")).banner == "", "what would upset a terminal is no version"


@pytest.mark.parametrize(
    ("head", "arch"), [(arm64_image(), "aarch64"), (elf(62), "x86_64"), (elf(183), "aarch64"), (elf(243, 3), "riscv64")]
)
def test_other_kernels_are_known(head: bytes, arch: str) -> None:
    assert image.identify(head).arch == arch


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "'#!/bin/s'"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"!<arch>\n", "Debian package"),
        (elf(interpreter=True), "program that runs on a kernel"),
        (elf(kind=1), "not an executable"),
        (b"\x7fELF", "cut off"),
    ],
)
def test_what_is_no_kernel_is_said(head: bytes, word: str) -> None:
    with pytest.raises(image.NotAKernel, match=word):
        image.identify(head)


@given(st.one_of(st.binary(max_size=700), st.binary(max_size=80).map(lambda b: b"\x7fELF\x02\x01" + b)))
def test_no_bytes_upset_the_look_at_a_kernel(head: bytes) -> None:
    said = ""
    try:
        image.identify(head)
    except image.NotAKernel as error:
        said = str(error)
    assert said.isprintable()


# --- Debian's order of versions ---------------------------------------------------------------------------------------


def test_versions_sort_as_debian_sorts_them() -> None:
    ascending = [
        "1.0~~",
        "1.0~rc1-1",
        "1.0",
        "1.0-1~bpo1",
        "1.0-1",
        "1.0-1+b1",
        "1.0-2",
        "1.0a-1",
        "1.0+x-1",
        "1.2-9",
        "1.10-1",
        "6.1.9",
        "6.12",
        "1:0.1",
    ]
    for earlier, later in itertools.combinations(ascending, 2):
        assert debversion.sort_key(earlier) < debversion.sort_key(later), f"{earlier} < {later}"


def test_equal_versions_are_equal() -> None:
    assert debversion.sort_key("0:1.0-0") == debversion.sort_key("1.0")


# --- configs of kernels -----------------------------------------------------------------------------------------------


def test_the_last_word_on_an_option_counts() -> None:
    text = '# a comment\nCONFIG_A=y\nCONFIG_B="x=y"\n\n# CONFIG_A is not set\n'
    assert kconfig.parse(text) == {"CONFIG_A": "n", "CONFIG_B": '"x=y"'}


def test_values_are_written_as_kconfig_reads_them() -> None:
    given = [True, False, "m", 8, "0x10", "-lab", '"quoted"', 'a"b\\']
    assert [kconfig.value(v) for v in given] == ["y", "n", "m", "8", "0x10", '"-lab"', '"quoted"', '"a\\"b\\\\"']  # type: ignore[arg-type]


def test_asked_options_replace_what_the_base_says() -> None:
    text = kconfig.merged("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\n", {"CONFIG_A": "n", "CONFIG_B": "y"})
    assert text == "CONFIG_C=m\n# CONFIG_A is not set\nCONFIG_B=y\n"


def test_options_that_did_not_survive_are_listed() -> None:
    asked = {"CONFIG_GONE": "y", "CONFIG_OFF": "n", "CONFIG_MOD": "y", "CONFIG_HEX": "0x10", "CONFIG_KEPT": "y"}
    final = {"CONFIG_MOD": "m", "CONFIG_HEX": "16", "CONFIG_KEPT": "y"}
    assert [str(option) for option in kconfig.lost(asked, final)] == [
        "CONFIG_GONE: asked y, got n (not offered by this tree, or a dependency is missing)",
        "CONFIG_MOD: asked y, got m",
    ]
