"""The command line: a table of verbs, each in a file of its own that is imported only when it is used.

A verb's module says ``app``, made by `labctl.cli.verb.new_app`: with one command it is the verb, with several the verb's own verbs.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from labctl import __version__
from labctl.cli.verb import guard, printable
from labctl.errors import InfraError, LabctlError, StorageError

VERBS = {
    "init": "Make a new lab.",
    "run": "Run a matrix: builds on targets through suites, in parallel.",
    "watch": "Run a matrix again at each change, and show the difference.",
    "targets": "List, show and check the machines.",
    "build": "Obtain builds.",
    "builds": "List the builds, and what the cache holds of them.",
    "tools": "List and build programs for the machine.",
    "profile": "Say where a boot's instructions went, and which functions grew.",
    "console": "Boot a target and talk to its console.",
    "power": "Switch a target on and off, cycle and reset it.",
    "boot-server": "Serve a rack's machines what they boot over the network.",
    "virtual-server": "A server with a BMC on this host: all of a rack but the rack.",
    "runs": "List and show what was run.",
    "report": "Write a run's report again.",
    "schema": "Print the JSON Schema of the lab's files.",
    "doctor": "Say what this host lacks, and the line that mends it.",
}
"""Name → what help says of it, in help's order. The module is ``labctl.cli.NAME``, with ``_`` for ``-``."""


class Verbs(TyperGroup):
    """The verbs of `VERBS`, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in VERBS if _is_there(name)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS or not _is_there(cmd_name):
            return None
        if cmd_name not in self.commands:
            command = get_command(importlib.import_module(_module(cmd_name)).app)
            command.name = cmd_name
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS and not args[0].startswith("-"):
            from labctl.config import nearest

            ctx.fail(f"No such command {args[0]!r}: {nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, VERBS[name]) for name in self.list_commands(ctx)])


def _is_there(verb: str) -> bool:
    return importlib.util.find_spec(_module(verb)) is not None


def _module(verb: str) -> str:
    return f"labctl.cli.{verb.replace('-', '_')}"


app = typer.Typer(
    cls=Verbs,
    name="labctl",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"labctl {__version__}")
        raise typer.Exit


@app.callback()
def labctl(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """A lab in a box: boot kernels on machines, test them, and measure them.

    \b
    $ labctl run matrix      # run the default matrix and write its report
    $ labctl targets list    # which machines there are
    $ labctl doctor          # what this host lacks

    A lab is the folder that holds lab.toml, found upwards from the working directory.

    Exit status: 0 pass, 1 fail, 2 bad configuration or usage, 3 the lab's own fault, 130 interrupted.
    """


def main() -> None:
    """Run the command line of this process and exit with its status."""
    guard()
    try:
        status = _run()
        try:
            sys.stdout.flush()
        except StorageError as error:
            status = max(status, _say(error))
    except Exception:  # noqa: BLE001  # a mistake in labctl itself: Python's own status for it is 1, which means that a build failed
        traceback.print_exc()
        print("labctl: this is a mistake in labctl itself, not in your build or your lab; please report it", file=sys.stderr)
        sys.exit(InfraError.exit_code)
    sys.exit(status)


def _run() -> int:
    # See labctl.__main__. A supervisor's SIGTERM and a terminal that goes away end a verb as Ctrl-C does: nothing half made is left.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, signal.default_int_handler)
    try:
        get_command(app).main(prog_name="labctl")
    except SystemExit as ended:
        if _was_interrupted(ended):
            return _interrupted()
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except LabctlError as error:
        return _say(error)
    except KeyboardInterrupt:
        return _interrupted()
    return 0


def _was_interrupted(ended: SystemExit) -> bool:
    """Typer makes a bare exit status of a KeyboardInterrupt, without a word."""
    error: BaseException | None = ended
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None and ended.code == 130


def _interrupted() -> int:
    print("labctl: interrupted", file=sys.stderr)
    return 130


def _say(error: LabctlError) -> int:
    # It may hold the words of a program, a device or a guest.
    print(f"labctl: {printable(str(error))}", file=sys.stderr)
    return error.exit_code
