"""Redfish for a virtual server: sushy-tools' emulator, whose system is our machine. A process of its own: it serves with threads.

``python -m labctl.virtualserver.redfish FOLDER KEEPER_SOCKET PORT``. What it is asked goes the way of the BMC's chassis commands.
"""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path
from typing import Any

from labctl.virtualserver import redfish_health, sshconsole
from labctl.virtualserver.settings import LOOPBACK, Files, load

SYSTEM = "8f0b1d5c-3a1f-4c7e-9d0a-6f2b7c1e4a55"
_BOOT = {"Pxe": "pxe", "Hdd": "default", "Cd": "cdrom"}
_RESET = {
    "On": "power 1",
    "ForceOn": "power 1",
    "ForceOff": "power 0",
    "GracefulShutdown": "shutdown 1",
    "ForceRestart": "reset 1",
    "GracefulRestart": "reset 1",
}


def _keeper(path: str, words: str) -> str:
    """Ask as the BMC's simulator does. ValueError if the machine refuses."""
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.settimeout(60)
        keeper.connect(path)
        keeper.sendall(f"chassis {words}\n".encode())
        status, _, text = keeper.makefile().readline().strip().partition(" ")
    if status != "0":
        raise ValueError(f"the machine refuses {words}: {text}")
    return text.partition(":")[2]


def serve(files: Files, keeper: str, port: int) -> None:
    import bcrypt
    from sushy_tools import error
    from sushy_tools.emulator.main import app
    from sushy_tools.emulator.resources.systems import fakedriver

    settings = load(files)
    assert settings is not None  # noqa: S101  # the keeper has read them already
    name = settings.name

    class System(fakedriver.FakeDriver):  # type: ignore[misc]  # it has no types
        """One system; what of a system it does not say itself is the emulator's."""

        def __init__(self) -> None:
            self.boot_mode = "Legacy"

        @property
        def driver(self) -> str:
            return "<labctl>"

        @property
        def systems(self) -> list[str]:
            return [SYSTEM]

        def _get(self, identity: str) -> dict[str, Any]:
            if identity == name:
                raise error.AliasAccessError(SYSTEM)
            if identity != SYSTEM:
                raise error.NotFound(f"there is no system {identity}")
            return {"uuid": SYSTEM, "name": name, "nics": [], "boot_mode": self.boot_mode}

        def get_power_state(self, identity: str) -> str:
            self._get(identity)
            return "On" if _keeper(keeper, "get power") == "1" else "Off"

        def set_power_state(self, identity: str, state: str) -> None:
            self._get(identity)
            if state not in _RESET:
                raise error.NotSupportedError(f"{state} is not supported")
            try:
                _keeper(keeper, f"set {_RESET[state]}")
            except ValueError as refused:
                raise error.Conflict(str(refused)) from None

        def get_boot_device(self, identity: str) -> str:
            self._get(identity)
            device = _keeper(keeper, "get boot")
            return next((theirs for theirs, ours in _BOOT.items() if ours == device), "None")

        def set_boot_device(self, identity: str, boot_source: str) -> None:
            self._get(identity)
            _keeper(keeper, f"set boot {_BOOT.get(boot_source, 'none')}")

        def set_boot_mode(self, identity: str, boot_mode: str) -> None:
            self.boot_mode = boot_mode

    fakedriver.FakeDriver = System
    hashed = bcrypt.hashpw(files.password.read_bytes(), bcrypt.gensalt(4))  # it is checked at each request
    accounts = files.folder / "redfish.htpasswd"
    accounts.touch(mode=0o600)
    accounts.write_bytes(b"admin:" + hashed + b"\n")
    app.configure(extra_config={"SUSHY_EMULATOR_FAKE_DRIVER": True, "SUSHY_EMULATOR_AUTH_FILE": str(accounts)})
    redfish_health.add(app, settings, files, SYSTEM)
    console = {"SerialConsole": sshconsole.description(settings)}
    app.view_functions["system_resource"] = redfish_health.wider(app.view_functions["system_resource"], lambda said: {**said, **console})
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run(host=LOOPBACK, port=port, threaded=True)


if __name__ == "__main__":
    serve(Files(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
