"""Hostile console bytes → text that is safe to print.

What a guest writes can move the cursor, retitle the terminal, reverse the reading direction or hide words. Here each such character
becomes visible instead of taking effect; newline and tab are all that keep their meaning.
"""

from __future__ import annotations

import re

LINE_LIMIT = 400
"""Characters of a line that `last_lines` keeps."""

# Controls (Cc), formats (Cf: bidi, zero width, tags), surrogates (Cs), line and paragraph separators (Zl, Zp), and what fonts draw
# as nothing: joiners, fillers, variation selectors. Written out since asking unicodedata for all 1.1 million takes 0.2 s at import.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
LINE_END = rb"\r{0,8}\n"
"""Of a line of a console: each that it goes through may add a ``\\r`` of its own, as Xen's does to what its first machine's kernel says."""
_LINE_END = re.compile("\r+\n")


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"<U+{code:04X}>"


def visible(data: bytes | str) -> str:
    """Printable text: ``\\r\\n`` becomes ``\\n``, ESC becomes ``␛``, other controls their Unicode picture, invisible and
    direction-changing characters ``<U+202E>``, invalid UTF-8 the replacement character. Applied twice it changes nothing more."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return _UNSAFE.sub(_picture, _LINE_END.sub("\n", text))


def last_lines(data: bytes, count: int = 10) -> str:
    """The last ``count`` lines that are not blank, `visible`, each cut to `LINE_LIMIT` characters."""
    lines = [line.rstrip() for line in visible(data).split("\n")]
    kept = [line for line in lines if line][-count:] if count > 0 else []
    return "\n".join(line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}… ({len(line) - LINE_LIMIT} more)" for line in kept)
