"""Holds a roll-out to its promise: old runs end on the code they began on, new ones on the new, and none fails."""

import asyncio
import importlib
import secrets
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from engine.audit.verify import verify_trail
from engine.runs.outcome import Finished
from engine.runs.runs import build_runs
from engine.tools.registry import Registry
from engine.worker import BylineInterceptor
from tests.support.platform import MODULES, NAMESPACE, NORTHWIND, Platform, wait_until

VERSIONS = Path(__file__).parents[2] / "fixtures" / "versions"
TOOL = "introduce_account"


class Deployment:
    """A deployment of one platform's workers, each version with its own code."""

    def __init__(self, platform: Platform) -> None:
        self.name = f"tools-{secrets.token_hex(4)}"
        self._platform = platform

    def run_worker(self, version: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Have a worker of a version, once it polls."""
        return self._platform.run_worker_process(
            PYTHONPATH=str(VERSIONS / version),
            BYLINE_MODULES='["activities", "rolled_out"]',
            BYLINE_TEMPORAL__DEPLOYMENT_NAME=self.name,
            BYLINE_TEMPORAL__BUILD_ID=version,
        )

    async def make_current(self, version: str) -> None:
        """Send new runs to a version, by Temporal's own command."""
        command = (
            *(str(Path(sys.executable).parent / "temporal"), "worker", "deployment", "set-current-version"),
            *("--deployment-name", self.name, "--build-id", version, "--yes"),
            *("--address", self._platform.settings.temporal.address, "--namespace", NAMESPACE),
        )

        async def is_accepted() -> bool:
            # The server learns of a version a moment after its first poll.
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            await process.communicate()
            return process.returncode == 0

        await wait_until(is_accepted)

    async def keeps_workflows(self, version: str, workflows: set[str]) -> bool:
        """Whether these workflows are all that is still open on a version, as an operator finds them."""
        query = f"TemporalWorkerDeploymentVersion = '{self.name}:{version}' AND ExecutionStatus = 'Running'"
        return {
            execution.id async for execution in self._platform.temporal.list_workflows(query)
        } == workflows


def load_version(version: str) -> ModuleType:
    """The tool's module as this version has it, for a gateway of that version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(VERSIONS / version)
        sys.modules.pop("rolled_out", None)
        return importlib.import_module("rolled_out")


async def call_tool(platform: Platform, version: str, label: str = "") -> str:
    """Alice calls the tool at a gateway of a version."""
    load_version(version)
    platform.registry = Registry((*MODULES, "rolled_out"))
    platform.runs = build_runs(platform.services, platform.temporal, platform.registry)
    return await platform.start_run(
        TOOL, {"account_id": NORTHWIND, "label": label or version}, platform.alice
    )


async def test_a_run_that_waits_ends_on_its_own_version_while_new_ones_take_the_next(
    idle_platform: Platform,
) -> None:
    deployment = Deployment(idle_platform)
    async with idle_platform.run_wake_up_delivery(), deployment.run_worker("v1") as old:
        await deployment.make_current("v1")
        first = await call_tool(idle_platform, "v1")
        await idle_platform.wait_until_parked(first)
        async with deployment.run_worker("v2"):
            before = await call_tool(idle_platform, "v1", "before v2 is current")
            await idle_platform.wait_until_parked(before)
            await deployment.make_current("v2")
            after = await call_tool(idle_platform, "v2")
            (request,) = await idle_platform.wait_for_requests(after)
            await wait_until(lambda: deployment.keeps_workflows("v1", {first, before}))
            old.kill()
            await old.wait()
            async with deployment.run_worker("v1"):
                await idle_platform.consent(request, idle_platform.alice)
                outcomes = [await idle_platform.wait_for_outcome(run) for run in (first, before, after)]
        history = await idle_platform.temporal.get_workflow_handle(first).fetch_history()

    by_the_old = Finished({"words": "This is Northwind Traders.", "said_by": ["v1", "v1"]})
    by_the_new = Finished({"words": "Please welcome Northwind Traders!", "said_by": ["v2", "v2"]})
    assert outcomes == [by_the_old, by_the_old, by_the_new]
    await _is_whole(idle_platform, first, chain=1)
    await _is_whole(idle_platform, before, chain=1)
    await _is_whole(idle_platform, after, chain=2)
    await _replay(idle_platform, history, load_version("v1"))
    with pytest.raises(NondeterminismError):
        await _replay(idle_platform, history, load_version("v2"))


async def _is_whole(platform: Platform, run_id: str, *, chain: int) -> None:
    """One request in Alice's name, by as many workflows as this version has on the way, in a trail that holds."""
    (ended_event,) = await platform.list_trail_events("action.ended", run_id)
    assert (ended_event["principal"]["name"], ended_event["verdict"], ended_event["record_id"]) == (
        "Alice Liddell",
        "allowed",
        f"account/{NORTHWIND}",
    )
    assert len(ended_event["chain"]) == chain
    assert await platform.list_trail_events("action.refused", run_id) == []
    assert (await verify_trail(platform.services.database, platform.services.signing_keys)).is_intact


async def _replay(platform: Platform, history: WorkflowHistory, version: ModuleType) -> None:
    replayer = Replayer(
        workflows=[version.IntroduceAccount, version.PhraseIntroduction],
        interceptors=[BylineInterceptor(platform.services, platform.temporal, platform.registry)],
        data_converter=pydantic_data_converter,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    await replayer.replay_workflow(history)
