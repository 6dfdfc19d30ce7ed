"""Is what was fsync'd there after the power was cut in the middle of writes, and is the file system whole?"""

import random
import re
import zlib

import pytest
from integrity_settings import CUTS

from labctl.model import Direction, Metric

MOST_BLOCKS = 20_000
PROMISE = re.compile(rb"cut (\d+) ([0-9a-f]{8})\r?\n")
PROMISED = Metric("storage.promised_blocks", "1", Direction.NONE, "of 4 KiB, fsync'd before the power was cut")
LOST = Metric("storage.lost_blocks", "1", Direction.LOWER, "of those that were promised, not there after the power came back")
# How each is made, and looked at without being changed.
FILESYSTEMS = {"ext4": ("mkfs.ext4 -q -F", "e2fsck -fn"), "xfs": ("mkfs.xfs -q -f", "xfs_repair -n")}


@pytest.mark.requires(tags=["scratch-disk", "power-cut"])
@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_power_cuts(target, shell, needs, disk, record, filesystem):
    """The power goes after some hundred blocks; the journal is replayed; what was promised is compared, and the file system checked."""
    make, look = FILESYSTEMS[filesystem]
    needs("cutwriter", make.split()[0], look.split()[0])
    chance = random.Random(filesystem)
    for _ in range(CUTS):
        shell.run(f"umount {disk}", check=False)  # what a failure before may have left
        shell(f"{make} {disk} && mkdir -p /mnt && mount -t {filesystem} {disk} /mnt", deadline=120)
        console, since = target.expect(), target.transcript.size
        shell(f"cutwriter write /mnt {MOST_BLOCKS} >/dev/console 2>&1 </dev/null &")
        wanted = chance.randrange(20, 400)
        while promised(target, since) < wanted:
            console.expect(PROMISE, timeout=60)
        target.cut_power()
        count = promised(target, since)
        record(PROMISED, count)

        target.boot()
        shell(f"mkdir -p /mnt && mount -t {filesystem} {disk} /mnt", deadline=120)
        checked = shell.run(f"cutwriter check /mnt {count}", deadline=120, check=False).output
        lost = re.search(rf"checked {count} lost (\d+)", checked)
        assert lost, f"what was written was not compared: {checked}"
        record(LOST, int(lost[1]))
        assert int(lost[1]) == 0, f"of {count} blocks that were fsync'd {lost[1]} are lost: {checked}"
        shell("umount /mnt")
        shell(f"{look} {disk}", deadline=120)


def promised(target, since):
    """How many blocks were said to be safe. A line that was broken by others, or by the cut, does not count."""
    said = PROMISE.findall(target.transcript.read(since))
    return max((int(count) for count, check in said if zlib.crc32(count) == int(check, 16)), default=0)
