"""One owner's use of the boot server: offer a machine what it boots next, and say what became of it.

For drivers whose build travels over the network. What the machine fetched is known from the server's journal; what arrived, from the
loader's words on the console.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from labctl.deadline import Deadline
from labctl.errors import ConfigError, ConsoleLost, DeployError, Problem
from labctl.machine.bootserver import loader
from labctl.machine.bootserver.offer import Fetch, File, Offer, Shelf, describe
from labctl.machine.bootserver.script import PARTS, boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.web import answers, serving
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.model import Build, build_digest

STALLED = 20.0
"""Seconds without a byte in the middle of a file after which the network is lost: iPXE sends again for longer, and in vain."""
_CABLE = "see the machine's cable, its switch port, and the way to the boot server"
STARTS = 20.0
"""Seconds from the last byte until the loader speaks, at most: it checks a hundred megabytes a second, also where it is emulated."""


@dataclass
class Delivery:
    """``service``: the folder of offers of a running `labctl boot-server`; None: a server of our own at ``address`` and ``port``."""

    context: DriverContext
    transcript: Transcript
    key: str
    """Of the target's file: what is wrong with the options is said of it."""
    address: str
    port: int
    mac: str
    service: Path | None
    url: str = ""
    """The boot server as the machine reaches it."""

    offer: Offer | None = field(default=None, init=False)
    _tags: dict[str, str] = field(default_factory=dict, init=False)
    """What the loader must find of each part of the offer."""
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _offering: ExitStack = field(default_factory=ExitStack, init=False)
    _serving: bool = field(default=False, init=False)
    _since: int = field(default=0, init=False)
    """Where in the transcript the current boot began."""
    _began: float = field(default=0.0, init=False)
    """Seconds since the Unix epoch."""

    @property
    def target(self) -> str:
        return self.context.target.name

    @property
    def _shelf(self) -> Shelf:
        return Shelf(self.service or self.context.workdir)

    def put(self, files: dict[str, File], append: str, seal: Seal | None = None) -> None:
        """Offer these instead of whatever was offered before, with ``append`` as the kernel's command line, in which ``@OFFER@`` is where
        the machine finds them. ``seal``: a new one, which may have tags of files already. DeployError, ConfigError."""
        if self.service is not None and not self.mac:
            found, allowed = "is missing", "the address of the network card that boots: the boot server tells its machines by it"
            raise ConfigError([Problem(f"targets/{self.target}.toml", f"{self.key}.mac", found, allowed)])
        token = secrets.token_hex(16)
        append = append.replace("@OFFER@", f"{self.url}/offer/{token}")
        words = self.context.workdir / "cmdline"
        words.write_text(append)
        seal = seal or Seal()
        sealed = {part: seal.again(part, files[part], self.target) for part in PARTS if part in files and part not in seal.tags}
        files = {
            **{name: describe(program, "", self.target) for name, program in loader.loaders().items()},
            "cmdline": seal.describe("cmdline", words, "", self.target),
            **files,
            **sealed,
        }
        script = boot_script(token, files, seal)
        offer = Offer(self.target, "" if self.service is None else self.mac, script, files, token)
        self._offering.close()
        self._offering.enter_context(self._shelf.offering(offer))
        if self.service is None and not self._serving:
            self._stack.enter_context(serving(self._shelf, self.address, self.port, self.target))
            self._serving = True
        self.offer = offer
        self._tags = {part: seal.tags[part] for part in PARTS if part in files}
        self.begin()

    def ask(self, deadline: Deadline) -> str:
        """Where the boot server answers, asked from here: the service, or one that is started for the question. DeployError."""
        if self.service is not None:
            address, port = self._shelf.server(self.target)
            return answers(address, port, self.target, deadline)
        with serving(self._shelf, self.address, self.port, self.target) as port:
            return answers(self.address, port, self.target, deadline)

    def begin(self) -> None:
        """A boot starts now: what was fetched before does not count."""
        self._since = self.transcript.size
        self._began = time.time()

    def release(self) -> None:
        self.offer, self._tags = None, {}
        self._offering.close()
        self._stack.close()
        self._serving = False

    # --- what became of it

    def fetches(self) -> dict[str, Fetch]:
        """The latest request of this boot for each file."""
        if self.offer is None:
            return {}
        return {fetch.name: fetch for fetch in self._shelf.fetches(self.offer.token) if fetch.at >= self._began - 1}

    def reports(self) -> list[str]:
        """What the machine said of itself since the boot began."""
        if self.offer is None:
            return []
        return [fetch.reported for fetch in self._shelf.fetches(self.offer.token) if fetch.name == "report" and fetch.at >= self._began - 1]

    def last_sign(self) -> float:
        """When the machine last asked for anything, or took a byte: seconds since the Unix epoch."""
        return max((fetch.at for fetch in self._shelf.fetches(self.offer.token)), default=0.0) if self.offer is not None else 0.0

    def check(self) -> None:
        """DeployError as soon as it is known that something else arrived, or that nothing more will."""
        self._check_words()
        for fetch in self.fetches().values():
            if fetch.name in (*PARTS, "image") and not fetch.ended and time.time() - fetch.at > STALLED:
                raise self._lost(fetch)

    def arrived(self, ready: bool) -> None:
        """Once the boot has ended, well or not: DeployError unless the loader found everything as it was sent; ConsoleLost if it may have
        said so, and was not heard."""
        said = self._check_words()
        assert self.offer is not None  # noqa: S101  # for the type checker
        wanted = dict(self._tags)
        if said == wanted:
            return
        fetched = self.fetches()
        if not fetched:
            raise DeployError(
                f"the machine did not ask the boot server for anything, {'and booted something else' if ready else 'and did not boot'}",
                target=self.target,
                tail=self.transcript.tail(10, self._since),
                remedy="does it boot from the network, and does its DHCP name this boot server? docs/real-servers.md",
            )
        before = next((name for name in (loader.BY_BIOS, loader.BY_UEFI) if name in fetched), "")
        if not before:
            raise self._failed(f"it asked for its script, and never for the {loader.BY_BIOS}", _CABLE)
        for part in wanted:  # in the order in which the script fetches them
            if part not in fetched:
                raise self._failed(
                    f"the network was lost behind the {before}, all of which was sent: it never asked for the {part}", _CABLE
                )
            before = part
            if not fetched[part].whole:
                raise self._lost(fetched[part])
        if gap := self.transcript.gap_since(self._since):
            raise ConsoleLost(f"{gap}; what the loader found of the files is not known", target=self.target, tail=self.transcript.tail(10))
        if not said and (ready or not self.transcript.read(self._since).strip()):
            # Who has fetched all of it has spoken on the way, and who is ready has been started by somebody.
            heard = "the machine came up, and its loader was not heard" if ready else "nothing at all was heard of the machine meanwhile"
            raise ConsoleLost(
                f"all of it was fetched, {heard}: the console has lost something, and what arrived is not known to be what was sent",
                target=self.target,
                tail=self.transcript.tail(10, self._since),
                remedy="is the machine's console the one that the target's file names, and is anybody else on it?",
            )
        raise self._failed(
            "all of it was fetched, and the loader that checks it was not heard: it did not start, or the console lost what it said"
        )

    @property
    def verified(self) -> bool:
        """Whether the loader has found everything as it was sent."""
        return self.offer is not None and self._check_words() == self._tags

    def _check_words(self) -> dict[str, str]:
        """Part → tag, as the loader has found it right. DeployError if it has found one wrong."""
        said = self.transcript.read(self._since, self._since + (1 << 16))
        found: dict[str, str] = {}
        for words in loader.SAID.finditer(said):
            part, tag = words["part"].decode(), words["tag"].decode()
            if words["how"] != b"ok":
                sent = self._tags.get(part, "?")
                raise self._failed(f"the {part} that arrived is not the one that was sent: poly1305:{tag} instead of poly1305:{sent}")
            found.setdefault(part, tag)
        if len(found) < len(self._tags) and (why := loader.refusal(said)):
            raise self._failed(why)
        return found

    def _lost(self, fetch: Fetch) -> DeployError:
        return self._failed(
            f"the network was lost in the middle of the {fetch.name}: {fetch.sent} of {fetch.size} bytes were sent",
            _CABLE,
        )

    def _failed(self, message: str, remedy: str = "") -> DeployError:
        return DeployError(message, target=self.target, tail=self.transcript.tail(10, self._since), remedy=remedy)


def parts_of(build: Build, target: str, seal: Seal | None = None) -> dict[str, File]:
    """What boots of a build, as it lies in the cache now, with its tags in ``seal``. DeployError if it is gone, or is not what the build's
    digest says."""
    paths = {"kernel": build.kernel, **({"initrd": build.initrd} if build.initrd is not None else {})}
    files = {
        part: describe(path, build.name, target) if seal is None else seal.describe(part, path, build.name, target)
        for part, path in paths.items()
    }
    found = build_digest(*(f"sha256:{files[part].digest}" if part in files else "" for part in ("kernel", "initrd")))
    if found != build.digest:
        raise DeployError(
            f"the files of {build.name} are not what was built: {found} instead of {build.digest}",
            target=target,
            remedy=f"the cache is spoilt: take {build.kernel.parent} away, then labctl build {build.name}",
        )
    return files
