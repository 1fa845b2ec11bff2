import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from engine.authorization.requests import AuthorizationRequest
from engine.callers.service_principals import ServicePrincipals
from engine.connections.connection import SHARED_HOLDER
from engine.errors import AuthorizationRefused
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.runs.outcome import Failed, Finished
from engine.wire import OUTCOME_META
from examples.browser import Browser
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.administration import add_service, give_role, set_active, take_role
from tests.e2e.rounds import ENVELOPE, VERSION, answer, call_tool
from tests.platform import NORTHWIND, Platform
from tests.rest import Rest, serving

READING = {"account_id": NORTHWIND}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        yield rest


@pytest.fixture
async def ann(rest: Rest) -> Principal:
    """Somebody whom the built-in sign-in knows; at the CRM she is Alice."""
    return await rest.person("alice", "Ann Adams")


@asynccontextmanager
async def bearing(rest: Rest, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=f"{rest.url}/api/v1", headers=headers, timeout=90) as client:
        yield client


async def made(rest: Rest, owner: Principal, **wish: object) -> dict[str, Any]:
    async with rest.calling_as(owner) as client:
        created = await client.post("/tokens", json={"name": "reports", **wish})
    assert created.status_code == 201, created.text
    token: dict[str, Any] = created.json()
    return token


async def service_of(rest: Rest, administrator: Principal) -> tuple[Principal, str]:
    """A service that an administrator made, and a token that acts as it."""
    await give_role(rest.services, administrator.id, ADMINISTRATOR_ROLE)
    async with rest.calling_as(administrator) as client:
        created = await client.post("/services", json={"name": "nightly"})
        assert created.status_code == 201, created.text
        token = await client.post("/services/nightly/tokens", json={"name": "cron"})
        assert token.status_code == 201, token.text
    return await rest.services.service_principals.get_service("nightly"), str(token.json()["token"])


async def reading(platform: Platform, rest: Rest, token: str) -> tuple[str, AuthorizationRequest]:
    """A run that a token began and that waits for the CRM."""
    async with bearing(rest, token) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()
    (request,) = await platform.asked(run["id"])
    return str(run["id"]), request


async def test_an_api_token_acts_as_its_owner_with_the_owners_own_grants(
    platform: Platform, rest: Rest, ann: Principal
) -> None:
    await platform.grant("crm", ann)
    token = await made(rest, ann)
    carols = await made(rest, await rest.person("carol", "Carol Clay"))

    async with bearing(rest, token["token"]) as client:
        run = await client.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})
    async with bearing(rest, carols["token"]) as client:
        other = await client.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})

    assert run.json()["status"] == "completed", run.text
    assert other.json()["status"] == "waiting", other.text
    lines = await platform.trail("action.ended", run.json()["id"])
    assert lines
    assert {line["principal"]["id"] for line in lines} == {ann.id}
    assert [line["actor"] for line in lines] == [{"kind": "api_token", "id": token["id"], "name": "reports"}]
    (created,) = [line for line in await platform.trail("token.created") if line["object_id"] == token["id"]]
    assert created["actor"]["kind"] == "api_client"


async def test_a_token_for_one_tool_reaches_and_lists_no_other_at_any_door(platform: Platform) -> None:
    async with serving(platform, mcp=True) as rest:
        ann = await rest.person("alice", "Ann Adams")
        token = (await made(rest, ann, tools=["read_once"]))["token"]
        async with bearing(rest, token) as client:
            listed = (await client.get("/tools")).json()
            refused = await client.post("/tools/read_at_every_level/runs", json=READING)
        called = answer(await call_tool(f"{rest.url}/mcp", token, "read_at_every_level", READING))
        other = (await made(rest, ann, tools=["read_at_every_level"]))["token"]
        run = await platform.start("read_once", READING, ann)
        collected = answer(await call_tool(f"{rest.url}/mcp", other, "byline_collect", {"run_id": run}))
        headers = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {token}",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/list",
        }
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
        async with httpx2.AsyncClient() as http:
            at_mcp = answer(await http.post(f"{rest.url}/mcp", json=asked, headers=headers))

    assert [tool["name"] for tool in listed["items"]] == ["read_once"]
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:byline:error:not_allowed")
    assert called["result"]["_meta"][OUTCOME_META]["error"] == "not_allowed"
    assert collected["result"]["_meta"][OUTCOME_META]["error"] == "run_unknown"
    assert [tool["name"] for tool in at_mcp["result"]["tools"]] == [
        "read_once",
        "byline_check",
        "byline_collect",
    ]


