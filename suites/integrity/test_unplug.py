"""A disk is taken out while it is busy: the job is told so, and the machine lives."""

import pytest

from labctl.parsers import fio as report_of_fio


@pytest.mark.requires(tags=["scratch-disk", "disk-slot"])
def test_taken_out_while_busy(target, shell, needs, disk):
    """fio ends by itself, with an error of its requests; the disk is gone; the kernel has not crashed, and gets the disk back."""
    needs("fio")
    name = disk.removeprefix("/dev/")
    job = f"--name=busy --filename={disk} --rw=randwrite --bs=4k --direct=1 --iodepth=8 --ioengine=io_uring --time_based --runtime=300"
    how = "--eta=never --lat_percentiles=1 --output-format=json --output=/tmp/busy.json"
    shell(f"(fio {job} {how}; echo $? >/tmp/busy.status) >/dev/null 2>&1 &")
    shell(f"until [ $(awk '{{print $5}}' /sys/block/{name}/stat) -gt 100 ]; do sleep 0.1; done", deadline=60)
    target.unplug_disk()
    shell("until [ -s /tmp/busy.status ]; do sleep 0.1; done", deadline=60)
    (ended,) = report_of_fio.parse(shell("cat /tmp/busy.json")).jobs
    # Which error depends on where the request was: EIO, ENODEV, EINVAL; ENOSPC, for Linux takes a disk that is gone for one of no bytes.
    assert ended.error, "fio ended as if nothing had happened to its disk"
    assert name not in shell("ls /sys/block").split()
    target.boot()
    assert name in shell("ls /sys/block").split()
