"""Names of functions by address: the symbol table of an ELF file, or the lines of ``/proc/kallsyms``.

ELF-64, little-endian: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.symtab.html. A file is hostile: whatever is wrong with it, it
has no symbols, or ValueError says why.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

_ELF = re.compile(rb"\x7fELF\x02\x01")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB, _EXECUTABLE = 2, 4
_LABEL, _FUNCTION = 0, 2
_LOCAL = 0
_MOST_SECTIONS = 4096
_KALLSYMS = re.compile(r"^([0-9a-f]{8,16}) ([tTwW]) (\S+)$", re.MULTILINE)
_Found = tuple[int, tuple[bool, bool], int, str]
"""Address; whether it is but a label, and whether it is local; size; name."""
_LAST = 4096
"""Bytes that the last function is taken to have where its size is not known."""


@dataclass(frozen=True)
class Symbols:
    """Functions in ascending order, none over another."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, address: int) -> str | None:
        """The function that an instruction belongs to."""
        place = bisect_right(self.starts, address) - 1
        return self.names[place] if place >= 0 and address < self.ends[place] else None


def elf_symbols(raw: bytes) -> Symbols:
    """The functions of an ELF file; none if it is no ELF file, or stripped. ValueError if its tables lead out of it."""
    if not _ELF.match(raw):
        return _ordered(())
    try:
        return _ordered(_functions(raw))
    except (struct.error, IndexError) as error:
        raise ValueError(f"a damaged ELF file: {error}") from None


def _functions(raw: bytes) -> Iterable[_Found]:
    table, size, count = struct.unpack_from("<Q", raw, 40)[0], *struct.unpack_from("<HH", raw, 58)
    if count > _MOST_SECTIONS or (count and size != _SECTION.size):
        raise ValueError(f"a damaged ELF file: {count} sections of {size} bytes")
    sections = [_SECTION.unpack_from(raw, table + i * size) for i in range(count)]
    for _, kind, _, _, at, length, link, *_ in sections:
        if kind != _SYMTAB:
            continue
        _, _, _, _, texts, texts_length, *_ = sections[link]
        words = raw[texts : texts + texts_length]
        for name, info, _, section, address, extent in _SYMBOL.iter_unpack(raw[at : at + length // _SYMBOL.size * _SYMBOL.size]):
            if not 0 < section < count or not sections[section][2] & _EXECUTABLE or info & 15 not in (_LABEL, _FUNCTION):
                continue
            # A label of assembler code names what follows it.
            if found := words[name : words.find(b"\0", name)]:
                yield address, (info & 15 != _FUNCTION, info >> 4 == _LOCAL), extent, readable(found.decode(errors="replace"))


def kallsyms(text: str) -> Symbols:
    """The functions of a running Linux; each ends where the next begins. Addresses that are hidden (all zero) are no symbols."""
    return _ordered(
        (int(address, 16), (False, kind == "t"), 0, name) for address, kind, name in _KALLSYMS.findall(text) if address.strip("0")
    )


def _ordered(found: Iterable[_Found]) -> Symbols:
    """Of several names at one address a function's is kept before a label's, a global one before a local one, then the first by the
    alphabet: which one a table lists first is chance."""
    by_start: dict[int, tuple[int, str]] = {}
    for start, _, size, name in sorted(found, key=lambda f: (f[0], f[1], -f[2], f[3])):
        by_start.setdefault(start, (size, name))
    starts = sorted(by_start)
    ends: list[int] = []
    for start, following in zip(starts, starts[1:] + starts[:1], strict=True):
        size, last = by_start[start][0], following <= start
        ends.append(start + (size or _LAST) if last else min(start + size, following) if size else following)
    return Symbols(tuple(starts), tuple(ends), tuple(by_start[start][1] for start in starts))


_RUST_PART = re.compile(r"(?P<skip>s[0-9a-zA-Z]*_|B[0-9a-zA-Z]*_)|(?P<length>[1-9][0-9]*)_?|.", re.DOTALL)


def readable(name: str) -> str:
    """A Rust symbol as the path that it names, without hashes; any other name as it is.

    Of the newer scheme (https://doc.rust-lang.org/rustc/symbol-mangling/v0.html) only the identifiers are read, the types are left out.
    """
    if name.startswith("_ZN"):
        return _older(name)
    if not name.startswith("_R"):
        return name
    parts: list[str] = []
    at = 2
    while at < len(name) and (found := _RUST_PART.match(name, at)):
        at = found.end()
        if found["length"]:
            length = int(found["length"])
            parts.append(name[at : at + length])
            at += length
    return "::".join(parts) or name


_ESCAPES = {"$LT$": "<", "$GT$": ">", "$RF$": "&", "$BP$": "*", "$LP$": "(", "$RP$": ")", "$C$": ",", "$SP$": "@"}
_HASH = re.compile(r"h[0-9a-f]{16}$")


def _older(name: str) -> str:
    """``_ZN4core3fmt5write17h0123456789abcdefE`` → ``core::fmt::write``; one that ends early (C++ has the same beginning) as it is."""
    parts: list[str] = []
    at = 3
    while found := re.compile("[1-9][0-9]*").match(name, at):
        at = found.end() + int(found[0])
        parts.append(name[found.end() : at])
    if name[at:] != "E" or len(parts) < 2 or not _HASH.match(parts[-1]):
        return name
    text = "::".join(part.removeprefix("_") if part.startswith("_$") else part for part in parts[:-1])
    for escape, letter in _ESCAPES.items():
        text = text.replace(escape, letter)
    return re.sub(r"\$u([0-9a-f]{2,5})\$", lambda code: chr(int(code[1], 16)), text).replace("..", "::")
