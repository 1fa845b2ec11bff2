"""Holds the tasks of MCP clients to being runs: what one says of them, asks through them, and who may."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, MISSING_REQUIRED_CLIENT_CAPABILITY

from engine.identity.model import Principal
from engine.wire import OUTCOME_META
from tests.support.api_server import ApiServer, serve_api
from tests.support.mcp_requests import read_answer, send_request
from tests.support.platform import NORTHWIND, Platform, wait_until

TASKS: dict[str, Any] = {"io.modelcontextprotocol/tasks": {}}
PLAIN = {"extensions": TASKS}
LINKS = {"extensions": TASKS, "elicitation": {"url": {}}}
FORMS = {"extensions": TASKS, "elicitation": {"form": {}}}
READING = {"account_id": NORTHWIND}


@dataclass(frozen=True)
class TaskClient:
    """A client of tasks that sends one request at a time."""

    url: str
    token: str
    capabilities: Mapping[str, Any]

    async def call_tool(self, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """tools/call; its result, which is a task or not."""
        result: dict[str, Any] = (
            await self.send_request("tools/call", tool, name=tool, arguments=arguments or {})
        )["result"]
        return result

    async def get_task(self, task: str) -> dict[str, Any]:
        """tasks/get."""
        result: dict[str, Any] = (await self.send_request("tasks/get", task, taskId=task))["result"]
        return result

    async def update_task(self, task: str, responses: Mapping[str, Any]) -> dict[str, Any]:
        """tasks/update; the whole answer."""
        return await self.send_request("tasks/update", task, taskId=task, inputResponses=responses)

    async def cancel_task(self, task: str) -> dict[str, Any]:
        """tasks/cancel; the whole answer."""
        return await self.send_request("tasks/cancel", task, taskId=task)

    async def send_request(self, method: str, about: str, **params: Any) -> dict[str, Any]:
        """The whole answer to a request."""
        response = await send_request(
            self.url, self.token, method, params, name=about, capabilities=self.capabilities
        )
        return read_answer(response)

    async def wait_for_status(self, task: str, status: str) -> dict[str, Any]:
        """The task, once it has this status and has said all about it."""
        task_document: dict[str, Any] = {}

        async def has_become() -> bool:
            task_document.update(await self.get_task(task))
            return bool(task_document["status"] == status)

        await wait_until(has_become)
        return await self.get_task(task)


@asynccontextmanager
async def open_task_client(
    platform: Platform, capabilities: Mapping[str, Any], *, port: int = 0
) -> AsyncIterator[tuple[TaskClient, Principal, ApiServer]]:
    """A client of Alice's, and the gateway that it speaks to."""
    async with serve_api(platform, mcp=True, port=port) as api_server:
        alice = await api_server.add_person("alice", "Alice")
        yield (
            TaskClient(f"{api_server.url}/mcp", await api_server.issue_token(alice, "/mcp"), capabilities),
            alice,
            api_server,
        )


def accept_with(**content: str) -> dict[str, Any]:
    return {"action": "accept", **({"content": content} if content else {})}


async def test_a_long_tool_is_a_task_at_once_and_ends_as_the_call_would_have(platform: Platform) -> None:
    async with open_task_client(platform, PLAIN) as (client, alice, api_server):
        await platform.give_grant("crm", alice)
        task = await client.call_tool("read_at_length", READING)
        finished_task = await client.wait_for_status(task["taskId"], "completed")
        plain = await TaskClient(client.url, client.token, {}).call_tool("read_at_length", READING)
        again = await client.get_task(task["taskId"])
        run = await api_server.services.run_records.find_run(task["taskId"])

    assert (task["resultType"], task["status"], task["ttlMs"]) == ("task", "working", None)
    assert task["pollIntervalMs"] > 0
    assert finished_task["createdAt"] == task["createdAt"] <= finished_task["lastUpdatedAt"]
    assert finished_task["result"]["structuredContent"]["name"]
    assert finished_task["result"]["content"] == plain["content"]
    assert finished_task == again
    assert run is not None
    assert run.tool_name == "read_at_length"


