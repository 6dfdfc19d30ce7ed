"""A profile as its file holds it: ``profile.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Count = Annotated[int, Field(ge=0, le=1 << 63)]


class Profile(BaseModel):
    """Where the instructions of one boot went."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(1, alias="schema")
    build: str
    digest: str
    version: str
    target: str
    append: str = ""
    """The kernel's command line, of the target's words and the build's: beside the digest it decides what the kernel does."""
    repeated: bool
    """The profiled boot counted exactly what the boot before it did, which was not profiled."""
    milestones: Mapping[str, _Count]
    """Name → instructions from power-on, in the order in which they were reached."""
    phases: Mapping[str, Mapping[str, _Count]]
    """Milestone → function → instructions since the milestone before, the most first."""


def parse(raw: bytes) -> Profile:
    """ValueError if it is none, in one line."""
    try:
        return Profile.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def document(profile: Profile) -> bytes:
    return json.dumps(profile.model_dump(mode="json", by_alias=True), indent=1, ensure_ascii=False).encode("utf-8", "replace")
