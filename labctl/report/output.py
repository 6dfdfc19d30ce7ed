"""A report is there whole or not at all."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from labctl.errors import StorageError
from labctl.store.disk import free_space


@contextmanager
def replacing(out: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that takes the place of ``out`` when the block ends well, and vanishes when it does not. StorageError."""
    draft = out.with_name(f".{out.name}.{secrets.token_hex(6)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
        draft.replace(out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"cannot write the report {out}: {error.strerror or error}{f' ({free_space(out)} free there)' if full else ''}",
            remedy=f"free some space or make {out.parent} writable, then run `labctl report run` again",
        ) from error
    finally:
        with suppress(OSError):  # gone after the replace; on a broken disk the first error says it all
            draft.unlink()
