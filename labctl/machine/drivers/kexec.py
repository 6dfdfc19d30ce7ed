"""kexec: a Linux that is on the machine already starts the build, without firmware in between.

Each boot is a true one of the machine first: power cycle or reset, and the system that it boots by itself comes up. That system takes
kernel, initramfs and command line, compares their digests and loads them by kexec_file_load(2) (``guest/kexec``, which is sent along).
Time zero of the boot is when it jumps. If the running kernel refuses, that is told: there is no other way to fall back to.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from labctl.deadline import Deadline, DeadlineExpired
from labctl.errors import ConfigError, ConsoleLost, DeployError, Problem, TargetFailure
from labctl.machine.bootserver.delivery import Delivery, parts_of
from labctl.machine.bootserver.offer import File, describe
from labctl.machine.compiled import compiled
from labctl.machine.endpoint import PortOrAny
from labctl.machine.power import power_cycle
from labctl.machine.protocols import CommandResult, DriverContext, Files, Power, Shell
from labctl.machine.transcript import ConsoleEnded, Transcript
from labctl.model import Build, PowerState, Target

_FLAGS = (
    *("-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
)
_JUMP = 30.0
"""Seconds from the word to the jump: the running kernel stops its devices only behind it."""
_NOW = b"labctl-kexec: now"
_REFUSED = b"labctl-kexec: refused"
_WORDS = {
    errno.EPERM: "the shell is not root's, or the running kernel is locked down (secure boot), or has kernel.kexec_load_disabled set",
    errno.ENOSYS: "the running kernel was built without CONFIG_KEXEC_FILE",
    errno.ENOEXEC: "the running kernel does not know such a kernel image, or wants it signed",
    errno.EKEYREJECTED: "the running kernel wants it signed with a key that it knows",
    errno.ENODATA: "the running kernel wants it signed",
    errno.ENOMEM: "there is not enough memory",
    errno.EADDRNOTAVAIL: "there is not enough memory in one piece",
    errno.EINVAL: "the command line is longer than that kernel takes",
}
"""Of kexec_file_load(2)."""


@dataclass
class Kexec:
    """Options: ``ready`` (the words that the console says once the system on the machine is up; needed where the shell types on the
    console), ``patience`` (seconds until it must be up and have taken the build), ``folder`` (where it keeps the files, in memory),
    ``url`` (the lab's boot server as that system reaches it, to fetch from, where the shell cannot carry files); and ``address`` and
    ``port`` or ``service`` and ``mac`` as of ``netboot``."""

    context: DriverContext
    transcript: Transcript
    power: Power
    shell: Shell
    ready: str = ""
    patience: Annotated[float, Field(gt=0, le=3600)] = 300.0
    folder: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]{1,100}$")] = "/run"
    url: Annotated[str, Field(pattern=r"^(http://[A-Za-z0-9.:\[\]-]+)?$")] = ""
    address: str = "127.0.0.1"
    port: PortOrAny = 0
    service: str = ""
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$")] = ""

    _files: dict[str, File] = field(default_factory=dict, init=False)
    _digest: str = field(default="", init=False)
    _began: int = field(default=0, init=False)

    @staticmethod
    def host_programs(_target: Target, _options: Mapping[str, Any]) -> list[str]:
        """gcc makes what loads the kernel there."""
        return ["gcc"]

    @staticmethod
    def problems(target: Target, options: Mapping[str, Any]) -> list[Problem]:
        where, found = f"targets/{target.name}.toml", []
        if target.config.arch != "x86_64":
            found.append(Problem(where, "drivers.kexec", f"is for x86_64, the target is {target.config.arch}", "netboot or disk"))
        if "console_shell" in target.config.drivers:
            needed = {
                "ready": "what the console says once the system on the machine is up: nothing is typed before",
                "url": "the boot server as that system reaches it: a console is too slow for a kernel",
            }
            found += [
                Problem(where, f"drivers.kexec.{key}", "is missing", allowed) for key, allowed in needed.items() if not options.get(key)
            ]
        return found

    @cached_property
    def _delivery(self) -> Delivery:
        service = Path(self.service) if self.service else None
        return Delivery(self.context, self.transcript, "drivers.kexec", self.address, self.port, self.mac, service, self.url)

    def put(self, build: Build, append: str, deadline: Deadline) -> str:
        target = self.context.target.name
        if not self.url and not isinstance(self.shell, Files):
            found = f"is missing, and the shell {type(self.shell).__name__.lower()} carries no files"
            raise ConfigError([Problem(f"targets/{target}.toml", "drivers.kexec.url", found, "http://ADDRESS:PORT of the boot server")])
        parts = parts_of(build, target)
        if self.power.state(deadline) is PowerState.ON:
            raise DeployError("the machine is on; a build is put on it when it is off", target=target)
        words = self.context.workdir / "kexec-cmdline"
        words.write_text(append)
        program = compiled("kexec", ("kexec.c",), _FLAGS)
        self._files = {"kexec": describe(program, "", target), "words": describe(words, "", target), **parts}
        if self.url:
            self._delivery.put(self._files, append)
        self._digest = build.digest
        return build.digest

    def reproduce(self, build: Build, append: str) -> str:
        return ""

    def start(self, warm: bool, deadline: Deadline) -> int:
        since = self.transcript.size
        if warm:
            self.power.reset(deadline)
        else:
            power_cycle(self.power, deadline)
        until = Deadline.after(self.patience)
        try:
            if self.ready:
                self._wait_for(self.ready.encode(), since, until)
            self.shell.open(until)
            self._hand_over(until)
            return self._jump(until)
        except (TargetFailure, ConsoleLost) as error:
            raise DeployError(
                f"the system on the machine did not start the build: {error.message}", target=self.context.target.name, tail=error.tail
            ) from None
        finally:
            self.shell.close()

    def began(self) -> int:
        return self._began

    def check(self) -> None:
        if _REFUSED in self.transcript.read(self._began, self._began + (1 << 12)):
            raise self._failed("the running kernel had taken the build, and then did not start it")

    def arrived(self, ready: bool) -> str:
        self.check()
        return self._digest

    def boot_server(self, deadline: Deadline) -> str:
        return self._delivery.ask(deadline) if self.url else ""

    def release(self) -> None:
        if "_delivery" in vars(self):
            self._delivery.release()

    # --- with the system that is there

    def _hand_over(self, deadline: Deadline) -> None:
        """Its files, compared; then the kernel is loaded."""
        places = {name: f"{self.folder}/labctl-{name}" for name in self._files}
        for name, file in self._files.items():
            self._send(name, file, places[name], deadline)
        said = self._run(f"chmod 700 {places['kexec']} && sha256sum {' '.join(places.values())}", "its digests cannot be had", deadline)
        found = {words[1]: words[0] for line in said.output.splitlines() if len(words := line.split()) == 2}
        for name, file in self._files.items():
            if found.get(places[name]) != file.digest:
                arrived = found.get(places[name], "?")[:64]
                raise self._failed(
                    f"the {name} that arrived is not the one that was sent: sha256:{arrived} instead of sha256:{file.digest}"
                )
        load = (places["kexec"], "load", places["kernel"], places.get("initrd", "-"), places["words"])
        done = self.shell.run(shlex.join(load), deadline)
        if done.status != 0:
            why = _WORDS.get(done.status, f"{errno.errorcode.get(done.status, done.status)} {done.output.strip()[-200:]}".rstrip())
            raise self._failed(f"the running kernel does not take it: {why}", "another system on the machine, or netboot or disk")

    def _send(self, name: str, file: File, place: str, deadline: Deadline) -> None:
        if not self.url and isinstance(self.shell, Files):
            with Path(file.path).open("rb") as content:
                self.shell.put(content, place, deadline)
            return
        assert self._delivery.offer is not None  # noqa: S101  # for the type checker
        url = f"{self.url}/offer/{self._delivery.offer.token}/{name}"
        fetch = f"if command -v wget >/dev/null; then wget -q -O {place} {url}; else curl -fsS -o {place} {url}; fi"
        self._run(fetch, f"the {name} cannot be fetched from {self.url}", deadline)

    def _run(self, command: str, failed: str, deadline: Deadline) -> CommandResult:
        done = self.shell.run(command, deadline)
        if done.status != 0:
            raise self._failed(f"{failed}: {done.output.strip()[-300:] or f'status {done.status}'}")
        return done

    def _jump(self, deadline: Deadline) -> int:
        """Time zero: when the console says that it jumps. The shell has answered before, so that nothing of it comes behind."""
        since = self.transcript.size
        jump = f"sleep 0.2; exec {self.folder}/labctl-kexec boot >/dev/console"
        self._run(f"setsid sh -c {shlex.quote(jump)} </dev/null >/dev/null 2>&1 &", "it cannot be started", deadline)
        offset = self._wait_for(_NOW, since, deadline.sooner(_JUMP))
        self._began = offset + len(_NOW)
        return self.transcript.time_of(offset)

    def _wait_for(self, words: bytes, since: int, deadline: Deadline) -> int:
        try:
            return self.transcript.wait([words], since=since, deadline=deadline).offset
        except DeadlineExpired:
            remedy = "is its console the one that the lab reads (console=… on its command line)?"
            raise self._failed(f"its console did not say {words.decode()!r} within {deadline.seconds:g} s", remedy) from None
        except ConsoleEnded as ended:
            raise self._failed(f"its console ended: {ended.reason}") from None

    def _failed(self, message: str, remedy: str = "") -> DeployError:
        name, tail = self.context.target.name, self.transcript.tail(10)
        return DeployError(f"the system on the machine did not start the build: {message}", target=name, tail=tail, remedy=remedy)


DRIVER = Kexec
