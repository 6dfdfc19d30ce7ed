"""scripts/bootstrap against a host that is made of stand-ins: what it asks for, what it says, and what it leaves when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = r"""#!/bin/sh
echo "python $*" >>"$LOG"
case "$*" in
    --version) echo 'Python 3.11.2' ;;
    '-m venv '*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *' -e .') echo '#!/bin/sh' >.venv/bin/labctl && chmod +x .venv/bin/labctl ;;
    *requirements.lock) [ ! -e "$HOST/no-network" ] ;;
esac
"""
FAKES = {
    "python": PYTHON,
    "id": '#!/bin/sh\ncat "$HOST/uid"\n',
    "sudo": '#!/bin/sh\necho "sudo" >>"$LOG"\nexec "$@"\n',
    "dpkg": "#!/bin/sh\n",
    "dpkg-query": '#!/bin/sh\necho query >>"$LOG"\nsed "s/^/installed /" "$HOST/packages"\n',
    "apt-cache": '#!/bin/sh\n[ -e "$HOST/lists" ]\n',
    "apt-get": r"""#!/bin/sh
echo "apt-get $*" >>"$LOG"
case "$*" in
    *update) [ -e "$HOST/no-network" ] && exit 100; touch "$HOST/lists" ;;
    *install*) [ -e "$HOST/lists" ] || exit 100
        for word in $*; do case $word in -* | *=* | install) ;; *) echo "$word" >>"$HOST/packages" ;; esac; done ;;
esac
""",
}


@dataclass
class Host:
    checkout: Path
    state: Path
    fakes: Path

    def bootstrap(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.fakes}:/usr/bin:/bin",
            "HOST": str(self.state),
            "LOG": str(self.state / "log"),
            "LABCTL_PYTHON": str(self.fakes / "python"),
        }
        (self.state / "log").write_text("")
        return subprocess.run(
            [self.checkout / "scripts/bootstrap", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
        )

    @property
    def log(self) -> str:
        return (self.state / "log").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A fresh Debian as root: no package lists, nothing installed."""
    host = Host(tmp_path / "checkout", tmp_path / "host", tmp_path / "fakes")
    for folder in (host.checkout / "scripts", host.state, host.fakes):
        folder.mkdir(parents=True)
    for file in ("scripts/bootstrap", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / file, host.checkout / file)
    for name, text in FAKES.items():
        (host.fakes / name).write_text(text)
        (host.fakes / name).chmod(0o755)
    (host.state / "uid").write_text("0\n")
    (host.state / "packages").write_text("")
    return host


def test_fresh_host(host: Host) -> None:
    done = host.bootstrap()
    assert done.returncode == 0, done.stderr
    assert "qemu-system-x86: starts the emulated machines" in done.stderr
    assert done.stdout == ""
    assert host.log.count("apt-get -q update") == 1
    assert "--no-install-recommends" in host.log
    assert "pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements.lock" in host.log
    assert "chromium" not in host.log
    assert (host.checkout / ".venv/bin/labctl").exists()


def test_tests_need_more(host: Host) -> None:
    host.bootstrap()
    done = host.bootstrap("test")
    assert done.returncode == 0
    assert "chromium: opens the report as a reader would" in done.stderr
    assert "qemu-system-x86" not in done.stderr
    assert "apt-get -q update" not in host.log


def test_nothing_missing_is_silent_and_quick(host: Host) -> None:
    host.bootstrap()
    began = time.monotonic()
    done = host.bootstrap()
    took = time.monotonic() - began
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert host.log == "query\n"
    assert took < 1


def test_lock_that_changed_is_installed_again(host: Host) -> None:
    host.bootstrap()
    with (host.checkout / "requirements.lock").open("a") as lock:
        lock.write("\n")
    assert host.bootstrap().returncode == 0
    assert "--require-hashes" in host.log


def test_no_network_for_apt(host: Host) -> None:
    (host.state / "no-network").touch()
    done = host.bootstrap()
    assert done.returncode == 3
    assert "Is there a network" in done.stderr
    assert "apt-get update && apt-get install -y" in done.stderr


def test_no_network_for_pip_then_a_network(host: Host) -> None:
    (host.state / "lists").touch()
    (host.state / "no-network").touch()
    done = host.bootstrap()
    assert done.returncode == 3
    assert "pip could not install the locked dependencies" in done.stderr
    assert not (host.checkout / ".venv/.labctl-setup").exists()
    (host.state / "no-network").unlink()
    assert host.bootstrap().returncode == 0
    assert (host.checkout / ".venv/.labctl-setup").exists()


def test_setup_killed_in_the_middle_goes_on(host: Host) -> None:
    host.bootstrap()
    (host.checkout / ".venv/.labctl-setup").unlink()
    (host.checkout / ".venv/bin/python").unlink()
    done = host.bootstrap()
    assert done.returncode == 0, done.stderr
    assert "-m venv" in host.log


def test_user_with_sudo(host: Host) -> None:
    (host.state / "uid").write_text("1000\n")
    done = host.bootstrap()
    assert done.returncode == 0, done.stderr
    assert "sudo" in host.log
    assert "sudo may ask for your password" in done.stderr


@pytest.mark.skipif(os.path.exists("/usr/bin/sudo"), reason="this host has sudo in /usr/bin, which the script would find")  # noqa: PTH110
def test_user_without_sudo_is_told_what_root_must_type(host: Host) -> None:
    (host.state / "uid").write_text("1000\n")
    (host.fakes / "sudo").unlink()
    done = host.bootstrap()
    assert done.returncode == 3
    assert "apt-get install -y --no-install-recommends qemu-system-x86" in done.stderr
