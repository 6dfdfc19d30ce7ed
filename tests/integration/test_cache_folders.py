"""A cache in which something stands that has no place there: a file where a folder must be."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.config import cache_error
from labctl.errors import StorageError
from labctl.machine import icount
from labctl.machine.compiled import compiled
from tests.temporary_lab import TARGET, TemporaryLab, reasons

pytestmark = pytest.mark.qemu
NOTHING = "def test_nothing(cell):\n    pass\n"


@pytest.mark.parametrize("name", ["", "keys", "locks", "objects", "objects/sha256", "tmp"])
def test_of_the_builds(lab: TemporaryLab, tmp_path: Path, name: str) -> None:
    """One line that names the file and how to mend it, by a run and a dry run that cannot go on without it."""
    lab.cache = tmp_path / "cache"
    (lab.cache / name).parent.mkdir(parents=True, exist_ok=True)
    (lab.cache / name).write_text("a file\n")
    lab.suite("free", NOTHING)
    told = f"the cache cannot be used: {lab.cache / name} is a file where a folder must be"
    ran = lab.labctl("run", "matrix", LABCTL_LOCKS=str(tmp_path / "leases"))
    assert ran.status == 3, (ran.out, ran.err)
    assert told in ran.err
    assert f"rm {lab.cache / name}, or: export LABCTL_CACHE=" in ran.err
    assert not {"Traceback", "Errno"} & set(ran.err.replace("[", " ").split())
    dry = lab.labctl("run", "matrix", "--dry-run", LABCTL_LOCKS=str(tmp_path / "leases"))
    assert dry.status == (3 if name in ("", "keys") else 0), dry.err
    assert (told in dry.err) == (dry.status == 3)


def test_of_kept_machines(lab: TemporaryLab, tmp_path: Path) -> None:
    """Cells boot, and say why; what can be mended is."""
    lab.cache = tmp_path / "cache"
    warm = lab.cache / "warm"
    lab.write(f"targets/{lab.target}.toml", TARGET.replace("[drivers.console_shell]", '[drivers.agent]\nchannel = "serial"'))
    lab.suite("well", "def test_well(shell):\n    assert shell('echo hi') == 'hi'\n")
    lab.write("suites/well/suite.toml", "schema = 1\nwarm = true\n")

    def started() -> str:
        ran = lab.run("--fresh")
        assert ran.status == 0, reasons(ran.cells)
        (events,) = (path.read_text() for path in lab.runs[-1].glob("cells/*/attempt-1/events.jsonl"))
        (start,) = [line for line in events.splitlines() if '"kind":"start"' in line]
        return start

    lab.cache.mkdir()
    warm.write_text("a file\n")
    in_the_way = f"the cache cannot be used: {warm} is a file where a folder must be"
    assert f'"how":"boot","why":"{in_the_way}"' in started()
    (cell,) = lab.run("--dry-run", "--fresh").data["cells"]
    assert (cell["will"], cell["why"]) == ("run", f"--fresh; no copy: {in_the_way}")
    warm.unlink()
    assert '"how":"copy"' in started()
    (kept,) = [path for path in warm.iterdir() if path.is_dir()]
    kept.rename(tmp_path / "away")
    kept.write_text("a file\n")
    kept.with_suffix(".draft").write_text("a file\n")
    assert '"how":"boot","why":"what is kept of the machine has no manifest"' in started()
    assert '"how":"copy"' in started(), "it was removed, and made anew"
    (kept / "manifest.json").unlink()
    kept.with_suffix(".lock").unlink()
    kept.with_suffix(".lock").mkdir()
    assert f"the cache cannot be used: {kept}.lock: Is a directory" in started()


def test_of_what_the_lab_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path))
    (tmp_path / "plugins").write_text("a file\n")
    with pytest.raises(StorageError, match=f"{tmp_path}/plugins is a file where a folder must be"):
        icount.plugin()
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "plugins"))
    (tmp_path / "x.c").write_text("int main(void) { return 0; }\n")
    with pytest.raises(StorageError, match=f"{tmp_path}/plugins is a file where a folder must be"):
        compiled("x", ["x.c"], [], folder=tmp_path)


def test_what_mends_it_is_said_by_its_cause(tmp_path: Path) -> None:
    assert "make room there" in cache_error(tmp_path, OSError(28, "No space left on device")).remedy
    assert "see that it can be written" in cache_error(tmp_path, OSError(13, "Permission denied")).remedy
