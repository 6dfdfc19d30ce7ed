"""Disk: the build is written to the machine's disk by an installer that runs in its memory, and the machine boots from the disk.

The installer comes over the network, as in a network boot: the build's own kernel and initramfs, which must know the machine's network
card and disk (``modules`` of the builder ``deb``), or those that the options name. It fetches the image in pieces, reads back what it
wrote, and goes on where it was interrupted (``guest/installer``).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from labctl.deadline import Deadline
from labctl.errors import ConfigError, DeployError, Problem
from labctl.machine.bootserver import diskimage
from labctl.machine.bootserver.delivery import Delivery, parts_of
from labctl.machine.bootserver.loader import refusal
from labctl.machine.bootserver.offer import File, describe
from labctl.machine.bootserver.startable import refuse_others
from labctl.machine.endpoint import Port
from labctl.machine.lockfile import printable
from labctl.machine.power import power_cycle
from labctl.machine.protocols import BootDevice, DriverContext, Power
from labctl.machine.transcript import Transcript
from labctl.model import Build, PowerState, Target
from labctl.size import format_size

PIECE = 4 << 20
"""Bytes of a piece: as in guest/installer/install.sh."""
_VERB = 30.0
_SAID = re.compile(rb"labctl-installer: ([^\r\n]{1,200})\r?\n")
_LOOPBACK = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_LOOK = 0.25
"""Seconds between two looks at what the installer did."""


@dataclass
class Disk:
    """Options: ``disk`` (the device, as the installer's kernel calls it), ``image`` (an image to write instead of one that is made of the
    build's kernel and initramfs), ``kernel``, ``initrd`` and ``append`` (another installer, and its command line), ``patience`` (seconds
    without a sign of the installer after which it has failed), ``url`` (the boot server as the machine reaches it, if not by its
    address); and ``address``, ``port``, ``service`` and ``mac`` as of ``netboot``."""

    context: DriverContext
    transcript: Transcript
    power: Power
    disk: Annotated[str, Field(pattern=r"^/dev/[A-Za-z0-9_/-]{1,64}$")] = "/dev/vda"
    image: str = ""
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    patience: Annotated[float, Field(gt=0, le=3600)] = 60.0
    address: str = "127.0.0.1"
    port: Port = 8069
    url: Annotated[str, Field(pattern=r"^(http://[A-Za-z0-9.:\[\]-]+)?$")] = ""
    service: str = ""
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$")] = ""

    _digest: str = field(default="", init=False)
    _spoke: int = field(default=0, init=False)
    """Where in the transcript the latest boot began, the installer's or the build's."""

    @staticmethod
    def host_programs(_target: Target, options: Mapping[str, Any]) -> list[str]:
        """gcc makes the loader, the others the image."""
        return ["gcc", *([] if options.get("image") else ["mformat", "mcopy", "syslinux"])]

    @staticmethod
    def problems(target: Target, options: Mapping[str, Any]) -> list[Problem]:
        """Files that are not there, and an image that the disk does not hold."""
        where = f"targets/{target.name}.toml"
        files = {key: str(path) for key in ("image", "kernel", "initrd") if (path := options.get(key))}
        found = [
            Problem(where, f"drivers.disk.{key}", f"{path!r} is no file", "the path of one")
            for key, path in files.items()
            if not Path(path).is_file()
        ]
        address = options.get("address", "127.0.0.1")
        if not options.get("url") and not options.get("service") and _LOOPBACK.fullmatch(str(address)):
            what = f"none, and the boot server listens on {address}, where no machine but this one reaches it"
            allowed = "the boot server as the machine reaches it (the target file of a virtual server says it in a comment)"
            found.append(Problem(where, "drivers.disk.url", what, allowed))
        image = Path(files.get("image", ""))
        if target.config.disk is not None and image.is_file() and (size := image.stat().st_size) > target.config.disk:
            what = f"the image has {format_size(size)}, the machine's disk {format_size(target.config.disk)}"
            found.append(Problem(where, "drivers.disk.image", what, "a smaller image, or the disk's true size in the target's file"))
        return found

    @cached_property
    def _delivery(self) -> Delivery:
        service = Path(self.service) if self.service else None
        return Delivery(
            self.context,
            self.transcript,
            "drivers.disk",
            self.address,
            self.port,
            self.mac,
            service,
            self.url or f"http://{self.address}:{self.port}",
        )

    def put(self, build: Build, append: str, deadline: Deadline) -> str:
        """The deadline is for the power verbs; how long the writing may take is in ``patience``."""
        target = self.context.target.name
        if not isinstance(self.power, BootDevice):
            found = f"the Power driver {type(self.power).__name__.lower()} cannot tell the machine what to boot from"
            raise ConfigError([Problem(f"targets/{target}.toml", "drivers.disk", found, "ipmi or redfish")])
        parts = parts_of(build, target)
        if not (self.image and self.kernel):  # it goes to the disk, or is the installer
            refuse_others(build.kernel, build.name, target)
        if self.kernel:
            refuse_others(Path(self.kernel), "the installer", target)
        image = self._image(parts, append, build, deadline)
        if self.context.target.config.disk is not None and image.size > self.context.target.config.disk:
            raise DeployError(
                f"the image has {format_size(image.size)}, the machine's disk {format_size(self.context.target.config.disk)}",
                target=target,
                remedy="a smaller image, or say the disk's true size in the target's file",
            )
        installer = parts
        if self.kernel:
            installer = {"kernel": describe(Path(self.kernel), build.name, target)}
            if self.initrd:
                installer["initrd"] = describe(Path(self.initrd), build.name, target)
        if self.power.state(deadline) is PowerState.ON:
            raise DeployError("the machine is on; a build is put on it when it is off", target=target)
        pieces = self._pieces(image)
        words = (f"labctl.disk={self.disk}", f"labctl.pieces={pieces.digest}", f"labctl.image={image.size}", "labctl.install=@OFFER@")
        self._delivery.put(
            {**installer, "image": image, "pieces": pieces}, " ".join((self.append or self.context.target.config.append, *words))
        )
        self._install(self.power)
        self._digest = build.digest
        return build.digest

    def reproduce(self, build: Build, append: str) -> str:
        return ""

    def start(self, warm: bool, deadline: Deadline) -> int:
        if isinstance(self.power, BootDevice):
            self.power.boot_next("disk", deadline)
        self._spoke = self.transcript.size
        return self.power.reset(deadline) if warm else power_cycle(self.power, deadline)

    def check(self) -> None:
        """Nothing travels while it boots from its disk. By UEFI the loader on it says whether the disk gives back what was written."""
        if not self.image and (why := refusal(self.transcript.read(self._spoke, self._spoke + (1 << 16)))):
            target, tail = self.context.target.name, self.transcript.tail(10, self._spoke)
            raise DeployError(f"the loader on the disk starts nothing: {why}", target=target, tail=tail)

    def arrived(self, ready: bool) -> str:
        return self._digest

    def boot_server(self, deadline: Deadline) -> str:
        return self._delivery.ask(deadline)

    def release(self) -> None:
        self._delivery.release()

    def _image(self, parts: Mapping[str, File], append: str, build: Build, deadline: Deadline) -> File:
        if self.image:
            return describe(Path(self.image), build.name, self.context.target.name)
        path = self.context.workdir / "disk.image"
        diskimage.make(path, parts["kernel"], parts.get("initrd"), append, deadline, self.context.target.name)
        return describe(path, build.name, self.context.target.name)

    def _pieces(self, image: File) -> File:
        path = self.context.workdir / "pieces"
        with Path(image.path).open("rb") as file:
            path.write_text("".join(f"{hashlib.sha256(piece).hexdigest()}\n" for piece in iter(lambda: file.read(PIECE), b"")))
        return describe(path, "", self.context.target.name)

    def _install(self, power: Power) -> None:
        """Boot the installer, and see it through. The machine is off afterwards, however it ends."""
        try:
            if isinstance(power, BootDevice):
                power.boot_next("network", Deadline.after(_VERB))
            self._delivery.begin()
            self._spoke = self.transcript.size
            began = time.time()
            power_cycle(power, Deadline.after(_VERB))
            while True:
                self._delivery.check()
                said = self._delivery.reports()
                if "done" in said:
                    return
                if failed := next((words for words in said if words.startswith("failed: ")), ""):
                    raise self._failed(failed.removeprefix("failed: "))
                if time.time() - max(began, self._delivery.last_sign()) > self.patience:
                    raise self._silent(said)
                time.sleep(_LOOK)
        finally:
            power.off(Deadline.after(_VERB))
            for name in ("disk.image", "pieces"):
                (self.context.workdir / name).unlink(missing_ok=True)

    def _silent(self, said: list[str]) -> DeployError:
        if "image" in self._delivery.fetches():
            return self._failed(
                f"the network was lost in the middle of the image: {self.patience:g} s without a sign of the installer"
                + (f", after {said[-1]}" if said else ""),
                "see the machine's cable, its switch port, and the way to the boot server; what is on the disk already is not sent again",
            )
        self._delivery.arrived(ready=False)
        words = _SAID.findall(self.transcript.read(self._spoke))
        if words:  # it runs, and does not reach the lab
            last = printable(words[-1].decode(errors="replace"))
            return self._failed(
                f"the installer runs, and the boot server did not hear of it within {self.patience:g} s; on its console it said: {last}",
                f"can the machine reach {self._delivery.url}? It is drivers.disk.url, or made of address and port",
            )
        return self._failed(
            f"the installer gave no sign within {self.patience:g} s",
            "its kernel needs drivers for the machine's network card and disk: `modules` of the build",
        )

    def _failed(self, message: str, remedy: str = "") -> DeployError:
        target, tail = self.context.target.name, self.transcript.tail(10)
        return DeployError(f"the disk was not written: {message}", target=target, tail=tail, remedy=remedy)


DRIVER = Disk
