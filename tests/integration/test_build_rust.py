"""Builder `rust` with the host's own compiler: same bytes from the same source, its words when it refuses, and what is said where it lacks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from labctl.build import rust
from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.errors import BuildFailed, ConfigError, HostToolMissing
from labctl.model import Build
from tests.temporary_lab import LABCTL

KERNEL = """\
#![no_std]
#![no_main]

mod words;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The prebuilt core has landing pads.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    if words::count(&raw const words::TEXT as usize) == 0 {
        panic!("no words");
    }
    loop {}
}
"""
WORDS = """\
pub static TEXT: [u8; 3] = *b"abc";

pub fn count(at: usize) -> usize {
    at % TEXT.len()
}
"""
needs_rust = pytest.mark.skipif(shutil.which("rustc") is None, reason="the host lacks rustc")


class Tree:
    """A lab with the recipe ``mine`` of a small kernel in Rust, and a cache of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "lab/mine-kernel"
        self.write("src/main.rs", KERNEL)
        self.write("src/words.rs", WORDS)
        (root / "lab/kernel").mkdir()
        (root / "lab/lab.toml").write_text("schema = 1\n")
        self.recipe()

    def write(self, name: str, text: str) -> None:
        file = self.source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def recipe(self, options: str = "", top: str = "") -> None:
        (self.root / "lab/kernel/mine.toml").write_text(
            f'schema = 1\nbuilder = "rust"\ninitramfs = false\n{top}\n[rust]\nsource = "mine-kernel"\n{options}\n'
        )

    def build(self, monkeypatch: pytest.MonkeyPatch, said: list[str] | None = None) -> Build:
        monkeypatch.setenv("LABCTL_CACHE", str(self.root / "cache"))
        return obtain(Lab.find(self.root / "lab"), "mine", progress=(said if said is not None else []).append)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "one")


@needs_rust
def test_the_same_source_in_two_folders_gives_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Tree(tmp_path / "a").build(monkeypatch)
    second = Tree(tmp_path / "another/deeper").build(monkeypatch)
    assert first.kernel != second.kernel, "two caches: it was built twice"
    assert first.kernel.read_bytes() == second.kernel.read_bytes()
    assert first.digest == second.digest
    assert str(tmp_path).encode() not in first.kernel.read_bytes()
    assert first.provenance.toolchain.startswith("rustc 1.")
    assert (first.arch, first.initrd) == ("x86_64", None)


