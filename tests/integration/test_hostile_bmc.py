"""A BMC whose Redfish never ends, never comes, or makes no sense: it costs its time and no more, and is told by what it did."""

from __future__ import annotations

import gzip
import os
import re
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from labctl.deadline import Deadline
from labctl.errors import InfraError, ManagementError
from labctl.machine import boundedhttp, checkup, registry
from labctl.machine.protocols import DriverContext, Health, Power, Reading
from labctl.machine.transcript import Transcript
from labctl.model import PowerState, Target, TargetConfig
from tests.hostile_bmc import RESOURCES, Heard, Says, answer, hostile_bmc, well
from tests.temporary_lab import LABCTL

PASSWORD = "HOSTILE_BMC_PASSWORD"
Asked = Callable[[Says], AbstractContextManager[tuple[Power, Heard]]]


def of_target(url: str, **more: object) -> Target:
    options = {"url": url, "user": "admin", "password": f"env:{PASSWORD}", **more}
    return Target("rack1", TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"redfish": options}}))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The driver `redfish`, before such a BMC."""
    monkeypatch.setenv(PASSWORD, "hunter2-of-the-rack")

    @contextmanager
    def of(says: Says) -> Iterator[tuple[Power, Heard]]:
        with hostile_bmc(says) as heard, Transcript() as transcript:
            yield registry.assemble(DriverContext(of_target(heard.url), tmp_path), transcript).power, heard

    return of


def drips(head: bytes) -> Says:
    """A byte each tenth of a second, behind ``head``."""

    def says(_: str) -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(0.1)
            yield b" "

    return says


WHOLE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
ENDLESS = {"in its head": b"HTTP/1.1 200 OK\r\nX: ", "in its body": WHOLE_HEAD}


def test_one_that_is_well(asked: Asked) -> None:
    """So that what the others are told is not this server's doing."""
    with asked(lambda path: [well(path)]) as (power, heard):
        assert power.state(Deadline.after(10)) is PowerState.ON
        assert heard.requests[-1].startswith("GET /redfish/v1/Systems/1 ")


