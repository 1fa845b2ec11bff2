"""Holds the doors to schedules, API and page alike, to the person who comes through them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from engine.identity.model import Principal
from engine.runs.outcome import Finished
from engine.schedules.schedules import Schedules
from examples.browser import Browser, Page
from gateway.protected_resource import API_PATH
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.support.api_server import ApiServer, serve_api
from tests.support.platform import CONTOSO, NORTHWIND, Platform, wait_until

SCHEDULE_DOCUMENT: Mapping[str, Any] = {
    "name": "Leap days",
    "tool": "read_once",
    "arguments": {"account_id": NORTHWIND},
    "timing": {"cron": ["0 0 29 2 *"], "time_zone": "Europe/Berlin"},
}
ALICE, BOB = DEMO_PEOPLE[:2]


@pytest.fixture
async def api_server(idle_platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(idle_platform) as gateway:
        yield gateway


@pytest.fixture
async def alice(api_server: ApiServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with api_server.open_client(await api_server.add_person("alice", "Alice Adams")) as client:
        yield client


@pytest.fixture
async def bob(api_server: ApiServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with api_server.open_client(await api_server.add_person("bob", "Bob Baker")) as client:
        yield client


async def create_schedule(client: httpx2.AsyncClient, **changes: Any) -> httpx2.Response:
    answer = await client.post("/schedules", json={**SCHEDULE_DOCUMENT, **changes})
    assert answer.status_code == 201, answer.text
    return answer


def read_problem(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


async def test_a_schedule_is_read_at_its_location_with_the_times_it_will_fire(
    alice: httpx2.AsyncClient,
) -> None:
    creation = await create_schedule(alice)

    read = await alice.get(creation.headers["location"].removeprefix("/api/v1"))

    document = read.json()
    assert document == creation.json()
    assert {name: document[name] for name in ("name", "tool", "arguments")} == {
        name: SCHEDULE_DOCUMENT[name] for name in ("name", "tool", "arguments")
    }
    assert document["timing"]["cron"] == ["0 0 29 2 *"]
    assert document["owner"]["name"] == "Alice Adams"
    assert document["next_firings"][0] == "2028-02-28T23:00:00Z"
    assert (document["paused"], document["recent_firings"]) == (False, [])


async def test_a_change_takes_the_etag_of_what_it_changes(alice: httpx2.AsyncClient) -> None:
    creation = await create_schedule(alice)
    path, tag = f"/schedules/{creation.json()['id']}", creation.headers["etag"]
    wanted_document = {**SCHEDULE_DOCUMENT, "name": "Renamed"}

    assert read_problem(await alice.put(path, json=wanted_document)) == (428, "precondition_required")
    change_response = await alice.put(path, json=wanted_document, headers={"If-Match": tag})
    assert (change_response.status_code, change_response.json()["name"]) == (200, "Renamed")
    assert read_problem(await alice.put(path, json=wanted_document, headers={"If-Match": tag})) == (
        412,
        "precondition_failed",
    )
    assert read_problem(await alice.delete(path, headers={"If-Match": tag})) == (412, "precondition_failed")
    deletion = await alice.delete(path, headers={"If-Match": change_response.headers["etag"]})
    assert deletion.status_code == 204
    assert read_problem(await alice.get(path)) == (404, "schedule_unknown")


async def test_a_list_goes_on_where_the_page_before_ended(
    alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await create_schedule(bob)
    names = [str(number) for number in range(5)]
    for name in names:
        await create_schedule(alice, name=name)

    schedule_names, cursor = [], None
    while True:
        query = {"limit": 2} if cursor is None else {"limit": 2, "after": cursor}
        listing = (await alice.get("/schedules", params=query)).json()
        schedule_names += [item["name"] for item in listing["items"]]
        cursor = listing["next_cursor"]
        if cursor is None:
            break

    assert schedule_names == names[::-1]


async def test_the_same_request_with_the_same_key_makes_one_schedule(alice: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": "leap"}
    first = await alice.post("/schedules", json=SCHEDULE_DOCUMENT, headers=key)
    again = await alice.post("/schedules", json=SCHEDULE_DOCUMENT, headers=key)
    other = await alice.post("/schedules", json={**SCHEDULE_DOCUMENT, "name": "Other"}, headers=key)

    assert first.json()["id"] == again.json()["id"]
    assert read_problem(other) == (422, "key_reused")


@pytest.mark.parametrize(
    ("changes", "expected_response"),
    [
        ({"tool": "no_such_tool"}, (404, "tool_unknown")),
        ({"arguments": {"account": 1}}, (422, "arguments_invalid")),
        ({"timing": {"cron": ["0 25 * * *"]}}, (422, "request_invalid")),
        ({"timing": {"cron": ["@daily"], "time_zone": "Mars/Olympus"}}, (422, "request_invalid")),
        ({"timing": {}}, (422, "request_invalid")),
        ({"name": "two\nlines"}, (422, "request_invalid")),
    ],
)
async def test_what_makes_no_schedule_is_refused_with_its_reason(
    alice: httpx2.AsyncClient, changes: Mapping[str, Any], expected_response: tuple[int, str]
) -> None:
    assert (
        read_problem(await alice.post("/schedules", json={**SCHEDULE_DOCUMENT, **changes}))
        == expected_response
    )
    assert (await alice.get("/schedules")).json()["items"] == []


async def test_a_schedule_is_paused_resumed_triggered_and_made_up_for_by_its_owner_alone(
    alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await create_schedule(alice)).json()['id']}"
    period = {"starts_at": "2024-02-28T00:00:00Z", "ends_at": "2024-03-01T00:00:00Z", "overlap": "allow_all"}

    for verb, body in (("pause", None), ("resume", None), ("trigger", None), ("backfill", period)):
        assert read_problem(await bob.post(f"{path}/{verb}", json=body)) == (404, "schedule_unknown")
    pause_response = await alice.post(f"{path}/pause", json={"reason": "Holidays"})
    assert pause_response.json()["paused_because"] == "Holidays"
    assert read_problem(await alice.post(f"{path}/trigger")) == (409, "schedule_paused")
    resume_response = await alice.post(f"{path}/resume")
    assert (resume_response.json()["paused"], resume_response.json()["paused_because"]) == (False, None)
    assert (await alice.post(f"{path}/trigger")).status_code == 202
    assert (await alice.post(f"{path}/backfill", json=period)).status_code == 202

    async def has_fired() -> bool:
        return len((await alice.get(path)).json()["recent_firings"]) == 2

    await wait_until(has_fired)


async def test_an_offer_is_accepted_as_it_was_read(
    idle_platform: Platform, alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await create_schedule(alice)).json()['id']}"
    assert read_problem(await alice.post(f"{path}/offer", json={"to": "Zoë"})) == (403, "not_allowed")
    offer_response = await alice.post(f"{path}/offer", json={"to": "Bob Baker"})
    assert offer_response.status_code == 403, "two people are called so here"
    me = next(
        one
        for one in await idle_platform.services.principals.find_by_name("bob")
        if one.issuer != "https://id.example"
    )

    await alice.post(f"{path}/offer", json={"to": me.id})
    read = await bob.get(path)
    assert read_problem(await bob.post(f"{path}/accept")) == (428, "precondition_required")
    changed_document = {**SCHEDULE_DOCUMENT, "arguments": {"account_id": "another"}}
    tag = {"If-Match": read.headers["etag"]}
    assert (await alice.put(path, json=changed_document, headers=tag)).status_code == 200
    assert read_problem(await bob.post(f"{path}/accept", headers=tag)) == (412, "precondition_failed")
    tag = {"If-Match": (await bob.get(path)).headers["etag"]}
    accept_response = await bob.post(f"{path}/accept", headers=tag)

    assert accept_response.json()["owner"] == {"id": me.id, "name": "Bob Baker"}
    assert read_problem(await alice.get(path)) == (404, "schedule_unknown")


async def test_an_offer_that_is_declined_stays_with_its_owner(
    idle_platform: Platform, alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await create_schedule(alice)).json()['id']}"
    me = next(
        one
        for one in await idle_platform.services.principals.find_by_name("bob")
        if one.issuer != "https://id.example"
    )
    await alice.post(f"{path}/offer", json={"to": me.id})

    assert (await bob.post(f"{path}/decline")).status_code == 204

    assert read_problem(await bob.get(path)) == (404, "schedule_unknown")
    assert (await alice.get(path)).json()["offered_to"] is None


@asynccontextmanager
async def open_token_client(
    api_server: ApiServer, owner: Principal, tool: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """A program with an API token of this person's, for one tool alone."""
    api_token = await api_server.services.api_tokens.create_token(owner, tool, tool_names={tool})
    headers = {"Authorization": f"Bearer {api_token.token_text}"}
    async with httpx2.AsyncClient(
        base_url=f"{api_server.url}{API_PATH}", headers=headers, timeout=60
    ) as client:
        yield client


