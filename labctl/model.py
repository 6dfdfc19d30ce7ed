"""The words of the lab as frozen values. No I/O here; every wing may import it.

Units are SI: seconds, bytes, counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from labctl.promise import Promise, Promises, promise
from labctl.size import Size, at_least

SCHEMA = 1
"""Version of every file labctl writes."""

NAME_PATTERN = r"^[a-z0-9][a-z0-9._+-]{0,63}$"
"""Builds, targets, suites and matrices: safe as a file name, a URL part and a shell word."""

STORY_PATTERN = r"^US-[1-9][0-9]{0,4}$"
"""A story of the plan, as its tests name it."""
STORY_FORM = "a story such as US-14: US-, then its number"


LEAST_MEMORY = 16 << 20


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _one_line(value: str) -> str:
    if found := _CONTROL.search(value):
        raise ValueError(f"words without control characters (there is {found[0]!r} in it)")
    return value


def _interface(value: str) -> str:
    if value and "/" not in value:
        raise ValueError("an address with its prefix, such as 192.168.1.20/24")
    return str(ip_interface(value)) if value else value


def _address(value: str) -> str:
    return str(ip_address(value)) if value else value


Words = Annotated[str, AfterValidator(_one_line)]
"""Of a kernel's command line."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
ModuleName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Seconds = Annotated[float, Field(gt=0, le=86400 * 7)]


class Milestone(StrEnum):
    """A named first match on the console, in the order in which a boot reaches them."""

    FIRMWARE = "firmware"
    KERNEL_ENTRY = "kernel_entry"
    INIT = "init"
    READY = "ready"


class Channel(StrEnum):
    """How a figure was taken: real time, or counted instructions. Never mixed."""

    WALL = "wall"
    ICOUNT = "icount"


class Direction(StrEnum):
    """Which way a metric gets better."""

    LOWER = "lower"
    HIGHER = "higher"
    EXACT = "exact"
    NONE = "none"


class Outcome(StrEnum):
    """Of a test, an attempt, a cell or a run.

    ``error`` is the lab's fault, ``invalid`` a measurement that must not be trusted, ``flaky`` a cell that passed only when tried again.
    """

    PASS = "pass"
    FLAKY = "flaky"
    SKIP = "skip"
    INVALID = "invalid"
    FAIL = "fail"
    ERROR = "error"


class PowerState(StrEnum):
    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


# --- files of the lab -------------------------------------------------------------------------------------------------


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # most verbs read few kinds of file


class BootExpectation(_File):
    """What a boot on this target is given: it belongs to the target, because emulation is slow and hardware is not."""

    deadline: Seconds = 120.0
    """From power-on to ``ready``."""
    silence: Seconds = 45.0
    """No byte on the console for this long before ``ready`` means that the machine hangs."""
    end: Seconds | None = None
    """A kernel that has reported its own tests ends the machine within this time. Absent: it need not; what it says for 2 s is read."""


class Nic(_File):
    """``[nics.NAME]`` of a target: a network card, and what is at the other end of its cable."""

    to: Literal["host", "link"]
    """``host``: the host that runs the lab. ``link``: a card of another machine, where a target of several says which."""
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$")] = ""
    """Empty: an emulator takes one that is made from the names of target and card, and never changes."""
    address: Annotated[str, AfterValidator(_interface)] = ""
    """What the machine is to be called on this card, with its prefix: ``10.0.2.15/24``."""
    peer: Annotated[str, AfterValidator(_address)] = ""
    """The address at which the machine reaches what is at the other end."""
    forward: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    """TCP ports of the machine that the lab reaches over this card: on an emulated one by ports of the host's loopback."""

    @model_validator(mode="after")
    def _only_from_the_host(self) -> Self:
        if self.forward and self.to != "host":
            raise ValueError('forward: only on a card to = "host"')
        if len(set(self.forward)) < len(self.forward):
            raise ValueError("forward: a port is there twice")
        return self


class TargetConfig(_File):
    """``targets/NAME.toml``: a machine that a build can be put on."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    arch: Literal["x86_64", "aarch64", "riscv64"] = "x86_64"
    cpus: Annotated[int, Field(ge=1, le=4096)]
    """CPUs of the machine; of one that runs on the lab's host, what a cell on it takes of the host's at most."""
    memory: Annotated[Size, AfterValidator(at_least(LEAST_MEMORY, ": no machine starts with less"))]
    """Memory of the machine in bytes; of one that runs on the lab's host, what a cell on it takes of the host's."""
    on_host: bool = False
    """A server that has no CPUs and memory of its own, but those of the lab's host: a virtual one. An emulator's machine always has."""
    disk: Annotated[Size, AfterValidator(at_least(1 << 20, "; leave it out for none"))] | None = None
    tags: tuple[str, ...] = ()
    instances: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many owners may hold it at once: 1 for a real machine, more for a config of an emulator."""
    nics: Mapping[Name, Nic] = {}
    """Its network cards by name."""
    append: Words = ""
    """Words that this machine needs on the kernel's command line (its console, what emulation needs)."""
    channel: Channel = Channel.WALL
    """How figures are taken on it unless the matrix or the command line says otherwise."""
    console_log: Annotated[Size, AfterValidator(at_least(1 << 20, ": a boot must be whole"))] = 64 << 20
    """Bytes that the record of its console may take on disk, in an attempt: of a longer one beginning and end are kept."""
    boot: BootExpectation = BootExpectation()
    drivers: Annotated[Mapping[str, Mapping[str, Any]], Field(min_length=1)]
    """Driver name → its options; each driver fills the roles that it has."""