@needs_rust
def test_it_is_built_again_only_when_something_changed(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = tree.build(monkeypatch, said)
    tree.write("README.md", "no part of the kernel\n")
    os.utime(tree.source / "src/main.rs", (1, 1))
    assert tree.build(monkeypatch, said) == first
    assert sum("compiling" in line for line in said) == 1
    tree.write("src/words.rs", WORDS.replace("abc", "abd"))
    assert tree.build(monkeypatch, said).digest != first.digest
    tree.write("src/words.rs", WORDS)
    assert tree.build(monkeypatch, said) == first
    tree.recipe('cfg = ["variant"]')
    tree.build(monkeypatch, said)
    assert sum("compiling" in line for line in said) == 3


@needs_rust
def test_the_compilers_words_come_once(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("src/words.rs", WORDS.replace("at % TEXT.len()", "att % TEXT.len()"))
    with pytest.raises(BuildFailed) as caught:
        tree.build(monkeypatch)
    said = str(caught.value)
    assert said.count("cannot find value `att` in this scope") == 1
    assert "--> mine-kernel/src/words.rs:4:5" in said, "a place that can be clicked on from the lab"
    assert caught.value.title == "mine-kernel/src/words.rs:4:5: error[E0425]: cannot find value `att` in this scope"
    assert "aborting due to" not in said
    assert not list((tree.root / "cache/tmp").glob("*"))


@needs_rust
def test_what_the_linker_misses_is_said(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(
        "src/words.rs", 'unsafe extern "C" { fn nowhere(at: usize); }\n' + WORDS.replace("at %", "unsafe { nowhere(at) };\n    at %")
    )
    with pytest.raises(BuildFailed, match="undefined symbol: nowhere") as caught:
        tree.build(monkeypatch)
    assert "--gc-sections" not in str(caught.value), "the linker's words, without a screen of arguments before them"


def test_a_recipes_mistakes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, words in {
        'main = "src/none.rs"': "rust.main: .*none.rs is not a file",
        'linker_script = "none.ld"': "rust.linker_script: .*none.ld is not a file",
        'main = "../outside.rs"': "rust.main: found",
        'edition = "2025"': "rust.edition: found '2025'; allowed: '2018', '2021' or '2024'",
        'flags = ["src/other.rs"]': r"rust.flags.0: found 'src/other.rs'",
        'cfg = ["a; b"]': r"rust.cfg.0: found 'a; b'",
        'sorce = "x"': "rust.sorce: unknown key; did you mean 'source'",
    }.items():
        tree.recipe(options)
        with pytest.raises(ConfigError, match=words):
            tree.build(monkeypatch)


def program(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(stat.S_IRWXU)


def old_compiler(folder: Path, release: str) -> None:
    """What Debian 12's own rustc answers; a compiler that old can't be had beside a new one."""
    program(
        folder,
        "rustc",
        f'case "$1" in -vV) echo "rustc {release} (897e37553 2022-11-02)"; echo "release: {release}";; *) echo /none;; esac',
    )


def test_no_compiler(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(HostToolMissing, match="the host has no rustc") as caught:
        tree.build(monkeypatch)
    assert caught.value.remedy == "apt-get install -y rustc-web rust-web-src lld"
    assert "\n" not in caught.value.remedy


def test_a_compiler_that_never_answers(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "stuck", "rustc", f"exec {shutil.which('sleep')} 300")
    monkeypatch.setattr(rust, "ANSWER_S", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path / "stuck"))
    with pytest.raises(HostToolMissing, match=r"stuck/rustc does not work: .* did not end within 0\.5 s"):
        tree.build(monkeypatch)


def test_a_compiler_that_is_too_old(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old_compiler(tmp_path / "old", "1.63.0")
    monkeypatch.setenv("PATH", str(tmp_path / "old"))
    with pytest.raises(HostToolMissing, match=r"rustc 1\.63\.0 .* is too old: 1\.88 or newer is needed") as caught:
        tree.build(monkeypatch)
    assert caught.value.remedy == "apt-get install -y rustc-web rust-web-src lld"


@needs_rust
def test_a_newer_compiler_behind_an_old_one_is_taken(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = tree.build(monkeypatch)
    old_compiler(tmp_path / "old", "1.63.0")
    shutil.rmtree(tree.root / "cache")
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:{os.environ['PATH']}")
    assert tree.build(monkeypatch).digest == expected.digest


def test_a_compiler_without_the_source_of_core(tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old_compiler(tmp_path / "new", "1.999.0")
    monkeypatch.setenv("PATH", str(tmp_path / "new"))
    tree.recipe(top='arch = "riscv64"')
    with pytest.raises(HostToolMissing, match="has neither core for riscv64gc-unknown-none-elf nor its source"):
        tree.build(monkeypatch)


@needs_rust
def test_settings_of_the_users_own_builds_do_not_leak_in(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tree.root / "wrap", "wrapper", "exit 9")
    monkeypatch.setenv("RUSTC_WRAPPER", str(tree.root / "wrap/wrapper"))
    monkeypatch.setenv("RUSTFLAGS", "--no-such-flag")
    monkeypatch.setenv("RUSTC_BOOTSTRAP", "1")
    assert tree.build(monkeypatch).arch == "x86_64"


@needs_rust
def test_what_it_leaves_is_an_executable_with_its_symbols(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    said = subprocess.run(["nm", tree.build(monkeypatch).kernel], capture_output=True, text=True, check=True).stdout
    assert " T _start" in said


@needs_rust
def test_what_is_wrong_with_several_builds_is_said_once(tree: Tree) -> None:
    tree.write("src/words.rs", WORDS + 'fn broken() -> u8 { "x" }\n')
    recipe = tree.root / "lab/kernel/mine.toml"
    recipe.with_name("other.toml").write_text(recipe.read_text().replace("[rust]", '[rust]\ncfg = ["other"]'))
    done = subprocess.run(
        [LABCTL, "build", "--all"],
        cwd=tree.root / "lab",
        env={**os.environ, "LABCTL_CACHE": str(tree.root / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("error[E0308]: mismatched types") == 1, done.stderr
    assert "mine, other: mine-kernel does not compile:" in done.stderr
