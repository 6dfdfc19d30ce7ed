"""labctl virtual-server: a server on this host with a real BMC, to learn and to test the whole flow without a rack."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labctl.cli.verb import Json, new_app, print_json, print_table, this_lab

if TYPE_CHECKING:
    from labctl.virtualserver.client import VirtualServer

app = new_app(
    """A server on this host with a BMC, a serial console over it, network boot and a disk: everything of a rack but the rack.

    \b
    $ labctl virtual-server start rack1
    $ labctl power status rack1
    $ labctl virtual-server stop rack1
    """
)


def _complete(incomplete: str) -> list[str]:
    from labctl.errors import LabctlError
    from labctl.virtualserver import settings

    try:
        return [name for name in settings.names(this_lab().root) if name.startswith(incomplete)]
    except LabctlError:
        return []


def _complete_fault(incomplete: str) -> list[str]:
    from labctl.virtualserver.faults import CLEAR, FAULTS

    return [name for name in (*FAULTS, CLEAR) if name.startswith(incomplete)]


Force = Annotated[bool, typer.Option("--force", help="Also while somebody, such as a run, holds it.")]
ServerName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=_complete)]


@app.command()
def start(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name; it becomes a target of the lab.")],
    redfish: Annotated[bool, typer.Option("--redfish", help="Its target is switched by Redfish instead of IPMI.")] = False,
    uefi: Annotated[bool, typer.Option("--uefi", help="Its firmware is UEFI (Debian's package ovmf) instead of a BIOS.")] = False,
    cpus: Annotated[int, typer.Option(min=1, max=64, help="CPUs of the machine.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory of the machine.")] = "512M",
    disk: Annotated[str, typer.Option(help="Size of its disk, when it is first started.")] = "2G",
    as_json: Json = False,
) -> None:
    """Start it, powered off, and write targets/NAME.toml for it. It runs until `stop`.

    \b
    $ labctl virtual-server start rack1
    $ labctl virtual-server stop rack1
    """
    server = _server(name)
    server.start(cpus=cpus, memory=_memory(memory), disk=_size("--disk", disk), redfish=redfish, uefi=uefi)
    if not server.target_is_ours:
        kept = server.target_file.relative_to(server.lab_root)
        print(f"labctl: {kept} was changed by hand and is kept: it may not fit a server that is started otherwise", file=sys.stderr)
    if as_json:
        print_json(**_content(server))
        return
    settings = server.settings
    print(f"{name}: its BMC answers on 127.0.0.1 port {settings.bmc_port} (UDP), its serial console on port {settings.serial_port} (TCP)")
    print(f"  target: {server.target_file.relative_to(server.lab_root)}; next: labctl power status {name}")


@app.command()
def stop(name: ServerName, force: Force = False, as_json: Json = False) -> None:
    """Stop it, and take its target file away. Its disk stays for the next start. Refused while somebody holds it, such as a run.

    \b
    $ labctl virtual-server start rack1
    $ labctl virtual-server stop rack1
    """
    server = _known(name)
    if not force:
        _check_not_held(server, "stop")
    stopped = server.stop()
    if as_json:
        print_json(name=name, stopped=stopped)
    else:
        print(f"{name}: stopped" if stopped else f"{name}: did not run")


@app.command()
def delete(name: ServerName, force: Force = False, as_json: Json = False) -> None:
    """Stop it, and forget its disk, its logs and its addresses, and that it was reserved or unhealthy. Refused while somebody holds it.

    \b
    $ labctl virtual-server start rack1
    $ labctl virtual-server delete rack1
    """
    server = _known(name)
    if not force:
        _check_not_held(server, "delete")
    server.delete()
    if as_json:
        print_json(name=name, deleted=True)
    else:
        print(f"{name}: deleted")


@app.command("list")
def list_servers(as_json: Json = False) -> None:
    """List the virtual servers of this lab.

    \b
    $ labctl virtual-server list
    """
    from labctl.virtualserver.client import all_of

    servers = [_content(server) for server in all_of(this_lab().root)]
    if as_json:
        print_json(servers=servers)
        return
    print_table(
        ("NAME", "STATE", "POWER", "BMC", "SERIAL", "FAULTS"),
        [(s["name"], s["state"], s.get("power", "-"), s["bmc"], s["serial"], ",".join(s.get("faults", {})) or "-") for s in servers],
        empty="there is none: labctl virtual-server start NAME",
    )


@app.command()
def status(name: ServerName, as_json: Json = False) -> None:
    """Say where it is and how it is.

    \b
    $ labctl virtual-server start rack1
    $ labctl virtual-server status rack1
    $ labctl virtual-server stop rack1
    """
    content = _content(_known(name))
    if as_json:
        print_json(**content)
        return
    for key, value in content.items():
        print(f"{key.replace('_', ' '):18} {value if value not in ('', {}) else '-'}")


@app.command()
def fault(
    name: ServerName,
    fault: Annotated[str, typer.Argument(metavar="FAULT", autocompletion=_complete_fault, help="One of the list, or `clear`.")] = "",
    arg: Annotated[float | None, typer.Option("--arg", help="The fault's number: how long, how often, where.")] = None,
    as_json: Json = False,
) -> None:
    """Let it misbehave, until `clear`. Without FAULT: list what it can do.

    \b
    $ labctl virtual-server start rack1
    $ labctl virtual-server fault rack1
    $ labctl virtual-server fault rack1 late --arg 3
    $ labctl virtual-server fault rack1 clear
    $ labctl virtual-server stop rack1
    """

    from labctl.virtualserver import faults

    if not fault:
        rows = [(key, f"{f.argument} ({f.default:g})" if f.argument else "-", f.help) for key, f in faults.FAULTS.items()]
        if as_json:
            print_json(
                faults=[{"name": key, "argument": f.argument, "default": f.default, "help": f.help} for key, f in faults.FAULTS.items()]
            )
        else:
            print_table(("FAULT", "--arg", "WHAT HAPPENS"), rows)
        return
    server = _known(name)
    if fault == faults.CLEAR:
        server.clear()
    else:
        faults.argument_of(fault, arg)
        server.fault(fault, arg)
    if as_json:
        print_json(**_content(server))
    else:
        print(f"{name}: {'all faults ended' if fault == faults.CLEAR else faults.describe(fault, arg)}")


def _server(name: str) -> VirtualServer:
    import re

    from labctl.errors import ConfigError
    from labctl.model import NAME_PATTERN
    from labctl.virtualserver.client import VirtualServer

    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{name!r} is no name: lower-case letters, digits and . _ + - (64 at most)")
    return VirtualServer(this_lab().root, name)


def _known(name: str) -> VirtualServer:
    from labctl.config import nearest
    from labctl.errors import ConfigError
    from labctl.virtualserver import settings

    server = _server(name)
    known = settings.names(server.lab_root)
    if name not in known:
        raise ConfigError(f"unknown virtual server {name!r}; {nearest(name, known)}")
    return server


def _check_not_held(server: VirtualServer, verb: str) -> None:
    """TargetBusy if somebody holds it: a run that lost its machine would tell of a BMC that does not answer."""
    from contextlib import suppress

    from labctl.errors import ConfigError, TargetBusy
    from labctl.machine import lease

    with suppress(ConfigError):  # its file was changed by hand and is wrong, or is gone: nobody can hold that
        if holders := lease.holders(this_lab().target(server.name), server.lab_root):
            remedy = f"wait until it is free, or labctl virtual-server {verb} --force {server.name}"
            raise TargetBusy(f"target {server.name} is held by {holders[0]}", target=server.name, remedy=remedy)


def _size(option: str, text: str) -> int:
    from labctl.errors import ConfigError, Problem
    from labctl.size import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError([Problem("command line", option, f"found {text!r}", str(error))]) from None


def _memory(text: str) -> int:
    """ConfigError for more than the host has, or less than a machine starts with."""
    from labctl.errors import ConfigError, Problem
    from labctl.machine import budget
    from labctl.model import LEAST_MEMORY
    from labctl.size import format_size

    size = _size("--memory", text)
    if size < LEAST_MEMORY:
        raise ConfigError([Problem("command line", "--memory", f"found {text!r}", f"at least {format_size(LEAST_MEMORY)}")])
    if why := budget.fits(1, size):
        raise ConfigError([Problem("command line", "--memory", f"found {text!r}", why)])
    return size


def _content(server: VirtualServer) -> dict[str, Any]:
    settings = server.settings
    answer = server.status()
    return {
        "name": server.name,
        "state": "stopped" if answer is None else "running",
        **({} if answer is None else {key: value for key, value in answer.items() if key != "name"}),
        "bmc": f"127.0.0.1:{settings.bmc_port}",
        "serial": f"127.0.0.1:{settings.serial_port}",
        "ssh": f"127.0.0.1:{settings.ssh_port}",
        "boot_server": f"127.0.0.1:{settings.boot_server_port}",
        **({"redfish": f"http://127.0.0.1:{settings.redfish_port}"} if settings.redfish else {}),
        **({"ssh_console": f"127.0.0.1:{settings.ssh_console_port}"} if settings.redfish else {}),
        "serial_log": str(server.files.serial_log),
        "log": str(server.files.log),
        "folder": str(server.files.folder),
    }