async def test_a_call_becomes_a_task_when_it_takes_longer_or_waits_for_what_its_client_cannot_ask(
    platform: Platform,
) -> None:
    async with open_task_client(platform, PLAIN) as (client, alice, _):
        parked_task = await client.call_tool("read_once", READING)
        waiting = await client.get_task(parked_task["taskId"])
        (request,) = await platform.wait_until_parked(parked_task["taskId"])
        slow = await client.call_tool("read_when_told", READING)
        working = await client.get_task(slow["taskId"])
        await platform.consent(request, alice)
        await platform.temporal.get_workflow_handle(slow["taskId"]).signal("word")
        ends = [
            await client.wait_for_status(long_task["taskId"], "completed")
            for long_task in (parked_task, slow)
        ]
        quick = await client.call_tool("read_once", {**READING, "label": "quick"})

    assert parked_task["resultType"] == slow["resultType"] == "task"
    assert waiting["status"] == "working"
    assert waiting["statusMessage"] == (
        "the run waits for the user to sign in.\n"
        "Show the user these links and ask them to open each one:\n"
        f"- Sign in to Acme CRM so that this can go on in your name. {client.url[:-4]}/connect/{request.id}\n"
        "The run goes on by itself as soon as they have signed in."
    )
    assert (working["status"], "statusMessage" in working) == ("working", False)
    assert len({long_task["result"]["structuredContent"]["name"] for long_task in ends}) == 1
    assert (quick["resultType"], "taskId" in quick) == ("complete", False)


async def test_what_a_run_asks_is_answered_through_its_task_in_parts_and_again_where_it_does_not_fit(
    platform: Platform,
) -> None:
    async with open_task_client(platform, FORMS) as (client, _, _rest):
        task = (await client.call_tool("ask_twice"))["taskId"]

        async def asks_both() -> bool:
            return len((await client.get_task(task)).get("inputRequests", {})) == 2

        await wait_until(asks_both)
        both = await client.get_task(task)
        keys = {
            input_request["params"]["message"]: key for key, input_request in both["inputRequests"].items()
        }
        morning, evening = keys["What in the morning?"], keys["What in the evening?"]
        misshapen = await client.update_task(task, {morning: {"action": "perhaps"}})
        part = await client.update_task(
            task, {morning: accept_with(flavour="sweet"), "unknown": accept_with()}
        )
        unfit = await client.update_task(task, {evening: accept_with(flavour="sour")})
        left = await client.get_task(task)
        await client.update_task(task, {evening: accept_with(flavour="salty")})
        late = await client.update_task(task, {evening: accept_with(flavour="sweet")})
        finished_task = await client.wait_for_status(task, "completed")

    assert both["status"] == left["status"] == "input_required"
    assert misshapen["error"]["code"] == INVALID_PARAMS
    assert part["result"] == unfit["result"] == late["result"]
    assert set(left["inputRequests"]) == {evening}
    assert left["inputRequests"][evening] == both["inputRequests"][evening]
    assert finished_task["result"]["structuredContent"] == {"morning": "sweet", "evening": "salty"}


@pytest.mark.parametrize("action", ["accept", "cancel"])
async def test_a_link_that_the_client_took_to_its_person_is_not_asked_again_but_said_in_words(
    platform: Platform, action: str
) -> None:
    async with open_task_client(platform, LINKS) as (client, alice, _):
        task = (await client.call_tool("read_at_length", READING))["taskId"]
        asking_task = await client.wait_for_status(task, "input_required")
        ((key, request),) = asking_task["inputRequests"].items()
        await client.update_task(task, {key: {"action": action}})
        task_after = await client.get_task(task)
        await platform.consent((await platform.wait_for_requests(task))[0], alice)
        finished_task = await client.wait_for_status(task, "completed")

    assert (request["method"], request["params"]["mode"]) == ("elicitation/create", "url")
    assert task_after["status"] == "working"
    assert request["params"]["url"] in task_after["statusMessage"]
    assert finished_task["result"]["structuredContent"]["name"]


