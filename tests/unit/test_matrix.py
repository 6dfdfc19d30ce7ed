"""Axes → cells."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labctl.errors import ConfigError
from labctl.model import Channel, MatrixConfig
from labctl.run.matrix import MAX_CELLS, Plan, expand

BUILDS = ("debian-6.1", "debian-6.12", "quetzal", "arm")
TARGETS = ("qemu-1c", "qemu-2c", "server1", "pi")
SUITES = ("boot", "density", "storage")
ARCH_OF_BUILD = {"debian-6.1": "x86_64", "debian-6.12": "x86_64", "quetzal": "x86_64", "arm": "aarch64"}
ARCH_OF_TARGET = {"qemu-1c": "x86_64", "qemu-2c": "x86_64", "server1": "x86_64", "pi": "aarch64"}


def plan(
    builds: Sequence[str] = ("debian-*",),
    targets: Sequence[str] = ("qemu-*",),
    suites: Sequence[str] = ("boot",),
    *,
    include: Sequence[Mapping[str, Any]] = (),
    exclude: Sequence[Mapping[str, Any]] = (),
    matrix_repeat: int = 1,
    **more: Any,
) -> Plan:
    matrix = MatrixConfig.model_validate(
        {
            "schema": 1,
            "builds": builds,
            "targets": targets,
            "suites": suites,
            "repeat": matrix_repeat,
            "include": include,
            "exclude": exclude,
        }
    )
    lab: dict[str, Any] = {
        "builds": BUILDS,
        "targets": TARGETS,
        "suites": SUITES,
        "where": "matrix/night.toml",
        "arch_of_build": ARCH_OF_BUILD,
        "arch_of_target": ARCH_OF_TARGET,
    }
    return expand(matrix, **(lab | more))


def ids(found: Plan) -> list[str]:
    return [cell.id for cell in found.cells]


def left_out(found: Plan) -> dict[str, str]:
    return {out.cell.id: out.reason for out in found.left_out}


def test_the_product_in_the_order_of_the_axes() -> None:
    assert ids(plan()) == [
        "debian-6.1/qemu-1c/boot",
        "debian-6.1/qemu-2c/boot",
        "debian-6.12/qemu-1c/boot",
        "debian-6.12/qemu-2c/boot",
    ]
    assert ids(plan(builds=["quetzal", "debian-6.1"], targets=["qemu-2c"])) == ["quetzal/qemu-2c/boot", "debian-6.1/qemu-2c/boot"]


def test_names_that_two_patterns_find_run_once() -> None:
    assert ids(plan(builds=["debian-6.1", "debian-*"], targets=["qemu-1c"])) == [
        "debian-6.1/qemu-1c/boot",
        "debian-6.12/qemu-1c/boot",
    ]


def test_a_plain_name_is_no_prefix() -> None:
    assert ids(plan(builds=["debian-6.1"], targets=["qemu-1c"])) == ["debian-6.1/qemu-1c/boot"]


def test_repeat_is_the_innermost_axis_and_the_command_line_wins() -> None:
    assert ids(plan(["quetzal"], ["qemu-*"], matrix_repeat=2)) == [
        "quetzal/qemu-1c/boot",
        "quetzal/qemu-1c/boot#2",
        "quetzal/qemu-2c/boot",
        "quetzal/qemu-2c/boot#2",
    ]
    assert len(plan(["quetzal"], ["qemu-1c"], matrix_repeat=2, repeat=5).cells) == 5
    assert len(plan(["quetzal"], ["qemu-1c"], matrix_repeat=2, repeat=1).cells) == 1


@pytest.mark.parametrize("repeat", [0, -1, 10_001])
def test_a_repeat_out_of_bounds(repeat: int) -> None:
    with pytest.raises(ConfigError, match="--repeat: found"):
        plan(repeat=repeat)


def test_the_channel_is_part_of_the_id() -> None:
    found = plan(["quetzal"], ["qemu-1c"], channels=[Channel.ICOUNT])
    assert ids(found) == ["quetzal/qemu-1c/boot@icount"]


def test_channels_are_an_axis_of_which_the_target_says_the_usual() -> None:
    both = plan(["quetzal"], ["qemu-1c"], channels=[Channel.WALL, Channel.ICOUNT], repeat=2)
    assert ids(both) == [f"quetzal/qemu-1c/boot{c}" for c in ("", "#2", "@icount", "@icount#2")]
    assert ids(plan(["quetzal"], channel_of_target={"qemu-2c": Channel.ICOUNT})) == ["quetzal/qemu-1c/boot", "quetzal/qemu-2c/boot@icount"]


def test_a_target_that_cannot_be_counted_is_left_out_of_that_channel_alone() -> None:
    def real_hardware(build: str, target: str) -> str:
        return "real hardware" if target == "server1" else ""

    both = {"channels": [Channel.WALL, Channel.ICOUNT], "uncountable": real_hardware}
    found = plan(["quetzal"], ["qemu-1c", "server1"], **both)
    assert ids(found) == ["quetzal/qemu-1c/boot", "quetzal/qemu-1c/boot@icount", "quetzal/server1/boot"]
    assert [(out.cell.id, out.reason) for out in found.left_out] == [("quetzal/server1/boot@icount", "real hardware")]
    with pytest.raises(ConfigError, match=r"no cell is left to run.*1 × real hardware"):
        plan(["quetzal"], ["server1"], channels=[Channel.ICOUNT], uncountable=real_hardware)


# --- exclude and include ---


def test_exclude_says_its_reason_once_whatever_the_repeat() -> None:
    found = plan(exclude=[{"builds": ["debian-6.12"], "targets": ["qemu-2c"], "reason": "too slow there"}], repeat=3)
    assert left_out(found) == {"debian-6.12/qemu-2c/boot": "excluded: too slow there"}
    assert len(found.left_out) == 1
    assert len(found.cells) == 9


def test_an_exclude_without_a_reason_names_itself() -> None:
    found = plan(exclude=[{"targets": ["pi"]}, {"targets": ["qemu-2c"]}])
    assert set(left_out(found).values()) == {"excluded: exclude.1 of matrix/night.toml"}


def test_include_adds_in_its_place() -> None:
    found = plan(include=[{"builds": ["quetzal"], "targets": ["server1"], "suites": ["density"]}, {"suites": ["storage"]}])
    assert ids(found) == [
        "debian-6.1/qemu-1c/boot",
        "debian-6.1/qemu-1c/storage",
        "debian-6.1/qemu-2c/boot",
        "debian-6.1/qemu-2c/storage",
        "debian-6.12/qemu-1c/boot",
        "debian-6.12/qemu-1c/storage",
        "debian-6.12/qemu-2c/boot",
        "debian-6.12/qemu-2c/storage",
        "quetzal/server1/density",
    ]


def test_an_axis_that_an_include_leaves_out_is_the_one_of_the_matrix() -> None:
    found = plan(["quetzal"], ["qemu-1c"], include=[{"targets": ["server1"]}])
    assert ids(found) == ["quetzal/qemu-1c/boot", "quetzal/server1/boot"]


def test_a_matrix_of_includes_alone() -> None:
    found = plan([], [], [], include=[{"builds": ["quetzal"], "targets": ["qemu-1c"], "suites": ["boot"]}, {"builds": ["arm"]}])
    assert "quetzal/qemu-1c/boot" in ids(found)
    assert {c.target for c in found.cells if c.build == "arm"} == {"pi"}


def test_exclude_wins_over_include() -> None:
    rule = {"targets": ["server1"], "reason": "on loan"}
    found = plan(["quetzal"], ["qemu-1c"], include=[{"targets": ["server1"]}], exclude=[rule])
    assert ids(found) == ["quetzal/qemu-1c/boot"]
    assert left_out(found) == {"quetzal/server1/boot": "excluded: on loan"}


def test_an_include_of_what_is_there_adds_nothing() -> None:
    assert ids(plan(include=[{"builds": ["debian-6.1"], "targets": ["qemu-*"]}])) == ids(plan())


def test_a_build_of_another_architecture_is_left_out() -> None:
    found = plan(["quetzal", "arm"], ["qemu-1c", "pi"])
    assert ids(found) == ["quetzal/qemu-1c/boot", "arm/pi/boot"]
    assert left_out(found) == {
        "quetzal/pi/boot": "build is x86_64, target is aarch64",
        "arm/qemu-1c/boot": "build is aarch64, target is x86_64",
    }


# --- the command line ---


def test_only_narrows_to_what_the_matrix_names() -> None:
    assert ids(plan(only_builds=["*.12"], only_targets=["qemu-2c"])) == ["debian-6.12/qemu-2c/boot"]
    assert ids(plan(only_targets=["*"])) == ids(plan())
    assert ids(plan(only_builds=["debian-6.12", "debian-6.1"])) == ids(plan())
    assert left_out(plan(only_builds=["debian-6.1"], exclude=[{"builds": ["debian-6.12"]}])) == {}


def test_only_selects_what_the_matrix_does_not_name() -> None:
    assert ids(plan(["quetzal"], ["qemu-1c"], only_suites=["storage"])) == ["quetzal/qemu-1c/storage"]
    assert ids(plan(["quetzal"], ["qemu-1c"], only_suites=["storage", "boot"])) == [
        "quetzal/qemu-1c/boot",
        "quetzal/qemu-1c/storage",
    ]
    assert ids(plan(["debian-6.1"], ["qemu-1c"], only_builds=["quet*"], only_targets=["server1"])) == ["quetzal/server1/boot"]


def test_only_narrows_to_the_point_of_an_include() -> None:
    found = plan(["quetzal"], ["qemu-1c"], include=[{"targets": ["server1"], "suites": ["density"]}], only_targets=["server1"])
    assert ids(found) == ["quetzal/server1/density"]


def test_names_that_the_matrix_has_but_never_together() -> None:
    include = [{"targets": ["server1"], "suites": ["density"]}]
    found = plan(["quetzal"], ["qemu-1c"], include=include, only_targets=["server1"], only_suites=["boot"])
    assert ids(found) == ["quetzal/server1/boot"]


def test_a_file_as_a_build_is_a_selection() -> None:
    assert ids(plan(targets=["qemu-1c"], extra_builds=["bzimage"])) == ["bzimage/qemu-1c/boot"]
    both = plan(targets=["qemu-1c"], extra_builds=["bzimage"], only_builds=["debian-6.1"])
    assert ids(both) == ["debian-6.1/qemu-1c/boot", "bzimage/qemu-1c/boot"]
    excluded = plan(targets=["qemu-*"], extra_builds=["bzimage"], exclude=[{"builds": ["bz*"], "targets": ["qemu-2c"]}])
    assert ids(excluded) == ["bzimage/qemu-1c/boot"]


def test_exclude_wins_over_the_command_line() -> None:
    with pytest.raises(ConfigError, match="1 × excluded: broken"):
        plan(["quetzal"], ["qemu-1c"], only_suites=["storage"], exclude=[{"suites": ["storage"], "reason": "broken"}])


# --- mistakes ---


def test_every_mistake_at_once_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(
            ["debain-6.1"],
            ["qemu-*", "servre1"],
            ["boot"],
            include=[{"suites": ["densty"]}],
            exclude=[{"builds": ["windows-*"]}, {"targets": []}],
            only_suites=["bot"],
        )
    found = {(p.where, p.key): (p.found, p.allowed) for p in caught.value.problems}
    assert set(found) == {
        ("matrix/night.toml", "builds.0"),
        ("matrix/night.toml", "targets.1"),
        ("matrix/night.toml", "include.0.suites.0"),
        ("matrix/night.toml", "exclude.0.builds.0"),
        ("matrix/night.toml", "exclude.1.targets"),
        ("command line", "--suite"),
    }
    assert found["matrix/night.toml", "builds.0"][0] == "no build matches 'debain-6.1'"
    assert "did you mean 'debian-6.1'?" in found["matrix/night.toml", "builds.0"][1]
    assert "did you mean 'server1'?" in found["matrix/night.toml", "targets.1"][1]
    assert "did you mean 'boot'?" in found["command line", "--suite"][1]


def test_case_counts() -> None:
    with pytest.raises(ConfigError, match="no build matches 'DEBIAN"):
        plan(["DEBIAN-*"])


def test_a_lab_without_suites() -> None:
    with pytest.raises(ConfigError, match="no suite matches 'boot'; there is none yet"):
        expand(
            MatrixConfig.model_validate({"schema": 1, "builds": ["*"], "targets": ["*"], "suites": ["boot"]}),
            builds=BUILDS,
            targets=TARGETS,
            suites=(),
            arch_of_build={},
            arch_of_target={},
        )


def test_nothing_left_says_what_left_it_out() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(["debian-*", "arm"], ["qemu-*"], exclude=[{"builds": ["debian-*"], "reason": "known broken"}])
    text = str(caught.value)
    assert "matrix/night.toml: no cell is left to run" in text
    assert "4 × excluded: known broken" in text
    assert "2 × build is aarch64, target is x86_64" in text


def test_an_empty_matrix_says_so() -> None:
    with pytest.raises(ConfigError, match="an axis lists nothing"):
        plan([])


def test_a_slip_of_the_pen_does_not_eat_the_memory() -> None:
    names = [f"n{i}" for i in range(2000)]
    start = time.thread_time()
    with pytest.raises(ConfigError, match=f"at most {MAX_CELLS}"):
        expand(
            MatrixConfig.model_validate({"schema": 1, "builds": ["*"], "targets": ["*"], "suites": ["*"]}),
            builds=names,
            targets=names,
            suites=names,
            arch_of_build={},
            arch_of_target={},
        )
    with pytest.raises(ConfigError, match=f"at most {MAX_CELLS}"):
        expand(
            MatrixConfig.model_validate({"schema": 1, "builds": ["*"], "targets": ["*"], "suites": ["*"], "repeat": 10000}),
            builds=names[:200],
            targets=names[:1],
            suites=names[:1],
            arch_of_build={},
            arch_of_target={},
        )
    assert time.thread_time() - start < 1.0


# --- properties ---

NAMES = st.lists(st.sampled_from([f"{letter}{digit}" for letter in "abc" for digit in "12"]), min_size=1, max_size=6, unique=True)


@st.composite
def labs(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]], list[list[str]], int]:
    """What a lab has, what the matrix lists of it, an exclude over it, a repeat."""
    names = [draw(NAMES) for _ in range(3)]
    patterns = [n + [f"{x[0]}*" for x in n] + ["*"] for n in names]
    listed = [draw(st.lists(st.sampled_from(p), min_size=1, max_size=4)) for p in patterns]
    excluded = [draw(st.lists(st.sampled_from(p), min_size=1, max_size=2)) for p in patterns]
    return names, listed, excluded, draw(st.integers(1, 3))


def matching(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    return {n for n in names if any(fnmatchcase(n, p) for p in patterns)}


@settings(deadline=None)
@given(labs())
def test_cells_are_the_product_minus_the_excluded(lab: tuple[list[list[str]], list[list[str]], list[list[str]], int]) -> None:
    names, listed, excluded, repeat = lab
    wanted = set(product(*(matching(p, n) for p, n in zip(listed, names, strict=True))))
    out = wanted & set(product(*(matching(p, n) for p, n in zip(excluded, names, strict=True))))
    matrix = MatrixConfig.model_validate(
        {
            "schema": 1,
            **dict(zip(("builds", "targets", "suites"), listed, strict=True)),
            "exclude": [dict(zip(("builds", "targets", "suites"), excluded, strict=True))],
        }
    )

    def again() -> Plan:
        return expand(matrix, builds=names[0], targets=names[1], suites=names[2], arch_of_build={}, arch_of_target={}, repeat=repeat)

    if wanted == out:
        with pytest.raises(ConfigError, match="no cell is left"):
            again()
        return
    found = again()
    assert {(c.build, c.target, c.suite) for c in found.cells} == wanted - out
    assert len(found.cells) == (len(wanted) - len(out)) * repeat
    assert len(set(ids(found))) == len(found.cells)
    assert {(o.cell.build, o.cell.target, o.cell.suite) for o in found.left_out} == out
    assert len(found.left_out) == len(out)
    assert again() == found


@settings(deadline=None)
@given(labs(), st.data())
def test_narrowing_gives_the_cells_of_the_whole_that_match_in_their_order(
    lab: tuple[list[list[str]], list[list[str]], list[list[str]], int], data: st.DataObject
) -> None:
    names, listed, included, repeat = lab
    matrix = MatrixConfig.model_validate(
        {
            "schema": 1,
            **dict(zip(("builds", "targets", "suites"), listed, strict=True)),
            "include": [dict(zip(("builds", "targets", "suites"), included, strict=True))],
        }
    )
    axes: dict[str, Any] = {"builds": names[0], "targets": names[1], "suites": names[2], "arch_of_build": {}, "arch_of_target": {}}
    whole = expand(matrix, **axes, repeat=repeat)
    one = data.draw(st.sampled_from(whole.cells))
    narrowed = expand(matrix, **axes, repeat=repeat, only_builds=[one.build], only_targets=[f"{one.target[0]}*"])
    assert list(narrowed.cells) == [c for c in whole.cells if c.build == one.build and c.target.startswith(one.target[0])]
    assert one in narrowed.cells
