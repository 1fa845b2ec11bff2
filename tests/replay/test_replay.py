"""Holds today's code to going on with runs that earlier code began: what was recorded replays as it was."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Interceptor, Replayer

from activities.salesforce import Account
from engine.notifications.workflow import NotifyWorkflow
from engine.services import open_services
from engine.settings import DatabaseSettings, Settings, VaultSettings
from engine.tools.registry import Registry
from engine.wire import NOTIFY_WORKFLOW
from engine.worker import _FAILURE_EXCEPTIONS, BylineInterceptor, _build_workflow_runner
from tests.fixtures.tools.account_reads import Reading
from tests.support.databases import sqlite_database
from tests.support.platform import MODULES

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
SETTINGS = Settings(modules=MODULES)
REGISTRY = Registry(SETTINGS.modules)
WORKFLOWS = {**REGISTRY.workflows, NOTIFY_WORKFLOW: NotifyWorkflow}

with_each_history = pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
with_each_waiting_history = pytest.mark.parametrize(
    "path",
    [path for path in HISTORIES if "byline.look_again" in path.read_text()],
    ids=lambda path: path.stem,
)


@workflow.defn(name="read_once", sandboxed=False)
class ReadOnceAfterANap:
    @workflow.run
    async def run(self, reading: Reading) -> Account:
        await workflow.sleep(1)
        return Account(id=reading.account_id, name="", billing_customer_id=None)


@pytest.fixture
async def interceptor(tmp_path: Path) -> AsyncIterator[BylineInterceptor]:
    """What a worker puts around its workflows; a replay asks neither database nor server for anything."""
    settings = SETTINGS.model_copy(
        update={
            "database": DatabaseSettings(url=await sqlite_database(tmp_path)),
            "vault": VaultSettings(keyring_file=tmp_path / "keyring.json"),
        }
    )
    nowhere = await Client.connect("127.0.0.1:1", lazy=True)
    async with open_services(settings, {}) as services:
        yield BylineInterceptor(services, nowhere, REGISTRY)


async def replay_history(
    path: Path, *interceptors: Interceptor, workflows: Mapping[str, type] = WORKFLOWS
) -> None:
    history = json.loads(path.read_text())
    began = history["events"][0]["workflowExecutionStartedEventAttributes"]
    replayer = Replayer(
        workflows=[workflows[began["workflowType"]["name"]]],
        interceptors=interceptors,
        data_converter=pydantic_data_converter,
        workflow_runner=_build_workflow_runner(SETTINGS),
        workflow_failure_exception_types=_FAILURE_EXCEPTIONS,
    )
    await replayer.replay_workflow(WorkflowHistory.from_json(began["workflowId"], history))


@with_each_history
async def test_what_was_recorded_goes_on_with_the_code_of_today(
    path: Path, interceptor: BylineInterceptor
) -> None:
    await replay_history(path, interceptor)


@with_each_waiting_history
async def test_what_waited_could_not_go_on_without_the_interceptors(path: Path) -> None:
    with pytest.raises(workflow.NondeterminismError):
        await replay_history(path)


async def test_a_tool_that_does_otherwise_than_before_is_found(interceptor: BylineInterceptor) -> None:
    (path,) = [path for path in HISTORIES if path.name.startswith("deny_sign_in-")]

    with pytest.raises(workflow.NondeterminismError):
        await replay_history(path, interceptor, workflows={"read_once": ReadOnceAfterANap})


def test_every_workflow_that_comes_with_byline_was_recorded() -> None:
    ours = {
        name
        for name, definition in REGISTRY.workflows.items()
        if definition.__module__.startswith("workflows.")
    }

    assert ours <= {path.stem.split("-")[2] for path in HISTORIES}


def test_a_history_holds_nothing_of_the_machine_that_recorded_it() -> None:
    for path in HISTORIES:
        text = path.read_text()
        assert "stackTrace" not in text
        assert str(Path.home()) not in text
        assert "site-packages" not in text