class Link(_File):
    """A cable between two machines of a target: ``between = ["a.lan", "b.lan"]``, each MACHINE.CARD."""

    between: tuple[str, str]


class GroupFile(_File):
    """``targets/NAME.toml`` with a table ``[machines]``: several machines that a cell has at once."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    tags: tuple[str, ...] = ()
    machines: Annotated[Mapping[Name, str], Field(min_length=2, max_length=64)]
    """What a test calls it → the target that it is."""
    links: tuple[Link, ...] = ()


class GroupConfig(TargetConfig):
    """A target of several machines as a cell has it: what they are, and what they take of the host together."""

    drivers: Mapping[str, Mapping[str, Any]] = {}
    """None of its own: each machine has those of its target."""
    machines: Mapping[str, TargetConfig]
    of: Mapping[str, str]
    """Machine → the target that it is: that is what is held, reserved and unhealthy."""
    links: tuple[Link, ...] = ()


def target_config(data: Mapping[str, Any]) -> TargetConfig:
    """A target's config from what was written of it with ``model_dump``."""
    return (GroupConfig if "machines" in data else TargetConfig).model_validate(data)


class Recipe(_File):
    """``kernel/NAME.toml`` or ``hypervisor/NAME.toml``: how to get a build. Options of the builder stand in a table of its name."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    builder: Name
    arch: Literal["x86_64", "aarch64", "riscv64"] = "x86_64"
    tags: tuple[str, ...] = ()
    append: Words = ""
    """Words that this build needs on its command line."""
    initramfs: bool = True
    """Give it the lab's own small initramfs."""
    milestones: Mapping[Milestone, str] = {}
    """Regular expressions that replace the usual ones."""
    icount_cpus: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most CPUs that it comes up on where instructions are counted; absent: any number."""
    promises: Promises = {}
    """What is asked of this build: metric, and statistic and parameters if they are meant → limit."""
    hypervisor: Name | Literal[""] = ""
    """Driver that speaks to the hypervisor that this build is, once the machine is ready; empty for a kernel alone."""
    tools: tuple[Name, ...] = ()
    """Recipes of ``guest/tools`` that are part of the build, as a hypervisor's userland is."""
    modules: tuple[ModuleName, ...] = ()
    """Modules of its kernel, loaded with those that they need before the machine is ready."""
    more_modules: tuple[ModuleName, ...] = ()
    """Modules of its kernel that lie in the machine for whoever calls ``modprobe``: loading takes time, and not every boot needs them."""
    options: Mapping[str, Any] = {}
    """The table ``[BUILDER]``."""

    @property
    def promised(self) -> tuple[Promise, ...]:
        return tuple(promise(name, asked.limit, asked.tags, asked.gate) for name, asked in self.promises.items())


class SuiteConfig(_File):
    """``suites/NAME/suite.toml``: what the suite's tests need in the machine, beside the base."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    tools: tuple[Name, ...] = ()
    """Recipes of ``guest/tools``; their programs land in ``/usr/bin``."""
    modules: tuple[ModuleName, ...] = ()
    """Modules of the kernel under test, loaded with those that they need before the machine is ready. What it has built in is fine."""
    optional_modules: tuple[ModuleName, ...] = ()
    """Those that are loaded where the kernel is known to have them, and not missed elsewhere."""
    reuse: bool = True
    """A cell that passed need not be run again while nothing has changed. False where each run adds to what is known, as a soak does."""
    image: Name | None = None
    """A recipe of ``guest/images``: the machine's root is then on a disk, for sets of tools too heavy for its memory."""
    warm: bool = False
    """Its tests need a machine that is up, not one that boots: theirs may be a copy of one that was booted before."""

    @property
    def may_copy(self) -> bool:
        """Whether its machines may be copies: a root on a disk is not kept."""
        return self.warm and self.image is None


class ToolRecipe(_File):
    """``guest/tools/NAME.toml``: how to get a program for the machine. Options of the builder stand in a table of its name."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    builder: Name
    options: Mapping[str, Any] = {}
    """The table ``[BUILDER]``."""


class ImageRecipe(_File):
    """``guest/images/NAME.toml``: a root file system for the machine, of Debian packages."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    packages: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...], Field(min_length=1)]
    """With all that they depend on. Their files only: no script of theirs is run."""
    without: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...] = ()
    """Packages that they depend on and that are left out."""
    room: Annotated[Size, AfterValidator(at_least(1 << 20, ": a file system needs some"))] = 64 << 20
    """Bytes left free in it."""


