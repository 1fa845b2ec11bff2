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
from tests.support.administration import add_service, give_role, set_active, take_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.mcp_requests import ENVELOPE, VERSION, call_tool, read_answer
from tests.support.platform import NORTHWIND, Platform

READING = {"account_id": NORTHWIND}


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        yield api_server


@pytest.fixture
async def ann(api_server: ApiServer) -> Principal:
    """Somebody whom the built-in sign-in knows; at the CRM she is Alice."""
    return await api_server.add_person("alice", "Ann Adams")


@asynccontextmanager
async def open_bearer_client(api_server: ApiServer, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=f"{api_server.url}/api/v1", headers=headers, timeout=90) as client:
        yield client


async def create_token(api_server: ApiServer, owner: Principal, **wish: object) -> dict[str, Any]:
    async with api_server.open_client(owner) as client:
        token_response = await client.post("/tokens", json={"name": "reports", **wish})
    assert token_response.status_code == 201, token_response.text
    token: dict[str, Any] = token_response.json()
    return token


async def create_service(api_server: ApiServer, administrator: Principal) -> tuple[Principal, str]:
    """A service that an administrator made, and a token that acts as it."""
    await give_role(api_server.services, administrator.id, ADMINISTRATOR_ROLE)
    async with api_server.open_client(administrator) as client:
        service_response = await client.post("/services", json={"name": "nightly"})
        assert service_response.status_code == 201, service_response.text
        token = await client.post("/services/nightly/tokens", json={"name": "cron"})
        assert token.status_code == 201, token.text
    return await api_server.services.service_principals.get_service("nightly"), str(token.json()["token"])


async def start_reading(
    platform: Platform, api_server: ApiServer, token: str
) -> tuple[str, AuthorizationRequest]:
    """A run that a token began and that waits for the CRM."""
    async with open_bearer_client(api_server, token) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()
    (request,) = await platform.wait_for_requests(run["id"])
    return str(run["id"]), request


async def test_an_api_token_acts_as_its_owner_with_the_owners_own_grants(
    platform: Platform, api_server: ApiServer, ann: Principal
) -> None:
    await platform.give_grant("crm", ann)
    token = await create_token(api_server, ann)
    carols = await create_token(api_server, await api_server.add_person("carol", "Carol Clay"))

    async with open_bearer_client(api_server, token["token"]) as client:
        run = await client.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})
    async with open_bearer_client(api_server, carols["token"]) as client:
        other = await client.post("/tools/read_once/runs", json=READING, headers={"Prefer": "wait=60"})

    assert run.json()["status"] == "completed", run.text
    assert other.json()["status"] == "waiting", other.text
    lines = await platform.list_trail_events("action.ended", run.json()["id"])
    assert lines
    assert {line["principal"]["id"] for line in lines} == {ann.id}
    assert [line["actor"] for line in lines] == [{"kind": "api_token", "id": token["id"], "name": "reports"}]
    (created_event,) = [
        line for line in await platform.list_trail_events("token.created") if line["object_id"] == token["id"]
    ]
    assert created_event["actor"]["kind"] == "api_client"


async def test_a_token_for_one_tool_reaches_and_lists_no_other_at_any_door(platform: Platform) -> None:
    async with serve_api(platform, mcp=True) as api_server:
        ann = await api_server.add_person("alice", "Ann Adams")
        token = (await create_token(api_server, ann, tools=["read_once"]))["token"]
        async with open_bearer_client(api_server, token) as client:
            listing = (await client.get("/tools")).json()
            refusal = await client.post("/tools/read_at_every_level/runs", json=READING)
        call_result = read_answer(
            await call_tool(f"{api_server.url}/mcp", token, "read_at_every_level", READING)
        )
        other = (await create_token(api_server, ann, tools=["read_at_every_level"]))["token"]
        run = await platform.start_run("read_once", READING, ann)
        collected_result = read_answer(
            await call_tool(f"{api_server.url}/mcp", other, "byline_collect", {"run_id": run})
        )
        headers = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {token}",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/list",
        }
        list_request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}}
        async with httpx2.AsyncClient() as http:
            at_mcp = read_answer(await http.post(f"{api_server.url}/mcp", json=list_request, headers=headers))

    assert [tool["name"] for tool in listing["items"]] == ["read_once"]
    assert (refusal.status_code, refusal.json()["type"]) == (403, "urn:byline:error:not_allowed")
    assert call_result["result"]["_meta"][OUTCOME_META]["error"] == "not_allowed"
    assert collected_result["result"]["_meta"][OUTCOME_META]["error"] == "run_unknown"
    assert [tool["name"] for tool in at_mcp["result"]["tools"]] == [
        "read_once",
        "byline_check",
        "byline_collect",
    ]


