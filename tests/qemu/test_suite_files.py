"""What a suite asks for is in the machine: tools and files from the initramfs, or in a root on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian_archive import Archive
from tests.temporary_lab import TARGET, TemporaryLab, reasons

pytestmark = pytest.mark.qemu


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    archive = Archive(tmp_path, monkeypatch)
    archive.put_files("heavy", "1.0-1", {"usr/share/heavy": b"from the package\n"})
    archive.update()
    yield archive
    archive.close()


@pytest.mark.usefixtures("archive")
def test_a_root_on_a_disk_has_the_suites_tools_and_outlives_a_power_cycle(lab: TemporaryLab) -> None:
    lab.write("guest/tools/hello.toml", 'schema = 1\nbuilder = "c"\n')
    lab.write("guest/tools/hello.c", '#include <stdio.h>\nint main(void) { puts("hello from c"); return 0; }\n')
    lab.write("guest/images/heavy.toml", 'schema = 1\npackages = ["heavy"]\n')
    lab.write("suites/s/suite.toml", 'schema = 1\ntools = ["hello"]\nimage = "heavy"\n')
    lab.write("suites/s/overlay/etc/extra", "from the overlay\n")
    lab.suite(
        "s",
        """
def test_all(target, shell):
    assert shell("hello; cat /etc/extra /usr/share/heavy") == "hello from c\\nfrom the overlay\\nfrom the package"
    assert "/dev/nvme0n1 / ext4 rw" in shell("cat /proc/mounts")
    shell("echo kept >/root/kept; sync")
    target.boot()
    assert shell("cat /root/kept; hello") == "kept\\nhello from c"
""",
    )
    lab.write("targets/tiny.toml", TARGET.replace("[drivers.qemu]", '[drivers.qemu]\nmachine = "microvm"'))
    ran = lab.run()
    assert ran.status == 0, ran.err + reasons(ran.cells)
    assert [cell["outcome"] for cell in ran.data["cells"]] == ["pass"]
    assert "which the machine tiny can't be given" in (lab.runs[0] / "run.json").read_text()