@pytest.mark.parametrize("head", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_that_drips_has_one_deadline(asked: Asked, head: bytes) -> None:
    with asked(drips(head)) as (power, _):
        began = time.monotonic()
        with pytest.raises(ManagementError) as caught:
            power.state(Deadline.after(3))
    assert time.monotonic() - began < 6
    # What is left of the verb's three seconds when it is asked.
    assert re.search(r"does not answer GET /redfish/v1/ within (3|2\.\d) s: ", caught.value.message)
    assert "http://127.0.0.1:" in caught.value.message


def test_a_check_of_one_that_drips_ends_at_the_first_signal(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    with hostile_bmc(drips(WHOLE_HEAD)) as heard:
        (tmp_path / "targets").mkdir()
        (tmp_path / "targets/rack1.toml").write_text(
            f'schema = 1\ncpus = 1\nmemory = "1G"\n[drivers.redfish]\nurl = "{heard.url}"\nuser = "admin"\npassword = "env:{PASSWORD}"\n'
        )
        environment = {**os.environ, PASSWORD: "x", "LABCTL_LOCKS": str(tmp_path / "locks")}
        words = [str(LABCTL), "targets", "check", "rack1"]
        with subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as checking:
            limit = Deadline.after(30)
            while not heard.requests and not limit.expired:
                time.sleep(0.05)
            began = time.monotonic()
            checking.send_signal(signal.SIGTERM)
            _, said = checking.communicate(timeout=60)
        assert heard.requests
        assert said == "labctl: interrupted\n"
        assert checking.returncode == 130
        assert time.monotonic() - began < checkup._FAREWELL + 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a mistake of labctl's own is shown where it is made
def test_a_check_of_many_keeps_their_order_and_tells_a_mistake_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = [Target(f"rack{number}", of_target("http://127.0.0.1:9").config) for number in range(checkup.AT_A_TIME + 9)]
    monkeypatch.setattr(checkup, "check", lambda target, _: checkup.Found(target.name))
    assert [found.target for found in checkup.check_all(targets, tmp_path)] == [target.name for target in targets]

    def refused(target: Target, _: Path) -> checkup.Found:
        raise ManagementError("no", target=target.name)

    monkeypatch.setattr(checkup, "check", refused)
    with pytest.raises(ManagementError, match="rack0: no"):
        checkup.check_all(targets, tmp_path)

    def mistaken(target: Target, _: Path) -> checkup.Found:
        raise ZeroDivisionError(target.name)

    monkeypatch.setattr(checkup, "check", mistaken)
    with pytest.raises(ZeroDivisionError, match="rack0"):
        checkup.check_all(targets, tmp_path)


def without_end(path: str, head: bytes, sent: list[int]) -> Iterator[bytes]:
    yield head
    while path:
        sent.append(1 << 16)
        yield b" " * (1 << 16)


@pytest.mark.parametrize("head", [*ENDLESS.values(), WHOLE_HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")])
def test_an_answer_without_an_end_fills_no_memory(asked: Asked, head: bytes) -> None:
    sent: list[int] = []
    with asked(lambda path: without_end(path, head, sent)) as (power, _), pytest.raises(ManagementError, match="the BMC at http://127"):
        power.state(Deadline.after(60))
    assert sum(sent) < 2 * boundedhttp.MOST + (8 << 20)  # of which the last lay in the sockets


def test_an_answer_that_grows_when_it_is_unpacked(asked: Asked) -> None:
    packed = gzip.compress(b" " * (boundedhttp.MOST + 1))
    assert len(packed) < 1 << 16
    told = pytest.raises(ManagementError, match="answers GET /redfish/v1/ without an end: 8 MiB and more")
    with asked(lambda _: [answer(packed, Content_Encoding="gzip")]) as (power, _), told:
        power.state(Deadline.after(60))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "bmc.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    no_password = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private)
    return file


def test_the_same_by_tls(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "x")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    def state(url: str, seconds: float, **options: object) -> PowerState:
        config = of_target(url, **options).config
        power = registry.assemble(DriverContext(Target("rack1", config), tmp_path), Transcript()).power
        return power.state(Deadline.after(seconds))

    with hostile_bmc(lambda path: [well(path)], tls) as heard:
        assert state(heard.url, 10, verify=str(certificate)) is PowerState.ON
        assert state(heard.url, 10, verify=False) is PowerState.ON
        with pytest.raises(ManagementError, match=r"does not answer: .*CERTIFICATE_VERIFY_FAILED.*\n  try: .* its certificate"):
            state(heard.url, 10)
    with hostile_bmc(drips(WHOLE_HEAD), tls) as heard:
        began = time.monotonic()
        with pytest.raises(ManagementError, match=r"does not answer GET /redfish/v1/ within (2|1\.\d) s: "):
            state(heard.url, 2, verify=str(certificate))
        assert time.monotonic() - began < 5
    told = pytest.raises(ManagementError, match="answers GET /redfish/v1/ without an end: 8 MiB and more")
    with hostile_bmc(lambda path: without_end(path, WHOLE_HEAD, []), tls) as heard, told:
        state(heard.url, 60, verify=False)


def test_what_is_asked_behind_an_error_has_its_own_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine is switched off behind an error, or an interrupt: Python hangs that one to whatever is raised then."""
    monkeypatch.setenv(PASSWORD, "x")
    nothing = registry.assemble(DriverContext(of_target("http://127.0.0.1:9"), tmp_path), Transcript()).power
    for earlier in (KeyboardInterrupt(), boundedhttp.Unfit("answers another question")):
        try:
            raise earlier
        except type(earlier):
            with pytest.raises(ManagementError, match=r"127.0.0.1:9 does not answer: .*refused"):
                nothing.state(Deadline.after(10))


# --- answers that make no sense


@pytest.mark.parametrize("deep", ["[", '{"Members": [', '{"a":'])
def test_an_answer_that_is_nested_too_deeply_is_no_mistake_of_labctl(asked: Asked, deep: str) -> None:
    with asked(lambda _: [answer(deep.encode() * 100_000)]) as (power, _), pytest.raises(ManagementError, match="the BMC at http"):
        power.state(Deadline.after(10))


@pytest.mark.parametrize("path", RESOURCES)
@pytest.mark.parametrize("content", [None, 1, "text", [], [1], {}, {"Members": 5}, {"Members": [5]}, {"Links": [], "PowerState": []}])
def test_whatever_an_answer_holds_has_one_name(asked: Asked, path: str, content: object) -> None:
    """Of each resource in turn: all that is asked of a BMC ends well or as the lab's own error, in a moment."""
    told: list[str] = []
    with asked(lambda other: [well(other, {path: content})]) as (power, _):
        assert isinstance(power, Health)
        for question in (power.state, power.readings, power.latest_event, power.inventory, power.log_is_full, power.off):
            try:
                question(Deadline.after(10))
            except InfraError as error:
                told.append(error.message)
    assert [words for words in told if "the BMC at http" not in words] == []


def oops(path: str, error: bytes = b"oops") -> bytes:
    return answer(error, "text/plain", "500 Internal Server Error") if "Systems" in path else well(path)


SAID = b'{"error": {"code": "Base.1.0.GeneralError", "message": "The BMC is\\u001b[31m busy."}}'
SAYS: dict[str, tuple[Says, str]] = {
    "a web page": (
        lambda _: [answer(b"<html>Log in</html>", "text/html; charset=utf-8")],
        "answers without a sense: GET /redfish/v1/ gave no JSON (text/html): '<html>Log in</html>'\n  try: see that this is its address",
    ),
    "nothing": (lambda _: [answer(b"")], "answers without a sense: GET /redfish/v1/ gave nothing\n  try: see that this is its address"),
    "a list": (lambda _: [answer(b"[1]")], "answers without a sense: GET /redfish/v1/ gave a list, where Redfish has an object"),
    "too deep": (lambda _: [answer(b"[" * 100_000)], "answers without a sense: GET /redfish/v1/ gave JSON that is nested too deeply"),
    "a number inside": (
        lambda path: [well(path, {"/redfish/v1/Systems": {"Name": "x", "Members": 5}})],
        "answers without a sense: GET /redfish/v1/Systems: The attribute Members is malformed",
    ),
    "a text inside": (
        lambda path: [well(path, {"/redfish/v1/Systems": {"Name": "x", "Members": "yes"}})],
        "answers without a sense: GET /redfish/v1/Systems gave what is of another kind in Redfish (AttributeError: ",
    ),
    "a circle": (
        lambda path: [answer(b"", status="302 Found", Location=path)],
        "answers without a sense: GET /redfish/v1/ sends us on and on, to its own addresses",
    ),
    "an error": (lambda path: [oops(path)], "says HTTP 500: no words of its own (to GET /redfish/v1/Systems)"),
    "an error with words": (lambda path: [oops(path, SAID)], "says HTTP 500: The BMC is [31m busy. (to GET /redfish/v1/Systems)"),
    "no HTTP": (lambda _: [b"SSH-2.0-OpenSSH_9.2\r\n"], "answers without a sense: GET /redfish/v1/ gave no HTTP (BadStatusLine)"),
}


@pytest.mark.parametrize(("says", "words"), SAYS.values(), ids=SAYS)
def test_what_it_says_is_told_by_what_was_asked(asked: Asked, says: Says, words: str) -> None:
    with asked(says) as (power, heard), pytest.raises(ManagementError) as caught:
        power.state(Deadline.after(10))
    assert str(caught.value).startswith(f"rack1: the BMC at {heard.url} {words}")
    assert "does not answer" not in str(caught.value)


@pytest.mark.parametrize("how", ["redirect", "link"])
def test_the_password_goes_nowhere_else(asked: Asked, how: str) -> None:
    """Not where a redirect leads, nor a link in a resource, though it is another port of the same host."""
    with hostile_bmc(lambda path: [well(path)]) as other:

        def says(path: str) -> list[bytes]:
            if "Systems" not in path:
                return [well(path)]
            if how == "redirect":
                return [answer(b"", status="307 Temporary Redirect", Location=other.url + path)]
            return [well(path, {"/redfish/v1/Systems": {"Name": "x", "Members": [{"@odata.id": f"{other.url}/redfish/v1/Systems/1"}]}})]

        with asked(says) as (power, heard), pytest.raises(ManagementError) as caught:
            power.state(Deadline.after(10))
        assert "Authorization: Basic " in heard.requests[-1]
        assert f"answers GET /redfish/v1/Systems by leading to {other.url}/redfish/v1/Systems" in caught.value.message
        assert "give it as the option url" in caught.value.remedy
        assert other.requests == []


def test_a_redirect_of_its_own_is_followed(asked: Asked) -> None:
    def says(path: str) -> list[bytes]:
        return [answer(b"", status="301 Moved Permanently", Location=path.rstrip("/"))] if path.endswith("/") else [well(path)]

    with asked(says) as (power, _):
        assert power.state(Deadline.after(10)) is PowerState.ON


# --- sensors


def sensors(*said: object, watts: object = 180) -> Says:
    """Thermal with these temperatures, Power with that draw."""
    resources: dict[str, object] = {
        "/c": {"Thermal": {"@odata.id": "/t"}, "Power": {"@odata.id": "/p"}},
        "/t": {"Temperatures": [{"Name": f"T{number}", "ReadingCelsius": value} for number, value in enumerate(said)]},
        "/p": {"PowerControl": [{"Name": "Draw", "PowerConsumedWatts": watts}]},
    }
    return lambda path: [well(path, resources)]


NONSENSE = ["hot", 1e308, float("nan"), float("inf"), -300, True, [], 10**400]


def test_what_no_machine_has_is_no_reading(asked: Asked) -> None:
    with asked(sensors(*NONSENSE, 45, None, 44.5)) as (power, _):
        assert isinstance(power, Health)
        deadline = Deadline.after(10)
        temperatures = (Reading(f"T{len(NONSENSE)}", 45.0, "degC"), Reading(f"T{len(NONSENSE) + 2}", 44.5, "degC"))
        assert power.readings(deadline) == (*temperatures, Reading("Draw", 180.0, "W"))
        assert power.sample(deadline) == {"machine_degc": 45.0, "machine_watts": 180.0}


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda value: str(value)[:9])
def test_nothing_but_nonsense_is_no_health(asked: Asked, nonsense: object) -> None:
    with asked(sensors(nonsense, None)) as (power, heard):
        assert isinstance(power, Health)
        with pytest.raises(ManagementError) as caught:
            power.readings(Deadline.after(10))
        said = f"the BMC at {heard.url} answers without a sense: Thermal/Temperatures: T0 says {nonsense!r:.40}"
        assert caught.value.message == said
        assert power.sample(Deadline.after(10)) == {"machine_watts": 180.0}  # which is beside a measurement all the same


def test_a_check_of_nonsense_is_wrong_and_says_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "x")
    with hostile_bmc(sensors(*NONSENSE)) as heard:
        found = checkup.check(of_target(heard.url), tmp_path)
    assert [type(error) for error in found.wrong] == [ManagementError]
    assert (found.power, found.readings) == ("on", ())


# --- an outlet that speaks HTTP is as little vouched for


def of_outlet(url: str, folder: Path) -> Power:
    options = {"url": f"{url}/{{verb}}"}
    config = TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": {"pdu": options}})
    return registry.assemble(DriverContext(Target("rack1", config), folder), Transcript()).power


def test_an_outlet_that_drips_has_one_deadline(tmp_path: Path) -> None:
    with hostile_bmc(lambda _: [answer(b"it is on", "text/plain")]) as heard:
        assert of_outlet(heard.url, tmp_path).state(Deadline.after(10)) is PowerState.ON
    with hostile_bmc(drips(WHOLE_HEAD)) as heard:
        began = time.monotonic()
        with pytest.raises(ManagementError, match=rf"the outlet at {heard.url}/state does not answer GET /state within (2|1\.\d) s: "):
            of_outlet(heard.url, tmp_path).state(Deadline.after(2))
    assert time.monotonic() - began < 5
