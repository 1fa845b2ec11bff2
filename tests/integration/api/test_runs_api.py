import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE
from tests.support.administration import give_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.platform import CONTOSO, NORTHWIND, Platform, wait_until

READING = {"account_id": NORTHWIND}


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        yield api_server


@pytest.fixture
async def ann(api_server: ApiServer, platform: Platform) -> AsyncIterator[httpx2.AsyncClient]:
    """Somebody who may read accounts, and connected the CRM."""
    async with api_server.open_client(await add_connected_person(api_server, platform, "alice")) as client:
        yield client


@pytest.fixture
async def cleo(api_server: ApiServer) -> AsyncIterator[httpx2.AsyncClient]:
    """Somebody who connected nothing."""
    async with api_server.open_client(await api_server.add_person("carol", "Cleo")) as client:
        yield client


async def add_connected_person(api_server: ApiServer, platform: Platform, subject: str) -> Principal:
    principal = await api_server.add_person(subject, subject.title())
    await platform.give_grant("crm", principal)
    return principal


async def wait_until_ended(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    state: dict[str, Any] = {}

    async def is_over() -> bool:
        answer = await client.get(f"/runs/{run_id}")
        state.update(answer.json())
        return state["status"] not in {"running", "waiting"}

    await wait_until(is_over)
    return state


async def test_a_run_that_ends_in_time_is_answered_with_its_result(
    ann: httpx2.AsyncClient, platform: Platform
) -> None:
    answer = await ann.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})

    assert answer.status_code == 200, answer.text
    assert answer.headers["Preference-Applied"] == "wait=60"
    run = answer.json()
    assert answer.headers["Location"] == f"/api/v1/runs/{run['id']}"
    assert (run["status"], run["trigger"], run["actor"]) == ("completed", "rest", "reports")
    assert run["result"]["id"] == NORTHWIND
    (called_event,) = await platform.list_trail_events("tool.called", run["id"])
    assert called_event["actor"] == {"kind": "api_client", "id": "reports", "name": "Reports"}
    assert called_event["trigger"] == "rest"


async def test_a_tool_says_beforehand_what_it_may_ask_a_person_to_sign_in_to(ann: httpx2.AsyncClient) -> None:
    tool = (await ann.get("/tools/resolve_billing_dispute")).json()

    assert {use["name"] for use in tool["connections"]} == {"billing", "crm", "support"}


async def test_a_run_that_waits_is_answered_at_once_with_where_to_follow_it_and_what_it_waits_for(
    cleo: httpx2.AsyncClient, api_server: ApiServer, platform: Platform
) -> None:
    answer = await cleo.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})

    run = answer.json()
    assert answer.status_code == 202
    assert run["status"] == "waiting"
    (step,) = run["steps"]
    (wait,) = step["waiting_for"]
    (request,) = await platform.services.authorization_requests.list_awaited_requests(run["id"])
    assert (wait["kind"], wait["url"]) == ("connection", f"{api_server.url}/connect/{request.id}")
    assert step["status"] == "waiting"


async def test_without_a_preference_to_wait_the_answer_is_where_the_run_is_found(
    ann: httpx2.AsyncClient,
) -> None:
    answer = await ann.post("/tools/read_at_every_level/runs", json={**READING, "levels": 1})

    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers
    run = await wait_until_ended(ann, answer.headers["Location"].rpartition("/")[2])
    assert run["status"] == "completed"
    assert run["result"] == {"names": [run["result"]["names"][0]] * 2}


async def test_the_same_key_makes_a_call_once_even_when_it_comes_twice_at_once(
    ann: httpx2.AsyncClient, platform: Platform
) -> None:
    async def start(key: str) -> httpx2.Response:
        return await ann.post("/tools/read_once/runs", json=READING, headers={"Idempotency-Key": key})

    first, second = await asyncio.gather(start("one"), start('"one"'))
    third, other = await start("one"), await start("another")

    ids = {answer.json()["id"] for answer in (first, second, third)}
    assert len(ids) == 1
    assert other.json()["id"] not in ids
    assert len(await platform.list_trail_events("tool.called")) == 2


async def test_a_key_is_refused_for_another_call(ann: httpx2.AsyncClient, platform: Platform) -> None:
    key = {"Idempotency-Key": "one"}
    await ann.post("/tools/read_once/runs", json=READING, headers=key)

    refusal = await ann.post("/tools/read_once/runs", json={"account_id": CONTOSO}, headers=key)

    assert refusal.status_code == 422
    assert refusal.headers["Content-Type"] == "application/problem+json"
    assert refusal.json()["type"] == "urn:byline:error:key_reused"
    assert len(await platform.list_trail_events("tool.called")) == 1


