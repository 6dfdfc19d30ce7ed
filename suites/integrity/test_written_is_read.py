"""Is what was written what is read, after the machine was off?"""

import secrets

import pytest
from integrity_settings import SIZE

from labctl.parsers import fio as report_of_fio


@pytest.mark.requires(tags=["scratch-disk", "keeps-data"])
def test_written_is_read(target, shell, needs, disk):
    """A GB of random data, in blocks of 1 MiB that each hold their place and a digest, written, flushed, and read after a power cycle."""
    needs("fio")
    size = min(SIZE, target.config.disk) >> 20 << 20
    # Other data each time, so that what an earlier test wrote is not taken for it.
    verified = f"--verify=sha256 --randseed={secrets.randbits(31)}"
    job = f"--name=whole --filename={disk} --bs=1M --size={size} {verified} --ioengine=io_uring --direct=1"
    written = fio(shell, f"{job} --rw=write --do_verify=0 --end_fsync=1")
    assert written.requests["write"].size == size
    target.power_off("sync; poweroff -f")
    target.boot()
    read = fio(shell, f"{job} --rw=read --verify_fatal=1")
    assert read.error == 0
    assert read.requests["read"].size == size


def fio(shell, job):
    """One job; returns what it did. It fails where fio does."""
    shell(f"fio {job} --lat_percentiles=1 --clat_percentiles=0 --eta=never --output-format=json+ --output=/tmp/fio.json", deadline=3000)
    return report_of_fio.parse(shell("cat /tmp/fio.json")).jobs[0]
