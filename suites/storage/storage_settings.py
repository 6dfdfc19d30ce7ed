"""How much the suite does, from the environment."""

from labctl.run.settings import Bytes, Number, from_environment

_SECONDS, _SIZE, _CUTS = from_environment(
    (
        Number("STORAGE_SECONDS", 5, 1, 86400, "seconds"),
        Bytes("STORAGE_SIZE", 1 << 30, 1 << 20),
        Number("STORAGE_CUTS", 2, 1, 1000, "power cuts", whole=True),
    )
)
SECONDS = float(_SECONDS)
"""How long each job of fio's runs."""
SIZE = int(_SIZE)
"""Bytes that are written and read by digest, at most the disk."""
CUTS = int(_CUTS)
"""Power cuts on each file system."""
