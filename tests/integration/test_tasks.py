"""Holds the tasks of MCP clients to being runs: what one says of them, asks through them, and who may."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from mcp_types import HEADER_MISMATCH, INVALID_PARAMS, MISSING_REQUIRED_CLIENT_CAPABILITY

from engine.identity.model import Principal
from engine.wire import OUTCOME_META
from tests.e2e.rounds import answer, send
from tests.platform import NORTHWIND, Platform, until
from tests.rest import Rest, serving

TASKS: dict[str, Any] = {"io.modelcontextprotocol/tasks": {}}
PLAIN = {"extensions": TASKS}
LINKS = {"extensions": TASKS, "elicitation": {"url": {}}}
FORMS = {"extensions": TASKS, "elicitation": {"form": {}}}
READING = {"account_id": NORTHWIND}


@dataclass(frozen=True)
class Requester:
    """A client of tasks that sends one request at a time."""

    url: str
    token: str
    capabilities: Mapping[str, Any]

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """tools/call; its result, which is a task or not."""
        result: dict[str, Any] = (
            await self.answered("tools/call", tool, name=tool, arguments=arguments or {})
        )["result"]
        return result

    async def get(self, task: str) -> dict[str, Any]:
        """tasks/get."""
        result: dict[str, Any] = (await self.answered("tasks/get", task, taskId=task))["result"]
        return result

    async def update(self, task: str, responses: Mapping[str, Any]) -> dict[str, Any]:
        """tasks/update; the whole answer."""
        return await self.answered("tasks/update", task, taskId=task, inputResponses=responses)

    async def cancel(self, task: str) -> dict[str, Any]:
        """tasks/cancel; the whole answer."""
        return await self.answered("tasks/cancel", task, taskId=task)

    async def answered(self, method: str, about: str, **params: Any) -> dict[str, Any]:
        """The whole answer to a request."""
        sent = await send(self.url, self.token, method, params, name=about, capabilities=self.capabilities)
        return answer(sent)

    async def becomes(self, task: str, status: str) -> dict[str, Any]:
        """The task, once it has this status and has said all about it."""
        seen: dict[str, Any] = {}

        async def has_become() -> bool:
            seen.update(await self.get(task))
            return bool(seen["status"] == status)

        await until(has_become)
        return await self.get(task)


@asynccontextmanager
async def requesting(
    platform: Platform, capabilities: Mapping[str, Any], *, port: int = 0
) -> AsyncIterator[tuple[Requester, Principal, Rest]]:
    """A client of Alice's, and the gateway that it speaks to."""
    async with serving(platform, mcp=True, port=port) as rest:
        alice = await rest.person("alice", "Alice")
        yield Requester(f"{rest.url}/mcp", await rest.token(alice, "/mcp"), capabilities), alice, rest


def accepted(**content: str) -> dict[str, Any]:
    return {"action": "accept", **({"content": content} if content else {})}


async def test_a_long_tool_is_a_task_at_once_and_ends_as_the_call_would_have(platform: Platform) -> None:
    async with requesting(platform, PLAIN) as (client, alice, rest):
        await platform.grant("crm", alice)
        task = await client.call("read_at_length", READING)
        done = await client.becomes(task["taskId"], "completed")
        plain = await Requester(client.url, client.token, {}).call("read_at_length", READING)
        again = await client.get(task["taskId"])
        run = await rest.services.run_records.find_run(task["taskId"])

    assert (task["resultType"], task["status"], task["ttlMs"]) == ("task", "working", None)
    assert task["pollIntervalMs"] > 0
    assert done["createdAt"] == task["createdAt"] <= done["lastUpdatedAt"]
    assert done["result"]["structuredContent"]["name"]
    assert done["result"]["content"] == plain["content"]
    assert done == again
    assert run is not None
    assert run.tool_name == "read_at_length"


async def test_a_call_becomes_a_task_when_it_takes_longer_or_waits_for_what_its_client_cannot_ask(
    platform: Platform,
) -> None:
    async with requesting(platform, PLAIN) as (client, alice, _):
        parked = await client.call("read_once", READING)
        waiting = await client.get(parked["taskId"])
        (request,) = await platform.parked(parked["taskId"])
        slow = await client.call("read_when_told", READING)
        working = await client.get(slow["taskId"])
        await platform.consent(request, alice)
        await platform.temporal.get_workflow_handle(slow["taskId"]).signal("word")
        ends = [await client.becomes(each["taskId"], "completed") for each in (parked, slow)]
        quick = await client.call("read_once", {**READING, "label": "quick"})

    assert parked["resultType"] == slow["resultType"] == "task"
    assert waiting["status"] == "working"
    assert waiting["statusMessage"] == (
        "the run waits for the user to sign in.\n"
        "Show the user these links and ask them to open each one:\n"
        f"- Sign in to Acme CRM so that this can go on in your name. {client.url[:-4]}/connect/{request.id}\n"
        "The run goes on by itself as soon as they have signed in."
    )
    assert (working["status"], "statusMessage" in working) == ("working", False)
    assert len({each["result"]["structuredContent"]["name"] for each in ends}) == 1
    assert (quick["resultType"], "taskId" in quick) == ("complete", False)


