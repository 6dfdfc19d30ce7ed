"""Sizes in files: text such as ``512M`` or ``10G``, powers of 1024, or a number of bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SIZE = re.compile(r"^\s*(\d+)\s*([KMGT]?)i?B?\s*$", re.IGNORECASE)


_SCALE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(value: object) -> int:
    """``"512M"`` or a plain number → bytes. Raises ValueError with the allowed forms."""
    if isinstance(value, bool):
        raise ValueError("a size is a number of bytes or text like 512M, 4G")
    if isinstance(value, int):
        return value
    if isinstance(value, str) and (found := _SIZE.match(value)):
        return int(found[1]) * _SCALE[found[2].upper()]
    raise ValueError("a size is a number of bytes or text like 512M, 4G")


def format_size(size: int) -> str:
    """Bytes → the shortest exact form: ``536870912`` → ``512M``."""
    for suffix in "TGMK":
        if size and size % _SCALE[suffix] == 0:
            return f"{size // _SCALE[suffix]}{suffix}"
    return str(size)


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\s*\d+\s*[KMGTkmgt]?i?B?\s*$"}]}),
]


def at_least(size: int, why: str) -> Callable[[int], int]:
    """Refuses a smaller size in the words that a file would use; ``why`` ends the sentence."""

    def check(value: int) -> int:
        if value < size:
            raise ValueError(f"at least {format_size(size)}{why}")
        return value

    return check
