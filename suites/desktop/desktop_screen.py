"""The screen of the tiny guest: what stands where (guest/tools/tinyguest/tiny.c)."""

from labctl.display.canvas import Box

TITLE, COUNT, TYPED = 0, 1, 2
"""Lines of its text screen: its title, the number of its beat, what is typed first."""
LAST_LINE = 24
COLUMNS = 80
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
FRAME = Box(0, 0, 32 * 16, 16)
"""Of its picture: the number of the frame, a bit in each block."""


def cell(column, line, columns=1):
    """Characters of the text screen: nine pixels wide each, sixteen high. The cursor, which blinks, is on none that a test looks at."""
    return Box(9 * column, 16 * line, 9 * columns, 16)
