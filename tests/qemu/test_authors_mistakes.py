"""What happens to the author of a suite while it is written: each is told as what it is, and the next test goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.temporary_lab import TARGET, TemporaryLab

pytestmark = pytest.mark.qemu
AGENT = TARGET.replace("[drivers.console_shell]", '[drivers.agent]\nchannel = "serial"')


def told(lab: TemporaryLab) -> dict[str, tuple[str, str]]:
    """Outcome and reason of every test of the last run, by its name: of its last attempt."""
    shown: Any = lab.labctl("runs", "show", "--json").data["run"]
    tests = [test for cell in shown["cells"] for attempt in cell["attempts"] for test in attempt["tests"]]
    return {test["name"].partition("::")[2]: (test["outcome"], test["reason"]) for test in tests}


def test_of_tests_and_fixtures(lab: TemporaryLab) -> None:
    lab.write(f"targets/{lab.target}.toml", AGENT)
    lab.write("suites/mine/checks.py", 'def check(shell):\n    assert shell("echo 3") == "4", "as the helper says"\n')
    lab.write(
        "suites/mine/conftest.py",
        """import pytest

@pytest.fixture
def broken():
    raise RuntimeError("out of ideas")

@pytest.fixture
def checks(shell):
    assert shell("echo 1") == "2"

@pytest.fixture
def breaks_later():
    yield
    raise RuntimeError("too late")
""",
    )
    lab.suite(
        "mine",
        """import pytest
from checks import check

def test_broken(broken): pass
def test_checks(checks): pass
def test_breaks_later(breaks_later): pass
def test_check(shell): check(shell)
def test_bytes(shell): shell(b"true")
def test_no_time(shell): shell("true", deadline=0)
def test_time_as_text(shell): shell("true", deadline="5s")
def test_no_path(shell): shell.put(b"x", "")
def test_endless_file(shell): shell.get("/dev/zero")
def test_huge_file(shell): shell.get("/proc/kcore")
def test_full(shell):
    shell("mkdir /tmp/small; mount -t tmpfs -o size=100k t /tmp/small")
    shell.put(b"x" * 200_000, "/tmp/small/file")
def test_flood(shell, monkeypatch):
    from labctl.machine.agentclient import AgentClient
    monkeypatch.setattr(AgentClient.execute, "__defaults__", (1 << 14,))
    shell("yes", deadline=3)
def test_agent_killed_between(shell):
    shell("(sleep 1; kill -9 $(pidof agent | cut -d' ' -f1)) >/dev/null 2>&1 &")
    import time; time.sleep(3)
    assert shell("echo here") == "here"
def test_no_memory(shell): shell("x=a; while :; do x=$x$x; done", deadline=60)
def test_hangs_later(shell): shell("sleep 50", deadline=1)
@pytest.mark.xfail(reason="not written")
def test_expected(shell): assert shell("echo x") == "y"
@pytest.mark.xfail
def test_expected_without_a_reason(shell): assert shell("echo x") == "y"
@pytest.mark.xfail(reason="not written", strict=True)
def test_unexpected(shell): assert shell("echo x") == "x"
def test_last(shell): assert shell("echo žluť 🐎; echo ''") == "žluť 🐎"
""",
    )
    lab.suite(
        "lab",
        "import pytest\nfrom labctl.errors import PowerError\n\n@pytest.mark.xfail(reason='x')\ndef test_lab(cell):\n    raise PowerError('no current')\n",
    )
    ran = lab.run(seconds=300)
    assert ran.status == 3, ran.err
    found = told(lab)
    assert found["test_broken"] == ("error", "RuntimeError: out of ideas (in a fixture, before the test)")
    assert found["test_checks"] == ("fail", "AssertionError: assert '1' == '2' (in a fixture, before the test)")
    assert found["test_breaks_later"] == ("error", "RuntimeError: too late (in a fixture, after the test)")
    assert found["test_check"] == ("fail", "AssertionError: as the helper says")
    assert found["test_bytes"] == ("fail", "TypeError: a command is text, not bytes: b'true'")
    assert found["test_no_time"] == ("fail", "ValueError: deadline=0: more than 0 seconds")
    assert found["test_time_as_text"] == ("fail", "TypeError: deadline='5s': seconds as a number, or a Deadline")
    assert found["test_no_path"] == ("fail", "ValueError: '' is no path of a file in the machine")
    assert found["test_endless_file"] == ("fail", "get /dev/zero: it is no regular file: have a command read it")
    outcome, why = found["test_huge_file"]
    assert (outcome, "more than the 1073741824 that are taken" in why) == ("fail", True), why
    assert found["test_full"] == ("fail", "put /tmp/small/file: No space left on device")
    outcome, why = found["test_flood"]
    assert (outcome, "did not end within 3 s: it said more than 16 KiB: have it write a file" in why) == ("fail", True), why
    assert found["test_agent_killed_between"] == ("pass", "")
    outcome, why = found["test_no_memory"]
    assert (outcome, "was killed by signal 9 (Out of memory: Killed process" in why) == ("fail", True), why
    outcome, why = found["test_hangs_later"]
    assert (outcome, "the command 'sleep 50' did not end within 1 s: it said nothing; sleep 50" in why) == ("fail", True), why
    assert found["test_expected"] == ("skip", "fails as expected: not written")
    assert found["test_expected_without_a_reason"] == ("skip", "fails as expected: AssertionError: assert 'x' == 'y'")
    assert found["test_unexpected"] == ("fail", "passes, and was to fail: not written")
    assert found["test_last"] == ("pass", "")
    assert found["test_lab"] == ("error", "no current"), "nobody expects a fault of the lab's"