async def test_with_an_api_token_nothing_is_made_that_outlives_or_outreaches_it(
    api_server: ApiServer, ann: Principal
) -> None:
    await give_role(api_server.services, ann.id, ADMINISTRATOR_ROLE)
    await add_service(api_server.services, "nightly")
    token, other = await create_token(api_server, ann), await create_token(api_server, ann, name="other")

    async with open_bearer_client(api_server, token["token"]) as client:
        answers = [
            await client.post("/tokens", json={"name": "more"}),
            await client.delete(f"/tokens/{other['id']}"),
            await client.get("/services"),
            await client.post("/services", json={"name": "more"}),
            await client.post("/services/nightly/tokens", json={"name": "more"}),
        ]
        itself = await client.delete(f"/tokens/{token['id']}")
        afterwards = await client.get("/tools")

    assert {(response.status_code, response.json()["type"]) for response in answers} == {
        (403, "urn:byline:error:not_allowed")
    }
    assert itself.status_code == 204
    assert afterwards.status_code == 401
    assert afterwards.headers["WWW-Authenticate"].endswith('error="invalid_token"')


async def test_a_token_whose_owner_was_stopped_opens_nothing(platform: Platform) -> None:
    async with serve_api(platform, mcp=True) as api_server:
        ann = await api_server.add_person("alice", "Ann Adams")
        token = (await create_token(api_server, ann))["token"]
        await set_active(api_server.services, ann.id, is_active=False)
        async with open_bearer_client(api_server, token) as client:
            over_rest = await client.get("/tools")
        at_mcp = await call_tool(f"{api_server.url}/mcp", token, "read_once", READING)

    assert (over_rest.status_code, at_mcp.status_code) == (401, 401)


async def test_tokens_are_made_listed_and_revoked_by_their_owner_alone(
    api_server: ApiServer, ann: Principal
) -> None:
    bea = await api_server.add_person("bob", "Bea Brown")
    names = ["first", "second", "third"]
    tokens = [await create_token(api_server, ann, name=name, expires_in_days=3) for name in names]

    async with api_server.open_client(ann) as client:
        page = (await client.get("/tokens", params={"limit": 2})).json()
        rest_of_it = (await client.get("/tokens", params={"after": page["next_cursor"]})).json()
        too_long = await client.post("/tokens", json={"name": "x", "expires_in_days": 3000})
        unknown_tool = await client.post("/tokens", json={"name": "x", "tools": ["no_such_tool"]})
    async with api_server.open_client(bea) as client:
        not_hers = [
            await client.get(f"/tokens/{tokens[0]['id']}"),
            await client.delete(f"/tokens/{tokens[0]['id']}"),
        ]

    assert [token["name"] for token in page["items"] + rest_of_it["items"]] == ["third", "second", "first"]
    assert rest_of_it["next_cursor"] is None
    assert not any("token" in token for token in page["items"])
    assert (too_long.status_code, unknown_tool.status_code) == (422, 422)
    assert [response.status_code for response in not_hers] == [404, 404]
    assert await api_server.services.api_tokens.verify_token(tokens[0]["token"]) is not None


async def test_a_person_makes_and_revokes_a_token_on_a_page_that_shows_it_once(api_server: ApiServer) -> None:
    await BuiltInPeople(api_server.services.database).add_person("ann", "Ann Adams", "a password")
    async with Browser() as browser:
        page = await browser.open(f"{api_server.url}/sign-in?next=/tokens")
        page = await page.form(submit="Sign in", username="ann", password="a password")
        empty_form_page = await page.form(submit="Make the token", name="laptop")
        page = await page.form(submit="Make the token", name="laptop", reach="all")
        secret = page.text.partition("<pre><code>")[2].partition("</code>")[0]
        verified_token = await api_server.services.api_tokens.verify_token(secret)
        again = await browser.open(f"{api_server.url}/tokens")
        page = await again.form(submit="Revoke laptop")

    assert empty_form_page.status == 422
    assert "for no tool" in empty_form_page.text
    assert verified_token is not None
    assert verified_token[1].name == "Ann Adams"
    assert secret not in again.text
    assert "revoked" in page.text
    assert await api_server.services.api_tokens.verify_token(secret) is None


async def test_a_form_of_another_site_makes_no_token(api_server: ApiServer) -> None:
    await BuiltInPeople(api_server.services.database).add_person("ann", "Ann Adams", "a password")
    async with Browser() as browser:
        page = await browser.open(f"{api_server.url}/sign-in?next=/tokens")
        page = await page.form(submit="Sign in", username="ann", password="a password")
        forged_page = await page.form(
            submit="Make the token", name="laptop", reach="all", csrf_token="invented"
        )
    (ann,) = await api_server.services.principals.find_by_name("Ann Adams")

    assert forged_page.status == 403
    assert await api_server.services.api_tokens.list_tokens(ann) == []


