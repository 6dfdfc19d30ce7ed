"""The code itself: lint, format, types, layers, and the rules that no tool knows."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.quality

STARTS_A_PROCESS = {
    "os.system", "os.popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.posix_spawnp", "pexpect.spawn", "pexpect.spawnu",
    "pexpect.run", "pexpect.runu", "pexpect.popen_spawn", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
}  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="lint"),
        pytest.param(["ruff", "format", "--check", "."], id="format"),
        pytest.param(["mypy"], id="types"),
        pytest.param(["lint-imports"], id="layers"),
    ],
)
def test_tool_finds_nothing(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def _modules() -> list[Path]:
    return sorted((ROOT / "labctl").rglob("*.py"))


def _dotted(node: ast.expr) -> str:
    """``os.path.join`` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def _forbidden(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ((name := _dotted(node)) in STARTS_A_PROCESS or name.startswith(("os.exec", "os.spawn"))):
            yield f"line {node.lineno}: {name}: only labctl.process starts processes"
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "pexpect", "asyncio"):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in STARTS_A_PROCESS:
                    yield f"line {node.lineno}: {node.module}.{alias.name}: only labctl.process starts processes"
        if isinstance(node, ast.Call) and _dotted(node.func) in ("time.sleep", "sleep") and isinstance(node.args[0], ast.Constant):
            says_why = "#" in source.splitlines()[node.lineno - 1]  # a poll of what cannot be waited for
            if not says_why:
                yield f"line {node.lineno}: a fixed sleep: wait for what is meant, with a Deadline"
        if isinstance(node, ast.ExceptHandler) and (node.type is None or _dotted(node.type) in ("Exception", "BaseException")):
            reraises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            ends = any(isinstance(inner, ast.Call) and _dotted(inner.func) == "sys.exit" for inner in ast.walk(node))
            if not (reraises or ends):
                yield f"line {node.lineno}: swallows every exception: name the ones that are meant"


def test_the_rules_can_fail() -> None:
    processes = "import os\nfrom pexpect import spawn\nos.execv('x', [])\n"
    broken = processes + "import time\ntime.sleep(1)\ntry:\n    pass\nexcept Exception:\n    pass\n"
    assert len(list(_forbidden(broken))) == 4


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_rules(path: Path) -> None:
    if path == ROOT / "labctl/process.py":
        return
    assert list(_forbidden(path.read_text())) == []


def test_every_verb_is_registered() -> None:
    from labctl.cli.main import VERBS

    shared = {"--init--", "main", "verb"}
    assert {p.stem.replace("_", "-") for p in (ROOT / "labctl/cli").glob("*.py")} - shared == set(VERBS)


def test_lock_names_no_place_of_its_maker() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "file:" not in lock
    assert "://" not in lock
    pinned = [line for line in lock.splitlines() if line and not line.startswith((" ", "#"))]
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned), "each pinned, each with hashes"


def test_lock_holds_what_pyproject_asks_for() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["hardware"],
        *project["dependency-groups"]["dev"],
    ]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {re.split(r"[<>=~ ]", each)[0] for each in asked} <= locked
