"""Builder `make`: its way through make and the compiler on a few lines of tree, and through Kconfig on a real one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.errors import BuildFailed
from tests.kernels import bzimage

TOOLS = ("make", "gcc", "flex", "bison", "bc")
pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason=f"the host lacks one of {', '.join(TOOLS)}, which building a kernel needs"
)

# The goals that a kernel's Makefile has, and nothing behind them: one compiled file, and CONFIG_LOST dropped as Kconfig would.
MAKEFILE = """\
$(O)/.config: ;
defconfig:
\techo 'CONFIG_BASE=y' >$(O)/.config
olddefconfig:
\tsed -i '/CONFIG_LOST/d' $(O)/.config
\techo 'CONFIG_CC_VERSION_TEXT="gcc 12"' >>$(O)/.config
bzImage:
\tgcc -c -o $(O)/main.o main.c
\tmkdir -p $(O)/arch/x86/boot
\tcp kernel.image $(O)/arch/x86/boot/bzImage
\techo built >>built
kernelrelease:
\t@echo 6.9.0-mine
nothing: ;
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "lab"
    for folder in ("kernel", "tree"):
        (root / folder).mkdir(parents=True)
    (root / "lab.toml").write_text("schema = 1\n")
    (root / "tree/Makefile").write_text(MAKEFILE)
    (root / "tree/Kconfig").touch()
    (root / "tree/main.c").write_text("int main(void) { return 0; }\n")
    (root / "tree/kernel.image").write_bytes(bzimage("6.9.0-mine"))
    return Lab.find(root)


def recipe(lab: Lab, text: str = "", source: str = "tree") -> None:
    (lab.root / "kernel/mine.toml").write_text(f'schema = 1\nbuilder = "make"\n[make]\nsource = "{source}"\n{text}')


def times_built(lab: Lab) -> int:
    file = lab.root / "tree/built"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_tree_becomes_a_build(lab: Lab) -> None:
    recipe(lab, 'options = { CONFIG_MORE = "y" }')
    said: list[str] = []
    build = obtain(lab, "mine", progress=said.append)
    assert build.version == "6.9.0-mine"
    assert build.kernel.read_bytes() == bzimage("6.9.0-mine")
    assert (build.provenance.builder, build.provenance.toolchain) == ("make", "gcc 12")
    assert said[0] == "mine: configuring"
    assert said[1].startswith("mine: compiling ")


def test_options_that_do_not_survive_are_all_named(lab: Lab) -> None:
    (lab.root / "more.config").write_text("CONFIG_LOST=y\nCONFIG_KEPT=y\n")
    recipe(lab, 'fragments = ["more.config"]\noptions = { CONFIG_LOST_TOO = 8 }')
    with pytest.raises(BuildFailed) as caught:
        obtain(lab, "mine")
    message = str(caught.value)
    assert "did not keep 2 of 3 asked options" in message
    assert "CONFIG_LOST: asked y, got n" in message
    assert "CONFIG_LOST_TOO: asked 8, got n" in message
    assert times_built(lab) == 0, "nothing was compiled"


def test_a_compilers_words_are_handed_on_once(lab: Lab) -> None:
    (lab.root / "tree/main.c").write_text("int main(void) { return none; }\n")
    recipe(lab)
    with pytest.raises(BuildFailed, match=r"main.c:1:\d+: error: .none. undeclared") as caught:
        obtain(lab, "mine")
    assert caught.value.tail.count("error: ‘none’ undeclared") + caught.value.tail.count("error: 'none' undeclared") == 1
    assert not list((lab.root.parent / "cache/tmp").glob("*"))


def test_a_target_that_leaves_no_file(lab: Lab) -> None:
    recipe(lab, 'target = "nothing"')
    with pytest.raises(BuildFailed, match="left no such file"):
        obtain(lab, "mine")


def test_what_is_left_must_be_a_kernel(lab: Lab) -> None:
    (lab.root / "tree/kernel.image").write_text("no kernel\n")
    recipe(lab)
    with pytest.raises(BuildFailed, match="not a kernel: it starts with"):
        obtain(lab, "mine")


def test_it_is_built_again_only_when_something_changed(lab: Lab) -> None:
    # The tree writes its own counter, so that is no part of what identifies it: a commit with the counter ignored does.
    tree = lab.root / "tree"
    _git(tree, "init", "-q")
    (tree / ".gitignore").write_text("built\n")
    _git(tree, "add", ".")
    _git(tree, "-c", "user.name=t", "-c", "user.email=t@test", "commit", "-qm", "one")
    recipe(lab)
    first = obtain(lab, "mine")
    assert obtain(lab, "mine") == first
    assert times_built(lab) == 1
    assert len(first.provenance.commit) == 40
    (tree / "main.c").write_text("int main(void) { return 1; }\n")
    assert obtain(lab, "mine").provenance.details["tree"].endswith("+changes")
    assert times_built(lab) == 2
    recipe(lab, 'options = { CONFIG_MORE = "y" }')
    obtain(lab, "mine")
    assert times_built(lab) == 3


def test_settings_of_the_users_own_builds_do_not_leak_in(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KBUILD_OUTPUT", "/nonexistent")
    monkeypatch.setenv("MAKEFLAGS", "--no-such-flag")
    recipe(lab)
    assert obtain(lab, "mine").version == "6.9.0-mine"


def _git(tree: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif("LABCTL_LINUX_TREE" not in os.environ, reason="LABCTL_LINUX_TREE names no Linux source tree")
def test_a_real_kconfig_drops_what_a_dependency_forbids(lab: Lab) -> None:
    # KASAN needs more than tinyconfig has; TMPFS needs SHMEM, which tinyconfig leaves out.
    tree = os.environ["LABCTL_LINUX_TREE"]
    recipe(lab, 'config = "tinyconfig"\noptions = { CONFIG_KASAN = "y", CONFIG_TMPFS = "y", CONFIG_64BIT = "y", CONFIG_TTY = true }', tree)
    with pytest.raises(BuildFailed) as caught:
        obtain(lab, "mine")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:3]] == ["CONFIG_KASAN", "CONFIG_TMPFS"]
    assert "2 of 4" in str(caught.value)
