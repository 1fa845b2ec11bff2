import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from gateway.dev.data_directory import COMPOSE_PATH
from gateway.dev.readiness import is_ready
from gateway.dev.stack import EmbeddedStack, StackFailed

SITE = """
import http.server, pathlib, sys
class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
pathlib.Path(sys.argv[2]).open("a").write(f"started\\n")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Site).serve_forever()
"""

COMPOSE = """
services:
  prepare:
    command: [python, -c, "print('prepared')"]
  site:
    command: [python, site.py, "${SITE_PORT:-20080}", "${DATA_DIR:-/data}/starts"]
    restart: unless-stopped
    healthcheck: {test: [CMD, byline, ready, "http://127.0.0.1:${SITE_PORT:-20080}/"]}
    depends_on:
      prepare: {condition: service_completed_successfully}
  broken:
    command: [python, -c, "raise SystemExit('no luck today')"]
    restart: unless-stopped
    healthcheck: {test: [CMD, byline, ready, "http://127.0.0.1:${SITE_PORT:-20080}/nowhere"]}
"""


@pytest.fixture
def compose_file(tmp_path: Path) -> Path:
    (tmp_path / "site.py").write_text(SITE)
    path = tmp_path / "compose.yml"
    path.write_text(COMPOSE)
    return path


@pytest.fixture
def progress_lines() -> list[str]:
    return []


@pytest.fixture
async def stack(
    compose_file: Path, tmp_path: Path, progress_lines: list[str]
) -> AsyncIterator[EmbeddedStack]:
    async with EmbeddedStack(
        tmp_path / "data",
        environment=os.environ,
        compose_path=compose_file,
        report_progress=progress_lines.append,
    ) as stack:
        yield stack


async def wait_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_service_that_crashes_is_started_again_and_said_so(
    stack: EmbeddedStack, progress_lines: list[str]
) -> None:
    await stack.start_service("site")
    await stack.wait_until_ready("site")
    first = stack.find_pid("site")
    os.kill(first, signal.SIGKILL)

    await wait_until(lambda: "site is ready again" in progress_lines)
    assert stack.find_pid("site") != first
    assert progress_lines[0] == "site was ended by SIGKILL unexpectedly; starting it again"


async def test_a_service_that_was_killed_on_purpose_stays_down_until_started(
    stack: EmbeddedStack, tmp_path: Path, progress_lines: list[str]
) -> None:
    await stack.start_service("site")
    await stack.wait_until_ready("site")
    await stack.kill_service("site")
    assert not is_alive(stack.find_pid("site"))
    await stack.start_service("site")
    await stack.wait_until_ready("site")

    assert (tmp_path / "data/starts").read_text() == "started\n" * 2
    assert progress_lines == []


async def test_a_service_that_never_gets_ready_is_reported_with_the_end_of_its_log(
    stack: EmbeddedStack,
) -> None:
    await stack.start_service("broken")

    with pytest.raises(
        StackFailed, match=r"broken ended with exit code 1; its log \S+broken\.log ends:\nno luck today"
    ):
        await stack.wait_until_ready("broken")


async def test_one_failure_fails_the_whole_start_and_nothing_is_left(
    compose_file: Path, tmp_path: Path
) -> None:
    async with EmbeddedStack(
        tmp_path / "data", environment=os.environ, compose_path=compose_file, report_progress=lambda _: None
    ) as stack:
        await stack.start_service("site")
        await stack.wait_until_ready("site")
        with pytest.raises(StackFailed):
            await stack.start_all_services()

    assert not is_alive(stack.find_pid("site"))


async def test_services_start_after_what_they_depend_on(
    compose_file: Path, tmp_path: Path, progress_lines: list[str]
) -> None:
    compose_file.write_text(COMPOSE.split("  broken:", maxsplit=1)[0])
    async with EmbeddedStack(
        tmp_path / "data",
        environment=os.environ,
        compose_path=compose_file,
        report_progress=progress_lines.append,
    ) as stack:
        await stack.start_all_services()

    assert progress_lines == ["prepare is ready", "site is ready"]


async def test_nothing_outlives_a_stack_that_is_killed(compose_file: Path, tmp_path: Path) -> None:
    program = """
import asyncio, os, pathlib, sys
from gateway.dev.stack import EmbeddedStack

async def main():
    folder, compose = pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[1])
    async with EmbeddedStack(folder, environment=os.environ, compose_path=compose) as stack:
        await stack.start_service("site")
        await stack.wait_until_ready("site")
        print(stack.find_pid("site"), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": str(COMPOSE_PATH.parent)}
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(compose_file), str(tmp_path / "data")),
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert owner.stdout
    site = int(await owner.stdout.readline())
    assert is_alive(site)
    owner.kill()
    await owner.wait()

    await wait_until(lambda: not is_alive(site))


async def test_temporal_comes_from_the_compose_file_and_survives_a_crash(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, environment=os.environ, report_progress=lambda _: None) as stack:
        await stack.start_service("temporal")
        await stack.wait_until_ready("temporal")
        client = await Client.connect(stack.temporal_address, namespace="byline")
        run = await client.start_workflow("Waits", id="survivor", task_queue="nobody")
        await stack.kill_service("temporal")
        await stack.start_service("temporal")
        await stack.wait_until_ready("temporal")

        search_attributes = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace="byline")
        )
        assert (await run.describe()).run_id == run.first_execution_run_id
        assert {"BylinePrincipal", "BylineAwaiting"} <= search_attributes.custom_attributes.keys()


async def test_a_worker_is_ready_once_its_own_process_polls(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, environment=os.environ, report_progress=lambda _: None) as stack:
        for name in ("temporal", "migrate", "worker"):
            await stack.start_service(name)
            await stack.wait_until_ready(name)
        queue = f"temporal://{stack.temporal_address}/byline/byline"
        assert await is_ready(queue)
        await stack.kill_service("worker")
        killed_at = datetime.now(UTC)
        assert not await is_ready(queue, polled_since=killed_at)
        await stack.start_service("worker")
        await stack.wait_until_ready("worker")

        assert await is_ready(queue, polled_since=killed_at)
