"""Tells machines on a network of the lab's own where the boot server is, and gives them iPXE over TFTP: dnsmasq, with a config of ours.

What a machine is told depends on what asks: its firmware (PXE) is given iPXE by TFTP, iPXE the address of its script by HTTP. Beside a
DHCP server that is there already dnsmasq answers as a proxy (PXE specification 2.1, 2.2.3): addresses stay the other's. Where that server
itself names the lab, nobody is told anything here, and TFTP is all that is served.
Options: RFC 4578 (93, client architecture); iPXE's own, in 175 (ipxe.org/howto/dhcpd), of which 176 says not to wait for a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from labctl.deadline import Deadline
from labctl.errors import ConfigError, InfraError, Problem
from labctl.machine.polling import until
from labctl.process import start

A = TypeVar("A")
START = 10.0
"""Seconds that dnsmasq may take to begin."""
FIRST_STAGE = Path("/usr/lib/ipxe")
"""Where Debian's package ipxe puts undionly.kpxe and ipxe.efi."""

_COMMON = """# Written by labctl boot-server.
port=0
no-resolv
no-hosts
interface={interface}
except-interface=lo
bind-interfaces
log-facility=-
log-dhcp
dhcp-leasefile={folder}/dhcp.leases
enable-tftp
tftp-root={tftp}
"""
_MATCHES = """dhcp-match=set:ipxe,175
dhcp-match=set:efi,option:client-arch,7
dhcp-match=set:efi,option:client-arch,9
"""
_OWN = """dhcp-authoritative
dhcp-range={first},{last},{netmask},1h
dhcp-option=tag:ipxe,encap:175,176,1b
dhcp-boot=tag:ipxe,{url}
dhcp-boot=tag:!ipxe,tag:efi,ipxe.efi
dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe
"""
_PROXY = """dhcp-range={network},proxy
pxe-prompt="labctl",0
pxe-service=tag:!ipxe,x86PC,"labctl",undionly.kpxe
pxe-service=tag:!ipxe,BC_EFI,"labctl",ipxe.efi
pxe-service=tag:!ipxe,X86-64_EFI,"labctl",ipxe.efi
dhcp-boot=tag:ipxe,{url}
"""
# Without a router's word on IPv6 iPXE asks for one for 14 s.
_IPV6 = """enable-ra
dhcp-range={prefix},ra-only
"""


@dataclass(frozen=True)
class Network:
    """Where the machines are. ``address``: ours there, with its prefix length; ``first`` and ``last``: what machines are given, both
    empty where another server does that. ``ipv6``: our address there, if there is one. ``tells``: not so where that other server says
    itself what to boot."""

    interface: str
    address: str
    port: int
    """Of the boot server, on ``address``."""
    first: str = ""
    last: str = ""
    ipv6: str = ""
    tftp: Path = FIRST_STAGE
    tells: bool = True


def check(network: Network) -> None:
    """ConfigError with each option of `labctl boot-server` that makes no sense."""
    problems = []
    ours = _address(network.address, ipaddress.IPv4Interface)
    if not network.address:
        problems.append(Problem("command line", "--network", "is missing", f"our address on {network.interface}, as in 10.9.0.1/24"))
    elif ours is None:
        problems.append(Problem("command line", "--network", f"found {network.address!r}", "an address with its prefix, as in 10.9.0.1/24"))
    if network.ipv6 and _address(network.ipv6, ipaddress.IPv6Interface) is None:
        problems.append(Problem("command line", "--ipv6", f"found {network.ipv6!r}", "an address with its prefix, as in fd77::1/64"))
    given = [end for end in (network.first, network.last) if end]
    ends = [address for end in given if (address := _address(end, ipaddress.IPv4Address)) is not None]
    found = f"found {','.join(given)!r}"
    if len(ends) != len(given) or len(given) == 1:
        problems.append(Problem("command line", "--dhcp", found, "two addresses, as in 10.9.0.50,10.9.0.99, or none"))
    elif ours is not None and (any(end not in ours.network for end in ends) or ends != sorted(ends)):
        problems.append(Problem("command line", "--dhcp", found, f"two addresses of {ours.network}, the lower one first"))
    if problems:
        raise ConfigError(problems)


def _address(text: str, kind: Callable[[str], A]) -> A | None:
    try:
        return kind(text)
    except ValueError:
        return None


def config(network: Network, folder: Path) -> str:
    """dnsmasq's file. ConfigError for addresses that are none, or of another network."""
    check(network)
    ours = ipaddress.IPv4Interface(network.address)
    prefix = ipaddress.IPv6Interface(network.ipv6).network.network_address if network.ipv6 else None
    told = [_MATCHES, _OWN if network.first else _PROXY] if network.tells else []
    parts = [_COMMON, *told, *([_IPV6] if prefix is not None else [])]
    return "".join(parts).format(
        interface=network.interface,
        folder=folder,
        tftp=network.tftp,
        first=network.first,
        last=network.last,
        netmask=ours.netmask,
        network=ours.network.network_address,
        url=f"http://{ours.ip}:{network.port}/boot.ipxe",
        prefix=prefix,
    )


@contextmanager
def serving(network: Network, folder: Path) -> Iterator[None]:
    """Answer the network's machines within this block. HostToolMissing, ConfigError; InfraError with dnsmasq's last words."""
    file, log = folder / "dnsmasq.conf", folder / "dnsmasq.log"
    file.write_text(config(network, folder))
    with log.open("wb") as words:
        child = start(["dnsmasq", "--keep-in-foreground", f"--conf-file={file}", f"--pid-file={folder}/dnsmasq.pid"], stderr=words)
    with child:
        until(lambda: child.status is not None or b"started" in log.read_bytes(), Deadline.after(START))
        if child.status is not None or b"started" not in log.read_bytes():
            said = [line.partition(": ")[2] for line in log.read_text(errors="replace").splitlines() if "FAILED to start" not in line]
            raise InfraError(
                f"dnsmasq does not serve {network.interface}: {said[-1] if said else 'it says nothing'}",
                remedy="it needs root, the interface with that address, a TFTP folder that all may read, and no other DHCP server",
            )
        yield
