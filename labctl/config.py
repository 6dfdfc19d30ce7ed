"""The lab's files → model. Every mistake of a file is reported at once, with the file, the key, what was found and what is allowed.

A lab is the folder that holds ``lab.toml``, found upwards from the working directory.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from labctl.errors import ConfigError, Problem, StorageError
from labctl.model import (
    NAME_PATTERN,
    STORY_FORM,
    STORY_PATTERN,
    GroupConfig,
    GroupFile,
    ImageRecipe,
    LabConfig,
    MatrixConfig,
    Recipe,
    StoriesConfig,
    SuiteConfig,
    Target,
    TargetConfig,
    ToolRecipe,
)

M = TypeVar("M", bound=BaseModel)

MAX_CONFIG_BYTES = 1 << 20
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")
"""Of a target, a build or a matrix: it becomes part of the names of folders, of cells, and of what is given to other programs."""

# What is allowed, in the words of the file, by pydantic's names for its errors: those of the left are Python's.
_ALLOWED = {
    "string": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a number",
    "bool": "true or false",
    "tuple": "a list, in [ ]",
    "list": "a list, in [ ]",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
}
_TWICE = re.compile(
    r"(?:Cannot overwrite a value|Cannot declare \(.+\) twice|Duplicate inline table key '(?P<inline>.+)')"
    r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)$"
)
_KEY = re.compile(r"""\s*\[{0,2}((?:"[^"]*"|'[^']*'|[\w.\s-])+)[\]=]""")
_LONGEST_STATEMENT = 20
"""Lines."""


def cache_folder() -> Path:
    """Where labctl keeps what it can make again: ``$LABCTL_CACHE``, else ``labctl`` in the user's cache folder. It may not exist yet."""
    if own := os.environ.get("LABCTL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labctl"


def cache_error(path: Path, error: OSError) -> StorageError:
    """What could not be done in the cache, and what mends it: a file that stands where a folder must be is named."""
    place, elsewhere = Path(error.filename) if isinstance(error.filename, str) else path, "export LABCTL_CACHE=/some/other/folder"
    in_the_way = next((each for each in reversed((place, *place.parents)) if each.exists() and not each.is_dir()), None)
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and in_the_way is not None:
        found = f"the cache cannot be used: {in_the_way} is a file where a folder must be"
        return StorageError(found, remedy=f"rm {in_the_way}, or: {elsewhere}")
    mend = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see that it can be written"
    return StorageError(f"the cache cannot be used: {place}: {error.strerror}", remedy=f"{mend}, or: {elsewhere}")


def shipped(folder: str) -> Path:
    """A folder that comes with labctl (``guest``, ``targets``, ``kernel`` ...): inside the installed package, else in the checkout."""
    package = Path(__file__).parent
    installed = package / "_lab"
    return (installed if installed.is_dir() else package.parent) / folder


def nearest(name: str, known: Iterable[str]) -> str:
    """The one-line hint behind an unknown name: the nearest one, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}? (known: {_enumerate(known)})"
    return f"known: {_enumerate(known)}" if known else "there is none yet"


def _enumerate(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, … {len(names) - most} more" if len(names) > most else shown


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises ConfigError for one that is missing, no regular file, too large, not UTF-8 or not TOML (duplicate
    keys too)."""
    try:
        raw = _regular(path)
    except OSError as error:
        raise ConfigError([Problem(_shown(path), "", f"cannot be read: {error.strerror}", "a readable TOML file")]) from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError([Problem(_shown(path), "", "is too long", f"at most {MAX_CONFIG_BYTES} bytes")])
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(_shown(path), "", f"is not UTF-8 text: byte {raw[error.start]:#04x} in line {line}", "")]) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(str(error), text, _shown(path))]) from None


