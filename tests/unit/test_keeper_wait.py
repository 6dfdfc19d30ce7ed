"""Waiting for a keeper that has begun and is not there yet."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from labctl.machine import keeper


def test_what_it_is_at_is_told_once_for_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No clock ends the wait: an installation takes its time. The keeper's answer does, or its end."""
    monkeypatch.setattr(keeper, "_TELL", 0.02)
    status = tmp_path / "status"
    for ending in (lambda end: end.sendall(b"{}\n"), lambda end: end.close()):
        ours, its = socket.socketpair()

        def work(its: socket.socket = its, ending: object = ending) -> None:
            for state in ("deploying", "booting"):
                status.write_text(state)
                time.sleep(0.2)
            ending(its)  # type: ignore[operator]

        thread = threading.Thread(target=work)
        thread.start()
        keeper._until_it_speaks(ours, status, "rack1")
        thread.join()
        assert capsys.readouterr().err.splitlines() == ["labctl: rack1: deploying", "labctl: rack1: booting"]
        ours.close()
        its.close()
        status.unlink()
