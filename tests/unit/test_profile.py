"""A profile: names by address, sums that are kept, differences that are exact, pages that nothing escapes from."""

from __future__ import annotations

import contextlib
import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.judge.profile import by_function, difference, phases, totals
from labctl.parsers.icount import Snapshot
from labctl.parsers.profile import Profile, document, parse
from labctl.parsers.symbols import elf_symbols, kallsyms, readable
from labctl.report.profile import difference_text, icicle, text, write_difference, write_profile

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t verify_cpu
ffffffff81000200 D data
ffffffff81000200 T start_kernel
"""


def profile(**phases: dict[str, int]) -> Profile:
    return Profile(
        schema=1, build="b", digest="sha256:00", version="1", target="t", repeated=True, milestones=dict.fromkeys(phases, 1), phases=phases
    )


def test_kallsyms() -> None:
    symbols = kallsyms(KALLSYMS)
    assert [symbols.at(a) for a in (0xFFFFFFFF810000FF, 0xFFFFFFFF81000100, 0xFFFFFFFF81000200)] == ["_text", "verify_cpu", "start_kernel"]
    assert symbols.at(0xFFFFFFFF80FFFFFF) is None
    assert symbols.at(0xFFFFFFFF81000200 + (1 << 20)) is None
    assert not kallsyms("0000000000000000 T hidden\n")
    assert not kallsyms("")


def elf(*symbols: tuple[str, int, int, int]) -> bytes:
    """An ELF file with one section of code and these symbols: (name, type, address, size)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in symbols)
    table = bytes(24)
    for name, kind, address, size in symbols:
        table += struct.pack("<IBBHQQ", names.index(b"\0" + name.encode() + b"\0") + 1, kind, 0, 1, address, size)
    texts, entries, sections = 64, 64 + len(names), 64 + len(names) + len(table)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, sections, 0, 64, 0, 0, 64, 4, 0)
    rows = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 0, 1, 6, 0x1000, 0, 0, 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, entries, len(table), 3, 0, 0, 24),
        struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, texts, len(names), 0, 0, 0, 0),
    ]
    return header + names + table + b"".join(rows)


def test_of_two_names_at_one_address_a_label_that_is_local_gives_way() -> None:
    label, local, function = (0x10, 0x00, 0x02)  # binding and type: a global label, a local one, a local function
    for names in (
        (("start32", label, 0x1000, 0), ("end_of_header", local, 0x1000, 0)),
        (("b", function, 0x1000, 0), ("a", label, 0x1000, 0)),
    ):
        for order in (names, names[::-1]):
            assert elf_symbols(elf(*order)).at(0x1000) == names[0][0]
    assert kallsyms("ffffffff81000000 t a_label\nffffffff81000000 T function\n").at(0xFFFFFFFF81000000) == "function"


def test_elf() -> None:
    symbols = elf_symbols(elf(("entry", 0, 0x1000, 0), ("work", 2, 0x1010, 0x10), ("variable", 1, 0x1018, 8)))
    assert [symbols.at(a) for a in (0xFFF, 0x1000, 0x100F, 0x1010, 0x101F, 0x1020)] == [None, "entry", "entry", "work", "work", None]
    assert not elf_symbols(b"MZ and the rest of a bzImage")
    with pytest.raises(ValueError, match="damaged"):
        elf_symbols(elf(("entry", 0, 0x1000, 0))[:-100])


@given(st.binary(max_size=300))
def test_a_hostile_elf_is_refused_or_has_no_symbols(rest: bytes) -> None:
    with contextlib.suppress(ValueError):
        elf_symbols(b"\x7fELF\x02\x01" + rest)


def test_names_of_rust() -> None:
    assert readable("_RNvNtCsgEmfK2I1SDS_4core5slice6memchr") == "core::slice::memchr"
    assert readable("_ZN4core3fmt5write17h0123456789abcdefE") == "core::fmt::write"
    assert (
        readable("_ZN50_$LT$a..Port$u20$as$u20$core..fmt..Write$GT$3put17h") == "_ZN50_$LT$a..Port$u20$as$u20$core..fmt..Write$GT$3put17h"
    )
    assert readable("_ZN35_$LT$Port$u20$as$u20$fmt..Write$GT$3put17h0123456789abcdefE") == "<Port as fmt::Write>::put"
    assert readable("_ZNSt6vectorIiE4pushEv") == "_ZNSt6vectorIiE4pushEv"
    assert readable("start_kernel") == "start_kernel"


