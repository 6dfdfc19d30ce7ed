"""What suites read from the environment: values, and each mistake in one go."""

from __future__ import annotations

import pytest

from labctl.errors import ConfigError
from labctl.run.settings import Bytes, Number, from_environment

SECONDS = Number("OWN_SECONDS", 5, 1, 86400, "seconds")
COUNT = Number("OWN_COUNT", 2, 1, 1000, "power cuts", whole=True)
SIZE = Bytes("OWN_SIZE", 1 << 30, 1 << 20)


def test_defaults_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_SECONDS", "")
    assert from_environment((SECONDS, COUNT, SIZE)) == [5, 2, 1 << 30]
    for name, text in (("OWN_SECONDS", " 2.5 "), ("OWN_COUNT", "1000"), ("OWN_SIZE", "512M")):
        monkeypatch.setenv(name, text)
    assert from_environment((SECONDS, COUNT, SIZE)) == [2.5, 1000, 512 << 20]


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf", "1e99", "0x10", "86401", "5s", "0.5", " "])
def test_what_is_no_number_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("OWN_SECONDS", text)
    with pytest.raises(ConfigError) as told:
        from_environment((SECONDS,))
    assert str(told.value) == f"environment: OWN_SECONDS: found {text!r}; a number of seconds, from 1 to 86400"


def test_all_mistakes_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("OWN_SECONDS", "abc"), ("OWN_COUNT", "1.5"), ("OWN_SIZE", "-1")):
        monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as told:
        from_environment((SECONDS, COUNT, SIZE))
    assert [problem.key for problem in told.value.problems] == ["OWN_SECONDS", "OWN_COUNT", "OWN_SIZE"]
    monkeypatch.setenv("OWN_SIZE", "0")
    with pytest.raises(ConfigError, match="found '0'; a size such as 512M or 4G, at least 1M"):
        from_environment((SIZE,))
