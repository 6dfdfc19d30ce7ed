"""What reading the files of suites has given: which suites have a test, and what to say of those that have none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Gathered:
    """Suite by suite, while pytest reads them."""

    files: dict[str, list[str]] = field(default_factory=dict)
    """Names of the files of each that were read."""
    told: set[str] = field(default_factory=set)
    """Suites that have a test, or of which something else is wrong that is told."""
    blind: bool = False
    """Something above the suites cannot be read: what is in them is not known."""

    def without_tests(self, suites: Iterable[str]) -> list[str]:
        """A mistake for each of these that has no test."""
        return [] if self.blind else [f"suites/{name}: no test in it ({self._why(name)})" for name in sorted({*suites} - self.told)]

    def _why(self, suite: str) -> str:
        files = self.files.get(suite, [])
        return f"{', '.join(files)}: no function named test_…" if files else "none of its files is read"