def _regular(path: Path) -> bytes:
    """A little more than `MAX_CONFIG_BYTES` of a file at most. Anything else than a file is not waited for: a pipe may never say a word."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ConfigError([Problem(_shown(path), "", "is not a regular file", "a readable TOML file")])
        return file.read(MAX_CONFIG_BYTES + 1)


def _syntax(said: str, text: str, where: str) -> Problem:
    """What tomllib says; of a key that stands twice also which one: tomllib tells only where it was when it noticed."""
    if twice := _TWICE.match(said):
        number, key = _last_statement(text, int(twice["line"] or 0))
        if key:
            return Problem(where, twice["inline"] or key, f"stands twice, the second time in line {number}", "each key and table once")
    return Problem(where, "", f"not valid TOML: {said[:1].lower()}{said[1:]}", "")


def _last_statement(text: str, noticed: int) -> tuple[int, str]:
    """Line and key of the statement that ends in line ``noticed`` (0: the last one): all before it is valid.

    The key is empty if the statement is a long one.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    last = noticed or len(lines)
    for number in range(last, max(0, last - _LONGEST_STATEMENT), -1):
        try:
            tomllib.loads("\n".join(lines[: number - 1]))
        except tomllib.TOMLDecodeError:
            continue
        found = _KEY.match(lines[number - 1])
        return number, found[1].strip() if found else ""
    return last, ""


def validate(model: type[M], data: Mapping[str, Any], where: str, prefix: str = "") -> M:
    """Check ``data`` against a model. Raises ConfigError with every mistake in it."""
    problems: list[Problem] = []
    try:
        checked = model.model_validate(dict(data))
    except ValidationError as error:
        problems = [_problem(model, e, where, prefix) for e in error.errors(include_url=False)]
    told = {problem.key for problem in problems}
    for path, found, allowed in (*_truths(model, data), *_nul(data)):
        key = ".".join([prefix, *path] if prefix else path)
        if key not in told:
            problems.append(Problem(where, key, f"found {_short(found)}", allowed))
    if problems:
        raise ConfigError(problems)
    return checked


