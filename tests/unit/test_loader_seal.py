"""What the loader computes of what arrived: its C, compiled for the host, against RFC 8439's vectors and against what the lab computes."""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.config import shipped
from labctl.errors import DeployError
from labctl.machine.bootserver.offer import describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal

Poly1305 = Callable[[bytes, bytes], str]

_TEXT = (
    b"Any submission to the IETF intended by the Contributor for publication as all or part of an IETF Internet-Draft or RFC and any state"
)
_TEXT += (
    b'ment made within the context of an IETF activity is considered an "IETF Contribution". Such statements include oral statements in '
)
_TEXT += b"IETF sessions, as well as written and electronic communications made at any time or place, which are addressed to"
_S = "36e5f6b5c5e06070f0efca96227a863e"
_JABBERWOCKY = (
    b"'Twas brillig, and the slithy toves\nDid gyre and gimble in the wabe:\nAll mimsy were the borogoves,\nAnd the mome raths outgrabe."
)
_FF, _00 = b"\xff" * 16, b"\0" * 16
RFC = [  # 2.5.2, then appendix A.3, 1 to 11
    (
        "85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b",
        b"Cryptographic Forum Research Group",
        "a8061dc1305136c6c22b8baf0c0127a9",
    ),
    ("00" * 32, b"\0" * 64, "00" * 16),
    ("00" * 16 + _S, _TEXT, _S),
    (_S + "00" * 16, _TEXT, "f3477e7cd95417af89a6b8794c310cf0"),
    ("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0", _JABBERWOCKY, "4541669a7eaaee61e708dc7cbcc5eb62"),
    ("02" + "00" * 31, _FF, "03" + "00" * 15),
    ("02" + "00" * 15 + "ff" * 16, b"\x02" + b"\0" * 15, "03" + "00" * 15),
    ("01" + "00" * 31, _FF + b"\xf0" + b"\xff" * 15 + b"\x11" + b"\0" * 15, "05" + "00" * 15),
    ("01" + "00" * 31, _FF + b"\xfb" + b"\xfe" * 15 + b"\x01" * 16, "00" * 16),
    ("02" + "00" * 31, b"\xfd" + b"\xff" * 15, "fa" + "ff" * 15),
    (
        "0100000000000000" + "0400000000000000" + "00" * 16,
        bytes.fromhex(
            "e33594d7505e43b900000000000000003394d7505e4379cd01000000000000000000000000000000000000000000000001000000000000000000000000000000"
        ),
        "14000000000000005500000000000000",
    ),
    (
        "0100000000000000" + "0400000000000000" + "00" * 16,
        bytes.fromhex("e33594d7505e43b900000000000000003394d7505e4379cd010000000000000000000000000000000000000000000000"),
        "13" + "00" * 15,
    ),
]


_LONG = "int has_long_mode(void) { return 1; }\n"
_SHORT = "int has_long_mode(void) { return 0; }\nvoid blocks_long(void) { __builtin_trap(); }\n"


@pytest.fixture(scope="module", params=["32 bits", "64 bits"])
def poly1305(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Poly1305:
    """The loader's own: its C alone, as it is where a processor has no words of 64 bits, and with its assembly."""
    folder, made = shipped("guest") / "loader", tmp_path_factory.mktemp("loader") / "poly1305.so"
    other, long = made.with_name("other.c"), [folder / "long.S"] if request.param == "64 bits" else []
    other.write_text(_LONG if long else _SHORT)
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover", "-fno-sanitize=alignment"]
    built = ["gcc", *flags, "-static-libubsan", "-shared", "-fPIC", "-I", folder, "-o", made, folder / "poly1305.c", other, *long]
    subprocess.run(built, check=True)
    function = ctypes.CDLL(str(made)).poly1305

    def tag(key: bytes, data: bytes) -> str:
        found = ctypes.create_string_buffer(16)
        function(data, ctypes.c_uint32(len(data)), key, found)
        return found.raw.hex()

    return tag


@pytest.mark.parametrize(("key", "data", "tag"), RFC)
def test_the_vectors_of_the_rfc(poly1305: Poly1305, key: str, data: bytes, tag: str) -> None:
    assert poly1305(bytes.fromhex(key), data) == tag


def test_the_vectors_behind_blocks_that_leave_the_sum_at_nothing(poly1305: Poly1305) -> None:
    """Long enough for words of 64 bits. By r = 1 each block of zeros adds 2^128, so four of them add 2^130, which is 5."""
    for key, data, tag in RFC:
        if key.startswith("01" + "00" * 15):
            whole = int.from_bytes(bytes.fromhex(tag), "little")
            got = poly1305(bytes.fromhex(key), b"\0" * (16 * 400) + data)
            assert int.from_bytes(bytes.fromhex(got), "little") == (whole + 400 // 4 * 5) % (1 << 128)


def test_the_loader_and_the_lab_compute_the_same(poly1305: Poly1305, tmp_path: Path) -> None:
    luck = random.Random(1305)  # so that a failure repeats
    file = tmp_path / "kernel"
    for size in [*range(70), 4095, 4096, 4097, 65536, 262_144, 1_000_003]:
        for data in (luck.randbytes(size), b"\xff" * size):
            file.write_bytes(data)
            seal = Seal()
            assert seal.describe("kernel", file, "", "") == describe(file, "", "")
            assert seal.tags["kernel"] == poly1305(seal.key, data)


def test_each_changed_bit_and_each_lost_byte_is_seen(poly1305: Poly1305) -> None:
    data, key = random.Random(7).randbytes(4099), Seal().key
    seen = {poly1305(key, data)}
    for at in [*range(0, len(data), 61), *range(len(data) - 40, len(data))]:
        for bit in range(8):
            seen.add(poly1305(key, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]))
        seen.add(poly1305(key, data[:at]))
    seen.add(poly1305(key, data + b"\0"))
    assert len(seen) == 1 + len({*range(0, len(data), 61), *range(len(data) - 40, len(data))}) * 9 + 1


def test_each_offer_has_a_key_of_its_own_and_the_script_names_each_tag(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"a kernel")
    scripts = []
    for _ in range(2):
        seal = Seal()
        files = {part: seal.describe(part, file, "", "") for part in ("kernel", "cmdline")}
        scripts.append(boot_script("0" * 32, files, seal))
        assert (
            f"/${{loader}} key={seal.key.hex()} kernel={seal.tags['kernel']} cmdline={seal.tags['cmdline']} || goto failed" in scripts[-1]
        )
    assert scripts[0] != scripts[1]


def test_a_file_that_changes_while_it_is_offered(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"a kernel")
    before = describe(file, "", "")
    file.write_bytes(b"another!")
    with pytest.raises(DeployError, match="has changed"):
        Seal().again("kernel", before, "rack1")