def test_nothing_is_lost_between_addresses_and_functions() -> None:
    executed = {0xFFFFFFFF81000000: 5, 0xFFFFFFFF81000004: 5, 0xFFFFFFFF81000100: 7, 0xFFFC0: 3, 0xFFFFFFF0: 1, 0x1234567: 2}
    found = by_function(executed, kallsyms(KALLSYMS))
    assert found == {"_text": 10, "verify_cpu": 7, "[firmware]": 4, "[no symbol, 0x1000000 to 0x1ffffff]": 2}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == sum(executed.values())
    with pytest.raises(ValueError, match="snapshots"):
        phases(["init", "ready"], [Snapshot(1, executed)], kallsyms(KALLSYMS))


def test_what_grew_and_what_went() -> None:
    found = difference(profile(init={"a": 10, "gone": 3}, ready={"b": 1}), profile(init={"a": 11}, ready={"b": 1, "new": 100}))
    assert [(c.function, c.grew) for c in found.functions] == [("new", 100), ("gone", -3), ("a", 1)]
    assert {name: [c.function for c in changes] for name, changes in found.phases.items()} == {"init": ["gone", "a"], "ready": ["new"]}
    assert (found.total.before, found.total.after) == (14, 112)
    assert "+100" in difference_text(found)
    same = difference(found.before, found.before)
    assert (same.functions, dict(same.phases)) == ((), {})
    assert "no function changed" in difference_text(same)


def test_the_icicle_is_as_wide_as_its_parts() -> None:
    wide = profile(init={f"f{i}": 1000 - i for i in range(900)}, ready={"g": 5_000})
    boxes = list(icicle(wide))
    for row in range(3):
        widths = sorted((b.left, b.left + b.width) for b in boxes if b.row == row)
        assert widths[0][0] == 0
        assert widths[-1][1] == pytest.approx(100)
        assert all(end == pytest.approx(start) for (_, end), (start, _) in itertools.pairwise(widths))
        assert sum(b.count for b in boxes if b.row == row) == sum(totals(wide).values())
    assert list(icicle(profile())) == []


def test_pages_of_hostile_names(tmp_path: Path) -> None:
    evil = profile(init={"<script>alert(1)</script>\x1b[2J": 10, "b": 1})
    for page in (write_profile(evil, tmp_path / "p.html"), write_difference(difference(evil, profile()), tmp_path / "d.html")):
        said = page.read_text()
        assert "<script" not in said
        assert "&lt;script" in said
        assert "\x1b" not in said
        assert "script-src &#39;none&#39;" in said
    assert "\x1b" not in text(evil)


def test_two_that_differ_by_their_command_line_alone_are_told_apart(tmp_path: Path) -> None:
    before, after = (profile(init={"a": 10}).model_copy(update={"append": f"console=ttyS0 <{name}>"}) for name in ("quiet", "debug"))
    said = difference_text(difference(before, after))
    page = write_difference(difference(before, after), tmp_path / "d.html").read_text()
    for name in ("quiet", "debug"):
        assert f"command line: console=ttyS0 <{name}>\n" in said
        assert f"command line: console=ttyS0 &lt;{name}&gt;" in page
    assert "&lt;br&gt;" not in page
    assert "<debug>" in text(after)
    assert "&lt;debug&gt;" in write_profile(after, tmp_path / "p.html").read_text()


def test_a_profile_comes_back_from_its_file_as_it_was() -> None:
    one = profile(init={"a": 10})
    assert parse(document(one)) == one
    for wrong in (b"", b"[]", b'{"schema": 1}', document(one).replace(b"10", b"-10"), document(one).replace(b'"t"', b"3")):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            parse(wrong)
