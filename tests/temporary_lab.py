"""A temporary lab in which things go wrong, used through the real ``labctl`` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labctl.build import cpio
from labctl.model import Build
from labctl.process import find
from tests.leftovers import gone_within, machine_name

LABCTL = Path(sys.executable).with_name("labctl")


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)

    @property
    def cells(self) -> dict[str, Any]:
        """Cells of a run by ``BUILD/SUITE``."""
        return {f"{cell['build']}/{cell['suite']}": cell for cell in self.data["cells"]}


@dataclass
class TemporaryLab:
    """A lab with one small target, the build ``debian`` and whatever a test adds."""

    root: Path
    debian: Build
    cache: Path
    target: str = field(default_factory=lambda: machine_name("fault"))

    def __post_init__(self) -> None:
        self.write("lab.toml", "schema = 1\n")
        self.write("matrix/default.toml", 'schema = 1\nbuilds = ["*"]\ntargets = ["*"]\nsuites = ["*"]\n')
        self.write(f"targets/{self.target}.toml", TARGET)
        self.build("debian")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def build(self, name: str, *, init: str = "", kernel: Path | None = None, append: str = "panic=-1") -> None:
        """A recipe; with ``init`` the guest's first process is this shell script instead of the lab's own."""
        initrd = self.debian.initrd
        if init:
            initrd = self.root / f"{name}.cpio"
            initrd.write_bytes(guest(init))
        self.write(
            f"kernel/{name}.toml",
            f'schema = 1\nbuilder = "path"\nappend = "{append}"\n[path]\nkernel = "{kernel or self.debian.kernel}"\ninitrd = "{initrd}"\n',
        )

    def suite(self, name: str, code: str) -> None:
        self.write(f"suites/{name}/test_{name}.py", code)

    def environment(self, **more: str) -> dict[str, str]:
        """Away from what else the host's user has and does: a benchmark elsewhere would make these cells wait for it."""
        own = {"LABCTL_CACHE": str(self.cache), "LABCTL_LOCKS": str(self.cache / "locks"), "LABCTL_CPUS": "3"}
        return {**os.environ, **own, "COLUMNS": "200", "NO_COLOR": "1", **more}

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL, **environment: str) -> subprocess.Popen[str]:
        """``labctl`` in a process group of its own, as a shell starts it."""
        return subprocess.Popen(
            [str(LABCTL), *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def labctl(self, *arguments: str, seconds: float = 120, **environment: str) -> Ran:
        """Run it to its end; none of its machines may be left."""
        with self.start(*arguments, **environment) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            finally:
                if process.poll() is None:
                    process.kill()
        assert gone_within(1.0, self.target)
        return Ran(process.returncode, out, err)

    def run(self, *arguments: str, **more: Any) -> Ran:
        return self.labctl("run", "matrix", "--json", *arguments, **more)

    def pytest(self, *arguments: str) -> Ran:
        """As who knows pytest runs a suite of the lab: by itself, and without the settings of this repository."""
        self.write("conftest.py", 'pytest_plugins = ("labctl.run.plugin", "labctl.report.plugin")\n')
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir=.", *arguments, "-p", "no:cacheprovider"]
        ended = subprocess.run(command, cwd=self.root, env=self.environment(), capture_output=True, text=True, timeout=120, check=False)
        return Ran(ended.returncode, ended.stdout, ended.stderr)

    @property
    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("results/*/run.json") if not path.parent.is_symlink())


TARGET = """schema = 1
cpus = 1
memory = "192M"
instances = 4
append = "console=ttyS0"
boot = { deadline = 30, silence = 10 }
[drivers.qemu]
accel = "tcg"
disk_bus = "none"
[drivers.console_shell]
"""


def guest(script: str) -> bytes:
    """An initramfs whose first process is a shell script."""
    init = f"#!/bin/sh\nexport PATH=/bin\nmount -t proc p /proc\n{script}\n"
    return cpio.archive(
        [
            *(cpio.directory(path) for path in ("proc", "dev")),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("bin/busybox", Path(find("busybox")).resolve().read_bytes(), 0o755),
            *(cpio.symlink(f"bin/{name}", "busybox") for name in ("sh", "mount", "sleep", "poweroff", "head")),
            cpio.file("init", init.encode(), 0o755),
        ]
    )


def reasons(cells: Mapping[str, Any]) -> str:
    """For the message of a failed assertion."""
    return "\n".join(f"{name}: {cell['outcome']}: {cell['reason']}" for name, cell in cells.items())
