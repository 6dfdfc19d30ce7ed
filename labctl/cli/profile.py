"""labctl profile: where a boot's instructions went, and which functions grew."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from labctl.cli.verb import Json, complete_build, complete_target, new_app, print_json, printable, this_lab
from labctl.errors import ConfigError, Problem, StorageError

if TYPE_CHECKING:
    from labctl.config import Lab
    from labctl.parsers.profile import Profile

BUSY_S = 10.0
"""Seconds to wait for a target that somebody holds."""


class _Of(TyperGroup):
    """``labctl profile BUILD`` is ``labctl profile of BUILD``: no verb is needed for what is asked most."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["of", *args])

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        # Options may come before the build: they are not the group's.
        helps = args[:1] and args[0] in ("-h", "--help")
        return super().parse_args(ctx, args if not args or helps or args[0] in self.commands else ["of", *args])


app = new_app(
    """Count a boot's instructions by function, exactly.

    \b
    $ labctl profile debian-cloud --target microvm-1c-512m
    $ labctl profile diff debian-cloud-previous debian-cloud --target microvm-1c-512m
    """
)
app.info.cls = _Of

_Target = Annotated[str | None, typer.Option("--target", autocompletion=complete_target, help="The machine, emulated by QEMU.")]
_Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the files.", file_okay=False)]


@app.command("of")
def profile_of(
    build: Annotated[str, typer.Argument(autocompletion=complete_build, help="A recipe of kernel/ or hypervisor/, or a kernel file.")],
    target: _Target = None,
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Boot a build twice and write where its instructions went: profile.html, profile.txt and profile.json.

    \b
    $ labctl profile debian-cloud --target microvm-1c-512m
    $ labctl profile of debian-cloud --target microvm-1c-512m
    """
    lab = this_lab()
    taken, folder = _take(lab, build, target, out)
    from labctl.report.profile import text

    if as_json:
        print_json(folder=str(folder), profile=taken.model_dump(mode="json", by_alias=True))
    else:
        print(text(taken), end="")
        print(f"page: {folder / 'profile.html'}")


@app.command("diff")
def profile_diff(
    before: Annotated[str, typer.Argument(autocompletion=complete_build, help="A profile.json, its folder, or a build.")],
    after: Annotated[str, typer.Argument(autocompletion=complete_build, help="Likewise.")],
    target: _Target = None,
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Name the functions that ran more or fewer instructions, exactly. Builds are profiled now; files are read.

    \b
    $ labctl profile diff debian-cloud-previous debian-cloud --target microvm-1c-512m
    """
    from dataclasses import asdict

    from labctl.judge.profile import difference
    from labctl.report.profile import difference_text, write_difference

    lab = this_lab()
    first, second = (_given(lab, one, target) for one in (before, after))
    found = difference(first, second)
    folder = out.absolute() if out else _home(lab) / f"{first.build}@{first.target}..{second.build}@{second.target}"
    page = write_difference(found, folder / "diff.html")
    told = difference_text(found)
    _write(folder / "diff.txt", told.encode())
    if as_json:
        print_json(
            folder=str(folder),
            total=asdict(found.total),
            functions=[{**asdict(c), "grew": c.grew} for c in found.functions],
            phases={name: [{**asdict(c), "grew": c.grew} for c in changes] for name, changes in found.phases.items()},
        )
    else:
        print(told, end="")
        print(f"page: {page}")


def _home(lab: Lab) -> Path:
    return lab.root / "reports" / "profiles"


def _given(lab: Lab, name: str, target: str | None) -> Profile:
    """A profile by its file, or taken now of a build."""
    from labctl.parsers.profile import parse

    path = Path(name)
    file = path / "profile.json" if path.is_dir() else path
    if name in lab.recipe_files or file.suffix != ".json":
        return _take(lab, name, target, None)[0]
    try:
        return parse(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            [Problem(str(file), "", f"cannot be read: {error.strerror}", "a profile.json of `labctl profile BUILD`")]
        ) from None
    except ValueError as error:
        raise ConfigError([Problem(str(file), "", str(error), "a profile.json of `labctl profile BUILD`")]) from None


def _take(lab: Lab, name: str, on: str | None, out: Path | None) -> tuple[Profile, Path]:
    from labctl.build.obtain import check, obtain
    from labctl.deadline import Deadline
    from labctl.judge.profile import phases
    from labctl.machine import lease, profiling, registry
    from labctl.model import Channel
    from labctl.parsers.profile import Profile, document
    from labctl.report.profile import text, write_profile
    from labctl.run.equip import equipped

    if on is None:
        raise ConfigError("no target is named", remedy=f"give --target; known: {', '.join(lab.target_files) or 'none yet'}")
    target = lab.machine(on)
    registry.check(registry.on_channel(target, Channel.ICOUNT))
    check(lab, name)
    build = equipped(obtain(lab, name, progress=_tell), target, _tell)
    with lease.hold(target, lab.root, why=f"labctl profile {name}", deadline=Deadline.after(BUSY_S)):
        with tempfile.TemporaryDirectory(prefix="labctl-profile-") as workdir:
            symbols = profiling.symbols(target, build, Path(workdir), _tell)
        with tempfile.TemporaryDirectory(prefix="labctl-profile-") as workdir:
            traced = profiling.trace(target, build, Path(workdir), _tell)
    order = list(traced.plain.instructions)
    taken = Profile(
        schema=1,
        build=build.name,
        digest=build.digest,
        version=build.version,
        target=target.name,
        append=" ".join(filter(None, (target.config.append, build.append))),
        repeated=traced.repeated,
        milestones=dict(traced.plain.instructions),
        phases=phases(order, traced.snapshots, symbols),
    )
    folder = out.absolute() if out else _home(lab) / f"{taken.build}@{taken.target}"
    write_profile(taken, folder / "profile.html")
    _write(folder / "profile.txt", text(taken).encode())
    _write(folder / "profile.json", document(taken))
    return taken, folder


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)
