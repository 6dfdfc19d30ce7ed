"""Whose SSH host key is believed: ``pinned`` (the first one that is shown is kept in the lab, and any other is refused), ``any`` (none is
compared: right where each boot makes a new one, on a network of the lab's own), or the key itself, ``"ssh-ed25519 AAAA…"``.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from labctl.config import Lab

if TYPE_CHECKING:
    import paramiko

HostKey = Annotated[str, Field(pattern=r"^(pinned|any|(ssh|ecdsa)-[a-z0-9-]+ [A-Za-z0-9+/=]+)$")]
"""A driver's option."""


class NotThisHost(Exception):
    """Another key was shown than the one that is known; says so."""


def check(key: paramiko.PKey, known: str, target: str, host: str, port: int) -> None:
    """Whether ``key``, which the host shows, is the one that the option ``known`` asks for. NotThisHost."""
    shown = f"{key.get_name()} {base64.b64encode(key.asbytes()).decode()}"
    if known == "any":
        return
    where = ""
    if known == "pinned":
        file = pin(target, host, port)
        known, where = _kept(file, shown), f", kept in {file}"
    if shown != known:
        raise NotThisHost(f"{host}:{port} shows another host key than before: {shown[:60]}…{where}")


def pin(target: str, host: str, port: int) -> Path:
    """Where the first host key is kept."""
    return Lab.find().root / ".labctl" / "host-keys" / f"{target}-{host}-{port}"


def _kept(file: Path, shown: str) -> str:
    """The key that is known; the first one that is shown becomes it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{shown}\n")
    return file.read_text().strip()