async def test_an_api_token_makes_no_schedule_and_still_reads_and_pauses_those_of_its_tools(
    api_server: ApiServer, alice: httpx2.AsyncClient
) -> None:
    owner = await api_server.add_person("alice", "Alice Adams")
    path = f"/schedules/{(await create_schedule(alice)).json()['id']}"

    async with (
        open_token_client(api_server, owner, "read_once") as reaching,
        open_token_client(api_server, owner, "read_widely") as other,
    ):
        assert read_problem(await reaching.post("/schedules", json=SCHEDULE_DOCUMENT)) == (403, "not_allowed")
        assert (await reaching.get(path)).status_code == 200
        assert (await reaching.post(f"{path}/pause")).json()["paused_because"] == "Paused by Alice Adams."
        assert read_problem(await reaching.post(f"{path}/resume")) == (403, "not_allowed")
        assert read_problem(await other.get(path)) == (404, "schedule_unknown")
        assert (await other.get("/schedules")).json()["items"] == []


@pytest.fixture
async def people(idle_platform: Platform) -> None:
    await BuiltInPeople(idle_platform.services.database).add_demo_people()


async def sign_in(api_server: ApiServer, browser: Browser, person: Any) -> Page:
    page = await browser.open(f"{api_server.url}/schedules")
    page = await page.form(submit="Sign in", username=person.username, password=person.password)
    assert page.status == 200
    return page


