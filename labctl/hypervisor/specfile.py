"""What a VM is to be, as JSON beside it on the machine: the machine's own record, whoever asks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from labctl.hypervisor.protocols import VmDisk, VmDisplay, VmNic, VmSpec


def to_json(spec: VmSpec) -> str:
    """One line."""
    return json.dumps(asdict(spec), separators=(",", ":"))


def from_json(text: str) -> VmSpec:
    """ValueError or ConfigError for what `to_json` does not write."""
    try:
        data: dict[str, Any] = json.loads(text)
        return VmSpec(
            **{
                **data,
                "disks": tuple(VmDisk(**disk) for disk in data["disks"]),
                "nics": tuple(VmNic(**nic) for nic in data["nics"]),
                "display": VmDisplay(**data["display"]) if data["display"] else None,
                "pinned": tuple(data["pinned"]),
                "devices": tuple(data["devices"]),
            }
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no VM's specification: {error}") from None