async def test_with_an_api_token_nothing_is_made_that_outlives_or_outreaches_it(
    rest: Rest, ann: Principal
) -> None:
    await give_role(rest.services, ann.id, ADMINISTRATOR_ROLE)
    await add_service(rest.services, "nightly")
    token, other = await made(rest, ann), await made(rest, ann, name="other")

    async with bearing(rest, token["token"]) as client:
        answers = [
            await client.post("/tokens", json={"name": "more"}),
            await client.delete(f"/tokens/{other['id']}"),
            await client.get("/services"),
            await client.post("/services", json={"name": "more"}),
            await client.post("/services/nightly/tokens", json={"name": "more"}),
        ]
        itself = await client.delete(f"/tokens/{token['id']}")
        afterwards = await client.get("/tools")

    assert {(each.status_code, each.json()["type"]) for each in answers} == {
        (403, "urn:byline:error:not_allowed")
    }
    assert itself.status_code == 204
    assert afterwards.status_code == 401
    assert afterwards.headers["WWW-Authenticate"].endswith('error="invalid_token"')


async def test_a_token_whose_owner_was_stopped_opens_nothing(platform: Platform) -> None:
    async with serving(platform, mcp=True) as rest:
        ann = await rest.person("alice", "Ann Adams")
        token = (await made(rest, ann))["token"]
        await set_active(rest.services, ann.id, is_active=False)
        async with bearing(rest, token) as client:
            over_rest = await client.get("/tools")
        at_mcp = await call_tool(f"{rest.url}/mcp", token, "read_once", READING)

    assert (over_rest.status_code, at_mcp.status_code) == (401, 401)


async def test_tokens_are_made_listed_and_revoked_by_their_owner_alone(rest: Rest, ann: Principal) -> None:
    bea = await rest.person("bob", "Bea Brown")
    names = ["first", "second", "third"]
    tokens = [await made(rest, ann, name=name, expires_in_days=3) for name in names]

    async with rest.calling_as(ann) as client:
        page = (await client.get("/tokens", params={"limit": 2})).json()
        rest_of_it = (await client.get("/tokens", params={"after": page["next_cursor"]})).json()
        too_long = await client.post("/tokens", json={"name": "x", "expires_in_days": 3000})
        unknown_tool = await client.post("/tokens", json={"name": "x", "tools": ["no_such_tool"]})
    async with rest.calling_as(bea) as client:
        not_hers = [
            await client.get(f"/tokens/{tokens[0]['id']}"),
            await client.delete(f"/tokens/{tokens[0]['id']}"),
        ]

    assert [token["name"] for token in page["items"] + rest_of_it["items"]] == ["third", "second", "first"]
    assert rest_of_it["next_cursor"] is None
    assert not any("token" in token for token in page["items"])
    assert (too_long.status_code, unknown_tool.status_code) == (422, 422)
    assert [each.status_code for each in not_hers] == [404, 404]
    assert await rest.services.api_tokens.verify_token(tokens[0]["token"]) is not None


async def test_a_person_makes_and_revokes_a_token_on_a_page_that_shows_it_once(rest: Rest) -> None:
    await BuiltInPeople(rest.services.database).add_person("ann", "Ann Adams", "a password")
    async with Browser() as browser:
        page = await browser.open(f"{rest.url}/sign-in?next=/tokens")
        page = await page.form(submit="Sign in", username="ann", password="a password")
        nothing_chosen = await page.form(submit="Make the token", name="laptop")
        page = await page.form(submit="Make the token", name="laptop", reach="all")
        secret = page.text.partition("<pre><code>")[2].partition("</code>")[0]
        verified = await rest.services.api_tokens.verify_token(secret)
        again = await browser.open(f"{rest.url}/tokens")
        page = await again.form(submit="Revoke laptop")

    assert nothing_chosen.status == 422
    assert "for no tool" in nothing_chosen.text
    assert verified is not None
    assert verified[1].name == "Ann Adams"
    assert secret not in again.text
    assert "revoked" in page.text
    assert await rest.services.api_tokens.verify_token(secret) is None


async def test_a_form_of_another_site_makes_no_token(rest: Rest) -> None:
    await BuiltInPeople(rest.services.database).add_person("ann", "Ann Adams", "a password")
    async with Browser() as browser:
        page = await browser.open(f"{rest.url}/sign-in?next=/tokens")
        page = await page.form(submit="Sign in", username="ann", password="a password")
        forged = await page.form(submit="Make the token", name="laptop", reach="all", csrf_token="invented")
    (ann,) = await rest.services.principals.find_by_name("Ann Adams")

    assert forged.status == 403
    assert await rest.services.api_tokens.list_tokens(ann) == []


