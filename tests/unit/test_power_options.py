"""What can be known of a power driver's options without touching a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labctl.deadline import Deadline
from labctl.errors import ConfigError, HostToolMissing, ManagementError
from labctl.machine.protocols import DriverContext, Power
from labctl.machine.registry import assemble, check, check_together, missing_programs, stays_on
from labctl.machine.transcript import Transcript
from labctl.model import Target, TargetConfig


def target(name: str = "rack1", **drivers: dict[str, Any]) -> Target:
    return Target(name, TargetConfig.model_validate({"schema": 1, "cpus": 1, "memory": "1G", "drivers": drivers}))


def refused(**drivers: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(target(**drivers))
    return str(caught.value)


def test_an_outlet_is_switched_by_a_command_or_by_http() -> None:
    check(target(pdu={"command": "pductl {outlet} {verb}", "outlet": "7"}))
    check(target(pdu={"url": "http://{host}/{outlet}/{verb}", "host": "pdu1", "verbs": {"on": "1", "off": "0"}}))
    assert "drivers.pdu: has neither; either command or url" in refused(pdu={"outlet": "7"})
    assert "drivers.pdu: has both; either command or url" in refused(pdu={"command": "pductl {verb}", "url": "http://x/{verb}"})
    assert "drivers.pdu.verbs: has no off" in refused(pdu={"command": "pductl {verb}", "verbs": {"on": "1"}})


@pytest.mark.parametrize(
    "command", ["pductl {port}", "pductl {outlet.__class__}", "pductl {0}", "pductl {}", "pductl {verb!r}", "pductl '", "{verb", ""]
)
def test_a_command_has_no_other_places(command: str) -> None:
    said = refused(pdu={"command": command})
    assert "drivers.pdu.command: found" in said
    assert "{host}" in said


def test_an_answer_is_looked_at_with_patterns_that_are_patterns() -> None:
    assert "drivers.pdu.says_on: found '('; a regular expression" in refused(pdu={"command": "pductl {verb}", "says_on": "("})


@pytest.mark.parametrize("url", ["10.0.8.21", "ftp://10.0.8.21", "https://admin:secret@10.0.8.21", "https://"])
def test_the_address_of_redfish_holds_no_password(url: str) -> None:
    for said in (
        refused(redfish={"url": url, "user": "u", "password": "keyring:a/b"}),
        refused(pdu={"url": f"{url}/{{outlet}}/{{verb}}"}) if url != "https://" else refused(pdu={"url": "https:///{verb}"}),
    ):
        assert ".url: no address, or one with a password in it (it is not shown)" in said
        assert "secret@" not in said


ASKED = {"user": "u", "password": "keyring:a/b"}


@pytest.mark.parametrize(
    "host",
    ["rack1", "rack_1-bmc.lab.example.org.", "10.0.8.21", "fe80::1%eth0", "::1", "bücher.example", "7up", "a" * 63, "4.in-addr.arpa"],
)
def test_a_host(host: str) -> None:
    check(target(ipmi={"host": host, **ASKED}, sol={"host": host, **ASKED}, ssh={"host": host, "user": "root"}))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:623", "a host's name or its address, and nothing else; its port is a key of its own"),
        ("http://127.0.0.1/", "a host's name or its address, and nothing else, such as 127.0.0.1"),
        *(
            (host, "a host's name or its address, and nothing else")
            for host in ("", " ", "a b", "h/", "-x", "[::1]", "u@h", "h\n", "10.0.8.300")
        ),
        ("a" * 64, "a host's name or its address, and nothing else"),
        (".".join(["a" * 50] * 6), "a host's name or its address, and nothing else"),
    ],
)
def test_what_is_no_host(host: str, allowed: str) -> None:
    for driver in ("ipmi", "sol"):
        said = refused(**{driver: {"host": host, **ASKED}})
        assert said.splitlines()[0].startswith(f"targets/rack1.toml: drivers.{driver}.host: found ")
        assert said.splitlines()[0].endswith(f"; {allowed}")
    assert "drivers.ssh.host: found " in refused(ssh={"host": host, "user": "root"})


@pytest.mark.parametrize(
    ("port", "allowed"), [("623", "a whole number"), (623.0, "a whole number"), (0, "at least 1"), (65536, "at most 65535")]
)
def test_a_port_is_a_number(port: object, allowed: str) -> None:
    assert f"targets/rack1.toml: drivers.ipmi.port: found {port!r}; {allowed}" in refused(ipmi={"host": "h", "port": port, **ASKED})


def test_a_rest_is_a_number() -> None:
    assert "drivers.ipmi.rest: found '5'; a number" in refused(ipmi={"host": "h", "rest": "5", **ASKED})
    check(target(ipmi={"host": "h", "rest": 5, **ASKED}))


@pytest.mark.parametrize("url", ["https://h:abc", "https://h:99999", "https://a b", "http://10.0.0.300"])
def test_the_address_of_redfish_is_one(url: str) -> None:
    said = refused(redfish={"url": url, **ASKED})
    assert (
        said
        == f"targets/rack1.toml: drivers.redfish.url: found {url!r}; http://HOST or https://HOST, with :PORT behind it where it is another one"
    )
    check_together([target(redfish={"url": url, **ASKED})])  # which looks at files that are wrong, too


def test_the_cipher_suite_of_ipmi_is_one_that_keeps_a_secret() -> None:
    assert "drivers.ipmi.cipher_suite" in refused(ipmi={"host": "h", "user": "u", "password": "keyring:a/b", "cipher_suite": 2})


def test_one_power_for_a_machine() -> None:
    assert "second Power beside" in refused(manual={}, pdu={"command": "pductl {verb}"})


def test_two_targets_do_not_share_what_switches_them() -> None:
    def ipmi(name: str, **options: Any) -> Target:
        return target(name, ipmi={"user": "u", "password": "keyring:a/b", **options})

    check_together(
        [ipmi("a", host="h1"), ipmi("b", host="h2"), ipmi("c", host="h1", port=624), target("d", manual={}), target("e", manual={})]
    )
    with pytest.raises(ConfigError, match=r"targets/b.toml: drivers.ipmi: names the BMC h1:623, as target a does; one target each"):
        check_together([ipmi("a", host="h1"), ipmi("b", host="h1", port=623)])
    with pytest.raises(ConfigError, match=r"targets/b.toml: drivers: names the BMC h1:623, as target a does; one target each"):
        check_together(
            [ipmi("a", host="h1")], beside=[ipmi("a", host="h1"), ipmi("b", host="h1"), ipmi("c", host="h2"), ipmi("d", host="h2")]
        )
    with pytest.raises(ConfigError) as several:
        check_together([ipmi("a", host="h1")], beside=[ipmi(name, host="h1") for name in "abcdefg"])
    assert str(several.value) == (
        "targets/b.toml: drivers: names the BMC h1:623, as target a does, and as c, d, e and 2 more do; one target each"
    )
    check_together([ipmi("a", host="h1")], beside=[ipmi("c", host="h2"), ipmi("d", host="h2"), target("e", manual={})])
    outlets = [target(name, pdu={"command": "pductl {host} {outlet} {verb}", "host": "p", "outlet": "1"}) for name in "ab"]
    with pytest.raises(ConfigError, match="names outlet 1 of p"):
        check_together(outlets)


def test_a_server_stays_on_and_an_emulator_does_not() -> None:
    assert stays_on(target(manual={}))
    assert not stays_on(target(qemu={}))


def test_a_program_that_the_host_lacks_is_told_with_its_driver() -> None:
    (missing,) = missing_programs(target(pdu={"command": "no-such-pductl {verb}"}))
    assert str(missing) == "rack1: drivers.pdu: the host has no no-such-pductl\n  try: install it, or correct targets/rack1.toml"
    assert missing_programs(target(pdu={"command": "sh {verb}"})) == []


def outlet(tmp_path: Path, said: str, **options: Any) -> Power:
    """An outlet whose command, or the end of it, is that of a shell."""
    command = {"command": f"sh -c '{said}' {{verb}}", **options}
    return assemble(DriverContext(target(pdu=command), tmp_path), Transcript()).power


def test_an_outlet_steers_no_terminal(tmp_path: Path) -> None:
    power = outlet(tmp_path, r'printf "\033[31mboom\007\n" >&2; exit 7')
    with pytest.raises(ManagementError) as caught:
        power.state(Deadline.after(10))
    assert str(caught.value) == "rack1: sh ended with 7:  [31mboom "


def test_an_outlet_without_a_name(tmp_path: Path) -> None:
    for options, named in (({}, "the outlet"), ({"outlet": "7"}, "outlet 7")):
        with pytest.raises(ManagementError, match=rf"^rack1: {named} says neither on nor off: 'maybe'"):
            outlet(tmp_path, "echo maybe", **options).state(Deadline.after(10))


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostToolMissing) as caught:
        outlet(tmp_path, "", command="no-such-pductl {verb}").state(Deadline.after(10))
    assert (
        str(caught.value) == "rack1: drivers.pdu.command: the host has no no-such-pductl\n  try: install it, or correct targets/rack1.toml"
    )
