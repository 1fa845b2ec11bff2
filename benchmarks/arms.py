"""Starts the measured processes: a new Temporal server with the stack's settings, its workers and its gateways."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx2
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from benchmarks.plain_worker import Options
from gateway.dev import run_with_parent
from gateway.dev.data_directory import COMPOSE_PATH, LOOPBACK_HOST
from gateway.dev.readiness import is_ready
from gateway.dev.stack import EmbeddedStack

_ROOT = Path(__file__).parent.parent
_TIMEOUT = httpx2.Timeout(300.0)
_ASK_EVERY = 0.1
_START_WITHIN = 60.0
_AS_BYLINE = Options()


class Program:
    """One process. It prints `ready` once it is ready, and it ends with this process."""

    def __init__(self, process: asyncio.subprocess.Process, ready_line: str) -> None:
        self._process = process
        self.pid = process.pid
        self.ready_line = ready_line

    @classmethod
    async def start(cls, *arguments: str, environment: Mapping[str, str] = os.environ) -> "Program":
        """Run Python with these arguments and return once it is ready."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-I",
                "-S",
                run_with_parent.__file__,
                str(os.getpid()),
                sys.executable,
                *arguments,
            ),
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            env=dict(environment),
        )
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b"ready"):
                return cls(process, line.decode().removeprefix("ready").strip())
        raise RuntimeError(f"{arguments} ended before it was ready")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the process to end, and wait until it has ended."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        await self._process.wait()


@dataclass
class Arms:
    """A Temporal server without history, the upstream, and the workers and gateways that run with them."""

    stack: EmbeddedStack
    temporal: Client
    upstream: httpx2.AsyncClient
    upstream_pid: int
    _programs: AsyncExitStack

    async def byline(self) -> None:
        """Start Byline's worker and gateway in the same way as the stack."""
        for service in ("migrate", "worker", "gateway"):
            await self.stack.start_service(service)
            await self.stack.wait_until_ready(service)

    async def plain_worker(self, queue: str = "plain", options: Options = _AS_BYLINE) -> Program:
        """Start a raw worker on a task queue of its own."""
        namespace = self.temporal.namespace
        arguments = (self.stack.temporal_address, namespace, queue, str(self.upstream.base_url))
        return await self.program("benchmarks.plain_worker", *arguments, options.model_dump_json())

    async def program(self, module: str, *arguments: str) -> Program:
        """Start a module of this package, which is stopped with the others."""
        program = await Program.start("-m", module, *arguments)
        self._programs.push_async_callback(program.stop)
        return program

    async def second_gateway(self, program: str) -> tuple[str, Program]:
        """Start a gateway in addition to the stack's own by a Python program, and return its origin and the program."""
        with socket.create_server((LOOPBACK_HOST, 0)) as probe:
            port = probe.getsockname()[1]
        url = f"http://{LOOPBACK_HOST}:{port}"
        own = {"BYLINE_GATEWAY__PORT": str(port), "BYLINE_GATEWAY__PUBLIC_URL": url}
        started_program = await Program.start(
            "-c", program, environment=self.stack.build_environment("gateway") | own
        )
        self._programs.push_async_callback(started_program.stop)
        async with asyncio.timeout(_START_WITHIN):
            while not await is_ready(f"{url}/healthz"):  # noqa: ASYNC110 - another process sets no event of this one
                await asyncio.sleep(_ASK_EVERY)
        return url, started_program

    def pids(self, *services: str) -> dict[str, int]:
        """Return the process ids of services of the stack, by name."""
        return {service: self.stack.find_pid(service) for service in services}

    async def arrivals(self, name: str, count: int = 1) -> list[float]:
        """Wait for `count` writes under this name, and return when they arrived, in seconds of the monotonic clock."""
        answer = await self.upstream.get(f"/arrivals/{name}", params={"count": count})
        times: list[float] = answer.raise_for_status().json()
        return times


@asynccontextmanager
async def fresh_arms(
    file: Path = COMPOSE_PATH, *, settings: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Arms]:
    """Start a new server and the upstream with these settings. All that is started on them ends with the block."""
    async with AsyncExitStack() as exit_stack:
        data = exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="byline-bench-"))
        upstream = await Program.start("-m", "benchmarks.upstream")
        exit_stack.push_async_callback(upstream.stop)
        url = f"http://{LOOPBACK_HOST}:{upstream.ready_line}"
        environment = {
            **os.environ,
            "BYLINE_MODULES": '["benchmarks.tools", "benchmarks.actions"]',
            "BYLINE_CONNECTIONS_FILE": "benchmarks/connections.yml",
            "BYLINE_LOG_LEVEL": "WARNING",
            "UPSTREAM_URL": url,
            **settings,
        }
        stack = EmbeddedStack(Path(data), environment=environment, compose_path=file, report_progress=_quiet)
        await exit_stack.enter_async_context(stack)
        await stack.start_service("temporal")
        await stack.wait_until_ready("temporal")
        temporal = await Client.connect(
            stack.temporal_address, namespace="byline", data_converter=pydantic_data_converter
        )
        limits = httpx2.Limits(max_connections=1100)
        client = httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits, trust_env=False)
        http = await exit_stack.enter_async_context(client)
        programs = await exit_stack.enter_async_context(AsyncExitStack())
        yield Arms(stack, temporal, http, upstream.pid, programs)


def _quiet(_progress: str) -> None:
    """Ignore the stack's progress reports."""
