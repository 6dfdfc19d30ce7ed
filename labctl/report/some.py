"""A list that a page shows the beginning of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Some(Generic[T]):
    """The beginning of a list, and how many more there are."""

    items: Sequence[T]
    more: int = 0

    @classmethod
    def of(cls, items: Iterable[T], most: int) -> Some[T]:
        everything = list(items)
        return cls(everything[:most], max(0, len(everything) - most))