async def test_pages_of_runs_neither_repeat_nor_miss_one_while_new_ones_begin(
    ann: httpx2.AsyncClient,
) -> None:
    async def start() -> str:
        answer = await ann.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})
        return str(answer.json()["id"])

    began = [await start() for _ in range(5)]
    seen_run_ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = (await ann.get("/runs", params={"limit": "2", **after})).json()
        seen_run_ids += [run["id"] for run in page["items"]]
        if page["next_cursor"] is None:
            break
        after = {"after": page["next_cursor"]}
        await start()

    assert seen_run_ids == began[::-1]


async def test_runs_are_found_by_tool_trigger_status_and_start(
    ann: httpx2.AsyncClient, platform: Platform
) -> None:
    finished_run = (
        await ann.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})
    ).json()
    failing = {"ticket_id": 35436, **READING}
    waits = await ann.post(
        "/tools/read_account_then_ticket/runs", json=failing, headers={"Prefer": "wait=60"}
    )
    assert waits.status_code == 202, waits.text

    async def find_runs(**conditions: str) -> list[str]:
        answer = await ann.get("/runs", params=conditions)
        assert answer.status_code == 200, answer.text
        return [run["id"] for run in answer.json()["items"]]

    assert await find_runs(tool="read_once") == [finished_run["id"]]
    assert await find_runs(status="completed") == [finished_run["id"]]
    assert await find_runs(status="waiting") == [waits.json()["id"]]
    assert await find_runs(status="failed") == []
    assert await find_runs(trigger="mcp") == []
    assert await find_runs(trigger="rest") == [waits.json()["id"], finished_run["id"]]
    assert await find_runs(since=waits.json()["started_at"]) == [waits.json()["id"]]
    assert await find_runs(until=waits.json()["started_at"]) == [finished_run["id"]]
    assert platform.alice.name not in json.dumps(finished_run)


async def test_nobody_sees_or_steers_the_run_of_another(
    ann: httpx2.AsyncClient, cleo: httpx2.AsyncClient
) -> None:
    run = (await cleo.post("/tools/read_once/runs", json=READING)).json()["id"]

    answers = [
        await ann.get(f"/runs/{run}"),
        await ann.get(f"/runs/{run}/events"),
        await ann.post(f"/runs/{run}/cancel"),
        await ann.post(f"/runs/{run}/retry"),
    ]

    assert [answer.status_code for answer in answers] == [404] * 4
    assert {answer.json()["type"] for answer in answers} == {"urn:byline:error:run_unknown"}
    assert (await ann.get("/runs")).json()["items"] == []


async def test_the_state_of_a_run_shows_which_of_its_children_waits(
    cleo: httpx2.AsyncClient, platform: Platform
) -> None:
    spread = {**READING, "width": 2}
    run = (await cleo.post("/tools/read_widely/runs", json=spread)).json()["id"]

    async def both_wait() -> bool:
        return len(await platform.services.waiters.list_waiters(run)) == 2

    await wait_until(both_wait)
    state = (await cleo.get(f"/runs/{run}")).json()

    (root,) = state["steps"]
    assert (state["status"], root["status"], root["waiting_for"]) == ("waiting", "running", [])
    assert [child["type"] for child in root["children"]] == ["read_once"] * 2
    assert {child["status"] for child in root["children"]} == {"waiting"}
    links = {wait["url"] for child in root["children"] for wait in child["waiting_for"]}
    assert len(links) == 1


