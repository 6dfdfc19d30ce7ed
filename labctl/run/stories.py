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
    """Every story that a marker in a suite's files names."""
    return frozenset(by_story(suite))


def by_story(suite: Path) -> dict[str, tuple[str, ...]]:
    """By story the tests of a suite that prove it, ``test_it.py::test_create``, in their order, whatever they are parametrized by. A file
    that is no Python is passed over: pytest tells what is wrong with it."""
    found: dict[str, list[str]] = {}
    for file in sorted({*suite.rglob("test_*.py"), *suite.rglob("*_test.py")}):
        for story, test in _of_file(file):
            found.setdefault(story, []).append(f"{file.name}::{test}")
    return {story: tuple(dict.fromkeys(tests)) for story, tests in found.items()}


def behind_stories(suites: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """By story all tests of a lab that prove it: ``SUITE/test_it.py::test_create``."""
    found: dict[str, list[str]] = {}
    for name, folder in sorted(suites.items()):
        for story, tests in by_story(folder).items():
            found.setdefault(story, []).extend(f"{name}/{test}" for test in tests)
    return {story: tuple(tests) for story, tests in found.items()}


def _of_file(file: Path) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_bytes()
        tree = ast.parse(text) if MARKER.encode() in text else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return
    yield from _of_body(tree.body, ())


def _of_body(body: Sequence[ast.stmt], around: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of a module or a class: its own marks are those of each test in it."""
    own = [*around, *(story for node in body if _is_mark(node) for story in _named(node))]
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _of_body(node.body, [*own, *(story for each in node.decorator_list for story in _named(each))])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            for story in (*own, *(story for each in node.decorator_list for story in _named(each))):
                yield story, node.name


def _is_mark(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(each, ast.Name) and each.id == "pytestmark" for each in node.targets)


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARKER:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value
