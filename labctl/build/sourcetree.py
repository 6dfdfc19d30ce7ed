"""What identifies a source tree: its commit, and every change on top of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import HostToolMissing
from labctl.process import run


@dataclass(frozen=True, slots=True)
class TreeState:
    commit: str
    """Empty where the tree is not the top of a git work tree."""
    changes: str
    """Digest over name, size and time of what the commit does not say; empty for a clean work tree."""

    @property
    def label(self) -> str:
        """For messages: ``1a2b3c4d5e6f``, with ``+changes`` where there are any."""
        return (self.commit[:12] or "no commit") + ("+changes" if self.commit and self.changes else "")


def state(root: Path, deadline: Deadline) -> TreeState:
    """Commit and changes of a tree; without git, sizes and times of all of its files."""
    commit = _commit(root, deadline)
    if commit:
        done = run(["git", "-C", str(root), "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames"], deadline)
        if done.status == 0:
            changed = [entry for entry in done.out.split("\0") if entry]
            return TreeState(commit, _digest(root, [(entry[:2], entry[3:]) for entry in changed]) if changed else "")
    files = [("", os.path.relpath(os.path.join(folder, name), root)) for folder, _, names in os.walk(root) for name in names]  # noqa: PTH118
    return TreeState("", _digest(root, files))


def _commit(root: Path, deadline: Deadline) -> str:
    """HEAD of the work tree whose top this folder is: a folder inside another project's tree has no commit of its own."""
    if not (root / ".git").exists():
        return ""
    try:
        done = run(["git", "-C", str(root), "rev-parse", "--verify", "HEAD"], deadline)
    except HostToolMissing:
        return ""
    return done.out.strip() if done.status == 0 else ""


def _digest(root: Path, entries: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for mark, name in sorted(entries):
        try:
            status = (root / name).lstat()
            seen = f"{mark} {name} {status.st_size} {status.st_mtime_ns} {status.st_mode}"
        except OSError:
            seen = f"{mark} {name} gone"
        digest.update(seen.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()