async def test_a_service_acts_in_its_own_name_with_a_grant_that_only_an_administrator_gave_it(
    platform: Platform, api_server: ApiServer, ann: Principal
) -> None:
    service, token = await create_service(api_server, ann)
    bea = await api_server.add_person("bob", "Bea Brown")
    run, request = await start_reading(platform, api_server, token)
    assert request.principal_id == service.id

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, bea)
    (refused_event,) = await platform.list_trail_events("authorization.refused")
    assert refused_event["principal"]["id"] == bea.id
    await platform.consent(request, ann)

    outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Finished)
    (granted_event,) = await platform.list_trail_events("authorization.granted")
    assert granted_event["principal"] == {
        "id": service.id,
        "iss": service.issuer,
        "sub": "service:nightly",
        "name": "nightly",
        "kind": "service",
    }
    assert granted_event["by"]["id"] == ann.id
    ended_events = await platform.list_trail_events("action.ended", run)
    assert {(line["principal"]["kind"], line["principal"]["name"]) for line in ended_events} == {
        ("service", "nightly")
    }
    assert not await api_server.services.grants.list_grants(ann.id)
    assert not await api_server.services.grants.list_grants(SHARED_HOLDER)


async def test_an_answer_for_a_service_comes_too_late_for_who_is_no_administrator_any_more(
    platform: Platform, api_server: ApiServer, ann: Principal
) -> None:
    _, token = await create_service(api_server, ann)
    _, request = await start_reading(platform, api_server, token)

    await take_role(api_server.services, ann.id, ADMINISTRATOR_ROLE)

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, ann)
    assert not await platform.list_trail_events("authorization.granted")


async def test_a_services_link_asks_an_administrator_and_turns_everybody_else_away(
    platform: Platform, api_server: ApiServer, ann: Principal
) -> None:
    service, token = await create_service(api_server, ann)
    run, request = await start_reading(platform, api_server, token)
    for username, name in (("root", "Root Rhodes"), ("cleo", "Cleo Clark")):
        await BuiltInPeople(api_server.services.database).add_person(username, name, "a password")
    link = f"{api_server.url}/connect/{request.id}"

    async with Browser() as browser:
        page = await browser.open(link)
        turned_away = await page.form(submit="Sign in", username="cleo", password="a password")
    async with Browser() as browser:
        page = await browser.open(f"{api_server.url}/sign-in")
        await page.form(submit="Sign in", username="root", password="a password")
        (root,) = await api_server.services.principals.find_by_name("Root Rhodes")
        before = await browser.open(link)
        await give_role(api_server.services, root.id, ADMINISTRATOR_ROLE)
        front = await browser.open(f"{api_server.url}/")
        question_page = await browser.open(link)
        await question_page.form(submit="Decline")

    assert (turned_away.status, before.status, question_page.status) == (403, 403, 200)
    assert f'<a href="/connect/{request.id}">' in front.text
    assert "The service <strong>nightly</strong>" in question_page.text
    outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "authorization_denied"
    (denied_event,) = await platform.list_trail_events("authorization.denied")
    assert (denied_event["principal"]["id"], denied_event["by"]["id"]) == (service.id, root.id)


async def test_an_administrator_answers_for_no_other_person(
    platform: Platform, api_server: ApiServer, ann: Principal
) -> None:
    await give_role(api_server.services, ann.id, ADMINISTRATOR_ROLE)
    bea = await api_server.add_person("bob", "Bea Brown")
    _, request = await start_reading(platform, api_server, (await create_token(api_server, bea))["token"])

    with pytest.raises(AuthorizationRefused):
        await platform.consent(request, ann)
    assert await api_server.services.delegation.find_asked_principal(bea.id, ann) is None
    service = await add_service(api_server.services, "other")
    assert await api_server.services.delegation.find_asked_principal(service.id, service) == service
    assert await api_server.services.delegation.find_asked_principal(ann.id, service) is None


async def test_only_an_administrator_comes_near_services(api_server: ApiServer, ann: Principal) -> None:
    await add_service(api_server.services, "nightly")
    async with api_server.open_client(ann) as client:
        answers = [
            await client.get("/services"),
            await client.post("/services", json={"name": "mine"}),
            await client.get("/services/nightly"),
            await client.get("/services/nightly/tokens"),
            await client.post("/services/nightly/tokens", json={"name": "mine"}),
            await client.delete(f"/services/nightly/tokens/{secrets.token_hex(8)}"),
        ]

    assert {response.status_code for response in answers} == {403}


async def test_nobody_signs_in_as_a_service_whatever_a_token_says(api_server: ApiServer) -> None:
    here = replace(
        api_server.services,
        service_principals=ServicePrincipals(api_server.services.principals, api_server.url),
    )
    async with api_server.open_client(await add_service(here, "nightly")) as client:
        refusal = await client.get("/tools")

    assert refusal.status_code == 401
