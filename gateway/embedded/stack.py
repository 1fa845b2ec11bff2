"""The embedded stack: runs the Compose file's services as processes of this machine. None of them outlives it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from engine.errors import BylineError
from gateway.embedded import child
from gateway.embedded.compose import Argv, ComposeFile, Service
from gateway.embedded.readiness import is_ready
from gateway.embedded.surroundings import COMPOSE_FILE, DATA, LOOPBACK, DataDirectory, chosen

_ASK_EVERY = 0.1
_READY_WITHIN = 90.0
_STOP_WITHIN = 15.0
_LONGEST_PAUSE = 30.0


class StackFailed(BylineError):
    """A service of the embedded stack did not start, or ended before it was ready."""

    code: ClassVar[str] = "stack_failed"


class _Running:
    def __init__(self, process: asyncio.subprocess.Process, since: datetime) -> None:
        self.process = process
        self.since = since
        self.ready = False


class Stack:
    """The services of one Compose file on one data directory.

    The services inherit `environment`, which may set ports and secrets. `report_progress` receives one line at a time.
    """

    def __init__(
        self,
        data: Path = DATA,
        *,
        environment: Mapping[str, str],
        file: Path = COMPOSE_FILE,
        say: Callable[[str], None] = print,
    ) -> None:
        self._data = DataDirectory(data)
        self._environment = environment
        self._file = ComposeFile(file)
        self._say = say
        self._wanted: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self.variables: Mapping[str, str] = {}
        self.services: Mapping[str, Service] = {}

    @property
    def gateway_url(self) -> str:
        """The origin of the gateway, whose root is the console."""
        return f"http://{LOOPBACK}:{self.variables['GATEWAY_PORT']}"

    @property
    def mcp_url(self) -> str:
        """The address of the MCP endpoint."""
        return f"{self.gateway_url}/mcp"

    @property
    def temporal_address(self) -> str:
        """The address of the Temporal server."""
        return f"{LOOPBACK}:{self.variables['TEMPORAL_PORT']}"

    @property
    def temporal_ui_url(self) -> str:
        """The address of Temporal's web UI."""
        return f"http://{LOOPBACK}:{self.variables['TEMPORAL_UI_PORT']}"

    def environment(self, name: str) -> dict[str, str]:
        """Return the whole environment that a service runs with."""
        return {**self._environment, **self.services[name].environment, "PYTHONUNBUFFERED": "1"}

    def log(self, name: str) -> Path:
        """Return the file that a service's output goes to."""
        return self._data.log(name)

    def pid(self, name: str) -> int:
        """Return the process id of a service that was started."""
        return self._running[name].process.pid

    async def __aenter__(self) -> Self:
        """Claim the data directory and choose ports and secrets. Nothing is started yet."""
        self._data.claim()
        try:
            self.variables = chosen(self._file.variables, self._environment, self._data)
            self.services = self._file.services(self.variables)
        except BaseException:
            self._data.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop every service. The services that others depend on are stopped last."""
        watches = tuple(self._watches)
        for watch in watches:
            watch.cancel()
        try:
            await asyncio.gather(*watches, return_exceptions=True)
            for level in reversed(self._levels()):
                await asyncio.gather(*(self.stop(name) for name in level))
        finally:
            for running in self._running.values():
                _signal(running, signal.SIGKILL)
            self._data.release()

    async def up(self) -> None:
        """Start each service once its dependencies are ready, and return when all are. Raises StackFailed."""
        bringing: dict[str, asyncio.Task[None]] = {}

        async def bring(name: str) -> None:
            await asyncio.gather(*(bringing[needed] for needed in self.services[name].depends_on))
            await self.start(name)
            await self.wait_ready(name)
            self._say(f"{name} is ready")

        try:
            async with asyncio.TaskGroup() as group:
                for level in self._levels():
                    for name in level:
                        bringing[name] = group.create_task(bring(name))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def start(self, name: str) -> None:
        """Start a service and return at once. Raises StackFailed if it runs already."""
        if (earlier := self._running.get(name)) and earlier.process.returncode is None:
            raise StackFailed(f"{name} runs already")
        self._wanted.add(name)
        await self._spawn(name)

    async def stop(self, name: str) -> None:
        """Stop a service by SIGTERM, and by SIGKILL if that takes too long."""
        self._wanted.discard(name)
        if running := self._running.get(name):
            _signal(running, signal.SIGTERM)
            try:
                await asyncio.wait_for(running.process.wait(), _STOP_WITHIN)
            except TimeoutError:
                await self.kill(name)

    async def kill(self, name: str) -> None:
        """End a service by SIGKILL, as a crash would. It stays down until it is started again."""
        self._wanted.discard(name)
        if running := self._running.get(name):
            _signal(running, signal.SIGKILL)
            await running.process.wait()

    async def wait_ready(self, name: str) -> None:
        """Return once the service is ready, or once it has succeeded if it only runs once. Raises StackFailed."""
        service = self.services[name]
        running = self._running[name]
        runs_once = service.healthcheck is None and service.restart == "no"
        try:
            async with asyncio.timeout(_READY_WITHIN):
                while not (runs_once and running.process.returncode == 0):
                    if running.process.returncode is not None:
                        raise StackFailed(self._told(name, _ending(running.process.returncode)))
                    if not runs_once and await self._is_healthy(service, running.since):
                        break
                    await asyncio.sleep(_ASK_EVERY)
        except TimeoutError:
            raise StackFailed(self._told(name, f"was not ready within {_READY_WITHIN:.0f} seconds")) from None
        running.ready = True

    async def _spawn(self, name: str) -> _Running:
        since = datetime.now(UTC)
        with self.log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", child.__file__, str(os.getpid())),
                *_here(self.services[name].argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._file.path.absolute().parent,
                env=self.environment(name),
                start_new_session=True,
            )
        self._running[name] = running = _Running(process, since)
        watch = asyncio.create_task(self._watch(name, running))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return running

    async def _watch(self, name: str, running: _Running) -> None:
        """Start a service again if it ended after it had been ready and nobody stopped it."""
        code = await running.process.wait()
        if not running.ready or self.services[name].restart == "no":
            return
        pause = 0.0
        while name in self._wanted:
            self._say(f"{name} {_ending(code)} unexpectedly; starting it again")
            await asyncio.sleep(pause)
            pause = min(max(1.0, pause * 2), _LONGEST_PAUSE)
            if name not in self._wanted:
                return
            fresh = await self._spawn(name)
            try:
                await self.wait_ready(name)
            except StackFailed as error:
                self._say(str(error))
                _signal(fresh, signal.SIGKILL)
                code = await fresh.process.wait()
            else:
                self._say(f"{name} is ready again")
                return

    async def _is_healthy(self, service: Service, since: datetime) -> bool:
        if service.healthcheck is None:
            return True
        argv = service.healthcheck.argv
        if argv[:2] == ("byline", "ready"):
            return await is_ready(argv[2], since=since)
        check = await asyncio.create_subprocess_exec(
            *_here(argv), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            return await check.wait() == 0
        finally:
            if check.returncode is None:
                check.kill()

    def _levels(self) -> list[tuple[str, ...]]:
        order = TopologicalSorter({name: set(service.depends_on) for name, service in self.services.items()})
        order.prepare()
        levels = []
        while order.is_active():
            levels.append(order.get_ready())
            order.done(*levels[-1])
        return levels

    def _told(self, name: str, what: str) -> str:
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"{name} {what}; its log {self.log(name)} ends:", *lines[-15:]])


def _here(argv: Argv) -> tuple[str, ...]:
    """Translate a container's command to this environment's own programs."""
    program, *arguments = argv
    match program:
        case "python":
            return (sys.executable, *arguments)
        case "byline":
            return (sys.executable, "-m", "gateway.cli", *arguments)
        case _:
            path = Path(sys.executable).parent / program
            if not path.exists():
                raise StackFailed(f"{path} is missing: install Byline's requirements into this environment")
            return (str(path), *arguments)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _signal(running: _Running, number: signal.Signals) -> None:
    if running.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            running.process.send_signal(number)
