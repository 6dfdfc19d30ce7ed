"""Is what was written what is read, after the machine was off?"""

import secrets

import pytest
from storage_settings import SIZE


@pytest.mark.requires(tags=["scratch-disk", "keeps-data"])
def test_written_is_read(target, disk, fio):
    """A GB of random data, in blocks of 1 MiB that each hold their place and a digest, written, flushed, and read after a power cycle."""
    # Other data each time, so that what an earlier test wrote is not taken for it.
    size = min(SIZE, target.config.disk) >> 20 << 20
    job = {"filename": disk, "bs": "1M", "size": size, "verify": "sha256", "randseed": secrets.randbits(31), "time_based": 0, "runtime": 0}
    written = fio(rw="write", do_verify=0, end_fsync=1, seconds=300, **job)
    assert written.requests["write"].size == size
    target.power_off("sync; poweroff -f")
    target.boot()
    read = fio(rw="read", verify_fatal=1, seconds=300, **job)
    assert read.error == 0
    assert read.requests["read"].size == size
