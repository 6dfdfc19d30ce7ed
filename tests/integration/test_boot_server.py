"""The boot server: who is served what, what is told of it, and dnsmasq before it, on a network of its own."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, ConsoleLost, DeployError, StorageError
from labctl.machine.bootserver.delivery import Delivery
from labctl.machine.bootserver.dhcp import Network, config
from labctl.machine.bootserver.offer import Offer, Shelf, describe
from labctl.machine.bootserver.script import boot_script
from labctl.machine.bootserver.seal import Seal
from labctl.machine.bootserver.web import serving
from labctl.machine.polling import until
from labctl.machine.protocols import DriverContext
from labctl.machine.transcript import Transcript
from labctl.model import Build, Target, TargetConfig
from tests.temporary_lab import LABCTL

SCRIPT = "#!ipxe\necho one\n"


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    found = Shelf(tmp_path / "offers")
    found.make()
    return found


@pytest.fixture
def port(shelf: Shelf) -> Iterator[int]:
    with serving(shelf, "127.0.0.1", 0) as at:
        yield at


@pytest.fixture
def offer(tmp_path: Path) -> Offer:
    file = tmp_path / "kernel"
    file.write_bytes(os.urandom(3_000_000))
    return Offer("rack1", "52:54:00:00:00:01", SCRIPT, {"kernel": describe(file, "", "")})


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_a_file_is_served_while_it_is_offered_and_by_its_digest(shelf: Shelf, port: int, offer: Offer) -> None:
    path = f"/offer/{offer.token}/kernel"
    assert ask(port, path)[0] == 404
    with shelf.offering(offer):
        status, headers, body = ask(port, path)
        assert status == 200
        assert headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()}"'
        assert ask(port, path, "HEAD")[2] == b""
        status, headers, part = ask(port, path, Range="bytes=1000000-")
        assert (status, part) == (206, body[1_000_000:])
        assert headers["Content-Range"] == "bytes 1000000-2999999/3000000"
        assert ask(port, path, Range="bytes=3000000-")[0] == 416
        for wrong in (
            path + "x",
            path.replace(offer.token, "0" * 32),
            "/offer/../../etc/passwd",
            f"/offer/{offer.token}/..",
            "/",
            "/x" * 3000,
        ):
            assert ask(port, wrong)[0] in (404, 414)
        whole = [fetch for fetch in shelf.fetches(offer.token) if fetch.whole]
        assert [fetch.size for fetch in whole] == [3_000_000, 2_000_000]
    assert ask(port, path)[0] == 404
    assert not list(shelf.folder.iterdir())


def test_each_machine_gets_its_own_script(shelf: Shelf, port: int, offer: Offer) -> None:
    other = replace(offer, mac="52:54:00:00:00:02", script="#!ipxe\necho two\n", token="1" * 32)
    with shelf.offering(offer), shelf.offering(other):
        assert b"netX/mac" in ask(port, "/boot.ipxe")[2]
        assert ask(port, "/machine/52-54-00-00-00-01.ipxe")[2] == SCRIPT.encode()
        assert b"two" in ask(port, "/machine/52:54:00:00:00:02.ipxe")[2]
        assert b"exit 1" in ask(port, "/machine/52-54-00-00-00-03.ipxe")[2]
    assert b"exit 1" in ask(port, "/machine/52-54-00-00-00-01.ipxe")[2]


def test_the_offer_of_a_dead_owner_is_none(shelf: Shelf, port: int, offer: Offer) -> None:
    (shelf.folder / f"{offer.token}.offer").write_text(offer.text())
    (shelf.folder / "rubbish.offer").write_text("{")
    assert ask(port, f"/offer/{offer.token}/kernel")[0] == 404
    assert not shelf.live()


def test_reports_are_small_and_come_from_machines_that_were_offered_something(shelf: Shelf, port: int, offer: Offer) -> None:
    with shelf.offering(offer):
        assert ask(port, f"/offer/{offer.token}/report", "POST", b"written")[0] == 200
        assert ask(port, f"/offer/{offer.token}/report", "POST", b"x" * 5000)[0] == 413
        assert ask(port, f"/offer/{'2' * 32}/report", "POST", b"x")[0] == 404
        assert [fetch.reported for fetch in shelf.fetches(offer.token)] == ["written"]


def test_a_client_that_leaves_in_the_middle_is_noted(shelf: Shelf, port: int, offer: Offer) -> None:
    with shelf.offering(offer):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", f"/offer/{offer.token}/kernel")
        connection.getresponse().read(1000)
        connection.close()
        assert until(lambda: any(fetch.ended for fetch in shelf.fetches(offer.token)), Deadline.after(20))
        assert not any(fetch.whole for fetch in shelf.fetches(offer.token))


@pytest.mark.parametrize(
    ("whole", "begun", "cause"),
    [
        ([], "", r"did not ask the boot server for anything, and did not boot"),
        ([], "loader", r"in the middle of the kernel: \d+ of 3000000 bytes were sent|behind the loader, .*: it never asked for the kernel"),
        (["loader"], "", r"the network was lost behind the loader, all of which was sent: it never asked for the kernel"),
        (["loader"], "kernel", r"in the middle of the kernel: [1-9]\d+ of 3000000 bytes were sent"),
        (["loader", "kernel"], "", r"the network was lost behind the kernel, all of which was sent: it never asked for the cmdline"),
        (["loader", "kernel", "cmdline"], "", r"behind the cmdline, all of which was sent: it never asked for the initrd"),
        (["loader", "kernel", "cmdline", "initrd"], "", r"the loader that checks it was not heard"),
    ],
)
def test_where_the_network_was_lost_is_told(tmp_path: Path, offer: Offer, whole: list[str], begun: str, cause: str) -> None:
    (tmp_path / "work").mkdir()
    target = Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "256M", "drivers": {"qemu": {}}}))
    with Transcript() as transcript, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        delivery = Delivery(DriverContext(target, tmp_path / "work"), transcript, "drivers.netboot", "127.0.0.1", port, "", None)
        try:
            delivery.put({"initrd": offer.files["kernel"], "kernel": offer.files["kernel"]}, "quiet")
            assert delivery.offer is not None
            for name in whole:
                assert ask(port, f"/offer/{delivery.offer.token}/{name}")[0] == 200
                assert until(lambda name=name: delivery.fetches()[name].whole, Deadline.after(20))  # type: ignore[misc]
            with socket.create_connection(("127.0.0.1", port)) as machine:
                machine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
                if begun:  # and then its cable is out
                    machine.sendall(f"GET /offer/{delivery.offer.token}/{begun} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    assert until(
                        lambda: begun in delivery.fetches() and delivery.fetches()[begun].sent > 0,
                        Deadline.after(20),
                    )
                transcript.feed(b"iPXE initialising devices...\r\n")
                with pytest.raises(DeployError, match=cause):
                    delivery.arrived(ready=False)
        finally:
            delivery.release()


@pytest.mark.parametrize(
    ("ready", "heard", "cause"),
    [
        (True, b"[    0.000000] Linux version 6.1\r\n", "the machine came up, and its loader was not heard"),
        (False, b" \r\n", "nothing at all was heard of the machine meanwhile"),
    ],
)
def test_a_console_that_has_lost_the_loaders_words(tmp_path: Path, offer: Offer, ready: bool, heard: bytes, cause: str) -> None:
    """The lab's loss, and no word about the build."""
    target = Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "256M", "drivers": {"qemu": {}}}))
    with Transcript() as transcript, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        delivery = Delivery(DriverContext(target, tmp_path), transcript, "drivers.netboot", "127.0.0.1", port, "", None)
        try:
            delivery.put({"kernel": offer.files["kernel"]}, "quiet")
            assert delivery.offer is not None
            for name in ("loader", "kernel", "cmdline"):
                assert ask(port, f"/offer/{delivery.offer.token}/{name}")[0] == 200
                assert until(lambda name=name: delivery.fetches()[name].whole, Deadline.after(20))  # type: ignore[misc]
            transcript.feed(heard)
            with pytest.raises(ConsoleLost, match=cause):
                delivery.arrived(ready=ready)
        finally:
            delivery.release()


