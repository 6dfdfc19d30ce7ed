"""Is a network card what it was set to be, and does it stay so?"""

from network_paths import require

from labctl.machine.addressing import await_carrier


def addresses(shell, device):
    """IPv4 addresses of a card, with their prefixes."""
    return [line.split()[1] for line in shell(f"ip -4 address show dev {device}").splitlines() if line.strip().startswith("inet ")]


def test_hardware_address(target, host_path):
    """The card has the hardware address that the target says."""
    assert host_path.shell(f"cat /sys/class/net/{host_path.device}/address") == target.mac(host_path.card)


def test_address_is_kept(path):
    """Over the card's going down and up, and a second address beside it."""
    shell, device = path.shell, path.device
    before = addresses(shell, device)
    assert path.address in before
    shell(f"ip address add 198.51.100.7/32 dev {device}")
    try:
        for _ in range(3):
            shell(f"ip link set {device} down")
            assert shell(f"cat /sys/class/net/{device}/operstate") == "down"
            shell(f"ip link set {device} up")
            await_carrier(path.session, device)
            assert addresses(shell, device) == [*before, "198.51.100.7/32"]
    finally:
        shell(f"ip address del 198.51.100.7/32 dev {device}")
    assert addresses(shell, device) == before
    require(path, path.ping(20))


def test_mtu(path):
    """A packet of the largest size comes back; the card says 1500."""
    assert path.shell(f"cat /sys/class/net/{path.device}/mtu") == "1500"
    found = path.ping(10, size=1500 - 28)
    require(path, found)
    assert found.loss == 0
