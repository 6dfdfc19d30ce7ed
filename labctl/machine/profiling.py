"""Boot a machine twice on the channel icount: once to learn at which bytes of the console its milestones come, once to count by address
up to each of them. That the second counts what the first did shows that profiling changes nothing."""

from __future__ import annotations

import base64
import binascii
import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from labctl.config import cache_error, cache_folder
from labctl.errors import CommandFailed, ConfigError, InfraError, LabctlError, ManagementError, StorageError
from labctl.machine import registry
from labctl.machine.boot import Boot
from labctl.machine.protocols import Counter, Shell
from labctl.machine.session import Session
from labctl.model import Build, Channel, Target
from labctl.parsers.icount import Snapshot, snapshots
from labctl.parsers.symbols import Symbols, elf_symbols, kallsyms

SYMBOLS_DEADLINE = 180.0
"""Seconds in which a guest prints its symbols on a serial port: some 600 KB."""
_MOST_SYMBOLS = 64 << 20
"""Bytes of unpacked symbols: a guest may pack a bomb."""


@dataclass(frozen=True)
class Traced:
    """Two boots."""

    plain: Boot
    profiled: Boot
    snapshots: tuple[Snapshot, ...]
    """One for each milestone, in their order."""

    @property
    def repeated(self) -> bool:
        """Both counted the same."""
        return dict(self.plain.instructions) == dict(self.profiled.instructions)


def trace(target: Target, build: Build, workdir: Path, progress: Callable[[str], None]) -> Traced:
    """Errors are a boot's. The target must be one that counts (`labctl.machine.registry.why_not_counted`)."""
    with Session(registry.on_channel(target, Channel.ICOUNT), build, workdir) as session:
        counter = session.machine.role(Counter)  # type: ignore[type-abstract]
        progress("counting a boot")
        plain = session.boot()
        # A reader may see a milestone late, never in another order: by their places they ascend.
        order = sorted(plain.offsets, key=lambda name: plain.offsets[name])
        counter.trace([plain.offsets[name] - plain.since for name in order])
        progress("counting it again, by address")
        profiled = session.boot()
        taken = snapshots(counter.traced())
    if len(taken) != len(order):
        raise ManagementError(f"{len(taken)} of {len(order)} milestones were counted by address", target=target.name)
    by_order = replace(plain, instructions={name: plain.instructions[name] for name in order})
    return Traced(by_order, profiled, tuple(taken))


def symbols(target: Target, build: Build, workdir: Path, progress: Callable[[str], None]) -> Symbols:
    """The build's functions: from its own symbol table, else as its kernel tells them in a booted guest, which is kept in the cache.

    ConfigError if it has none that can be had.
    """
    try:
        found = elf_symbols(build.kernel.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{build.kernel}: {error}") from None
    except OSError as error:
        raise StorageError(f"{build.kernel}: {error.strerror}") from None
    if found:
        return found
    kept = cache_folder() / "symbols" / f"{build.digest.replace(':', '-')}.txt"
    if not kept.is_file():
        progress("asking the kernel for its symbols")
        text = _ask(registry.on_channel(target, Channel.WALL), build, workdir)
        if not kallsyms(text):
            raise _missing(build, "its kernel hides the addresses in /proc/kallsyms")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            draft = kept.with_name(f".{kept.name}.{os.getpid()}")
            draft.write_text(text)
            draft.replace(kept)
        except OSError as error:
            raise cache_error(kept, error) from None
    return kallsyms(kept.read_text())


def _ask(target: Target, build: Build, workdir: Path) -> str:
    """``/proc/kallsyms`` of a kernel that lies where the profiled one does."""
    unmoved = replace(build, append=" ".join(filter(None, (build.append, "nokaslr"))))
    try:
        with Session(target, unmoved, workdir) as session:
            session.machine.role(Shell)  # type: ignore[type-abstract]
            said = session.run("grep ' [tTwW] ' /proc/kallsyms | gzip | base64", deadline=SYMBOLS_DEADLINE).output
    except InfraError:
        raise
    except (CommandFailed, ConfigError) as error:
        raise _missing(build, error.title) from None
    try:
        unpacked = zlib.decompressobj(wbits=31).decompress(base64.b64decode(said), _MOST_SYMBOLS)
    except (binascii.Error, zlib.error, gzip.BadGzipFile) as error:
        raise _missing(build, f"what its guest sent of /proc/kallsyms cannot be unpacked: {error}") from None
    return unpacked.decode(errors="replace")


def _missing(build: Build, why: str) -> LabctlError:
    return ConfigError(
        f"no symbols of {build.name}: its kernel file has no symbol table, and {why}",
        remedy="build it with a symbol table in the ELF file (not stripped), or with CONFIG_KALLSYMS and a shell on its target",
    )
