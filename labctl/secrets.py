"""Passwords, which stand in no file of the lab: an option's value says where one is, and it is read when it is used.

``env:NAME`` an environment variable · ``file:PATH`` a file that only its owner, who runs labctl, can read · ``keyring:SERVICE/USER`` the
desktop's or the system's keyring · ``vault:PATH#KEY`` a HashiCorp Vault (KV version 2, else 1; its address and token as its own client
finds them: ``VAULT_ADDR``, ``VAULT_TOKEN``).

Only the reference is ever kept, logged or written to a run. What `reveal` gives is for the library that needs it: keep it in no
attribute, put it on no command line, and let no error of that library through.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from labctl.errors import HostToolMissing, SecretUnavailable

FORMS = "env:NAME, file:PATH, keyring:SERVICE/USER or vault:PATH#KEY"
_MAX_BYTES = 4096
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SHAPES = {
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "file": re.compile(r"[^\0]+"),
    "keyring": re.compile(r"[^/\0]+/[^\0]+"),
    "vault": re.compile(r"[^#\0]+#[^#\0]+"),
}


def _checked(value: object) -> str:
    """What can be known of a reference before it is used: its form, and that its variable or file is there and safe."""
    scheme, colon, rest = str(value).partition(":")
    if not isinstance(value, str) or not colon or scheme not in _SHAPES or not _SHAPES[scheme].fullmatch(rest):
        # What stands there may be the secret itself.
        raise PydanticCustomError("secret", "x", {"found": "a value that is no reference (it is not shown)", "allowed": FORMS})
    try:
        if scheme in _AT_HAND:
            reveal(value)
    except SecretUnavailable as error:
        raise PydanticCustomError("secret", "x", {"found": error.message, "allowed": error.remedy}) from None
    return value


def at_most(limit: int, of: str) -> AfterValidator:
    """For an option that is a `Secret`: as many bytes of UTF-8 as ``of`` takes, where it can be known beforehand."""

    def fits(reference: str) -> str:
        if reference.partition(":")[0] in _AT_HAND and len(reveal(reference).encode()) > limit:
            raise PydanticCustomError(
                "secret", "x", {"found": f"{reference} is longer than {limit} bytes", "allowed": f"as long as {of} takes"}
            )
        return reference

    return AfterValidator(fits)


Secret = Annotated[str, BeforeValidator(_checked), WithJsonSchema({"type": "string", "pattern": "^(env|file|keyring|vault):.+"})]
"""A driver's option that holds a reference. Checked with every other option, before any power is applied."""


def without_password(url: str) -> str:
    """The same address; for an option's validator. Refused, and not repeated, if a user or a password stands in it."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        fits = False
    if not fits:
        allowed = "http://HOST… or https://HOST…, with user and password as keys of their own"
        raise PydanticCustomError(
            "secret", "x", {"found": "no address, or one with a password in it (it is not shown)", "allowed": allowed}
        )
    return url


def reveal(reference: str) -> str:
    """The secret itself. SecretUnavailable, or HostToolMissing where a package is lacking."""
    scheme, _, rest = reference.partition(":")
    if scheme not in _READERS:
        raise SecretUnavailable("a secret is given by no reference", remedy=FORMS)
    secret = _READERS[scheme](rest)
    if not secret:
        raise SecretUnavailable(f"{reference} is empty", remedy="put the secret there")
    if _NO_TEXT.search(secret):
        raise SecretUnavailable(f"{reference} holds more than one line, or what is no text", remedy="one line of text")
    return secret


def _from_environment(name: str) -> str:
    if not (value := os.environ.get(name)):
        raise SecretUnavailable(f"the environment variable {name} is not set", remedy=f"export {name}=…")
    return value


def _open_file(path: str) -> str:
    """Checked on the open file, so that it cannot be exchanged in between."""
    file = Path(path).expanduser()
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretUnavailable(f"{file} cannot be read: {error.strerror}", remedy="a file that only you can read") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SecretUnavailable(f"{file} is no file", remedy="a file that only you can read")
        if status.st_uid != os.getuid():
            raise SecretUnavailable(f"{file} belongs to somebody else (uid {status.st_uid})", remedy="a file of your own")
        if status.st_mode & 0o077:
            raise SecretUnavailable(f"{file} can be read by others (mode {status.st_mode & 0o777:04o})", remedy=f"chmod 600 {file}")
        content = os.read(descriptor, _MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise SecretUnavailable(f"{file} is longer than {_MAX_BYTES} bytes", remedy="one line of text")
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretUnavailable(f"{file} is not UTF-8 text", remedy="one line of text") from None
    finally:
        os.close(descriptor)


def _from_keyring(place: str) -> str:
    service, _, user = place.partition("/")
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise HostToolMissing("keyring:… needs the Python package keyring", remedy="pip install 'labctl[hardware]'") from None
    try:
        value = keyring.get_password(service, user)
    except keyring.errors.KeyringError as error:
        raise SecretUnavailable(f"the keyring cannot be read: {error}", remedy="unlock it, or use env: or file:") from None
    if value is None:
        raise SecretUnavailable(f"the keyring has no {service}/{user}", remedy=f"keyring set {service} {user}")
    return str(value)


def _from_vault(place: str) -> str:
    path, _, key = place.partition("#")
    try:
        import hvac
        import hvac.exceptions
        import requests
    except ImportError:
        raise HostToolMissing("vault:… needs the Python package hvac", remedy="pip install 'labctl[hardware]'") from None
    mount, _, inside = path.strip("/").partition("/")
    client = hvac.Client(timeout=10)
    try:
        data = _read_vault(client, mount, inside, hvac.exceptions.InvalidPath)
    except hvac.exceptions.InvalidPath:
        raise SecretUnavailable(f"the vault at {client.url} has no {path}", remedy="vault:MOUNT/PATH#KEY") from None
    except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
        refused = f"the vault at {client.url} does not let us read {path}"
        raise SecretUnavailable(refused, remedy="see VAULT_TOKEN, and its policy") from None
    except hvac.exceptions.VaultError as error:
        raise SecretUnavailable(f"the vault at {client.url} has failed: {type(error).__name__}", remedy="see its log") from None
    except requests.RequestException as error:
        raise SecretUnavailable(f"the vault at {client.url} does not answer: {type(error).__name__}", remedy="see VAULT_ADDR") from None
    if not isinstance(value := data.get(key), str):
        raise SecretUnavailable(f"the vault has no text {key} in {path}", remedy="vault:MOUNT/PATH#KEY")
    return value


def _read_vault(client: Any, mount: str, inside: str, absent: type[Exception]) -> dict[str, Any]:
    """KV version 2, else version 1."""
    try:
        answer = client.secrets.kv.v2.read_secret_version(path=inside, mount_point=mount, raise_on_deleted_version=True)
        found: dict[str, Any] = answer["data"]["data"]
    except absent:
        found = client.secrets.kv.v1.read_secret(path=inside, mount_point=mount)["data"]
    return found


_AT_HAND = ("env", "file")
"""Where a secret is there before anybody is asked for it."""
_READERS: dict[str, Callable[[str], str]] = {
    "env": _from_environment,
    "file": _open_file,
    "keyring": _from_keyring,
    "vault": _from_vault,
}
