"""The reference kernel itself: each architecture, firmware and loader, its self-tests, its ways to misbehave, and what it refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.model import Outcome
from labctl.parsers.crash import find_crash
from labctl.parsers.ktap import parse

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in ("rustc", "ld.lld")), reason="the host lacks rustc or ld.lld"),
]

BUILDS = {"x86_64": "quetzalcore", "aarch64": "quetzalcore-aarch64", "riscv64": "quetzalcore-riscv64"}
PC = "qemu-system-x86_64 -device isa-debug-exit,iobase=0xf4,iosize=4"
MACHINES = {
    "microvm": ("x86_64", f"{PC} -machine microvm,acpi=off,isa-serial=on,rtc=on -cpu max"),
    "qboot": ("x86_64", f"{PC} -machine q35 -bios qboot.rom -device nvme,drive=disk,serial=one -blockdev null-co,node-name=disk"),
    "seabios": ("x86_64", f"{PC} -machine q35"),
    "aarch64": ("aarch64", "qemu-system-aarch64 -machine virt -cpu cortex-a72"),
    "riscv64": ("riscv64", "qemu-system-riscv64 -machine virt -bios none"),
}
# By isa-debug-exit, the test device of RISC-V, and without any such thing.
STATUS = {"x86_64": (33, 35), "aarch64": (0, 0), "riscv64": (0, 1)}
ALL = list(MACHINES)
ONE_EACH = ["microvm", "aarch64", "riscv64"]

Kernel = Callable[[str], Path]


@pytest.fixture(scope="module")
def kernel(repository: Lab) -> Kernel:
    """The kernel of an architecture, built by the first test that boots it."""
    return lambda arch: obtain(repository, BUILDS[arch], progress=print).kernel


def qemu(words: str, image: Path, append: str = "", memory: str = "256M") -> list[str]:
    if shutil.which(words.split()[0]) is None:
        pytest.skip(f"the host lacks {words.split()[0]}")
    common = ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-accel", "tcg,thread=single", "-m", memory]
    return [*words.split(), *common, "-kernel", str(image), "-append", append]


def boot(kernel: Kernel, machine: str, append: str = "", *, memory: str = "256M", more: str = "") -> tuple[bool | None, str]:
    """Whether the kernel says by its status that all went well (None: neither), and its console."""
    arch, words = MACHINES[machine]
    ended = subprocess.run(qemu(f"{words} {more}", kernel(arch), append, memory), capture_output=True, timeout=120)
    console = ended.stdout.decode(errors="replace")
    passed, failed = STATUS[arch]
    if passed == failed:
        return (" ERROR " not in console and "\nnot ok " not in console) if ended.returncode == passed else None, console
    return {passed: True, failed: False}.get(ended.returncode), console


def test_the_command_of_the_readme(tmp_path: Path) -> None:
    """It builds a kernel that boots, and the same bytes in another folder."""
    source = Path(__file__).parents[2] / "kernel/quetzalcore"
    command = (source / "README.md").read_text().split("```\n")[1]
    assert command.startswith("rustc ")
    built = []
    for folder in (tmp_path / "one", tmp_path / "another/place"):
        shutil.copytree(source, folder)
        made = subprocess.run(["/bin/sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=300)
        assert made.returncode == 0, made.stderr
        built.append((folder / "quetzalcore.elf").read_bytes())
    assert built[0] == built[1]
    assert boot(lambda arch: tmp_path / "one/quetzalcore.elf", "microvm", "exit=debug")[0]


@pytest.mark.parametrize("machine", ALL)
def test_boots_and_passes_its_own_tests(kernel: Kernel, machine: str) -> None:
    well, console = boot(kernel, machine, "log=debug exit=debug test=boot,memory,pci")
    assert well, console
    stamps = [float(stamp) for stamp in re.findall(r"^\[ *(\d+\.\d{6})\]", console, re.MULTILINE)]
    assert stamps == sorted(stamps)
    assert len(stamps) > 10
    order = [
        "QuetzalCore OS v1.0",
        "milestone: kernel_entry at",
        "cpu: vendor",
        "cpu: features",
        "MiB usable",
        "pci: ",
        "milestone: init at",
    ]
    places = [console.find(words) for words in [*order, "milestone: ready at", "KTAP version 1", "exit: debug device"]]
    assert -1 not in places
    assert places == sorted(places), console
    assert 240 <= int(re.findall(r"memory: (\d+) MiB usable", console)[0]) <= 256

    report = parse(console.encode())
    assert report.complete
    assert not report.problems
    outcomes = {result.name: result.outcome for result in report.results}
    skipped = {name for name, outcome in outcomes.items() if outcome is Outcome.SKIP}
    assert {outcomes[name] for name in outcomes.keys() - skipped} == {Outcome.PASS}
    without_bus = {"pci/functions", "pci/memory"} if machine == "microvm" else set()
    without_devices = {"pci/memory"} if machine in ("aarch64", "riscv64") else set()
    assert skipped == {"memory/gigabyte"} | without_bus | without_devices


def test_assigns_what_firmware_did_not(kernel: Kernel) -> None:
    """qboot gives devices no addresses, SeaBIOS does: the kernel gives its own, or leaves them."""
    assert boot(kernel, "qboot", "log=debug")[1].count("01.0 memory 0 at 0xc0000000, 16 KiB") == 1
    disk = "-device nvme,drive=disk,serial=one -blockdev null-co,node-name=disk"
    assert re.search(r"01\.0 memory 0 at 0xfe[0-9a-f]{6}, 16 KiB", boot(kernel, "seabios", "log=debug", more=disk)[1])


def test_a_gigabyte(kernel: Kernel) -> None:
    well, console = boot(kernel, "microvm", "exit=debug test=memory", memory="1536M")
    assert well, console
    assert re.search(r"ok 5 gigabyte\r?$", console, re.MULTILINE)


def test_powers_itself_off(kernel: Kernel) -> None:
    """Without a word about the end: by each firmware's way, on each architecture."""
    for machine in ("qboot", "seabios", "aarch64", "riscv64"):
        arch, words = MACHINES[machine]
        ended = subprocess.run(qemu(words, kernel(arch)), capture_output=True, timeout=60)
        assert ended.returncode == 0, ended.stdout
    acpi = "qemu-system-x86_64 -machine microvm,isa-serial=on"
    assert subprocess.run(qemu(acpi, kernel("x86_64")), capture_output=True, timeout=60).returncode == 0