class MatrixRule(_File):
    """One ``[[include]]`` or ``[[exclude]]``: globs over names. An axis that is absent matches everything."""

    builds: tuple[str, ...] = ("*",)
    targets: tuple[str, ...] = ("*",)
    suites: tuple[str, ...] = ("*",)
    reason: str = ""


class MatrixConfig(_File):
    """``matrix/NAME.toml``: builds × targets × suites, plus includes, minus excludes."""

    schema_: Literal[1] = Field(1, alias="schema")
    description: str = ""
    builds: tuple[str, ...]
    targets: tuple[str, ...]
    suites: tuple[str, ...]
    channels: tuple[Channel, ...] = ()
    """Each cell runs once a channel; empty: in that of its target."""
    repeat: Annotated[int, Field(ge=1, le=10000)] = 1
    include: tuple[MatrixRule, ...] = ()
    exclude: tuple[MatrixRule, ...] = ()


class LabConfig(_File):
    """``lab.toml``: marks the root of a lab."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: str = ""
    results: str = "results"
    """Folder of the runs, relative to the lab."""
    retries: Annotated[int, Field(ge=0, le=2)] = 1
    """How often a cell that failed by the lab's own fault is tried again."""


Story = Annotated[str, Field(pattern=STORY_PATTERN)]


class StoriesConfig(_File):
    """``stories.toml``: what the stories that tests name are called."""

    schema_: Literal[1] = Field(1, alias="schema")
    stories: Mapping[Story, Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]]
    """Story → its title. Those that no test has yet may stand there too: the report says that nothing proves them."""


# --- values at run time -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A target by its name, with its config."""

    name: str
    config: TargetConfig

    @property
    def machines(self) -> dict[str, Target]:
        """Of a target of several machines what each is called → it, by a name of its own; empty for one machine."""
        config = self.config
        return {n: Target(f"{self.name}.{n}", c) for n, c in config.machines.items()} if isinstance(config, GroupConfig) else {}

    @property
    def parts(self) -> list[Target]:
        """The targets that it takes, as their own files name them, one for each machine: itself if it is one machine."""
        config = self.config
        return [Target(config.of[n], c) for n, c in config.machines.items()] if isinstance(config, GroupConfig) else [self]


@dataclass(frozen=True)
class Provenance:
    """Where an artefact came from. ``source`` is a package, a file or a tree; ``commit`` empty where there is none."""

    builder: str
    source: str
    version: str = ""
    commit: str = ""
    toolchain: str = ""
    built_at: str = ""
    """UTC, ISO 8601."""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Build:
    """An immutable thing under test, in the cache. ``digest`` is ``sha256:HEX`` over what boots (kernel, dom0's kernel, initrd)."""

    name: str
    digest: str
    arch: str
    kernel: Path
    initrd: Path | None
    version: str
    """What ``uname -r`` must say; empty where it is not known before the boot."""
    append: str
    milestones: Mapping[str, str]
    provenance: Provenance
    image: Path | None = None
    """A root file system, which the machine is given as a disk of its own, to write on as it likes: this file stays as it is."""
    dom0: Path | None = None
    """Kernel of the first machine of a hypervisor that is a kernel itself: ``kernel`` is then Xen, which is given this one and ``initrd``
    as its modules."""
    xen_append: str = ""
    """Command line of ``kernel`` in that case: ``append`` is for the kernel of the first machine."""
    hypervisor: str = ""
    """Driver that speaks to its hypervisor; empty if it is none."""
    tools: tuple[str, ...] = ()
    """Those of its own recipe, which lie in its initramfs already."""
    modules: tuple[str, ...] = ()
    """As `tools`: loaded before it is ready."""
    more_modules: tuple[str, ...] = ()
    """As `tools`: not loaded."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Build:
        """One that was written as JSON, from ``dataclasses.asdict``."""
        paths = {name: Path(fields[name]) if fields[name] else None for name in ("kernel", "initrd", "image", "dom0")}
        names = {name: tuple(fields[name]) for name in ("tools", "modules", "more_modules")}
        return cls(**{**fields, **paths, **names, "provenance": Provenance(**fields["provenance"])})


def build_digest(kernel: str, initrd: str, dom0: str = "") -> str:
    """``sha256:HEX`` over the digests of what boots."""
    all_of_it = f"{kernel}\n{initrd}\n" + (f"{dom0}\n" if dom0 else "")
    return f"sha256:{hashlib.sha256(all_of_it.encode()).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix. ``id`` is stable over runs: it keys the history."""

    build: str
    target: str
    suite: str
    channel: Channel = Channel.WALL
    repeat: int = 1
    """1, 2, ... with ``--repeat``."""

    @property
    def key(self) -> str:
        """The point itself, without which repeat it is: ``build/target/suite``."""
        suffix = "" if self.channel is Channel.WALL else f"@{self.channel}"
        return f"{self.build}/{self.target}/{self.suite}{suffix}"

    @property
    def id(self) -> str:
        return self.key if self.repeat == 1 else f"{self.key}#{self.repeat}"


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. ``unit`` is SI (``s``, ``B``, ``1`` for a count)."""

    name: str
    unit: str
    direction: Direction
    description: str = ""
    channel: Channel = Channel.WALL