async def find_principal(api_server: ApiServer, person: Any) -> Principal:
    (principal,) = [
        one
        for one in await api_server.services.principals.find_by_name(person.name)
        if one.issuer == api_server.url
    ]
    return principal


@pytest.mark.usefixtures("people")
async def test_a_schedule_is_made_fired_handed_over_and_deleted_in_a_browser(
    idle_platform: Platform, api_server: ApiServer
) -> None:
    schedules = Schedules(api_server.services, idle_platform.temporal)
    async with Browser() as hers, Browser() as his, idle_platform.run_worker():
        await sign_in(api_server, his, BOB)
        page = await sign_in(api_server, hers, ALICE)
        form_fields = {"name": "Nightly", "tool": "read_once", "arguments": f'{{"account_id": "{CONTOSO}"}}'}
        page = await page.form(submit="Make it", **form_fields, cron="0 61 * * *")
        assert "is no hour" in page.text
        page = await page.form(submit="Make it", **form_fields, cron="0 3 * * *", time_zone="Europe/Berlin")
        assert "Nightly" in page.text
        alice, bob = await find_principal(api_server, ALICE), await find_principal(api_server, BOB)
        (schedule,) = await schedules.schedule_records.list_schedules(alice.id, limit=10)
        assert (schedule.timing.cron, schedule.timing.time_zone) == (("0 3 * * *",), "Europe/Berlin")

        await idle_platform.give_grant("crm", replace(bob, subject="bob"))
        page = await page.form(submit="Offer", to=bob.id)
        assert f"offered to {BOB.name}" in page.text
        theirs = await his.open(f"{api_server.url}/schedules")
        theirs = await theirs.form(submit="Accept")
        theirs = await theirs.form(submit="Fire now")

        async def has_fired() -> bool:
            schedule_status = await schedules.read_status(schedule)
            return schedule_status is not None and len(schedule_status.recent_firings) == 1

        await wait_until(has_fired)
        status_after_firing = await schedules.read_status(schedule)
        assert status_after_firing is not None
        assert isinstance(
            await idle_platform.wait_for_outcome(status_after_firing.recent_firings[0].run_id), Finished
        )
        theirs = await theirs.form(submit="Pause")
        assert f"Paused by {BOB.name}" in theirs.text
        theirs = await theirs.form(submit="Resume")
        theirs = await theirs.form(submit="Delete")
        assert "You have no schedule" in theirs.text


@pytest.mark.usefixtures("people")
async def test_a_form_of_another_session_steers_nothing(api_server: ApiServer) -> None:
    async with (
        Browser() as browser,
        api_server.open_client(await api_server.add_person("carol", "Carol")) as carol,
    ):
        document = (await create_schedule(carol)).json()
        await sign_in(api_server, browser, ALICE)
        forged_response = await browser._client.post(
            f"{api_server.url}/schedules/{document['id']}",
            data={"decision": "pause", "csrf_token": "guessed"},
        )
        assert forged_response.status_code == 403
        assert not (await carol.get(f"/schedules/{document['id']}")).json()["paused"]