def _truths(model: type[BaseModel], data: Mapping[str, Any]) -> Iterator[tuple[list[str], object, str]]:
    """Where ``true`` or ``false`` stands for a number, or a number or a word for them: Python, and so pydantic, takes 1 for true, and
    pydantic ``"off"`` for false."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key in data:
            yield from _truths_in(list(_kinds(field.annotation)), data[key], [key])


def _truths_in(kinds: list[Any], value: Any, path: list[str]) -> Iterator[tuple[list[str], object, str]]:
    if bool in kinds and Any not in kinds and isinstance(value, str | int | float) and not isinstance(value, bool):
        if not ({str} if isinstance(value, str) else {int, float}).intersection(kinds):
            yield path, value, _ALLOWED["bool"]
        return
    if isinstance(value, bool):
        if bool not in kinds and Any not in kinds and {int, float}.intersection(kinds):
            yield path, value, _ALLOWED["int" if int in kinds else "float"]
        return
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for model in (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)):
        if isinstance(value, Mapping):
            for found, wrong, allowed in _truths(model, value):
                yield [*path, *found], wrong, allowed
            inner = ()
    for name, each in inner:
        yield from _truths_in(kinds, each, [*path, str(name)])


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that a field's annotation is made of; a literal's are those of its values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, arguments)
    elif origin is Annotated:
        yield from _kinds(arguments[0])
    elif arguments:
        for argument in arguments:
            yield from _kinds(argument)
    else:
        yield annotation


def _nul(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], object, str]]:
    """Where a text holds the character that ends a text everywhere else: no program can be given it."""
    if isinstance(value, str) and "\0" in value:
        yield list(path), value, "text without the character U+0000"
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield from _nul(each, (*path, str(name)))
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _nul(each, (*path, str(number)))


def _problem(model: type[BaseModel], error: Any, where: str, prefix: str) -> Problem:
    location = [str(part) for part in error["loc"] if part != "[key]"]
    key = ".".join(([prefix] if prefix else []) + location)
    found = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            known = _keys_at(model, location[:-1])
            return Problem(where, key, "unknown key", nearest(location[-1], known) if known else "no such key here")
        case "missing":
            return Problem(where, key, "missing", "this key is required")
        case "secret":
            return Problem(where, key, error["ctx"]["found"], error["ctx"]["allowed"])
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == NAME_PATTERN:
            return Problem(where, key, f"found {found!r}", "a name of lower-case letters, digits and . _ + - (64 at most)")
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == STORY_PATTERN:
            return Problem(where, key, f"found {found!r}", STORY_FORM)
    return Problem(where, key, f"found {_short(found)}", _allowed(error))


def _allowed(error: Any) -> str:
    """What is allowed at the place of one of pydantic's errors, in words of the file instead of Python's."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"text that fits {context['pattern']}"
    if kind in ("too_short", "string_too_short"):
        return f"at least {context['min_length']} {'entry' if kind == 'too_short' else 'character'}"
    if known := _ALLOWED.get(re.sub(r"_(type|parsing|from_float|attributes_type|parsing_size)$", "", kind)):
        return known
    if kind in ("literal_error", "enum"):
        return f"allowed: {context['expected']}"
    said: str = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    said = said.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return said[:1].lower() + said[1:]


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names that a model takes at a path; [] where the path leaves it."""
    current: Any = model
    for part in path:
        if part.isdigit():
            continue
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    if not (isinstance(current, type) and issubclass(current, BaseModel)):
        return []
    return [f.alias or name for name, f in current.model_fields.items()]


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def group_problems(file: GroupFile, parts: Mapping[str, TargetConfig], where: str) -> list[Problem]:
    """What is wrong with a target of several machines, as far as those that could be read (``parts``) tell."""
    problems: list[Problem] = []
    first, *others = parts or [""]
    for machine in others:
        if parts[machine].arch != parts[first].arch:
            found = f"{machine} is {parts[machine].arch}, {first} is {parts[first].arch}"
            problems.append(Problem(where, f"machines.{machine}", found, "one architecture: all boot one build"))
    for name, wanted in Counter(file.machines.values()).items():
        machine = next(m for m, n in file.machines.items() if n == name)
        if machine in parts and parts[machine].instances < wanted:
            found = f"takes {name} {wanted} times, which has instances = {parts[machine].instances}"
            problems.append(Problem(where, "machines", found, "as many as there are at once"))
    taken: dict[str, int] = {}
    for number, link in enumerate(file.links):
        for end in link.between:
            machine, _, card = end.partition(".")
            key = f"links.{number}.between"
            if machine not in file.machines:
                problems.append(Problem(where, key, f"found {end!r}: no such machine", nearest(machine, file.machines)))
            elif machine in parts and (card not in parts[machine].nics or parts[machine].nics[card].to != "link"):
                known = [n for n, nic in parts[machine].nics.items() if nic.to == "link"]
                problems.append(Problem(where, key, f"found {end!r}: no card of {machine} that goes to a link", nearest(card, known)))
            elif end in taken:
                problems.append(Problem(where, key, f"{end} has a cable already, links.{taken[end]}", "one cable a card"))
            taken.setdefault(end, number)
    return problems


@dataclass(frozen=True)
class Lab:
    """A lab on disk. Its files are read when asked for, each once."""

    root: Path
    config: LabConfig

    @classmethod
    def find(cls, start: Path | None = None) -> Lab:
        """The lab that ``start`` (default: the working directory) lies in. ConfigError if there is none."""
        start = (start or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            file = folder / "lab.toml"
            if file.is_file():
                return cls(folder, validate(LabConfig, read_toml(file), _shown(file)))
            if os.path.lexists(file):
                raise ConfigError([Problem(_shown(file), "", "is not a regular file", "a readable TOML file")])
        raise ConfigError(
            [Problem(str(start), "", "is not in a lab: there is no lab.toml here or in any folder above", "")],
            remedy="labctl init DIR makes a new lab; or change into one",
        )

    @property
    def results(self) -> Path:
        return self.root / self.config.results

    def _names(self, folder: str) -> dict[str, Path]:
        return {p.stem: p for p in sorted((self.root / folder).glob("*.toml"))}

    @cached_property
    def target_files(self) -> dict[str, Path]:
        return self._names("targets")

    @cached_property
    def recipe_files(self) -> dict[str, Path]:
        """Recipes of kernels and hypervisors by name. ConfigError if one name stands in both folders."""
        kernels, hypervisors = self._names("kernel"), self._names("hypervisor")
        for folder in ("kernel", "hypervisor"):
            found = kernels if folder == "kernel" else hypervisors
            found |= {p.parent.name: p for p in sorted((self.root / folder).glob("*/build.toml"))}
        if twice := sorted(kernels.keys() & hypervisors.keys()):
            raise ConfigError([Problem(_shown(hypervisors[n]), "", f"a kernel is named {n!r} too", "one name, one build") for n in twice])
        return kernels | hypervisors

    @cached_property
    def matrix_files(self) -> dict[str, Path]:
        return self._names("matrix")

    @cached_property
    def tool_files(self) -> dict[str, Path]:
        """Recipes of tools for the machine by name: those that come with labctl, and the lab's own, which win."""
        return {p.stem: p for p in sorted(shipped("guest").glob("tools/*.toml"))} | self._names("guest/tools")

    @cached_property
    def image_files(self) -> dict[str, Path]:
        """Recipes of root file systems by name: those that come with labctl, and the lab's own, which win."""
        return {p.stem: p for p in sorted(shipped("guest").glob("images/*.toml"))} | self._names("guest/images")

    @cached_property
    def suites(self) -> dict[str, Path]:
        """Suite name → folder, for each folder of ``suites/`` that holds a pytest file, itself or in a folder below."""
        return {p.name: p for p in sorted((self.root / "suites").glob("*/")) if any(p.rglob("test_*.py"))}

    def target(self, name: str) -> Target:
        """Read one target. ConfigError with the nearest name if it is unknown."""
        path = self._known(name, self.target_files, "target")
        data = read_toml(path)
        if "machines" in data:
            return Target(name, self._group(validate(GroupFile, data, _shown(path)), _shown(path)))
        return Target(name, validate(TargetConfig, data, _shown(path)))

    def _group(self, file: GroupFile, where: str) -> GroupConfig:
        """The machines that a target of several names, and what they take together. ConfigError with every mistake."""
        problems: list[Problem] = []
        parts: dict[str, TargetConfig] = {}
        for machine, name in file.machines.items():
            try:
                parts[machine] = self._part(name)
            except ConfigError as error:
                problems += [replace(p, where=where, key=f"machines.{machine}") if not p.key else p for p in error.problems]
        problems += group_problems(file, parts, where)
        if problems:
            raise ConfigError(problems)
        return GroupConfig(
            description=file.description,
            tags=file.tags,
            arch=next(iter(parts.values())).arch,
            cpus=sum(part.cpus for part in parts.values()),
            memory=sum(part.memory for part in parts.values()),
            machines=parts,
            of=file.machines,
            links=file.links,
            schema=1,
        )

    def _part(self, name: str) -> TargetConfig:
        path = self._known(name, self.target_files, "target")
        data = read_toml(path)
        if "machines" in data:
            raise ConfigError([Problem("", "", f"{name} has several machines itself", "a target of one machine")])
        return validate(TargetConfig, data, _shown(path))

    def machine(self, name: str) -> Target:
        """Read a target that is one machine. ConfigError too for one of several, which says what they are."""
        target = self.target(name)
        if several := target.machines:
            each = ", ".join(f"{machine} is {part.name}" for machine, part in zip(several, target.parts, strict=True))
            first = target.parts[0].name
            raise ConfigError(f"target {name} has {len(several)} machines: {each}", remedy=f"name one of those, such as {first}")
        return target

    def recipe(self, name: str) -> Recipe:
        """Read one recipe; the table named after its builder becomes ``options``. ConfigError, also for a tool without a recipe."""
        path = self._known(name, self.recipe_files, "build")
        recipe = _with_options(Recipe, path)
        if unknown := self._unknown_tools(recipe.tools, path):
            raise ConfigError(unknown)
        return recipe

    def recipe_overlay(self, name: str) -> Path | None:
        """The folder ``overlay`` beside a recipe's ``build.toml``: files of the machine. None if there is none."""
        path = self.recipe_files.get(name)
        folder = path.parent / "overlay" if path is not None and path.name == "build.toml" else None
        return folder if folder is not None and folder.is_dir() else None

    def _unknown_tools(self, tools: Iterable[str], file: Path) -> list[Problem]:
        unknown = [tool for tool in tools if tool not in self.tool_files]
        return [Problem(_shown(file), "tools", f"unknown tool {tool!r}", nearest(tool, self.tool_files)) for tool in unknown]

    def tool(self, name: str) -> ToolRecipe:
        """Read one tool's recipe; the table named after its builder becomes ``options``."""
        return _with_options(ToolRecipe, self._known(name, self.tool_files, "tool"))

    def matrix(self, name: str) -> MatrixConfig:
        path = self._known(name, self.matrix_files, "matrix")
        return validate(MatrixConfig, read_toml(path), _shown(path))

    def suite(self, name: str) -> Path:
        return self._known(name, self.suites, "suite")

    def suite_config(self, name: str) -> SuiteConfig:
        """What a suite needs in the machine: its ``suite.toml``, or nothing. ConfigError, also for a tool without a recipe."""
        path = self.suite(name) / "suite.toml"
        if not os.path.lexists(path):
            return SuiteConfig(schema=1)
        config = validate(SuiteConfig, read_toml(path), _shown(path))
        problems = self._unknown_tools(config.tools, path)
        if config.image is not None and config.image not in self.image_files:
            problems.append(Problem(_shown(path), "image", f"unknown image {config.image!r}", nearest(config.image, self.image_files)))
        if problems:
            raise ConfigError(problems)
        return config

    @cached_property
    def stories(self) -> Mapping[str, str]:
        """The titles of the plan's stories, from ``stories.toml``; none where there is no such file. ConfigError."""
        path = self.root / "stories.toml"
        return validate(StoriesConfig, read_toml(path), _shown(path)).stories if os.path.lexists(path) else {}

    def image(self, name: str) -> ImageRecipe:
        path = self._known(name, self.image_files, "image")
        return validate(ImageRecipe, read_toml(path), _shown(path))

    def _known(self, name: str, known: Mapping[str, Path], kind: str) -> Path:
        if name in known and kind != "suite" and not FILE_NAME.fullmatch(name):
            allowed = "letters, digits and . _ + - (64 at most), beginning with a letter, a digit or _"
            raise ConfigError([Problem(_shown(known[name]), "", f"a {kind} cannot have the name {name!r}", allowed)])
        if name in known:
            return known[name]
        raise ConfigError(f"unknown {kind} {name!r}; {nearest(name, known)}")


def _with_options(model: type[M], path: Path) -> M:
    """A recipe, with the table named after its builder as ``options``."""
    data = read_toml(path)
    builder = data.get("builder")
    if "options" in data:
        own = f"[{builder}]" if isinstance(builder, str) else "named after the builder"
        raise ConfigError([Problem(_shown(path), "options", "unknown key", f"a builder's options stand in the table {own}")])
    if isinstance(builder, str) and builder in data and builder not in model.model_fields:
        data["options"] = data.pop(builder)
    try:
        return validate(model, data, _shown(path))
    except ConfigError as error:
        # In a file that table has the builder's name.
        own = f"[{builder}]" if isinstance(builder, str) else "the builder's own table"
        known = [own if name == "options" else name for name in _keys_at(model, [])]
        raise ConfigError([_at_the_top(problem, known) for problem in error.problems]) from None


def _at_the_top(problem: Problem, known: list[str]) -> Problem:
    if problem.found != "unknown key" or "." in problem.key:
        return problem
    return replace(problem, allowed=nearest(problem.key, known))


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
