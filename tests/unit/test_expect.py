"""pexpect's API over a transcript behaves as pexpect does, and knows when each match was there."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pexpect.fdpexpect import fdspawn

from labctl.errors import StorageError
from labctl.machine.expect import ConsoleExpect
from labctl.machine.transcript import Transcript


class Typed(list[bytes]):
    """What was typed on the console."""


def console(transcript: Transcript, **options: Any) -> tuple[ConsoleExpect, Typed]:
    typed = Typed()
    return ConsoleExpect(transcript, typed.append, **{"since": 0, "timeout": 5, **options}), typed


def test_a_dialogue() -> None:
    transcript = Transcript()
    me, typed = console(transcript)
    transcript.feed(b"Debian\r\nlogin: ", 100)
    assert me.expect([rb"Password:", rb"log(in): "]) == 1
    assert (me.before, me.after, me.match.group(1), me.match_time_ns) == (b"Debian\r\n", b"login: ", b"in", 100)
    assert me.sendline("root") == 5
    transcript.feed(b"root\r\nPass", 200)
    transcript.feed(b"word: # ", 300)
    assert me.expect_exact("Password: ") == 0
    assert (me.before, me.match_time_ns) == (b"root\r\n", 300)
    assert me.expect("# ", timeout=0) == 0
    me.send(b"\x03")
    me.sendcontrol("d")
    me.writelines(["a", b"b"])
    assert typed == [b"root\n", b"\x03", b"\x04", b"a", b"b"]
    with pytest.raises(ValueError, match="no Ctrl-1"):
        me.sendcontrol("1")


def test_the_time_is_of_the_chunk_that_completed_the_match_however_late_one_looks() -> None:
    transcript = Transcript()
    me, _ = console(transcript)
    for number in range(100):
        transcript.feed(b"tick %d;" % number, 1000 + number)
    for number in range(100):
        me.expect(rb"tick (\d+);")
        assert (int(me.match.group(1)), me.match_time_ns) == (number, 1000 + number)


def test_nothing_is_lost_while_no_one_expects(tmp_path: Path) -> None:
    with Transcript(tmp_path, window=1000) as transcript:
        transcript.feed(b"before it was made;")
        me, _ = console(transcript)
        late = ConsoleExpect(transcript, Typed().append)
        transcript.feed(b"x" * 50_000 + b"\r\nready\r\n")
        me.expect("ready")
        assert me.before == b"before it was made;" + b"x" * 50_000 + b"\r\n"
        assert late.expect("before|ready") == 0
        assert late.after == b"ready"


def test_timeout_and_end() -> None:
    transcript = Transcript()
    me, _ = console(transcript)
    transcript.feed(b"half a \x1b[31mprompt")
    began = time.monotonic()
    with pytest.raises(pexpect.TIMEOUT, match=r"half a ␛\[31mprompt"):
        me.expect("never", timeout=0.1)
    assert 0.05 < time.monotonic() - began < 2
    assert me.expect(["never", pexpect.TIMEOUT], timeout=0) == 1
    assert me.match_time_ns is None
    assert me.isalive()
    transcript.end("QEMU exited")
    assert me.expect(["never", pexpect.EOF], timeout=None) == 1
    assert me.before == b"half a \x1b[31mprompt"
    with pytest.raises(pexpect.EOF, match="QEMU exited"):
        me.expect("never")
    assert (me.isalive(), me.flag_eof) == (False, True)
    transcript.resume()
    transcript.feed(b"again")
    assert me.expect("again") == 0
    assert (me.isalive(), me.flag_eof) == (True, False)


def test_it_wakes_up_when_the_words_come() -> None:
    transcript = Transcript()
    me, _ = console(transcript)
    feeder = threading.Timer(0.1, transcript.feed, [b"at last"])
    feeder.start()
    assert me.expect("last", timeout=None) == 0
    feeder.join()


def test_a_full_disk_is_said() -> None:
    transcript = Transcript()
    transcript._disk_error = OSError(28, "No space left on device")
    me, _ = console(transcript)
    with pytest.raises(StorageError, match="No space left"):
        me.expect("x")


def test_lines_reading_and_logfile() -> None:
    transcript = Transcript()
    log = io.BytesIO()
    me, _ = console(transcript, logfile=log)
    transcript.feed(b"one\r\ntwo\r\nthree")
    transcript.end("off")
    assert me.readline() == b"one\r\n"
    assert me.read(3) == b"two"
    assert list(me) == [b"\r\n", b"three"]
    me.send("typed")
    assert log.getvalue() == b"one\r\ntwo\r\nthreetyped"


def test_with_an_encoding() -> None:
    transcript = Transcript()
    me, typed = console(transcript, encoding="utf-8")
    for number, byte in enumerate("größe: 3;ü".encode()[:-1]):
        transcript.feed(bytes([byte]), 10 + number)
    assert me.expect("größe: (\\d);") == 0
    assert (me.match.group(1), me.match_time_ns) == ("3", 10 + len("größe: 3;".encode()) - 1)
    me.sendline("ä")
    assert typed == ["ä\n".encode()]


def test_async_is_refused() -> None:
    me, _ = console(Transcript())
    for call in (lambda: me.expect("x", async_=True), lambda: me.expect_exact("x", async_=True), lambda: me.expect("x", **{"async": True})):
        with pytest.raises(TypeError, match="async_"):
            call()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from([b"a", b"b", b"\r\n", b"ready", b"# ", b"x" * 50]), max_size=30).map(b"".join),
    st.lists(st.sampled_from(["a+", "ready", "b\r\n", "x{3}", "# $", "."]), min_size=1, max_size=4, unique=True),
    st.sampled_from([None, 5, 60]),
    st.booleans(),
)
def test_it_does_what_pexpect_does(stream: bytes, patterns: list[str], window: int | None, exact: bool) -> None:
    def dialogue(it: Any) -> list[tuple[object, ...]]:
        seen: list[tuple[object, ...]] = []
        wanted = [*patterns, pexpect.EOF]
        while True:
            index = (it.expect_exact if exact else it.expect)(wanted, searchwindowsize=window)
            matched = it.match if exact or it.match is pexpect.EOF else it.match.group()
            seen.append((index, it.before, it.after, matched))
            if it.after is pexpect.EOF or len(seen) > 500:
                return seen

    out, into = os.pipe()
    os.write(into, stream)
    os.close(into)
    transcript = Transcript()
    transcript.feed(stream)
    transcript.end("off")
    theirs = fdspawn(out, timeout=5, maxread=1 << 16)
    assert dialogue(console(transcript)[0]) == dialogue(theirs)
    theirs.close()


def test_a_compiled_pattern_and_a_list_of_them() -> None:
    transcript = Transcript()
    me, _ = console(transcript)
    transcript.feed(b"Linux version 6.1")
    assert me.expect_list(me.compile_pattern_list([re.compile(rb"version (\S+)")])) == 0
    assert me.match.group(1) == b"6.1"