async def test_a_service_acts_in_its_own_name_with_a_grant_that_only_an_administrator_gave_it(
    platform: Platform, rest: Rest, ann: Principal
) -> None:
    service, token = await service_of(rest, ann)
    bea = await rest.person("bob", "Bea Brown")
    run, request = await reading(platform, rest, token)
    assert request.principal_id == service.id

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, bea)
    (refused,) = await platform.trail("authorization.refused")
    assert refused["principal"]["id"] == bea.id
    await platform.consent(request, ann)

    outcome = await platform.outcome(run)
    assert isinstance(outcome, Finished)
    (granted,) = await platform.trail("authorization.granted")
    assert granted["principal"] == {
        "id": service.id,
        "iss": service.issuer,
        "sub": "service:nightly",
        "name": "nightly",
        "kind": "service",
    }
    assert granted["by"]["id"] == ann.id
    acted = await platform.trail("action.ended", run)
    assert {(line["principal"]["kind"], line["principal"]["name"]) for line in acted} == {
        ("service", "nightly")
    }
    assert not await rest.services.grants.list_grants(ann.id)
    assert not await rest.services.grants.list_grants(SHARED_HOLDER)


async def test_an_answer_for_a_service_comes_too_late_for_who_is_no_administrator_any_more(
    platform: Platform, rest: Rest, ann: Principal
) -> None:
    _, token = await service_of(rest, ann)
    _, request = await reading(platform, rest, token)

    await take_role(rest.services, ann.id, ADMINISTRATOR_ROLE)

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, ann)
    assert not await platform.trail("authorization.granted")


async def test_a_services_link_asks_an_administrator_and_turns_everybody_else_away(
    platform: Platform, rest: Rest, ann: Principal
) -> None:
    service, token = await service_of(rest, ann)
    run, request = await reading(platform, rest, token)
    for username, name in (("root", "Root Rhodes"), ("cleo", "Cleo Clark")):
        await BuiltInPeople(rest.services.database).add_person(username, name, "a password")
    link = f"{rest.url}/connect/{request.id}"

    async with Browser() as browser:
        page = await browser.open(link)
        turned_away = await page.form(submit="Sign in", username="cleo", password="a password")
    async with Browser() as browser:
        page = await browser.open(f"{rest.url}/sign-in")
        await page.form(submit="Sign in", username="root", password="a password")
        (root,) = await rest.services.principals.find_by_name("Root Rhodes")
        before = await browser.open(link)
        await give_role(rest.services, root.id, ADMINISTRATOR_ROLE)
        front = await browser.open(f"{rest.url}/")
        asked = await browser.open(link)
        await asked.form(submit="Decline")

    assert (turned_away.status, before.status, asked.status) == (403, 403, 200)
    assert f'<a href="/connect/{request.id}">' in front.text
    assert "The service <strong>nightly</strong>" in asked.text
    outcome = await platform.outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "authorization_denied"
    (denied,) = await platform.trail("authorization.denied")
    assert (denied["principal"]["id"], denied["by"]["id"]) == (service.id, root.id)


async def test_an_administrator_answers_for_no_other_person(
    platform: Platform, rest: Rest, ann: Principal
) -> None:
    await give_role(rest.services, ann.id, ADMINISTRATOR_ROLE)
    bea = await rest.person("bob", "Bea Brown")
    _, request = await reading(platform, rest, (await made(rest, bea))["token"])

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, ann)
    assert await rest.services.delegation.find_asked_principal(bea.id, ann) is None
    service = await add_service(rest.services, "other")
    assert await rest.services.delegation.find_asked_principal(service.id, service) == service
    assert await rest.services.delegation.find_asked_principal(ann.id, service) is None


async def test_only_an_administrator_comes_near_services(rest: Rest, ann: Principal) -> None:
    await add_service(rest.services, "nightly")
    async with rest.calling_as(ann) as client:
        answers = [
            await client.get("/services"),
            await client.post("/services", json={"name": "mine"}),
            await client.get("/services/nightly"),
            await client.get("/services/nightly/tokens"),
            await client.post("/services/nightly/tokens", json={"name": "mine"}),
            await client.delete(f"/services/nightly/tokens/{secrets.token_hex(8)}"),
        ]

    assert {each.status_code for each in answers} == {403}


async def test_nobody_signs_in_as_a_service_whatever_a_token_says(rest: Rest) -> None:
    here = replace(rest.services, service_principals=ServicePrincipals(rest.services.principals, rest.url))
    async with rest.calling_as(await add_service(here, "nightly")) as client:
        refused = await client.get("/tools")

    assert refused.status_code == 401
