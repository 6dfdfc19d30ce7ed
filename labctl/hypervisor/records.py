"""What the machine under test keeps of its VMs, in files of its own: what each is, templates, copies with a digest, and the audit log.

The machine's files are the truth: who holds the session asks them. A driver whose hypervisor keeps none of this by itself has it here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from labctl.deadline import Deadline
from labctl.errors import ConfigError, LabctlError, VmFailed
from labctl.hypervisor import specfile
from labctl.hypervisor.guests import TOOLS
from labctl.hypervisor.keeper import Keeper
from labctl.hypervisor.protocols import NAME_PATTERN, AuditEntry, VmSpec
from labctl.parsers.text import visible

VMS, TEMPLATES, AUDIT = "/run/labctl/vms", "/run/labctl/templates", "/run/labctl/audit.json"
LOOK_S = 5.0
"""Seconds for what tells more about a failure, and must not take long itself."""


_LACKING = "no such file"


def folder_of(vm: str) -> str:
    return f"{VMS}/{vm}"


def _how_to_have(said: str) -> str:
    """What brings a file into the machine that was told to lack it; empty for one that is none of the lab's guests."""
    tool = TOOLS.get(said.removesuffix(f": {_LACKING}"))
    return f'tools = ["{tool}"] in the suite.toml of the suite' if tool else ""


