"""The cache under several processes, under kill -9, under damage and without room."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from labctl.build.cache import Artefact, Cache, Made
from labctl.build.initramfs import with_overlay
from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.deadline import Deadline
from labctl.errors import StorageError
from labctl.model import Provenance
from tests.kernels import bzimage

IDENTITY = {"builder": "test", "what": "one"}

# Makes IDENTITY in the cache named by argv[1]; says when it begins, waits for a line on stdin, and counts in argv[2].
MAKER = """
    import sys
    from pathlib import Path
    from labctl.build.cache import Cache, Made
    from labctl.deadline import Deadline
    from labctl.model import Provenance

    def make(folder):
        (folder / "half").write_bytes(b"half done")
        with open(sys.argv[2], "a") as counter:
            counter.write("made\\n")
        print("making", flush=True)
        sys.stdin.readline()
        file = folder / "kernel"
        file.write_bytes(b"the kernel")
        return Made({"kernel": file}, "1", Provenance("test", "nowhere"))

    found = Cache(Path(sys.argv[1])).obtain(
        {"builder": "test", "what": "one"}, make, deadline=Deadline.after(30), progress=lambda line: print(line, flush=True)
    )
    print("got", found.files["kernel"], flush=True)
"""


def maker(cache: Cache, counter: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MAKER), str(cache.root), str(counter)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def answer(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def make_one(cache: Cache, content: bytes = b"the kernel", deadline: float = 30) -> Artefact:
    def make(folder: Path) -> Made:
        file = folder / "kernel"
        file.write_bytes(content)
        return Made({"kernel": file}, "1", Provenance("test", "nowhere"))

    return cache.obtain(IDENTITY, make, deadline=Deadline.after(deadline))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_two_processes_that_need_the_same_make_it_once(cache: Cache, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    with maker(cache, counter) as first:
        assert said(first) == "making"
        with maker(cache, counter) as second:
            assert said(second) == f"waiting for process {first.pid}, which makes the same build"
            answer(first)
            assert said(first) == said(second)
    assert counter.read_text() == "made\n"


def test_two_threads_make_it_once_too(cache: Cache) -> None:
    made: list[Path] = []
    begun = threading.Event()

    def make(folder: Path) -> Made:
        begun.set()
        made.append(folder)
        (folder / "kernel").write_bytes(b"x")
        return Made({"kernel": folder / "kernel"}, "1", Provenance("test", "nowhere"))

    threads = [threading.Thread(target=cache.obtain, args=(IDENTITY, make), kwargs={"deadline": Deadline.after(20)}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_killed_in_the_middle_leaves_nothing_half_done(cache: Cache, tmp_path: Path) -> None:
    with maker(cache, tmp_path / "counter") as killed:
        assert said(killed) == "making"
        os.kill(killed.pid, signal.SIGKILL)
    assert [path.name for path in cache.root.glob("tmp/*/*")] == ["half"], "the test itself: something was left"
    assert cache.find(IDENTITY) is None
    # Another build sweeps what the dead one left, and the same one can be made at once.
    cache.obtain({"other": "build"}, lambda folder: _made(folder), deadline=Deadline.after(5))
    assert list(cache.root.glob("tmp/*")) == []
    assert make_one(cache).files["kernel"].read_bytes() == b"the kernel"


def _made(folder: Path) -> Made:
    (folder / "kernel").write_bytes(b"other")
    return Made({"kernel": folder / "kernel"}, "1", Provenance("test", "nowhere"))


def test_what_a_living_process_makes_is_not_swept(cache: Cache, tmp_path: Path) -> None:
    with maker(cache, tmp_path / "counter") as living:
        assert said(living) == "making"
        cache.obtain({"other": "build"}, _made, deadline=Deadline.after(5))
        answer(living)
        assert said(living).startswith("got ")


def test_waiting_ends_at_the_deadline(cache: Cache, tmp_path: Path) -> None:
    with maker(cache, tmp_path / "counter") as living:
        assert said(living) == "making"
        begin = time.monotonic()
        with pytest.raises(StorageError, match=f"process {living.pid} has been making"):
            make_one(cache, deadline=0.2)
        assert time.monotonic() - begin < 2
        answer(living)
        assert said(living).startswith("got ")


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(cache: Cache) -> None:
    def fail(folder: Path) -> Made:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.obtain(IDENTITY, fail, deadline=Deadline.after(5))
    assert list(cache.root.glob("tmp/*")) == []
    assert make_one(cache).files["kernel"].is_file()


@pytest.mark.parametrize("damage", ["truncated", "gone", "manifest", "schema"])
def test_damage_is_seen_and_mended(cache: Cache, damage: str) -> None:
    kernel = make_one(cache).files["kernel"]
    (manifest,) = cache.root.glob("keys/*.json")
    match damage:
        case "truncated":
            kernel.chmod(0o644)
            os.truncate(kernel, 3)
        case "gone":
            kernel.unlink()
        case "manifest":
            manifest.write_text('{"schema": 1, "files": {"kernel": {"digest": "sha256:../../../etc/passwd", "size": 1}}}')
        case "schema":
            manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    assert cache.find(IDENTITY) is None
    assert make_one(cache).files["kernel"].read_bytes() == b"the kernel"


def test_verify_finds_what_the_size_does_not_tell(cache: Cache) -> None:
    kernel = make_one(cache).files["kernel"]
    assert cache.verify() == []
    kernel.chmod(0o644)
    kernel.write_bytes(b"THE KERNEL")
    assert cache.find(IDENTITY) is not None
    assert cache.verify() == [f"sha256:{kernel.name}"]
    assert cache.find(IDENTITY) is None
    assert make_one(cache).files["kernel"].read_bytes() == b"the kernel"


def test_without_room_the_cause_is_said(cache: Cache) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(StorageError, match="File too large") as caught:
            make_one(cache, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "LABCTL_CACHE" in caught.value.remedy
    assert cache.find(IDENTITY) is None


def test_a_cache_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match="cannot be used"):
        make_one(Cache(tmp_path / "cache"))


def test_a_suites_overlay_makes_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABCTL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    (tmp_path / "bzImage").write_bytes(bzimage())
    (tmp_path / "overlay/etc").mkdir(parents=True)
    (tmp_path / "overlay/etc/motd").write_text("hello")
    build = obtain(Lab.find(tmp_path), str(tmp_path / "bzImage"))
    more = with_overlay(build, tmp_path / "overlay")
    assert build.initrd is not None
    assert more.initrd is not None
    assert more.kernel == build.kernel
    assert more.digest != build.digest
    assert with_overlay(build, tmp_path / "overlay") == more
    before, after = build.initrd.read_bytes(), more.initrd.read_bytes()
    assert after.startswith(before)
    assert after[len(before) :].startswith(b"070701"), "the second archive begins where the first one ends"
