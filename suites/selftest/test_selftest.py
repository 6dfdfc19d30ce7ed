"""Does a kernel boot that has nothing but a console, and do the tests pass that it runs on itself?"""

import pytest

from labctl.model import Outcome


@pytest.fixture
def boot(target, build):
    """One boot for all tests here. A build that asks for tests itself (``test=memory``) gets those, any other gets all."""
    asked = any(word.startswith("test=") for word in build.append.split())
    return target.boots[-1] if target.boots else target.boot(append="" if asked else "test=all")


def test_reaches_ready(boot, record_boot):
    """The kernel says that it is ready, within the target's deadline."""
    record_boot(boot)


def test_selftests(boot, selftests):
    """Every test of the kernel's own passes, and none that it planned is missing."""
    report = selftests(boot)
    failed = [f"{result.name}: {result.reason}".rstrip(": ") for result in report.results if result.outcome is Outcome.FAIL]
    assert not failed, f"{len(failed)} of {len(report.results)} failed: {'; '.join(failed[:5])}"
    assert not report.problems, "; ".join(report.problems)
    assert report.results, "the kernel reported no test"
    if all(result.outcome is Outcome.SKIP for result in report.results):
        pytest.skip(f"the kernel skips all of its tests: {report.results[0].reason}")


@pytest.mark.requires(channel="icount")
def test_a_second_boot_counts_the_same(boot, target, record_boot):
    """Counted in two boots, so that it shows whether they repeat."""
    record_boot(target.boot())
