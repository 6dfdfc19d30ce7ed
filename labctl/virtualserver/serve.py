"""The keeper of one virtual server: a process that holds all its parts, and ends with all of them.

It serves a Unix socket in a folder that only its user can enter. A line that begins with ``chassis`` is the BMC's (`chassis`); any other
is a JSON object, ``{"verb": "status" | "fault" | "clear" | "stop", ...}``, answered by one. Its children die with it however it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from labctl.deadline import Deadline
from labctl.errors import InfraError, LabctlError, PowerError
from labctl.machine.accel import choose
from labctl.machine.lockfile import printable
from labctl.process import Child, start
from labctl.virtualserver import bmc, faults, running, web
from labctl.virtualserver.hub import Hub
from labctl.virtualserver.lan import Cable, Relay, relay_tcp
from labctl.virtualserver.machine import HOST, PROXY, Machine
from labctl.virtualserver.pace import Pace
from labctl.virtualserver.proxydhcp import ProxyDhcp
from labctl.virtualserver.settings import LOOPBACK, SIMULATOR, Files, Settings, load

T = TypeVar("T")
_LINE = 65536


class Keeper:
    def __init__(self, settings: Settings, files: Files, keeper_socket: Path, is_gone: Callable[[], bool] = lambda: False) -> None:
        """``is_gone``: whether its folder was deleted, so that nobody can find this keeper any more."""
        self.settings = settings
        self.files = files
        self.socket = keeper_socket
        self._is_gone = is_gone
        self.machine = Machine(settings, files)
        self.hub = Hub(files.serial_log)
        self.cable = Cable()
        self.wire = web.Wire(on_limit=self._unplug)
        self.dhcp = ProxyDhcp(PROXY, HOST, f"http://{HOST}:{settings.boot_port}/boot.ipxe")
        self.active: dict[str, float] = {}
        """Faults in force, with their numbers."""
        self.ended = asyncio.Event()
        self._machine_thread = ThreadPoolExecutor(1, "machine")
        """One thread, for QEMU dies with the one that started it."""
        self._chassis = asyncio.Lock()
        self._refused = ""
        """Why the last power command was refused; empty once one was not."""
        self._ignore = 0
        self._refuse = 0
        self._intruder = threading.Event()
        """Set: the second administrator leaves."""
        self._occupying: asyncio.Future[None] | None = None
        """Done: he has left."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgetting: asyncio.Task[None] | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Until it is told to stop, by a verb or by SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ended.set)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._in_machine_thread, self.machine.off)
            s = self.settings
            pace = Pace()
            with _port(s.name, s.serial_port):
                await stack.enter_async_context(await self.hub.listen(LOOPBACK, s.serial_port))
                await stack.enter_async_context(await self.hub.listen(SIMULATOR, s.serial_port, pace))
            with _port(s.name, s.boot_port):
                await stack.enter_async_context(await web.relay(self.wire, s.boot_port, s.boot_server_port))
            with _port(s.name, s.bmc_port):
                await Relay.listen(self.cable, s.bmc_port, pace)
            if s.redfish:
                with _port(s.name, s.redfish_port):  # what it leads to listens behind it
                    await stack.enter_async_context(await relay_tcp(self.cable, s.redfish_port, s.sim_port))
                with _port(s.name, s.ssh_console_port):
                    to_console = await relay_tcp(self.cable, s.ssh_console_port, s.ssh_console_port, SIMULATOR, console=True)
                    await stack.enter_async_context(to_console)
            choose("auto")  # found out now, not at the first power-on
            control = await asyncio.start_unix_server(self._answer, sock=listener, limit=_LINE)
            # Its console port is asked from another thread than this, which must stay free for its chassis commands.
            simulator = bmc.start_simulator(s, self.files, self.socket)
            stack.callback(simulator.kill)
            parts = {"the BMC's simulator": simulator}
            if s.redfish:
                redfish = ["labctl.virtualserver.redfish", str(self.files.folder), str(self.socket), str(s.sim_port)]
                console = ["labctl.virtualserver.sshconsole", str(self.files.folder)]
                for name, argv, where in (
                    ("the Redfish emulator", redfish, (LOOPBACK, s.sim_port)),
                    ("the console by SSH", console, (SIMULATOR, s.ssh_console_port)),
                ):
                    parts[name] = self._start_part(name, argv, where)
                    stack.callback(parts[name].kill)
            watch = asyncio.create_task(self._watch(parts))
            stack.callback(watch.cancel)
            stack.callback(self._end_faults)
            await self.ended.wait()
            control.close()

    async def _in_machine_thread(self, verb: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._machine_thread, verb)

    def _start_part(self, name: str, argv: list[str], where: tuple[str, int]) -> Child:
        """Dies with this thread. InfraError with its own last words if it does not come up."""
        log = self.files.folder / f"{argv[0].rpartition('.')[2]}.log"
        with log.open("wb") as words:
            child = start([sys.executable, "-m", *argv], stdout=words, stderr=words)
        deadline = Deadline.after(20)
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(where) == 0:
                    return child
            if child.status is not None or deadline.expired:
                child.kill()
                last = log.read_text(errors="replace").strip().splitlines()
                raise InfraError(f"{name} did not start: {last[-1] if last else ''}", remedy="pip install 'labctl[virtual]'")
            child.wait(Deadline.after(0.05))

    async def _watch(self, parts: Mapping[str, Child]) -> None:
        """A virtual server without its BMC is none, nor is one without its folder."""
        while not (dead := [name for name, child in parts.items() if child.status is not None]) and not self._is_gone():
            await asyncio.sleep(0.5)
        why = f"{dead[0]} ended with status {parts[dead[0]].status}" if dead else f"{self.files.folder} was deleted"
        print(why, file=sys.stderr, flush=True)  # noqa: T201  # its log
        self.ended.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, ValueError, asyncio.IncompleteReadError):
                line = await reader.readuntil(b"\n")
                if line.startswith(b"chassis "):
                    answer = await self._chassis_command(line.decode().split()[1:])
                else:
                    answer = json.dumps(await self._verb(json.loads(line)))
                writer.write(answer.encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    # --- what the BMC asks

    async def _chassis_command(self, words: list[str]) -> str:
        """Answer: exit status and output of the program that the simulator believes to call."""
        async with self._chassis:
            switches = words[:1] == ["set"] and words[1:2] != ["boot"]
            try:
                answer = await self._do(words)
            except LabctlError as error:
                print(f"chassis {' '.join(words)}: {error}", file=sys.stderr, flush=True)  # noqa: T201  # its log
                why = printable(error.message)
                if switches:
                    self._refused = f"{' '.join(words)}: {why}"
                return f"1 {why}"
            if switches:
                self._refused = ""
            return f"0 {answer}"

    async def _do(self, words: list[str]) -> str:
        match words:
            case ["get", "power"]:
                return f"power:{int(self.machine.is_on)}"
            case ["get", "boot"]:
                return f"boot:{self.machine.boot_device}"
            case ["set", "boot", device]:
                self.machine.boot_device = device
            case ["set", "power" | "reset" | "shutdown", *_] if self._refuse:
                self._refuse -= 1
                self._forget("refuse-power", self._refuse)
                raise PowerError("refused, as it was told to")
            case ["set", "power" | "reset" | "shutdown", *_] if self._ignore:
                self._ignore -= 1
                self._forget("ignore-power", self._ignore)
            case ["set", "power", "1"]:
                await self.power_on()
            case ["set", "power", "0"]:
                await self.power_off()
            case ["set", "reset", *_]:
                await self._reset()
            case ["set", "shutdown", *_]:
                await self._in_machine_thread(self.machine.ask_to_shut_down)
            case ["check", *_] | ["set", "identify", *_]:
                pass
            case _:
                raise PowerError("unknown to this server")
        return ""

    async def power_on(self) -> None:
        if self.machine.is_on:
            return
        self.wire.fetched = 0
        serial, network = await self._in_machine_thread(self.machine.prepare)
        self.dhcp.attach(network)
        await self.hub.attach(serial)
        await self._in_machine_thread(self.machine.run)
        if self.wire.cut:
            self._unplug()

    async def _reset(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        self.wire.fetched = 0
        self.hub.heard.clear()
        await self._in_machine_thread(self.machine.reset)

        async def forget() -> None:
            await self.hub.heard.wait()
            with suppress(LabctlError):
                await self._in_machine_thread(self.machine.forget_boot_device)

        self._forgetting = asyncio.create_task(forget())

    async def power_off(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        await self._in_machine_thread(self.machine.off)
        self.dhcp.detach()
        await self.hub.detach()

    # --- what its user asks

    async def _verb(self, request: Any) -> dict[str, Any]:
        try:
            match request:
                case {"verb": "status"}:
                    return self.status()
                case {"verb": "fault", "name": str(name), "argument": int() | float() | None as argument}:
                    await self.fault(name, faults.argument_of(name, argument))
                case {"verb": "clear"}:
                    await self.clear()
                case {"verb": "stop"}:
                    self.ended.set()
                case _:
                    return {"error": f"unknown request {str(request)[:200]}"}
        except LabctlError as error:
            return {"error": error.message, "remedy": error.remedy}
        return self.status()

    def status(self) -> dict[str, Any]:
        return {
            "name": self.settings.name,
            "power": "on" if self.machine.is_on else "off",
            "boot_device": self.machine.boot_device,
            "refused": self._refused,
            "faults": self.active,
            "fetched": self.wire.fetched,
            "corrupted": self.wire.corrupted,
            "console_listeners": self.hub.listeners,
            "console_missed": self.hub.missed,
        }

    # --- faults

    async def fault(self, name: str, argument: float) -> None:
        self.active[name] = argument
        match name:
            case "drop-sol":
                self.cable.sol_cut = True
                self._later(argument, self._sol_is_back)
            case "busy":
                try:
                    await self._occupy_sol()
                except LabctlError:
                    self.active.pop(name, None)
                    raise
            case "ignore-power":
                self._ignore = int(argument)
            case "refuse-power":
                self._refuse = int(argument)
            case "late":
                self.cable.late = argument
            case "silent":
                self.cable.cut = True
            case "garbage":
                self.cable.garbage = True
            case "flap":
                self._begin(self._flap(argument))
            case "lose-network":
                self.wire.limit = int(argument)
                if self.wire.cut:
                    self._unplug()
            case "corrupt":
                self.wire.corrupt = int(argument)
            case "fill-sel":
                await asyncio.get_running_loop().run_in_executor(None, bmc.fill_event_log, self.settings)

    async def clear(self) -> None:
        self._end_faults()
        if self.machine.is_on:
            await self._in_machine_thread(lambda: self.machine.plug(True))

    def _end_faults(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._intruder.set()
        self.cable.late, self.cable.cut, self.cable.sol_cut, self.cable.garbage = 0.0, False, False, False
        self.wire.limit = self.wire.corrupt = None
        self._ignore = self._refuse = 0
        self.active.clear()

    def _forget(self, name: str, left: int) -> None:
        if left:
            self.active[name] = left
        else:
            self.active.pop(name, None)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            what()

        self._begin(wait())

    def _sol_is_back(self) -> None:
        self.cable.sol_cut = False
        self.active.pop("drop-sol", None)

    async def _occupy_sol(self) -> None:
        """A second administrator, with a session of his own, until he is thrown out or the fault ends."""
        self._intruder.set()
        self._intruder = threading.Event()
        leave, loop, inside = self._intruder, asyncio.get_running_loop(), asyncio.Event()
        if self._occupying is not None:
            await asyncio.wait([self._occupying])  # the one before must not be in the way of this one
        holding = loop.run_in_executor(None, bmc.hold_sol, self.settings, self.files, leave, lambda: loop.call_soon_threadsafe(inside.set))
        holding.add_done_callback(lambda _: inside.set())
        self._occupying = holding
        await inside.wait()
        if holding.done():
            holding.result()

    async def _flap(self, seconds: float) -> None:
        while True:
            self.cable.cut = not self.cable.cut
            await asyncio.sleep(seconds)

    def _unplug(self) -> None:
        async def pull() -> None:
            with suppress(LabctlError):
                await self._in_machine_thread(lambda: self.machine.plug(False))

        self._begin(pull())


@contextmanager
def _port(name: str, port: int) -> Iterator[None]:
    """InfraError that names the port, if it cannot be had within."""
    try:
        yield
    except OSError as error:
        raise InfraError(
            f"its port {port} is not to be had: {os.strerror(error.errno) if error.errno else error}",
            remedy=f"ss -lnptu 'sport = :{port}' says who has it; if that is a lab of which this is a copy, labctl virtual-server delete "
            f"{name} here: its next start has other ports, and an empty disk",
        ) from None


def main(folder: Path, listener_fd: int, lock_fd: int) -> None:
    os.set_inheritable(lock_fd, False)  # it tells that the keeper lives, not one of its children
    files = Files(folder)
    settings = load(files)
    if settings is None:
        raise InfraError(f"{files.settings} is gone")
    with socket.socket(fileno=listener_fd) as listener:
        keeper_socket = Path(listener.getsockname())
        running.say(lock_fd, running.Place(keeper_socket, os.getpid()))
        try:
            asyncio.run(Keeper(settings, files, keeper_socket, lambda: running.is_gone(lock_fd)).serve(listener))
        finally:
            running.remove(keeper_socket)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except LabctlError as error:
        sys.exit(str(error))