def test_arm_with_a_hypervisors_level(kernel: Kernel) -> None:
    """Entered at EL2, and powered off by another call than at EL1: the paging tests hold only where the kernel's own tables are in use."""
    words = "qemu-system-aarch64 -machine virt,virtualization=on -cpu cortex-a72"
    ended = subprocess.run(qemu(words, kernel("aarch64"), "test=boot,memory"), capture_output=True, timeout=60)
    assert ended.returncode == 0
    assert not [result for result in parse(ended.stdout).results if result.outcome is Outcome.FAIL], ended.stdout


@pytest.mark.parametrize("machine", ONE_EACH)
def test_variants(kernel: Kernel, machine: str) -> None:
    well, console = boot(kernel, machine, "exit=debug variant=panic")
    assert not well
    crash = find_crash(console.encode())
    assert crash is not None
    assert re.fullmatch(r"panicked at src/variant\.rs:\d+: this variant panics", crash.title)
    addresses = re.search(r"backtrace:\r\n((?:  0x[0-9a-f]{16}\r\n){2,})end of backtrace", console)
    assert addresses, console

    well, console = boot(kernel, machine, "exit=debug variant=leak")
    assert not well
    assert "leak: 16 allocations of up to 1024 bytes are not freed" in console
    assert "leak: 1 pages are not freed" in console

    _, console = boot(kernel, machine, "variant=reset")  # -no-reboot: the reset is the end
    assert console.count("QuetzalCore OS v1.0") == 1
    assert "milestone: ready" not in console


def test_the_backtrace_names_functions(kernel: Kernel) -> None:
    """The symbols are in the ELF: the addresses lead to the variant and to the kernel's main."""
    _, console = boot(kernel, "microvm", "exit=debug variant=panic")
    listed = subprocess.run(["nm", "-n", str(kernel("x86_64"))], capture_output=True, text=True, check=True, timeout=60).stdout
    symbols = [(int(address, 16), name) for address, _, name in (line.split() for line in listed.splitlines())]
    names = [max(s for s in symbols if s[0] < int(a, 16))[1] for a in re.findall(r"^  0x([0-9a-f]{16})\r?$", console, re.MULTILINE)]
    assert any("variant" in name for name in names), names
    assert names[-2] == "kernel_main"


@pytest.mark.parametrize("variant", ["hang", "flood"])
def test_variants_without_an_end(kernel: Kernel, variant: str) -> None:
    with subprocess.Popen(qemu(MACHINES["microvm"][1], kernel("x86_64"), f"variant={variant}"), stdout=subprocess.PIPE) as machine:
        try:
            assert machine.stdout is not None
            said = b""
            while b"milestone: init" not in said:
                said += machine.stdout.readline()
            flood = [machine.stdout.readline() for _ in range(1000)] if variant == "flood" else []
            assert machine.poll() is None
        finally:
            machine.kill()
        rest = machine.stdout.read()
    assert len({line.strip() for line in flood}) == (1 if variant == "flood" else 0)
    assert b"ready" not in rest


