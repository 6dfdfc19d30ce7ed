"""How much the suite does, from the environment."""

from labctl.run.settings import Bytes, Number, from_environment

_SIZE, _CUTS = from_environment(
    (Bytes("STORAGE_SIZE", 1 << 30, 1 << 20), Number("STORAGE_CUTS", 2, 1, 1000, "power cuts", whole=True)),
)
SIZE = int(_SIZE)
"""Bytes that are written and read by digest, at most the disk."""
CUTS = int(_CUTS)
"""Power cuts on each file system."""
