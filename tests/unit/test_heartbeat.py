"""A heartbeat on a console, and how long a soak goes on."""

from __future__ import annotations

import pytest

from labctl.errors import ConfigError
from labctl.parsers.heartbeat import Beat, beats
from labctl.run import soaking

SAID = (
    b"labctl# [    2.100000] heartbeat: 0 up=0.000 gap=0.000 missed=0\r\n"
    b"[    3.101000] heartbeat: 1 up=1.001 gap=0.104 missed=0\r\nlabctl<a1:0:1:0::0:labctl>a1\r\n"
    b"[    9.001000] heartbeat: 2 up=6.901 gap=5.803 missed=57\r\n[    9.500000] heartbeat: end up=7.400 gap=5.803 missed=57 beats=17\r\n"
)


def test_its_lines_are_found_between_others() -> None:
    found = beats(SAID)
    assert [(beat.up, beat.gap, beat.missed, beat.beats) for beat in found] == [
        (0.0, 0.0, 0, None),
        (1.001, 0.104, 0, None),
        (6.901, 5.803, 57, None),
        (7.4, 5.803, 57, 17),
    ]
    assert found[-1].end == len(SAID)
    assert [(beat.first, beat.last) for beat in found] == [(True, False), (False, False), (False, False), (False, True)]


def test_a_line_counts_when_it_is_whole() -> None:
    for at in range(len(SAID)):
        assert beats(SAID[:at]) == [beat for beat in beats(SAID) if beat.end <= at]


def test_what_only_looks_like_one_is_none() -> None:
    for line in (b"heartbeat: x up=1.000 gap=0.100 missed=0\n", b"heartbeat: 1 up=nan gap=0.100 missed=0\n", b"heartbeat: 1 up=9\n"):
        assert beats(line) == []
    assert beats(b"heartbeat: 1 up=1.000 gap=0.100 missed=0\n") == [Beat(1.0, 0.1, 0, end=41)]
    assert beats(b"heartbeat: 1 up=1.000 gap=0.100 missed=0\r\r\n") == [Beat(1.0, 0.1, 0, end=43)], "as Xen's console has it"


@pytest.mark.parametrize(("text", "length"), [("90s", 90), ("30m", 1800), ("8h", 28800), (" 2d ", 172800), ("365d", 31536000)])
def test_how_long(text: str, length: float) -> None:
    assert soaking.seconds(text) == length


@pytest.mark.parametrize("text", ["", "8", "8 h", "-1h", "0s", "1.5h", "366d", "99999999999999999999h", "eight"])
def test_not_a_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--soak.*such as 90s"):
        soaking.seconds(text)


def test_what_is_chosen_reaches_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(soaking.VARIABLE, raising=False)
    soaking.choose(None)
    assert soaking.chosen() == 20
    monkeypatch.setenv(soaking.VARIABLE, "1h")
    soaking.choose(None)
    assert soaking.chosen() == 3600
    soaking.choose("7s")
    assert soaking.chosen() == 7