@pytest.mark.parametrize("machine", ONE_EACH)
def test_slow_is_exact(kernel: Kernel, machine: str) -> None:
    """Under icount an instruction is a nanosecond of the guest, as far as its clock can tell them apart."""

    def ready(count: int) -> float:
        console = boot(kernel, machine, f"exit=debug variant=slow:{count:06}", more="-icount shift=0,sleep=off -rtc clock=vm")[1]
        return float(re.findall(r"milestone: ready at ([0-9.]+) us", console)[0]) * 1000

    resolution = {"microvm": 1, "aarch64": 16, "riscv64": 100}[machine]
    start = ready(0)
    for count in (1, 63, 64, 12345) if machine == "microvm" else (6400, 160_000):
        assert abs(ready(count) - start - count) < resolution


WRONG = {
    "test": ("test=boot,memry", 'test: there is no test "memry"; there are boot memory pci'),
    "log": ("log=loud", "command line: log=loud is not known; allowed: debug, info, warn, error"),
    "variant": ("variant=slow:many", "command line: variant=slow:many is not known; allowed: panic, hang"),
    "too long": ("x" * 5000, "boot: the command line has more than 4095 bytes"),
}


@pytest.mark.parametrize("word", WRONG)
def test_wrong_words(kernel: Kernel, word: str) -> None:
    append, complaint = WRONG[word]
    well, console = boot(kernel, "qboot", f"{append} exit=debug")
    assert not well
    assert f"ERROR {complaint}" in console
    if word == "test":
        report = parse(console.encode())
        assert {result.name: result.outcome for result in report.results}["memry"] is Outcome.FAIL
        assert "ok 1 boot" in console


def test_less_is_said(kernel: Kernel) -> None:
    _, console = boot(kernel, "microvm", "log=error exit=debug")
    assert "milestone: kernel_entry" in console, "said before the command line is read"
    assert "memory: " not in console


@pytest.mark.parametrize("machine", ONE_EACH)
def test_too_little_memory(kernel: Kernel, machine: str) -> None:
    well, console = boot(kernel, machine, "exit=debug", memory="6M")
    assert not well
    assert "ERROR memory: less than 8 MiB are usable: too little to go on" in console


def test_what_the_loader_tells_is_checked(kernel: Kernel, tmp_path: Path) -> None:
    """The kernel looks for another magic number than the loader's: the same as a start_info that something wrote over."""
    magic = (0x336EC578).to_bytes(4, "little")
    content = kernel("x86_64").read_bytes()
    assert content.count(magic) == 1
    broken = tmp_path / "kernel"
    broken.write_bytes(content.replace(magic, b"\xde\xad\xbe\xef"))
    ended = subprocess.run(qemu(MACHINES["qboot"][1], broken, "exit=debug"), capture_output=True, timeout=60)
    assert b"ERROR boot: start_info has a wrong magic number" in ended.stdout
    assert ended.returncode in (0, 35), "it ends, although nobody told it how"


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("grub-mkrescue", "xorriso", "mformat")),
    reason="the host lacks grub-mkrescue, xorriso or mtools",
)
def test_multiboot_2_by_grub(kernel: Kernel, tmp_path: Path) -> None:
    grub = tmp_path / "iso/boot/grub"
    grub.mkdir(parents=True)
    shutil.copyfile(kernel("x86_64"), tmp_path / "iso/boot/kernel")
    menu = "set timeout=0\nmenuentry kernel {\n multiboot2 /boot/kernel exit=debug test=boot,memory\n boot\n}\n"
    (grub / "grub.cfg").write_text(menu)
    words = ["grub-mkrescue", "-o", str(tmp_path / "image"), str(tmp_path / "iso"), "--fonts=", "--locales=", "--themes="]
    made = subprocess.run([*words, "-d", "/usr/lib/grub/i386-pc"], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    machine = [*f"{PC} -machine q35 -m 256M -nodefaults -display none -serial stdio -no-reboot".split(), "-cdrom", str(tmp_path / "image")]
    ended = subprocess.run(machine, capture_output=True, timeout=120)
    assert b'boot: by Multiboot 2 on x86_64, command line "exit=debug test=boot,memory"' in ended.stdout
    assert ended.returncode == 33, ended.stdout
