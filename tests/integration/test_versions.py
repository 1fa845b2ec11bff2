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
from tests.platform import MODULES, NAMESPACE, NORTHWIND, Platform, until

VERSIONS = Path(__file__).parents[1] / "versions"
TOOL = "introduce_account"


class Deployment:
    """A deployment of one platform's workers, each version with its own code."""

    def __init__(self, platform: Platform) -> None:
        self.name = f"tools-{secrets.token_hex(4)}"
        self._platform = platform

    def worker(self, version: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        """Have a worker of a version, once it polls."""
        return self._platform.worker_process(
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

        async def accepted() -> bool:
            # The server learns of a version a moment after its first poll.
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            await process.communicate()
            return process.returncode == 0

        await until(accepted)

    async def keeps(self, version: str, workflows: set[str]) -> bool:
        """Whether these workflows are all that is still open on a version, as an operator finds them."""
        query = f"TemporalWorkerDeploymentVersion = '{self.name}:{version}' AND ExecutionStatus = 'Running'"
        return {found.id async for found in self._platform.temporal.list_workflows(query)} == workflows


def code(version: str) -> ModuleType:
    """The tool's module as this version has it, for a gateway of that version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(VERSIONS / version)
        sys.modules.pop("rolled_out", None)
        return importlib.import_module("rolled_out")


async def called(platform: Platform, version: str, label: str = "") -> str:
    """Alice calls the tool at a gateway of a version."""
    code(version)
    platform.registry = Registry((*MODULES, "rolled_out"))
    platform.runs = build_runs(platform.services, platform.temporal, platform.registry)
    return await platform.start(TOOL, {"account_id": NORTHWIND, "label": label or version}, platform.alice)


async def test_a_run_that_waits_ends_on_its_own_version_while_new_ones_take_the_next(idle: Platform) -> None:
    deployment = Deployment(idle)
    async with idle.delivering(), deployment.worker("v1") as old:
        await deployment.make_current("v1")
        first = await called(idle, "v1")
        await idle.parked(first)
        async with deployment.worker("v2"):
            before = await called(idle, "v1", "before v2 is current")
            await idle.parked(before)
            await deployment.make_current("v2")
            after = await called(idle, "v2")
            (request,) = await idle.asked(after)
            await until(lambda: deployment.keeps("v1", {first, before}))
            old.kill()
            await old.wait()
            async with deployment.worker("v1"):
                await idle.consent(request, idle.alice)
                outcomes = [await idle.outcome(run) for run in (first, before, after)]
        history = await idle.temporal.get_workflow_handle(first).fetch_history()

    by_the_old = Finished({"words": "This is Northwind Traders.", "said_by": ["v1", "v1"]})
    by_the_new = Finished({"words": "Please welcome Northwind Traders!", "said_by": ["v2", "v2"]})
    assert outcomes == [by_the_old, by_the_old, by_the_new]
    await _is_whole(idle, first, chain=1)
    await _is_whole(idle, before, chain=1)
    await _is_whole(idle, after, chain=2)
    await _replayed(idle, history, code("v1"))
    with pytest.raises(NondeterminismError):
        await _replayed(idle, history, code("v2"))


async def _is_whole(platform: Platform, run_id: str, *, chain: int) -> None:
    """One request in Alice's name, by as many workflows as this version has on the way, in a trail that holds."""
    (ended,) = await platform.trail("action.ended", run_id)
    assert (ended["principal"]["name"], ended["verdict"], ended["record_id"]) == (
        "Alice Liddell",
        "allowed",
        f"account/{NORTHWIND}",
    )
    assert len(ended["chain"]) == chain
    assert await platform.trail("action.refused", run_id) == []
    assert (await verify_trail(platform.services.database, platform.services.signing_keys)).is_intact


async def _replayed(platform: Platform, history: WorkflowHistory, version: ModuleType) -> None:
    replayer = Replayer(
        workflows=[version.IntroduceAccount, version.PhraseIntroduction],
        interceptors=[BylineInterceptor(platform.services, platform.temporal, platform.registry)],
        data_converter=pydantic_data_converter,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    await replayer.replay_workflow(history)
