"""labctl boot-server: serves what running labs offer their machines, for a rack whose machines know one address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labctl.cli.verb import new_app

app = new_app()


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
    tftp: Annotated[Path, typer.Option(help="Folder of undionly.kpxe and ipxe.efi.")] = Path("/usr/lib/ipxe"),
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

    from labctl.machine.bootserver import dhcp as dnsmasq
    from labctl.machine.bootserver.offer import Shelf
    from labctl.machine.bootserver.web import serving

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        shelf = Shelf(offers)
        shelf.make(shared=True)
        at = stack.enter_context(serving(shelf, address, port))
        stack.enter_context(shelf.served(address, at))
        if interface:
            tells = dhcp != "none"
            first, _, last = (dhcp if tells else "").partition(",")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labctl-boot-server-")))
            wanted = dnsmasq.Network(interface, network, at, first, last, ipv6, tftp, tells)
            stack.enter_context(dnsmasq.serving(wanted, folder))
        print(f"boot server: http://{address}:{at}/boot.ipxe, offers in {offers}")
        sys.stdout.flush()
        ended.wait()
