"""A machine that cannot be switched off at the end is named, with what to do, whatever else the run says."""

from __future__ import annotations

from pathlib import Path

from tests.temporary_lab import TemporaryLab

TARGET = """schema = 1
cpus = 1
memory = "256M"
append = "console=ttyS0"

[drivers.pdu]
command = "sh {script} {{verb}}"
rest = 0

[drivers.serial]
port = "socket://127.0.0.1:9"

[drivers.console_shell]
"""
BROKEN = """[ "$1" = state ] && echo on && exit 0
echo "relay stuck" >&2
exit 7
"""


def test_a_machine_that_may_still_be_on_is_named(lab: TemporaryLab, tmp_path: Path) -> None:
    script = tmp_path / "outlet.sh"
    script.write_text(BROKEN)
    (lab.root / "targets" / "rack9.toml").write_text(TARGET.format(script=script))
    lab.suite("boot", "def test_boots(target):\n    target.booted()\n")
    ran = lab.labctl("run", "matrix", "--target", "rack9", "--json")
    assert ran.status == 3, ran.err
    (cell,) = ran.data["cells"]
    assert "rack9 may still be on: " in cell["reason"]
    assert "relay stuck" in cell["reason"]
    assert cell["remedy"].startswith("labctl power off rack9")
    shown = lab.labctl("runs", "show")
    assert "try: labctl power off rack9" in shown.out
