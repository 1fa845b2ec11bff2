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
def file(tmp_path: Path) -> Path:
    (tmp_path / "site.py").write_text(SITE)
    path = tmp_path / "compose.yml"
    path.write_text(COMPOSE)
    return path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def stack(file: Path, tmp_path: Path, said: list[str]) -> AsyncIterator[EmbeddedStack]:
    async with EmbeddedStack(
        tmp_path / "data", environment=os.environ, compose_path=file, report_progress=said.append
    ) as stack:
        yield stack


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_service_that_crashes_is_started_again_and_said_so(
    stack: EmbeddedStack, said: list[str]
) -> None:
    await stack.start_service("site")
    await stack.wait_until_ready("site")
    first = stack.find_pid("site")
    os.kill(first, signal.SIGKILL)

    await eventually(lambda: "site is ready again" in said)
    assert stack.find_pid("site") != first
    assert said[0] == "site was ended by SIGKILL unexpectedly; starting it again"


async def test_a_service_that_was_killed_on_purpose_stays_down_until_started(
    stack: EmbeddedStack, tmp_path: Path, said: list[str]
) -> None:
    await stack.start_service("site")
    await stack.wait_until_ready("site")
    await stack.kill_service("site")
    assert not lives(stack.find_pid("site"))
    await stack.start_service("site")
    await stack.wait_until_ready("site")

    assert (tmp_path / "data/starts").read_text() == "started\n" * 2
    assert said == []


async def test_a_service_that_never_gets_ready_is_told_with_the_end_of_its_log(stack: EmbeddedStack) -> None:
    await stack.start_service("broken")

    with pytest.raises(
        StackFailed, match=r"broken ended with exit code 1; its log \S+broken\.log ends:\nno luck today"
    ):
        await stack.wait_until_ready("broken")


async def test_one_failure_fails_the_whole_start_and_nothing_is_left(file: Path, tmp_path: Path) -> None:
    async with EmbeddedStack(
        tmp_path / "data", environment=os.environ, compose_path=file, report_progress=lambda _: None
    ) as stack:
        await stack.start_service("site")
        await stack.wait_until_ready("site")
        with pytest.raises(StackFailed):
            await stack.start_all_services()

    assert not lives(stack.find_pid("site"))


async def test_services_start_after_what_they_depend_on(file: Path, tmp_path: Path, said: list[str]) -> None:
    file.write_text(COMPOSE.split("  broken:", maxsplit=1)[0])
    async with EmbeddedStack(
        tmp_path / "data", environment=os.environ, compose_path=file, report_progress=said.append
    ) as stack:
        await stack.start_all_services()

    assert said == ["prepare is ready", "site is ready"]


async def test_nothing_outlives_a_stack_that_is_killed(file: Path, tmp_path: Path) -> None:
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
        *(sys.executable, "-c", program, str(file), str(tmp_path / "data")),
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert owner.stdout
    site = int(await owner.stdout.readline())
    assert lives(site)
    owner.kill()
    await owner.wait()

    await eventually(lambda: not lives(site))


async def test_temporal_comes_from_the_compose_file_and_survives_a_crash(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, environment=os.environ, report_progress=lambda _: None) as stack:
        await stack.start_service("temporal")
        await stack.wait_until_ready("temporal")
        client = await Client.connect(stack.temporal_address, namespace="byline")
        run = await client.start_workflow("Waits", id="survivor", task_queue="nobody")
        await stack.kill_service("temporal")
        await stack.start_service("temporal")
        await stack.wait_until_ready("temporal")

        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace="byline")
        )
        assert (await run.describe()).run_id == run.first_execution_run_id
        assert {"BylinePrincipal", "BylineAwaiting"} <= known.custom_attributes.keys()


async def test_a_worker_is_ready_once_its_own_process_polls(tmp_path: Path) -> None:
    async with EmbeddedStack(tmp_path, environment=os.environ, report_progress=lambda _: None) as stack:
        for name in ("temporal", "migrate", "worker"):
            await stack.start_service(name)
            await stack.wait_until_ready(name)
        queue = f"temporal://{stack.temporal_address}/byline/byline"
        assert await is_ready(queue)
        await stack.kill_service("worker")
        killed = datetime.now(UTC)
        assert not await is_ready(queue, polled_since=killed)
        await stack.start_service("worker")
        await stack.wait_until_ready("worker")

        assert await is_ready(queue, polled_since=killed)