def check_name(name: str) -> None:
    """ConfigError for what is no name of a VM, a template or a snapshot."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"no name: {name!r}; allowed: a-z, 0-9 and -, at most 31, a letter first")


@dataclass
class Records:
    """Of one machine."""

    keeper: Keeper
    who: str
    """Who acts, for the audit log."""

    def failed(self, vm: str, why: str, tail: str = "", remedy: str = "") -> VmFailed:
        message = why if why.startswith((f"VM {vm} ", f"VM {vm}: ")) else f"VM {vm}: {why}"
        return VmFailed(message, target=self.keeper.session.name, tail=tail, remedy=remedy)

    # --- what each VM is

    def define(self, spec: VmSpec, parts: Iterable[str], deadline: Deadline) -> None:
        """Its folder, with what it is to be; ``parts``: commands that make what it brings along. VmFailed, and then nothing is left."""
        folder = folder_of(spec.name)
        needed = [spec.kernel, *filter(None, [spec.initrd]), *(disk.file for disk in spec.disks if disk.file)]
        files = " ".join(map(shlex.quote, needed))
        there = f"for f in {files}; do [ -f $f ] || [ -b $f ] || {{ echo $f: {_LACKING}; exit 4; }}; done"
        made = f"mkdir -p {VMS} && mkdir {folder} 2>/dev/null || {{ echo there is one already; exit 5; }}"
        said = f"printf '%s\\n' {shlex.quote(specfile.to_json(spec))} >{folder}/spec.json"
        done = self.keeper.shell("; ".join([there, made, "set -e", said, *parts]), deadline, check=False)
        if done.status != 0:
            if done.status != 5:
                self.keeper.shell(f"rm -rf {folder}", Deadline.after(LOOK_S), check=False)
            said = (done.output + done.stderr).strip()
            raise self.failed(spec.name, f"cannot be made: {visible(said)[-300:]}", remedy=_how_to_have(said))

    def specs(self, deadline: Deadline) -> dict[str, VmSpec]:
        return self.specs_of(self.keeper.shell(f"cat {VMS}/*/spec.json 2>/dev/null; true", deadline).output)

    def specs_of(self, told: str) -> dict[str, VmSpec]:
        """The lines of all the files that `define` wrote. VmFailed if they are not as they were written."""
        try:
            found = [specfile.from_json(line) for line in told.splitlines()]
        except (ValueError, ConfigError) as error:
            raise VmFailed(f"a VM's folder in {VMS} is not as it was made: {error}", target=self.keeper.session.name) from None
        return {spec.name: spec for spec in found}

    def spec(self, vm: str, deadline: Deadline) -> VmSpec:
        """VmFailed if there is none of that name."""
        told = self.keeper.shell(f"cat {folder_of(vm)}/spec.json 2>/dev/null; true", deadline).output
        if not told:
            raise self.failed(vm, "does not exist")
        try:
            return specfile.from_json(told)
        except (ValueError, ConfigError) as error:
            raise self.failed(vm, f"is not as it was made: {error}") from None

    def need_file(self, vm: str, file: str, deadline: Deadline) -> None:
        """VmFailed if the machine has no file and no device of that name."""
        if self.keeper.shell(f"[ -f {shlex.quote(file)} ] || [ -b {shlex.quote(file)} ]", deadline, check=False).status != 0:
            raise self.failed(vm, f"{file}: no such file")

    def rewrite(self, spec: VmSpec, deadline: Deadline) -> None:
        file = f"{folder_of(spec.name)}/spec.json"
        self.keeper.shell(f"printf '%s\\n' {shlex.quote(specfile.to_json(spec))} >{file}.new && mv {file}.new {file}", deadline)

    # --- copies, and whether they are still what they were

    def keep(self, folder: str, files: Sequence[tuple[str, str]], deadline: Deadline) -> None:
        """Copies in a folder, by name and from where, and a digest over each; no source: it is there already."""
        copies = [f"cp {source} {folder}/{name}" for name, source in files if source]
        names = " ".join(name for name, _ in files)
        self.keeper.shell(" && ".join([*copies, f"cd {folder}", f"sha256sum {names} >digests"]), deadline)

    def put_back(self, folder: str, files: Sequence[tuple[str, str]], deadline: Deadline) -> None:
        """The copies of that name into those files."""
        if files:
            self.keeper.shell(" && ".join(f"cp {folder}/{name} {file}" for name, file in files), deadline)

    def check_whole(self, vm: str, what: str, folder: str, deadline: Deadline) -> None:
        """VmFailed if what `keep` wrote there has changed, or is not there."""
        done = self.keeper.shell(f"cd {folder} && sha256sum -c digests", deadline, check=False)
        if done.status != 0:
            wrong = [line.partition(":")[0] for line in done.output.splitlines() if not line.endswith(": OK")]
            why = f"is corrupt: {visible(', '.join(wrong))[:200]} is not what was kept" if wrong else "does not exist"
            raise self.failed(vm, f"{what} {why}")

    def new_template(self, vm: str, name: str, files: Sequence[tuple[str, str]], deadline: Deadline) -> None:
        """What a VM is, and these files of it, under a name of their own. VmFailed if there is a template of that name."""
        folder = f"{TEMPLATES}/{name}"
        made = f"mkdir -p {TEMPLATES} && mkdir {folder} 2>/dev/null || {{ echo there is one already; exit 5; }}"
        if (done := self.keeper.shell(made, deadline, check=False)).status != 0:
            raise self.failed(vm, f"template {name}: {visible(done.output.strip())[-200:]}")
        self.keep(folder, [("spec.json", f"{folder_of(vm)}/spec.json"), *files], deadline)

    def template(self, name: str, vm: str, deadline: Deadline) -> tuple[str, VmSpec]:
        """The folder of one that is whole, and what it was made from. VmFailed, of the VM that was to be made, if it is not."""
        folder = f"{TEMPLATES}/{name}"
        self.check_whole(vm, f"template {name}", folder, deadline)
        return folder, specfile.from_json(self.keeper.shell(f"cat {folder}/spec.json", deadline).output)

    def forget(self, name: str, deadline: Deadline) -> None:
        self.keeper.shell(f"rm -rf {TEMPLATES}/{name}", deadline)

    # --- the audit log

    @contextmanager
    def audited(self, verb: str, vm: str, deadline: Deadline) -> Iterator[None]:
        """The verb and how it ended are in the log before its caller knows."""
        check_name(vm)
        try:
            yield
        except LabctlError as error:
            with suppress(LabctlError):  # the machine may be gone: its own end tells more
                self._note(verb, vm, error.title, Deadline.after(LOOK_S))
            raise
        self._note(verb, vm, "ok", deadline)

    def audit(self, deadline: Deadline) -> tuple[AuditEntry, ...]:
        told = self.keeper.shell(f"cat {AUDIT} 2>/dev/null; true", deadline).output
        try:
            lines = [json.loads(line) for line in told.splitlines()]
            return tuple(AuditEntry(line["at"], line["who"], line["verb"], line["vm"], line["result"]) for line in lines)
        except (ValueError, KeyError, TypeError):
            raise VmFailed(f"{AUDIT} is no audit log: {visible(told)[:200]}", target=self.keeper.session.name) from None

    def _note(self, verb: str, vm: str, result: str, deadline: Deadline) -> None:
        self.keeper.shell(f"vmkeeper audit {AUDIT} {shlex.join([self.who, verb, vm, result[:300]])}", deadline)
