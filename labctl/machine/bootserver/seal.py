"""By what the loader knows that files arrived as they were sent: tags under a key that is made for one offer.

Poly1305 (RFC 8439, 2.5), the polynomial over a file's bytes modulo 2^130 - 5 at a random point. What changes bytes on their way does not
know the key when it does so, and keeps a tag with a probability below 2^-82 for 20 MB (Bernstein, The Poly1305-AES message-authentication
code, theorem 3.3). The lab computes the tag in one pass with the SHA-256 that names the file, over the same bytes: a machine that finds the
tag right has the bytes of that digest. It costs an emulated processor a fraction of what SHA-256 does. It is no signature: key and tags
travel in the boot script, so it is a check against accidents, not against somebody on the network who may change the script too.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labctl.errors import DeployError, HostToolMissing
from labctl.machine.bootserver.offer import File, describe

_KEY = 32


@dataclass
class Seal:
    """For one offer: the same key twice would tell nobody more, but a new one costs nothing."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(_KEY))
    _tags: dict[str, str] = field(default_factory=dict, init=False)

    @property
    def tags(self) -> Mapping[str, str]:
        """Part → tag, in hexadecimal digits."""
        return self._tags

    def words(self) -> str:
        """As the loader's own command line has it, behind the loader's name."""
        return " ".join((f"key={self.key.hex()}", *(f"{part}={tag}" for part, tag in self._tags.items())))

    def describe(self, part: str, path: Path, build: str, target: str) -> File:
        """A file as it is now, which gets its tag. DeployError if it is gone or cannot be read; HostToolMissing."""
        try:
            from cryptography.hazmat.primitives.poly1305 import Poly1305
        except ImportError:
            raise HostToolMissing(
                "network boot needs the Python package cryptography", remedy="pip install 'labctl[hardware]'", target=target
            ) from None
        mac = Poly1305(self.key)
        file = describe(path, build, target, also=mac.update)
        self._tags[part] = mac.finalize().hex()
        return file

    def again(self, part: str, file: File, target: str) -> File:
        """The same of a file that was described before, without this seal. DeployError if it is not the same any more."""
        found = self.describe(part, Path(file.path), "", target)
        if found != file:
            raise DeployError(f"{file.path} has changed while it was being offered", target=target)
        return found
