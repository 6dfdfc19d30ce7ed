"""Where something is on a network, as a driver's options say it: what cannot be a host or a port is told when the file is read."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from labctl.secrets import without_password

_LABEL = r"\w(?:[\w-]{0,61}\w)?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
"""RFC 1123, 2.1, and what is in use beside it: underscores, letters of other alphabets."""
_LONGEST = 253


def _host(text: str) -> str:
    if not _is_host(text):
        allowed = "a host's name or its address, and nothing else"
        if "://" in text:
            allowed += f", such as {urlsplit(text).hostname or 'rack1-bmc'}"
        elif re.fullmatch(r".+:\d+", text):
            allowed += "; its port is a key of its own"
        raise ValueError(allowed)
    return text


def _is_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        last = text.rstrip(".").rpartition(".")[2]
        # A number at the end is of an address that is none (RFC 1123, 2.1).
        return len(text) <= _LONGEST and bool(_NAME.fullmatch(text)) and not last.isdecimal()
    return True


def _url(text: str) -> str:
    try:
        host, _ = urlsplit(text).hostname, urlsplit(text).port
    except ValueError:
        host = None
    if not _is_host(host or ""):
        raise ValueError("http://HOST or https://HOST, with :PORT behind it where it is another one")
    return text


Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
PortOrAny = Annotated[int, Field(strict=True, ge=0, le=65535)]
"""0: one that is free."""
Url = Annotated[str, AfterValidator(without_password), AfterValidator(_url)]
"""Of a web server; the password that it wants is an option of its own."""
