"""The hypervisors that come with the lab, booted: ready means that virtual machines can be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labctl.build.obtain import obtain
from labctl.config import Lab
from labctl.errors import BootFailed
from labctl.machine.session import Session
from labctl.model import Build, Target
from labctl.run.equip import equipped

pytestmark = pytest.mark.qemu

LAB = Lab.find(Path(__file__).parents[2])


def machine(build: str, **options: str) -> tuple[Target, Build]:
    target = LAB.machine("hv-2c-1g")
    drivers = dict(target.config.drivers)
    drivers["qemu"] = {**drivers["qemu"], **options}
    target = replace(target, config=target.config.model_copy(update={"drivers": drivers}))
    return target, equipped(obtain(LAB, build), target)


def test_kvm_runs_a_machine_once_it_is_ready(tmp_path: Path) -> None:
    target, build = machine("debian-kvm")
    with Session(target, build, tmp_path) as session:
        session.boot()
        # The firmware's first words were said by a CPU that KVM ran.
        words = "-M q35,graphics=off -accel kvm -cpu host -m 32 -nodefaults -display none -serial file:/tmp/said -monitor stdio"
        wait = "until grep -q SeaBIOS /tmp/said; do sleep 0.2; done; echo quit"
        session.run(f"touch /tmp/said; ({wait}) | timeout -s KILL 100 qemu-system-x86_64 {words}", deadline=120)
        # Displays and USB are modules of QEMU; a VNC server needs its keyboard.
        devices = "-device virtio-gpu-pci -device qemu-xhci -device usb-tablet -device usb-host,vendorid=1 -vga std -vnc unix:/tmp/vnc"
        session.run(f"echo quit | qemu-system-x86_64 -M q35 -accel kvm -m 32 -nodefaults -S -monitor stdio {devices}", deadline=60)
        assert session.run("modprobe -a vfio_pci tun && ls /dev/vfio/vfio /dev/net/tun").status == 0


def test_xen_answers_once_it_is_ready(tmp_path: Path) -> None:
    target, build = machine("debian-xen")
    with Session(target, build, tmp_path) as session:
        boot = session.boot()
        assert list(boot.milestones)[-1] == "ready"
        assert "Domain-0" in session.run("xl list", deadline=60).output
        assert session.run("uname -r").output.strip() == build.version
        assert session.run("xenstore-read /local/domain/0/name", deadline=60).output.strip() == "Domain-0"
        assert session.power_off() > 0


def test_a_hypervisor_on_a_cpu_that_runs_no_machines_says_why_it_is_not_ready(tmp_path: Path) -> None:
    target, build = machine("debian-kvm", cpu="EPYC,svm=off")
    with Session(target, build, tmp_path) as session, pytest.raises(BootFailed) as caught:
        session.boot()
    assert "no hypervisor: the CPU has neither SVM nor VMX" in str(caught.value) + caught.value.tail
