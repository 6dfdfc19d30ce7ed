"""Power by a person: without a terminal it fails at once, and says what a person would have to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.temporary_lab import LABCTL

TARGET = 'schema = 1\ncpus = 1\nmemory = "256M"\n[drivers.manual]\n'


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    (tmp_path / "targets/bench1.toml").write_text(TARGET)
    # A session of its own has no terminal.
    argv = [str(LABCTL), "power", "on", "bench1"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, start_new_session=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 3
    assert "bench1: a person must act (is it on or off?), and there is no terminal to ask on" in done.stderr
