"""labctl boot-server: serves what running labs offer their machines, for a rack whose machines know one address."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labctl.cli.verb import new_app

if TYPE_CHECKING:
    from labctl.machine.bootserver.dhcp import Network

app = new_app()
_TFTP = Path("/usr/lib/ipxe")


@app.command()
def boot_server(
    offers: Annotated[Path, typer.Option(help="Folder of offers: `service` of the targets.")] = Path("/run/labctl-boot"),
    address: Annotated[str, typer.Option(help="Where it listens; 0.0.0.0 for every network of this host.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port.")] = 8069,
    interface: Annotated[str, typer.Option(help="Answer DHCP and TFTP there (root; dnsmasq): the machines' network.")] = "",
    network: Annotated[str, typer.Option(help="Our address on that interface, as in 10.9.0.1/24.")] = "",
    dhcp: Annotated[
        str,
        typer.Option(
            help="Addresses to give, as in 10.9.0.50,10.9.0.99; empty: another server does; none: it names us too, TFTP is all here."
        ),
    ] = "",
    ipv6: Annotated[str, typer.Option(help="Our IPv6 address there, as in fd77::1/64: without one iPXE looks for a router for 14 s.")] = "",
    tftp: Annotated[Path, typer.Option(help="Folder of undionly.kpxe and ipxe.efi.")] = _TFTP,
) -> None:
    """The boot server of a rack, as a service. What it serves is put there by whoever holds a machine, and ends with him.

    \b
    $ labctl boot-server --help
    """
    import signal
    import sys
    import tempfile
    import threading
    from contextlib import ExitStack
    from dataclasses import replace

    from labctl.machine.bootserver import dhcp as dnsmasq
    from labctl.machine.bootserver.offer import Shelf
    from labctl.machine.bootserver.web import serving

    wanted = _network(interface, network, address, port, dhcp, ipv6, tftp)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        shelf = Shelf(offers)
        shelf.make(shared=True)
        at = stack.enter_context(serving(shelf, address, port))
        stack.enter_context(shelf.served(address, at))
        if wanted is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-boot-server-")))
            stack.enter_context(dnsmasq.serving(replace(wanted, port=at), folder))
        print(f"boot server: http://{address}:{at}/boot.ipxe, offers in {offers}")
        sys.stdout.flush()
        ended.wait()


def _network(interface: str, network: str, address: str, port: int, dhcp: str, ipv6: str, tftp: Path) -> Network | None:
    """Where DHCP and TFTP are answered, if they are. ConfigError, before anything listens."""
    from labctl.errors import ConfigError, Problem
    from labctl.machine.bootserver import dhcp as dnsmasq

    if not interface:
        given = {"--network": network, "--dhcp": dhcp, "--ipv6": ipv6, "--tftp": "" if tftp == _TFTP else str(tftp)}
        if found := [Problem("command line", key, f"found {text!r}", "goes with --interface only") for key, text in given.items() if text]:
            raise ConfigError(found)
        return None
    tells = dhcp != "none"
    first, _, last = (dhcp if tells else "").partition(",")
    wanted = dnsmasq.Network(interface, network, port, first, last, ipv6, tftp, tells)
    dnsmasq.check(wanted)
    ours = network.partition("/")[0]
    if tells and address not in (ours, "0.0.0.0"):  # noqa: S104  # what the user asks for
        raise ConfigError([Problem("command line", "--address", f"found {address!r}", f"{ours}, which machines are told, or 0.0.0.0")])
    return wanted