async def test_a_run_that_waits_is_cancelled_with_its_waits(
    cleo: httpx2.AsyncClient, platform: Platform
) -> None:
    run = (await cleo.post("/tools/read_once/runs", json=READING)).json()["id"]
    await platform.wait_until_parked(run)

    cancellation = await cleo.post(f"/runs/{run}/cancel", json={"reason": "a slip"})

    assert cancellation.status_code == 202
    assert (await wait_until_ended(cleo, run))["status"] == "cancelled"
    assert [waiter.outcome for waiter in await platform.list_waiters(run)] == ["cancelled"]
    (line,) = await platform.list_trail_events("run.cancelled", run)
    assert (line["principal"]["name"], line["actor"]["id"], line["message"]) == ("Cleo", "reports", "a slip")
    again = await cleo.post(f"/runs/{run}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "urn:byline:error:run_ended")


async def test_a_run_is_terminated_by_administrators_alone(
    ann: httpx2.AsyncClient, cleo: httpx2.AsyncClient, api_server: ApiServer, platform: Platform
) -> None:
    run = (await cleo.post("/tools/read_once/runs", json=READING)).json()["id"]
    await platform.wait_until_parked(run)
    why = {"reason": "it holds up the month's end"}

    refusal = await ann.post(f"/runs/{run}/terminate", json=why)
    administrator = await api_server.add_person("alice", "Alice")
    await give_role(platform.services, administrator.id, ADMINISTRATOR_ROLE)
    termination = await ann.post(f"/runs/{run}/terminate", json=why)

    assert refusal.status_code == 403
    assert termination.status_code == 200, termination.text
    assert "/connect/" not in termination.text
    state = (await cleo.get(f"/runs/{run}")).json()
    assert (state["status"], state["error"]["code"]) == ("terminated", "run_terminated")
    assert [waiter.outcome for waiter in await platform.list_waiters(run)] == ["cancelled"]
    (line,) = await platform.list_trail_events("run.terminated", run)
    assert (line["principal"]["id"], line["message"]) == (administrator.id, why["reason"])


async def test_a_run_that_ended_is_tried_again_as_a_new_one_with_its_arguments(
    ann: httpx2.AsyncClient, platform: Platform
) -> None:
    journey = {**READING, "continued": 1, "levels": 1}
    call = await ann.post("/tools/read_at_every_level/runs", json=journey, headers={"Prefer": "wait=60"})
    first = call.json()
    once = {"Prefer": "wait=60", "Idempotency-Key": "again"}

    again = await ann.post(f"/runs/{first['id']}/retry", headers=once)
    same = await ann.post(f"/runs/{first['id']}/retry", headers=once)

    run = again.json()
    assert (again.status_code, run["status"], run["retry_of"]) == (200, "completed", first["id"])
    assert run["id"] != first["id"]
    assert run["result"] == first["result"]
    assert same.json()["id"] == run["id"]
    started_ids = [
        (await platform.fetch_history(run_id))[0].workflow_execution_started_event_attributes.input
        for run_id in (first["id"], run["id"])
    ]
    assert started_ids[0] == started_ids[1]


async def test_a_run_that_goes_on_is_not_tried_again(cleo: httpx2.AsyncClient, platform: Platform) -> None:
    run = (await cleo.post("/tools/read_once/runs", json=READING)).json()["id"]
    await platform.wait_until_parked(run)

    refusal = await cleo.post(f"/runs/{run}/retry")

    assert (refusal.status_code, refusal.json()["type"]) == (409, "urn:byline:error:run_unfinished")


async def test_a_run_that_temporal_forgot_says_so(
    ann: httpx2.AsyncClient, api_server: ApiServer, platform: Platform
) -> None:
    principal = await api_server.add_person("alice", "Alice")
    await platform.register(platform.build_identity(principal, "read_once-of-long-ago", "read_once", "rest"))

    state = await ann.get("/runs/read_once-of-long-ago")
    retry_response = await ann.post("/runs/read_once-of-long-ago/retry")
    listing = (await ann.get("/runs", params={"status": "unknown"})).json()["items"]

    assert state.status_code == 200
    assert (state.json()["status"], state.json()["error"]["code"]) == ("unknown", "run_forgotten")
    assert (retry_response.status_code, retry_response.json()["type"]) == (
        410,
        "urn:byline:error:run_forgotten",
    )
    assert [run["id"] for run in listing] == ["read_once-of-long-ago"]


async def follow_run(
    client: httpx2.AsyncClient, run: str, after: str | None = None, into: list[dict[str, str]] | None = None
) -> list[dict[str, str]]:
    """Every event of a run until the stream ends, also put `into` a list as they come."""
    events = [] if into is None else into
    headers = {} if after is None else {"Last-Event-ID": after}
    async with client.stream("GET", f"/runs/{run}/events", headers=headers) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        event: dict[str, str] = {}
        async for line in stream.aiter_lines():
            if line:
                field, _, value = line.partition(": ")
                event[field] = value
            elif event:
                events.append(event)
                event = {}
    return events


async def test_a_run_is_followed_to_its_end_and_the_stream_taken_up_where_it_was_left(
    api_server: ApiServer, platform: Platform
) -> None:
    cleo = await api_server.add_person("carol", "Cleo")
    async with api_server.open_client(cleo) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
        following = asyncio.create_task(follow_run(client, run))
        (request,) = await platform.wait_until_parked(run)
        await platform.services.authorization_requests.deny_request(request.id, cleo)

        events = await following
        later = await follow_run(client, run, after=events[1]["id"])

    *lines, end = events
    trail_lines = await platform.services.trail.find_lines(run_id=run)
    assert [(event["id"], event["event"]) for event in lines] == [
        (str(line.seq), line.kind) for line in trail_lines
    ]
    assert json.loads(lines[0]["data"])["event"]["tool"] == "read_once"
    assert end["event"] == "ended"
    assert "id" not in end
    assert json.loads(end["data"])["error"]["code"] == "authorization_denied"
    assert later == events[2:]


async def test_progress_is_among_the_events_of_a_run(api_server: ApiServer, platform: Platform) -> None:
    cleo = await api_server.add_person("carol", "Cleo")
    async with api_server.open_client(cleo) as client:
        start_response = await client.post("/tools/choose_in_a_child/runs", json={"name": "North"})
        run = start_response.json()["id"]
        seen_events: list[dict[str, str]] = []
        following = asyncio.create_task(follow_run(client, run, into=seen_events))

        async def has_progressed_and_asks() -> bool:
            questions = await platform.services.questions.list_awaited_questions(run)
            return bool(questions) and any(event["event"] == "progress" for event in seen_events)

        await wait_until(has_progressed_and_asks)
        (question,) = await platform.services.questions.list_awaited_questions(run)
        await platform.services.questions.answer_question(question.id, cleo, {"account": "Contoso"})
        events = await following

    progress_messages = [
        json.loads(event["data"])["message"] for event in events if event["event"] == "progress"
    ]
    assert progress_messages == ["Asking", "Asked"]
    assert events[-1]["event"] == "ended"
    assert json.loads(events[-1]["data"])["result"]["account"] == "Contoso"


async def test_whoever_stops_following_leaves_nothing_behind(
    api_server: ApiServer, platform: Platform
) -> None:
    cleo = await api_server.add_person("carol", "Cleo")
    async with api_server.open_client(cleo) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
        await platform.wait_until_parked(run)
        before = len(asyncio.all_tasks())
        async with client.stream("GET", f"/runs/{run}/events") as stream:
            async for line in stream.aiter_lines():
                if line.startswith("event"):
                    break

    async def is_as_before() -> bool:
        return len(asyncio.all_tasks()) <= before

    await wait_until(is_as_before)


async def test_tools_are_listed_with_their_schemas(ann: httpx2.AsyncClient, platform: Platform) -> None:
    listing = (await ann.get("/tools")).json()["items"]
    one = await ann.get("/tools/read_once")
    unknown = await ann.get("/tools/nothing")

    assert [tool["name"] for tool in listing] == sorted(platform.registry.tools)
    assert one.json() in listing
    assert one.json()["input_schema"] == platform.registry.find_tool("read_once").input_schema
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:byline:error:tool_unknown")


async def test_a_token_for_the_chat_endpoint_is_not_good_at_the_api(api_server: ApiServer) -> None:
    principal = await api_server.add_person("alice", "Alice")
    token = await api_server.issue_token(principal, path="/mcp")

    async with httpx2.AsyncClient(base_url=api_server.url) as client:
        refusal = await client.get("/api/v1/tools", headers={"Authorization": f"Bearer {token}"})
        nobody = await client.get("/api/v1/tools")
        metadata = (await client.get("/.well-known/oauth-protected-resource/api/v1")).json()

    challenge = f'Bearer resource_metadata="{api_server.url}/.well-known/oauth-protected-resource/api/v1"'
    assert (nobody.status_code, nobody.headers["WWW-Authenticate"]) == (401, challenge)
    assert refusal.status_code == 401
    assert refusal.headers["WWW-Authenticate"] == f'{challenge}, error="invalid_token"'
    assert metadata["resource"] == f"{api_server.url}/api/v1"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/nothing", None, 404, "not_found"),
        ("GET", "/api/v0/tools", None, 404, "not_found"),
        ("GET", "/api/v1/runs/a%0Ab", None, 404, "not_found"),
        ("DELETE", "/api/v1/tools", None, 405, "method_not_allowed"),
        ("POST", "/api/v1/tools/read_once/runs", b"{", 400, "request_unreadable"),
        ("POST", "/api/v1/tools/read_once/runs", b"[]", 422, "arguments_invalid"),
        ("POST", "/api/v1/tools/read_once/runs", b'{"account_id": 1}', 422, "arguments_invalid"),
        ("POST", "/api/v1/tools/nothing/runs", b"{}", 404, "tool_unknown"),
        ("POST", "/api/v1/tools/read_once/runs", b" " * 3_000_000, 413, "body_too_large"),
        ("GET", "/api/v1/runs?limit=0", None, 422, "request_invalid"),
        ("GET", "/api/v1/runs?after=nothing", None, 400, "cursor_invalid"),
    ],
)
async def test_every_error_is_reported_as_a_problem(
    api_server: ApiServer, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    token = await api_server.issue_token(await api_server.add_person("alice", "Alice"))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    async with httpx2.AsyncClient(base_url=api_server.url) as client:
        answer = await client.request(method, path, content=body, headers=headers)

    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert (problem["type"], problem["status"]) == (f"urn:byline:error:{code}", status)
    assert problem["detail"]


async def test_a_body_that_is_no_json_is_not_read(ann: httpx2.AsyncClient) -> None:
    refusal = await ann.post(
        "/tools/read_once/runs", content=b"account_id=1", headers={"Content-Type": "text/plain"}
    )

    assert (refusal.status_code, refusal.json()["type"]) == (415, "urn:byline:error:media_type_unsupported")
