"""The two paths that are measured: from a machine to the host, and between two machines."""

from dataclasses import dataclass
from typing import Any

import network_paths
import pytest
from network_peer import peer

from labctl.machine.addressing import bring_up

SUBNET = "192.168.127.{}/24"
"""Of a cable between two machines, which nobody else is on."""


@dataclass(frozen=True)
class Path:
    """From a machine to a peer, with what measures it: ``ping`` and ``rate`` of `network_paths`."""

    name: str
    session: Any
    shell: Any
    card: str
    """The card's name in the target's file."""
    device: str
    """Its name in the machine."""
    address: str
    """Of the machine, with its prefix."""
    peer: str
    ports: tuple[int, int]

    def ping(self, count, **how):
        return network_paths.ping(self.session, self.shell, self.peer, count, port=self.ports[0], **how)

    def rate(self, direction, seconds):
        return network_paths.rate(self.session, self.shell, self.peer, direction, seconds, port=self.ports[1])


@pytest.fixture
def host_path(target, request):
    """From the machine to the host that runs the lab, by the first card that leads there."""
    name, nic = next(((n, c) for n, c in target.config.nics.items() if c.to == "host"), (None, None))
    if name is None:
        pytest.skip('needs a network card that leads to the host: [nics.NAME] to = "host" in the target\'s file')
    if not (nic.address and nic.peer):
        pytest.skip(f"needs the addresses of both ends of {name}: address and peer in the target's file")
    shell = request.getfixturevalue("shell")
    device = bring_up(target, name, nic.address)
    with peer(nic.peer) as ports:
        yield Path("host", target, shell, name, device, nic.address, nic.peer, ports)


@pytest.fixture
def guest_path(machines, request):
    """From one machine to another by the first cable of the target."""
    if not machines.target.config.links:
        pytest.skip("needs a link between two machines: links in the target's file")
    ends = [end.split(".") for end in machines.target.config.links[0].between]
    shells = request.getfixturevalue("shells")
    addresses = [machines[machine].config.nics[card].address or SUBNET.format(n) for n, (machine, card) in enumerate(ends, 1)]
    devices = [bring_up(machines[machine], card, address) for (machine, card), address in zip(ends, addresses, strict=True)]
    near, far = (machine for machine, _ in ends)
    for tool, port in (("udpping", network_paths.PORT), ("tcprate", network_paths.RATE_PORT)):
        # It serves from the first test on: a second one cannot bind, and need not.
        told = shells[far].run(f"{tool} serve {port}", check=False)
        assert told.status == 0 or "in use" in told.output, told.output
    ports = (network_paths.PORT, network_paths.RATE_PORT)
    return Path("guest", machines[near], shells[near], ends[0][1], devices[0], addresses[0], addresses[1], ports)


@pytest.fixture(params=["host", "guest"])
def path(request):
    """Either path, where the target has it."""
    return request.getfixturevalue(f"{request.param}_path")
