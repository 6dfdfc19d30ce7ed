"""The stories of the plan that tests prove, by ``@pytest.mark.story("US-14")``: checked, and read from a suite without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labctl.errors import ConfigError, Problem
from labctl.model import STORY_FORM, STORY_PATTERN

MARKER = "story"


def why_no_story(arguments: Sequence[object], keywords: Mapping[str, object]) -> str:
    """What is wrong with the arguments of a marker; empty if nothing is."""
    for name, value in keywords.items():
        return f"{name}={value!r}; allowed: {STORY_FORM}"
    for value in arguments:
        if not isinstance(value, str) or not re.fullmatch(STORY_PATTERN, value):
            return f"found {value!r}; allowed: {STORY_FORM}"
    return "" if arguments else f"names no story; allowed: {STORY_FORM}"


def check_form(stories: Sequence[str], where: str, key: str) -> None:
    """ConfigError for a text that is no story."""
    if wrong := [story for story in stories if not re.fullmatch(STORY_PATTERN, story)]:
        raise ConfigError([Problem(where, key, f"found {story!r}", STORY_FORM) for story in wrong])


def stories_of(suite: Path) -> frozenset[str]:
    """Every story that a marker in a suite's files names. A file that is no Python is passed over: pytest tells what is wrong with it."""
    return frozenset(story for file in sorted({*suite.rglob("test_*.py"), *suite.rglob("*_test.py")}) for story in _named(file))


def _named(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARKER:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value