async def test_what_a_run_asks_is_answered_through_its_task_in_parts_and_again_where_it_does_not_fit(
    platform: Platform,
) -> None:
    async with requesting(platform, FORMS) as (client, _, _rest):
        task = (await client.call("ask_twice"))["taskId"]

        async def asks_both() -> bool:
            return len((await client.get(task)).get("inputRequests", {})) == 2

        await until(asks_both)
        both = await client.get(task)
        keys = {each["params"]["message"]: key for key, each in both["inputRequests"].items()}
        morning, evening = keys["What in the morning?"], keys["What in the evening?"]
        misshapen = await client.update(task, {morning: {"action": "perhaps"}})
        part = await client.update(task, {morning: accepted(flavour="sweet"), "unknown": accepted()})
        unfit = await client.update(task, {evening: accepted(flavour="sour")})
        left = await client.get(task)
        await client.update(task, {evening: accepted(flavour="salty")})
        late = await client.update(task, {evening: accepted(flavour="sweet")})
        done = await client.becomes(task, "completed")

    assert both["status"] == left["status"] == "input_required"
    assert misshapen["error"]["code"] == INVALID_PARAMS
    assert part["result"] == unfit["result"] == late["result"]
    assert set(left["inputRequests"]) == {evening}
    assert left["inputRequests"][evening] == both["inputRequests"][evening]
    assert done["result"]["structuredContent"] == {"morning": "sweet", "evening": "salty"}


@pytest.mark.parametrize("action", ["accept", "cancel"])
async def test_a_link_that_the_client_took_to_its_person_is_not_asked_again_but_said_in_words(
    platform: Platform, action: str
) -> None:
    async with requesting(platform, LINKS) as (client, alice, _):
        task = (await client.call("read_at_length", READING))["taskId"]
        asked = await client.becomes(task, "input_required")
        ((key, request),) = asked["inputRequests"].items()
        await client.update(task, {key: {"action": action}})
        taken = await client.get(task)
        await platform.consent((await platform.asked(task))[0], alice)
        done = await client.becomes(task, "completed")

    assert (request["method"], request["params"]["mode"]) == ("elicitation/create", "url")
    assert taken["status"] == "working"
    assert request["params"]["url"] in taken["statusMessage"]
    assert done["result"]["structuredContent"]["name"]


async def test_a_task_ends_as_its_run_does(platform: Platform) -> None:
    async with requesting(platform, LINKS) as (client, _, _rest):
        task = (await client.call("read_at_length", READING))["taskId"]
        asked = await client.becomes(task, "input_required")
        await client.update(task, {key: {"action": "decline"} for key in asked["inputRequests"]})
        denied = await client.becomes(task, "completed")
        broken = (await client.call("break_the_seal"))["taskId"]
        failed = await client.becomes(broken, "failed")
        stopped = (await client.call("ask_twice"))["taskId"]
        ends = [await client.cancel(stopped)]
        cancelled = await client.becomes(stopped, "cancelled")
        ends.append(await client.cancel(stopped))

    assert denied["result"]["isError"]
    assert denied["result"]["_meta"][OUTCOME_META]["error"] == "authorization_denied"
    assert failed["error"] == {"code": -32603, "message": "The seal does not fit."}
    assert (cancelled["statusMessage"], "result" in cancelled) == ("The run was cancelled.", False)
    assert [end["result"] for end in ends] == [ends[0]["result"]] * 2


async def test_nobody_learns_of_anothers_task_more_than_of_one_that_there_is_not(platform: Platform) -> None:
    async with requesting(platform, LINKS) as (client, _, rest):
        bob = await rest.person("bob", "Bob")
        stranger = Requester(client.url, await rest.token(bob, "/mcp"), LINKS)
        task = (await client.call("read_at_length", READING))["taskId"]
        refused = {
            method: [
                (await stranger.answered(method, name, taskId=name, **more))["error"]
                for name in (task, "read_at_length-nowhere")
            ]
            for method, more in {
                "tasks/get": {},
                "tasks/update": {"inputResponses": {"any": {"action": "decline"}}},
                "tasks/cancel": {},
            }.items()
        }
        untouched = await client.becomes(task, "input_required")

    assert untouched["status"] == "input_required"
    for theirs, nobodys in refused.values():
        assert theirs["code"] == nobodys["code"] == INVALID_PARAMS
        assert theirs["message"].replace(task, "…") == nobodys["message"].replace(
            "read_at_length-nowhere", "…"
        )


async def test_a_task_outlives_the_gateway_that_gave_it(platform: Platform) -> None:
    async with requesting(platform, LINKS) as (client, alice, rest):
        task = (await client.call("read_at_length", READING))["taskId"]
        asked = await client.becomes(task, "input_required")
        port = int(rest.url.rpartition(":")[2])
    async with requesting(platform, LINKS, port=port) as (later, alice, _):
        still = await later.get(task)
        await platform.consent((await platform.asked(task))[0], alice)
        done = await later.becomes(task, "completed")

    assert still == asked
    assert done["result"]["structuredContent"]["name"]


async def test_clients_without_tasks_get_results_and_are_told_where_there_is_none(platform: Platform) -> None:
    async with requesting(platform, PLAIN) as (client, alice, _):
        await platform.grant("crm", alice)
        without = Requester(client.url, client.token, {})
        plain = await without.call("read_at_length", READING)
        refused = await without.answered("tools/call", "be_a_task", name="be_a_task", arguments={})
        begun = await platform.trail("tool.called")
        required = await client.call("be_a_task")
        done = await client.becomes(required["taskId"], "completed")
        unknown = await without.answered("tasks/get", required["taskId"], taskId=required["taskId"])
        crossed = await client.answered("tasks/get", "be_a_task-other", taskId=required["taskId"])

    assert (plain["resultType"], bool(plain["structuredContent"]["name"])) == ("complete", True)
    assert [event["tool"] for event in begun] == ["read_at_length"]
    for error in (refused["error"], unknown["error"]):
        assert error["code"] == MISSING_REQUIRED_CLIENT_CAPABILITY == -32021
        assert error["data"]["requiredCapabilities"] == {"extensions": TASKS}
    assert (required["resultType"], done["result"]["structuredContent"]) == ("task", {})
    assert crossed["error"]["code"] == HEADER_MISMATCH == -32020