def test_where_it_cannot_listen(shelf: Shelf, port: int) -> None:
    with pytest.raises(DeployError, match=f"cannot listen.*\n.*sport = :{port}"), serving(shelf, "127.0.0.1", port):
        pass
    for nobodys in ("192.0.2.1", "nobody.invalid"):
        with pytest.raises(DeployError, match=r"cannot listen.*\n  try: ip -br address"), serving(shelf, nobodys, 0):
            pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--dhcp none", ["--dhcp: found 'none'; goes with --interface only"]),
        (
            "--network 10.9.0.1/24 --ipv6 fd77::1/64 --tftp /srv/tftp",
            ["--network: found '10.9.0.1/24'; goes", "--ipv6: found 'fd77::1/64'; goes", "--tftp: found '/srv/tftp'; goes"],
        ),
        ("--interface eth0", ["--network: is missing; our address on eth0"]),
        ("--interface eth0 --network bogus --ipv6 fd77", ["--network: found 'bogus'; an address", "--ipv6: found 'fd77'; an address"]),
        (
            "--interface eth0 --network 10.9.0.1/24 --address 10.9.0.1 --dhcp 10.9.0.9",
            ["--dhcp: found '10.9.0.9'; two addresses, as in 10.9.0.50,10.9.0.99, or none"],
        ),
        ("--interface eth0 --network 10.9.0.1/24", ["--address: found '127.0.0.1'; 10.9.0.1, which machines are told, or 0.0.0.0"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: str, told: list[str]) -> None:
    argv = [str(LABCTL), "boot-server", "--port", "0", "--offers", str(tmp_path / "offers"), *options.split()]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == len(told)
    for words in told:
        assert words in ran.stderr
    assert not (tmp_path / "offers").exists()


def test_a_file_in_the_place_of_the_folder_of_offers(tmp_path: Path) -> None:
    (tmp_path / "offers").touch()
    with pytest.raises(StorageError, match=r"a file is in its place\n  try: .*--offers"):
        Shelf(tmp_path / "offers").make(shared=True)


@pytest.mark.parametrize(
    ("address", "first", "last", "option"),
    [
        ("10.9.0.1/24", "10.8.0.2", "10.8.0.9", "--dhcp: found '10.8.0.2,10.8.0.9'; two addresses of 10.9.0.0/24"),
        ("10.9.0.1/24", "10.9.0.9", "10.9.0.2", "--dhcp: found '10.9.0.9,10.9.0.2'; two addresses of 10.9.0.0/24, the lower one first"),
        ("10.9.0.1/24", "10.9.0.9", "ten", "--dhcp: found '10.9.0.9,ten'"),
        ("no", "", "", "--network: found 'no'"),
    ],
)
def test_addresses_that_do_not_fit(tmp_path: Path, address: str, first: str, last: str, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        config(Network("eth0", address, 80, first, last), tmp_path)


_IN_ITS_OWN_NETWORK = """
set -e
ip link set lo up
ip tuntap add tap0 mode tap
ip addr add 10.77.0.1/24 dev tap0
ip -6 addr add fd77::1/64 dev tap0 nodad
ip link set tap0 up
exec {python} -c 'import sys; sys.path.insert(0, "{root}"); from tests.integration.test_boot_server import inside; inside("{folder}")'
"""


@pytest.mark.qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace with a tap needs root")
def test_a_machine_boots_by_dhcp_and_only_its_own_offer(tmp_path: Path, debian: Build) -> None:
    (tmp_path / "build.json").write_text(json.dumps([str(debian.kernel), str(debian.initrd)]))
    root = Path(__file__).parents[2]
    script = _IN_ITS_OWN_NETWORK.format(python=sys.executable, root=root, folder=tmp_path)
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "labctl-guest: ready" in done.stdout
    assert "pxe over tftp" in done.stdout


def inside(folder: str) -> None:
    """Runs in the namespace: the service, an offer for one network card, a machine with it, and a client of TFTP."""
    shelf = Shelf(Path(folder) / "offers")
    tftp = Path(tempfile.mkdtemp(prefix="labctl-tftp-"))  # dnsmasq reads it as nobody, who may not enter a test's folder
    tftp.chmod(0o755)
    (tftp / "undionly.kpxe").write_text("pxe over tftp")
    (tftp / "undionly.kpxe").chmod(0o644)
    words = ["--offers", str(shelf.folder), "--address", "10.77.0.1", "--port", "8069", "--interface", "tap0", "--network", "10.77.0.1/24"]
    words += ["--dhcp", "10.77.0.50,10.77.0.99", "--ipv6", "fd77::1/64", "--tftp", str(tftp)]
    with subprocess.Popen([str(LABCTL), "boot-server", *words], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            assert "boot server: http://10.77.0.1:8069" in service.stdout.readline()
            print(
                subprocess.run(
                    ["busybox", "tftp", "-g", "-r", "undionly.kpxe", "-l", "/dev/stdout", "10.77.0.1"], capture_output=True
                ).stdout
            )
            seal, built = Seal(), json.loads((Path(folder) / "build.json").read_text())
            kernel, initrd = (seal.describe(part, Path(path), "", "") for part, path in zip(("kernel", "initrd"), built, strict=True))
            files = {"kernel": kernel, "initrd": initrd}
            mac = "52:54:00:77:00:01"
            offer = Offer("rack1", mac, "", files)
            append = "console=ttyS0,115200"
            cmdline = Path(folder) / "cmdline"
            cmdline.write_text(append)
            from labctl.machine.bootserver.loader import loaders

            files |= {name: describe(program, "", "") for name, program in loaders().items()}
            files["cmdline"] = seal.describe("cmdline", cmdline, "", "")
            with shelf.offering(replace(offer, script=boot_script(offer.token, files, seal), files=files)):
                _boot(mac)
        finally:
            service.send_signal(signal.SIGTERM)
            shutil.rmtree(tftp)


def _boot(mac: str) -> None:
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,graphics=off", "-m", "256M", "-cpu", "max"]
    words += ["-boot", "strict=on", "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", "-serial", "stdio"]
    words += ["-device", f"virtio-net-pci,netdev=n0,bootindex=0,mac={mac}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        try:
            for line in machine.stdout:
                print(line.decode(errors="replace").rstrip())
                if b"labctl-guest: ready" in line:
                    return
        finally:
            machine.kill()
