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
from tests.platform import CONTOSO, NORTHWIND, Platform, until
from tests.rest import Rest, serving

WANTED: Mapping[str, Any] = {
    "name": "Leap days",
    "tool": "read_once",
    "arguments": {"account_id": NORTHWIND},
    "timing": {"cron": ["0 0 29 2 *"], "time_zone": "Europe/Berlin"},
}
ALICE, BOB = DEMO_PEOPLE[:2]


@pytest.fixture
async def rest(idle: Platform) -> AsyncIterator[Rest]:
    async with serving(idle) as gateway:
        yield gateway


@pytest.fixture
async def alice(rest: Rest) -> AsyncIterator[httpx2.AsyncClient]:
    async with rest.calling_as(await rest.person("alice", "Alice Adams")) as client:
        yield client


@pytest.fixture
async def bob(rest: Rest) -> AsyncIterator[httpx2.AsyncClient]:
    async with rest.calling_as(await rest.person("bob", "Bob Baker")) as client:
        yield client


async def created(client: httpx2.AsyncClient, **changes: Any) -> httpx2.Response:
    answer = await client.post("/schedules", json={**WANTED, **changes})
    assert answer.status_code == 201, answer.text
    return answer


def code(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


async def test_a_schedule_is_read_at_its_location_with_the_times_it_will_fire(
    alice: httpx2.AsyncClient,
) -> None:
    made = await created(alice)

    read = await alice.get(made.headers["location"].removeprefix("/api/v1"))

    shown = read.json()
    assert shown == made.json()
    assert {name: shown[name] for name in ("name", "tool", "arguments")} == {
        name: WANTED[name] for name in ("name", "tool", "arguments")
    }
    assert shown["timing"]["cron"] == ["0 0 29 2 *"]
    assert shown["owner"]["name"] == "Alice Adams"
    assert shown["next_firings"][0] == "2028-02-28T23:00:00Z"
    assert (shown["paused"], shown["recent_firings"]) == (False, [])


async def test_a_change_takes_the_etag_of_what_it_changes(alice: httpx2.AsyncClient) -> None:
    made = await created(alice)
    path, tag = f"/schedules/{made.json()['id']}", made.headers["etag"]
    wanted = {**WANTED, "name": "Renamed"}

    assert code(await alice.put(path, json=wanted)) == (428, "precondition_required")
    changed = await alice.put(path, json=wanted, headers={"If-Match": tag})
    assert (changed.status_code, changed.json()["name"]) == (200, "Renamed")
    assert code(await alice.put(path, json=wanted, headers={"If-Match": tag})) == (412, "precondition_failed")
    assert code(await alice.delete(path, headers={"If-Match": tag})) == (412, "precondition_failed")
    gone = await alice.delete(path, headers={"If-Match": changed.headers["etag"]})
    assert gone.status_code == 204
    assert code(await alice.get(path)) == (404, "schedule_unknown")


async def test_a_list_goes_on_where_the_page_before_ended(
    alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    await created(bob)
    names = [str(number) for number in range(5)]
    for name in names:
        await created(alice, name=name)

    found, cursor = [], None
    while True:
        asked = {"limit": 2} if cursor is None else {"limit": 2, "after": cursor}
        listed = (await alice.get("/schedules", params=asked)).json()
        found += [each["name"] for each in listed["items"]]
        cursor = listed["next_cursor"]
        if cursor is None:
            break

    assert found == names[::-1]


async def test_the_same_request_with_the_same_key_makes_one_schedule(alice: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": "leap"}
    first = await alice.post("/schedules", json=WANTED, headers=key)
    again = await alice.post("/schedules", json=WANTED, headers=key)
    other = await alice.post("/schedules", json={**WANTED, "name": "Other"}, headers=key)

    assert first.json()["id"] == again.json()["id"]
    assert code(other) == (422, "key_reused")


@pytest.mark.parametrize(
    ("changes", "answered"),
    [
        ({"tool": "no_such_tool"}, (404, "tool_unknown")),
        ({"arguments": {"account": 1}}, (422, "arguments_invalid")),
        ({"timing": {"cron": ["0 25 * * *"]}}, (422, "request_invalid")),
        ({"timing": {"cron": ["@daily"], "time_zone": "Mars/Olympus"}}, (422, "request_invalid")),
        ({"timing": {}}, (422, "request_invalid")),
        ({"name": "two\nlines"}, (422, "request_invalid")),
    ],
)
async def test_what_makes_no_schedule_is_told_with_its_reason(
    alice: httpx2.AsyncClient, changes: Mapping[str, Any], answered: tuple[int, str]
) -> None:
    assert code(await alice.post("/schedules", json={**WANTED, **changes})) == answered
    assert (await alice.get("/schedules")).json()["items"] == []


async def test_a_schedule_is_paused_resumed_triggered_and_made_up_for_by_its_owner_alone(
    alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await created(alice)).json()['id']}"
    period = {"starts_at": "2024-02-28T00:00:00Z", "ends_at": "2024-03-01T00:00:00Z", "overlap": "allow_all"}

    for verb, body in (("pause", None), ("resume", None), ("trigger", None), ("backfill", period)):
        assert code(await bob.post(f"{path}/{verb}", json=body)) == (404, "schedule_unknown")
    paused = await alice.post(f"{path}/pause", json={"reason": "Holidays"})
    assert paused.json()["paused_because"] == "Holidays"
    assert code(await alice.post(f"{path}/trigger")) == (409, "schedule_paused")
    resumed = await alice.post(f"{path}/resume")
    assert (resumed.json()["paused"], resumed.json()["paused_because"]) == (False, None)
    assert (await alice.post(f"{path}/trigger")).status_code == 202
    assert (await alice.post(f"{path}/backfill", json=period)).status_code == 202

    async def has_fired() -> bool:
        return len((await alice.get(path)).json()["recent_firings"]) == 2

    await until(has_fired)


async def test_an_offer_is_accepted_as_it_was_read(
    idle: Platform, alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await created(alice)).json()['id']}"
    assert code(await alice.post(f"{path}/offer", json={"to": "Zoë"})) == (403, "not_allowed")
    offered = await alice.post(f"{path}/offer", json={"to": "Bob Baker"})
    assert offered.status_code == 403, "two people are called so here"
    me = next(
        one
        for one in await idle.services.principals.find_by_name("bob")
        if one.issuer != "https://id.example"
    )

    await alice.post(f"{path}/offer", json={"to": me.id})
    read = await bob.get(path)
    assert code(await bob.post(f"{path}/accept")) == (428, "precondition_required")
    changed = {**WANTED, "arguments": {"account_id": "another"}}
    tag = {"If-Match": read.headers["etag"]}
    assert (await alice.put(path, json=changed, headers=tag)).status_code == 200
    assert code(await bob.post(f"{path}/accept", headers=tag)) == (412, "precondition_failed")
    tag = {"If-Match": (await bob.get(path)).headers["etag"]}
    accepted = await bob.post(f"{path}/accept", headers=tag)

    assert accepted.json()["owner"] == {"id": me.id, "name": "Bob Baker"}
    assert code(await alice.get(path)) == (404, "schedule_unknown")


async def test_an_offer_that_is_declined_stays_with_its_owner(
    idle: Platform, alice: httpx2.AsyncClient, bob: httpx2.AsyncClient
) -> None:
    path = f"/schedules/{(await created(alice)).json()['id']}"
    me = next(
        one
        for one in await idle.services.principals.find_by_name("bob")
        if one.issuer != "https://id.example"
    )
    await alice.post(f"{path}/offer", json={"to": me.id})

    assert (await bob.post(f"{path}/decline")).status_code == 204

    assert code(await bob.get(path)) == (404, "schedule_unknown")
    assert (await alice.get(path)).json()["offered_to"] is None


@asynccontextmanager
async def by_token(rest: Rest, owner: Principal, tool: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A program with an API token of this person's, for one tool alone."""
    made = await rest.services.api_tokens.create_token(owner, tool, tool_names={tool})
    headers = {"Authorization": f"Bearer {made.token_text}"}
    async with httpx2.AsyncClient(base_url=f"{rest.url}{API_PATH}", headers=headers, timeout=60) as client:
        yield client


async def test_an_api_token_makes_no_schedule_and_still_reads_and_pauses_those_of_its_tools(
    rest: Rest, alice: httpx2.AsyncClient
) -> None:
    owner = await rest.person("alice", "Alice Adams")
    path = f"/schedules/{(await created(alice)).json()['id']}"

    async with by_token(rest, owner, "read_once") as reaching, by_token(rest, owner, "read_widely") as other:
        assert code(await reaching.post("/schedules", json=WANTED)) == (403, "not_allowed")
        assert (await reaching.get(path)).status_code == 200
        assert (await reaching.post(f"{path}/pause")).json()["paused_because"] == "Paused by Alice Adams."
        assert code(await reaching.post(f"{path}/resume")) == (403, "not_allowed")
        assert code(await other.get(path)) == (404, "schedule_unknown")
        assert (await other.get("/schedules")).json()["items"] == []


@pytest.fixture
async def people(idle: Platform) -> None:
    await BuiltInPeople(idle.services.database).add_demo_people()


async def signed_in(rest: Rest, browser: Browser, person: Any) -> Page:
    page = await browser.open(f"{rest.url}/schedules")
    page = await page.form(submit="Sign in", username=person.username, password=person.password)
    assert page.status == 200
    return page


async def known(rest: Rest, person: Any) -> Principal:
    (found,) = [
        one for one in await rest.services.principals.find_by_name(person.name) if one.issuer == rest.url
    ]
    return found


@pytest.mark.usefixtures("people")
async def test_a_schedule_is_made_fired_handed_over_and_deleted_in_a_browser(
    idle: Platform, rest: Rest
) -> None:
    schedules = Schedules(rest.services, idle.temporal)
    async with Browser() as hers, Browser() as his, idle.working():
        await signed_in(rest, his, BOB)
        page = await signed_in(rest, hers, ALICE)
        filled = {"name": "Nightly", "tool": "read_once", "arguments": f'{{"account_id": "{CONTOSO}"}}'}
        page = await page.form(submit="Make it", **filled, cron="0 61 * * *")
        assert "is no hour" in page.text
        page = await page.form(submit="Make it", **filled, cron="0 3 * * *", time_zone="Europe/Berlin")
        assert "Nightly" in page.text
        alice, bob = await known(rest, ALICE), await known(rest, BOB)
        (made,) = await schedules.schedule_records.list_schedules(alice.id, limit=10)
        assert (made.timing.cron, made.timing.time_zone) == (("0 3 * * *",), "Europe/Berlin")

        await idle.grant("crm", replace(bob, subject="bob"))
        page = await page.form(submit="Offer", to=bob.id)
        assert f"offered to {BOB.name}" in page.text
        theirs = await his.open(f"{rest.url}/schedules")
        theirs = await theirs.form(submit="Accept")
        theirs = await theirs.form(submit="Fire now")

        async def has_fired() -> bool:
            found = await schedules.read_status(made)
            return found is not None and len(found.recent_firings) == 1

        await until(has_fired)
        fired = await schedules.read_status(made)
        assert fired is not None
        assert isinstance(await idle.outcome(fired.recent_firings[0].run_id), Finished)
        theirs = await theirs.form(submit="Pause")
        assert f"Paused by {BOB.name}" in theirs.text
        theirs = await theirs.form(submit="Resume")
        theirs = await theirs.form(submit="Delete")
        assert "You have no schedule" in theirs.text


@pytest.mark.usefixtures("people")
async def test_a_form_of_another_session_steers_nothing(rest: Rest) -> None:
    async with Browser() as browser, rest.calling_as(await rest.person("carol", "Carol")) as carol:
        made = (await created(carol)).json()
        await signed_in(rest, browser, ALICE)
        forged = await browser._client.post(
            f"{rest.url}/schedules/{made['id']}", data={"decision": "pause", "csrf_token": "guessed"}
        )
        assert forged.status_code == 403
        assert not (await carol.get(f"/schedules/{made['id']}")).json()["paused"]