async def test_a_task_ends_as_its_run_does(platform: Platform) -> None:
    async with open_task_client(platform, LINKS) as (client, _, _rest):
        task = (await client.call_tool("read_at_length", READING))["taskId"]
        asking_task = await client.wait_for_status(task, "input_required")
        await client.update_task(task, {key: {"action": "decline"} for key in asking_task["inputRequests"]})
        denied_task = await client.wait_for_status(task, "completed")
        broken_task_id = (await client.call_tool("break_the_seal"))["taskId"]
        failed_task = await client.wait_for_status(broken_task_id, "failed")
        stopped_task_id = (await client.call_tool("ask_twice"))["taskId"]
        ends = [await client.cancel_task(stopped_task_id)]
        cancelled_task = await client.wait_for_status(stopped_task_id, "cancelled")
        ends.append(await client.cancel_task(stopped_task_id))

    assert denied_task["result"]["isError"]
    assert denied_task["result"]["_meta"][OUTCOME_META]["error"] == "authorization_denied"
    assert failed_task["error"] == {"code": -32603, "message": "The seal does not fit."}
    assert (cancelled_task["statusMessage"], "result" in cancelled_task) == ("The run was cancelled.", False)
    assert [end["result"] for end in ends] == [ends[0]["result"]] * 2


async def test_nobody_learns_of_anothers_task_more_than_of_one_that_there_is_not(platform: Platform) -> None:
    async with open_task_client(platform, LINKS) as (client, _, api_server):
        bob = await api_server.add_person("bob", "Bob")
        stranger = TaskClient(client.url, await api_server.issue_token(bob, "/mcp"), LINKS)
        task = (await client.call_tool("read_at_length", READING))["taskId"]
        refusals = {
            method: [
                (await stranger.send_request(method, name, taskId=name, **more))["error"]
                for name in (task, "read_at_length-nowhere")
            ]
            for method, more in {
                "tasks/get": {},
                "tasks/update": {"inputResponses": {"any": {"action": "decline"}}},
                "tasks/cancel": {},
            }.items()
        }
        untouched_task = await client.wait_for_status(task, "input_required")

    assert untouched_task["status"] == "input_required"
    for theirs, nobodys in refusals.values():
        assert theirs["code"] == nobodys["code"] == INVALID_PARAMS
        assert theirs["message"].replace(task, "…") == nobodys["message"].replace(
            "read_at_length-nowhere", "…"
        )


async def test_a_task_outlives_the_gateway_that_gave_it(platform: Platform) -> None:
    async with open_task_client(platform, LINKS) as (client, alice, api_server):
        task = (await client.call_tool("read_at_length", READING))["taskId"]
        asking_task = await client.wait_for_status(task, "input_required")
        port = int(api_server.url.rpartition(":")[2])
    async with open_task_client(platform, LINKS, port=port) as (later, alice, _):
        still = await later.get_task(task)
        await platform.consent((await platform.wait_for_requests(task))[0], alice)
        finished_task = await later.wait_for_status(task, "completed")

    assert still == asking_task
    assert finished_task["result"]["structuredContent"]["name"]


async def test_clients_without_tasks_get_results_and_read_where_there_is_none(platform: Platform) -> None:
    async with open_task_client(platform, PLAIN) as (client, alice, _):
        await platform.give_grant("crm", alice)
        without = TaskClient(client.url, client.token, {})
        plain = await without.call_tool("read_at_length", READING)
        refusal = await without.send_request("tools/call", "be_a_task", name="be_a_task", arguments={})
        called_events = await platform.list_trail_events("tool.called")
        created_task = await client.call_tool("be_a_task")
        finished_task = await client.wait_for_status(created_task["taskId"], "completed")
        unknown = await without.send_request(
            "tasks/get", created_task["taskId"], taskId=created_task["taskId"]
        )
        crossed_response = await client.send_request(
            "tasks/get", "be_a_task-other", taskId=created_task["taskId"]
        )

    assert (plain["resultType"], bool(plain["structuredContent"]["name"])) == ("complete", True)
    assert [event["tool"] for event in called_events] == ["read_at_length"]
    for error in (refusal["error"], unknown["error"]):
        assert error["code"] == MISSING_REQUIRED_CLIENT_CAPABILITY == -32021
        assert error["data"]["requiredCapabilities"] == {"extensions": TASKS}
    assert (created_task["resultType"], finished_task["result"]["structuredContent"]) == ("task", {})
    assert crossed_response["error"]["code"] == HEADER_MISMATCH == -32020
