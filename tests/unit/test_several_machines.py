"""Targets of several machines: their file, what they take together, and every mistake in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from labctl.config import Lab
from labctl.errors import ConfigError
from labctl.machine import registry
from labctl.machine.nics import mac
from labctl.model import Channel, GroupConfig, Nic, Target, target_config

ONE = 'schema = 1\ncpus = 2\nmemory = "256M"\ninstances = 2\n[nics.lan]\nto = "link"\n[nics.out]\nto = "host"\n[drivers.qemu]\naccel = "tcg"\n'
PAIR = 'schema = 1\nlinks = [{ between = ["a.lan", "b.lan"] }]\n[machines]\na = "one"\nb = "one"\n'


def lab_with(folder: Path, **targets: str) -> Lab:
    (folder / "lab.toml").write_text("schema = 1\n")
    (folder / "targets").mkdir()
    for name, text in {"one": ONE, **targets}.items():
        (folder / "targets" / f"{name}.toml").write_text(text)
    return Lab.find(folder)


def mistakes(lab: Lab, name: str = "pair") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        lab.target(name)
    return [f"{problem.key}: {problem.found}; {problem.allowed}".removesuffix("; ") for problem in caught.value.problems]


def test_it_takes_what_its_machines_take(tmp_path: Path) -> None:
    pair = lab_with(tmp_path, pair=PAIR).target("pair")
    assert (pair.config.cpus, pair.config.memory, pair.config.arch) == (4, 512 << 20, "x86_64")
    assert {name: each.name for name, each in pair.machines.items()} == {"a": "pair.a", "b": "pair.b"}
    assert [part.name for part in pair.parts] == ["one", "one"]
    assert pair.parts[0].config.nics["lan"].to == "link"


def test_one_machine_is_its_own_only_part(tmp_path: Path) -> None:
    one = lab_with(tmp_path).target("one")
    assert one.parts == [one]
    assert one.machines == {}


def test_what_workers_are_told_of_it_is_all_of_it(tmp_path: Path) -> None:
    pair = lab_with(tmp_path, pair=PAIR).target("pair")
    told = target_config(pair.config.model_dump(mode="json", by_alias=True))
    assert isinstance(told, GroupConfig)
    assert told == pair.config


def test_what_drivers_are_asked_is_asked_of_each_machine(tmp_path: Path) -> None:
    pair = lab_with(tmp_path, pair=PAIR).target("pair")
    registry.check(pair)
    assert registry.host_share(pair)[0] == 2  # emulated by one thread each
    assert "qemu-system-x86_64" in registry.host_programs(pair)
    assert not registry.stays_on(pair)
    assert registry.why_not_counted(pair)
    assert registry.on_channel(pair, Channel.WALL) is pair
    registry.check_together([pair, pair.parts[0]])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PAIR.replace('b = "one"', 'b = "on"'), "machines.b: unknown target 'on'; did you mean 'one'? (known: one, pair)"),
        (PAIR.replace('b = "one"', 'b = "pair"'), "machines.b: pair has several machines itself; a target of one machine"),
        (PAIR.replace('b = "one"', ""), "machines: found {'a': 'one'}; at least 2 entry"),
        (PAIR + 'c = "one"\n', "machines: takes one 3 times, which has instances = 2; as many as there are at once"),
        (PAIR.replace("b.lan", "c.lan"), "links.0.between: found 'c.lan': no such machine; known: a, b"),
        (PAIR.replace("b.lan", "b.out"), "links.0.between: found 'b.out': no card of b that goes to a link; known: lan"),
        (PAIR.replace("b.lan", "b"), "links.0.between: found 'b': no card of b that goes to a link; known: lan"),
        (PAIR.replace("b.lan", "a.lan"), "links.0.between: a.lan has a cable already, links.0; one cable a card"),
        (PAIR + "[drivers.qemu]\n", "drivers: unknown key; known: description, links, machines, schema, tags"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_file(tmp_path: Path, text: str, said: str) -> None:
    assert said in mistakes(lab_with(tmp_path, pair=text))


def test_machines_of_two_architectures_cannot_boot_one_build(tmp_path: Path) -> None:
    arm = ONE.replace("schema = 1", 'schema = 1\narch = "aarch64"')
    lab = lab_with(tmp_path, arm=arm, pair=PAIR.replace('b = "one"', 'b = "arm"'))
    assert mistakes(lab) == ["machines.b: b is aarch64, a is x86_64; one architecture: all boot one build"]


def test_a_mistake_in_a_machines_own_file_is_told_with_that_file(tmp_path: Path) -> None:
    lab = lab_with(tmp_path, bad=ONE.replace("cpus", "cpuz"), pair=PAIR.replace('b = "one"', 'b = "bad"'))
    with pytest.raises(ConfigError) as caught:
        lab.target("pair")
    assert {Path(problem.where).name for problem in caught.value.problems} == {"bad.toml"}


def test_a_verb_for_one_machine_says_what_the_several_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        lab_with(tmp_path, pair=PAIR).machine("pair")
    assert str(caught.value) == "target pair has 2 machines: a is one, b is one\n  try: name one of those, such as one"


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ('mac = "52:54:00:00:00"', "text that fits"),
        ('address = "10.0.2.15"', "an address with its prefix, such as 192.168.1.20/24"),
        ('peer = "host"', "does not appear to be an IPv4 or IPv6 address"),
        ('to = "lan"', "allowed: 'host' or 'link'"),
    ],
)
def test_a_card_that_cannot_be_is_refused(tmp_path: Path, line: str, allowed: str) -> None:
    text = ONE.replace('[nics.out]\nto = "host"\n', f"[nics.out]\n{line}\n" + ("" if line.startswith("to") else 'to = "host"\n'))
    assert any(allowed in said for said in mistakes(lab_with(tmp_path, bad=text), "bad"))


def test_a_host_that_is_not_on_the_cards_network_is_found_before_qemu_is_asked(tmp_path: Path) -> None:
    text = ONE.replace('to = "host"', 'to = "host"\naddress = "10.1.0.9/24"')
    target = lab_with(tmp_path, bad=text).target("bad")
    with pytest.raises(ConfigError, match=r"nics\.out\.peer: found '10\.0\.2\.2'; an address of 10\.1\.0\.0/24"):
        registry.check(target)


def test_hardware_addresses_are_stable_and_differ() -> None:
    card = Nic(to="link")
    assert mac("pair.a", "lan", card) == mac("pair.a", "lan", card) == "52:54:00:" + mac("pair.a", "lan", card)[9:]
    assert len({mac(target, name, card) for target in ("pair.a", "pair.b", "one") for name in ("lan", "out")}) == 6
    assert mac("x", "lan", Nic(to="link", mac="02:00:00:00:00:01")) == "02:00:00:00:00:01"


def test_cells_of_it_are_left_out_where_time_is_counted(tmp_path: Path) -> None:
    assert "several machines" in registry.why_not_counted(Target("pair", lab_with(tmp_path, pair=PAIR).target("pair").config))
