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
from gateway.dev import run_with_parent
from gateway.dev.compose import Argv, ComposeFile, ComposeService
from gateway.dev.data_directory import (
    COMPOSE_PATH,
    DEFAULT_DATA_PATH,
    LOOPBACK_HOST,
    DataDirectory,
    choose_variables,
)
from gateway.dev.readiness import is_ready

_POLL_INTERVAL_SECONDS = 0.1
_READY_TIMEOUT_SECONDS = 90.0
_STOP_TIMEOUT_SECONDS = 15.0
_MAX_PAUSE_SECONDS = 30.0


class StackFailed(BylineError):
    """A service of the embedded stack did not start, or ended before it was ready."""

    code: ClassVar[str] = "stack_failed"


class _ServiceProcess:
    def __init__(self, process: asyncio.subprocess.Process, started_at: datetime) -> None:
        self.process = process
        self.started_at = started_at
        self.has_been_ready = False


class EmbeddedStack:
    """The services of one Compose file on one data directory.

    The services inherit `environment`, which may set ports and secrets. `report_progress` receives one line at a time.
    """

    def __init__(
        self,
        data_path: Path = DEFAULT_DATA_PATH,
        *,
        environment: Mapping[str, str],
        compose_path: Path = COMPOSE_PATH,
        report_progress: Callable[[str], None] = print,
    ) -> None:
        self._data_directory = DataDirectory(data_path)
        self._base_environment = environment
        self._compose_file = ComposeFile(compose_path)
        self._report_progress = report_progress
        self._wanted_services: set[str] = set()
        self._service_processes: dict[str, _ServiceProcess] = {}
        self._watch_tasks: set[asyncio.Task[None]] = set()
        self.variables: Mapping[str, str] = {}
        self.services: Mapping[str, ComposeService] = {}

    @property
    def gateway_url(self) -> str:
        """The origin of the gateway, whose root is the console."""
        return f"http://{LOOPBACK_HOST}:{self.variables['GATEWAY_PORT']}"

    @property
    def mcp_url(self) -> str:
        """The address of the MCP endpoint."""
        return f"{self.gateway_url}/mcp"

    @property
    def temporal_address(self) -> str:
        """The address of the Temporal server."""
        return f"{LOOPBACK_HOST}:{self.variables['TEMPORAL_PORT']}"

    @property
    def temporal_ui_url(self) -> str:
        """The address of Temporal's web UI."""
        return f"http://{LOOPBACK_HOST}:{self.variables['TEMPORAL_UI_PORT']}"

    def build_environment(self, service_name: str) -> dict[str, str]:
        """Return the whole environment that a service runs with."""
        return {
            **_resolve_files(self._base_environment),
            **self.services[service_name].environment,
            "PYTHONUNBUFFERED": "1",
        }

    def locate_log(self, service_name: str) -> Path:
        """Return the file that a service's output goes to."""
        return self._data_directory.locate_log(service_name)

    def find_pid(self, service_name: str) -> int:
        """Return the process id of a service that was started."""
        return self._service_processes[service_name].process.pid

    async def __aenter__(self) -> Self:
        """Claim the data directory and choose ports and secrets. Nothing is started yet."""
        self._data_directory.claim_directory()
        try:
            self.variables = choose_variables(
                self._compose_file.variable_defaults,
                _resolve_files(self._base_environment),
                self._data_directory,
            )
            self.services = self._compose_file.build_services(self.variables)
        except BaseException:
            self._data_directory.release_directory()
            raise
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop every service. The services that others depend on are stopped last."""
        watch_tasks = tuple(self._watch_tasks)
        for watch_task in watch_tasks:
            watch_task.cancel()
        try:
            await asyncio.gather(*watch_tasks, return_exceptions=True)
            for service_level in reversed(self._sort_into_levels()):
                await asyncio.gather(*(self.stop_service(service_name) for service_name in service_level))
        finally:
            for service_process in self._service_processes.values():
                _send_signal(service_process, signal.SIGKILL)
            self._data_directory.release_directory()

    async def start_all_services(self) -> None:
        """Start each service once its dependencies are ready, and return when all are. Raises StackFailed."""
        start_tasks: dict[str, asyncio.Task[None]] = {}

        async def bring_up_service(service_name: str) -> None:
            await asyncio.gather(
                *(start_tasks[dependency] for dependency in self.services[service_name].depends_on)
            )
            await self.start_service(service_name)
            await self.wait_until_ready(service_name)
            self._report_progress(f"{service_name} is ready")

        try:
            async with asyncio.TaskGroup() as task_group:
                for service_level in self._sort_into_levels():
                    for service_name in service_level:
                        start_tasks[service_name] = task_group.create_task(bring_up_service(service_name))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def start_service(self, service_name: str) -> None:
        """Start a service and return at once. Raises StackFailed if it runs already."""
        if (
            earlier_process := self._service_processes.get(service_name)
        ) and earlier_process.process.returncode is None:
            raise StackFailed(f"{service_name} runs already")
        self._wanted_services.add(service_name)
        await self._spawn_process(service_name)

    async def stop_service(self, service_name: str) -> None:
        """Stop a service by SIGTERM, and by SIGKILL if that takes too long."""
        self._wanted_services.discard(service_name)
        if service_process := self._service_processes.get(service_name):
            _send_signal(service_process, signal.SIGTERM)
            try:
                await asyncio.wait_for(service_process.process.wait(), _STOP_TIMEOUT_SECONDS)
            except TimeoutError:
                await self.kill_service(service_name)

    async def kill_service(self, service_name: str) -> None:
        """End a service by SIGKILL, as a crash would. It stays down until it is started again."""
        self._wanted_services.discard(service_name)
        if service_process := self._service_processes.get(service_name):
            _send_signal(service_process, signal.SIGKILL)
            await service_process.process.wait()

    async def wait_until_ready(self, service_name: str) -> None:
        """Return once the service is ready, or once it has succeeded if it only runs once. Raises StackFailed."""
        compose_service = self.services[service_name]
        service_process = self._service_processes[service_name]
        should_run_once = compose_service.healthcheck is None and compose_service.restart == "no"
        try:
            async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
                while not (should_run_once and service_process.process.returncode == 0):
                    if service_process.process.returncode is not None:
                        raise StackFailed(
                            self._describe_failure(
                                service_name, _describe_exit(service_process.process.returncode)
                            )
                        )
                    if not should_run_once and await self._is_healthy(
                        compose_service, service_process.started_at
                    ):
                        break
                    await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        except TimeoutError:
            raise StackFailed(
                self._describe_failure(
                    service_name, f"was not ready within {_READY_TIMEOUT_SECONDS:.0f} seconds"
                )
            ) from None
        service_process.has_been_ready = True

    async def _spawn_process(self, service_name: str) -> _ServiceProcess:
        started_at = datetime.now(UTC)
        with self.locate_log(service_name).open("ab") as log_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", run_with_parent.__file__, str(os.getpid())),
                *_localize_command(self.services[service_name].argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd=self._compose_file.file_path.absolute().parent,
                env=self.build_environment(service_name),
                start_new_session=True,
            )
        self._service_processes[service_name] = service_process = _ServiceProcess(process, started_at)
        watch_task = asyncio.create_task(self._restart_on_exit(service_name, service_process))
        self._watch_tasks.add(watch_task)
        watch_task.add_done_callback(self._watch_tasks.discard)
        return service_process

    async def _restart_on_exit(self, service_name: str, service_process: _ServiceProcess) -> None:
        """Start a service again if it ended after it had been ready and nobody stopped it."""
        code = await service_process.process.wait()
        if not service_process.has_been_ready or self.services[service_name].restart == "no":
            return
        pause_seconds = 0.0
        while service_name in self._wanted_services:
            self._report_progress(f"{service_name} {_describe_exit(code)} unexpectedly; starting it again")
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(max(1.0, pause_seconds * 2), _MAX_PAUSE_SECONDS)
            if service_name not in self._wanted_services:
                return
            new_process = await self._spawn_process(service_name)
            try:
                await self.wait_until_ready(service_name)
            except StackFailed as error:
                self._report_progress(str(error))
                _send_signal(new_process, signal.SIGKILL)
                code = await new_process.process.wait()
            else:
                self._report_progress(f"{service_name} is ready again")
                return

    async def _is_healthy(self, compose_service: ComposeService, started_at: datetime) -> bool:
        if compose_service.healthcheck is None:
            return True
        check_argv = compose_service.healthcheck.argv
        if check_argv[:2] == ("byline", "ready"):
            return await is_ready(check_argv[2], polled_since=started_at)
        check_process = await asyncio.create_subprocess_exec(
            *_localize_command(check_argv),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await check_process.wait() == 0
        finally:
            if check_process.returncode is None:
                check_process.kill()

    def _sort_into_levels(self) -> list[tuple[str, ...]]:
        service_order = TopologicalSorter(
            {
                service_name: set(compose_service.depends_on)
                for service_name, compose_service in self.services.items()
            }
        )
        service_order.prepare()
        sorted_levels = []
        while service_order.is_active():
            sorted_levels.append(service_order.get_ready())
            service_order.done(*sorted_levels[-1])
        return sorted_levels

    def _describe_failure(self, service_name: str, failure_text: str) -> str:
        log_lines = self.locate_log(service_name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(
            [
                f"{service_name} {failure_text}; its log {self.locate_log(service_name)} ends:",
                *log_lines[-15:],
            ]
        )


def _resolve_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Make the files that settings name absolute, as services run in the folder of the Compose file."""
    return {
        variable_name: str(Path(value).absolute())
        if value and variable_name.startswith("BYLINE_") and variable_name.endswith("_FILE")
        else value
        for variable_name, value in environment.items()
    }


def _localize_command(argv: Argv) -> tuple[str, ...]:
    """Translate a container's command to this environment's own programs."""
    program_name, *arguments = argv
    match program_name:
        case "python":
            return (sys.executable, *arguments)
        case "byline":
            return (sys.executable, "-m", "gateway.cli", *arguments)
        case _:
            program_path = Path(sys.executable).parent / program_name
            if not program_path.exists():
                raise StackFailed(
                    f"{program_path} is missing: install Byline's requirements into this environment"
                )
            return (str(program_path), *arguments)


def _describe_exit(exit_code: int) -> str:
    return (
        f"was ended by {signal.Signals(-exit_code).name}"
        if exit_code < 0
        else f"ended with exit code {exit_code}"
    )


def _send_signal(service_process: _ServiceProcess, signal_number: signal.Signals) -> None:
    if service_process.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            service_process.process.send_signal(signal_number)
