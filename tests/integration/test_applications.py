from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from sqlalchemy import update
from sqlmodel import col

from engine.db.database import utc_now
from engine.db.tables import ClientConsentRow
from examples.browser import Browser, Page
from tests.integration.test_authorization_server import Application, answer, register
from tests.pages import Byline, serving

WEB = "https://chat.example/callback"
SCHEME = "cursor://anysphere.cursor-mcp/oauth/callback"

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def byline(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Byline]:
    policy = "tools: {refund: {scope: billing}}"
    async with serving(tmp_path_factory.mktemp("applications"), policy=policy) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(byline: Byline) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        yield client


async def application(http: httpx2.AsyncClient, byline: Byline, **stated: Any) -> Application:
    stated = {"redirect_uris": [WEB, SCHEME], **stated}
    return Application(byline, http, (await register(http, **stated)).raise_for_status().json())


async def tokens(client: Application, code: str, **form: str) -> dict[str, Any]:
    issued: dict[str, Any] = (await client.redeem(code, **form)).raise_for_status().json()
    return issued


def is_asked(page: Page) -> bool:
    return "act for you?" in page.text


async def trail(byline: Byline, kind: str, client: Application) -> list[dict[str, Any]]:
    lines = await byline.services.trail.find_lines(limit=None)
    return [each.event for each in lines if each.kind == kind and each.event["actor"]["id"] == client.id]


async def test_what_a_person_allowed_is_asked_again_only_for_something_new(
    byline: Byline, http: httpx2.AsyncClient
) -> None:
    other_place = "https://other.example/callback"
    client = await application(http, byline, redirect_uris=[WEB, other_place, SCHEME])
    async with Browser(stop_at="https://") as browser:
        await byline.signed_in(browser, "alice")
        first = await browser.open(client.question(redirect_uri=WEB))
        allowed = await first.form(submit="Allow")
        again = await browser.open(client.question(redirect_uri=WEB, state="st-2"))
        new = {
            "scope": await browser.open(client.question(redirect_uri=WEB, scope="mcp billing")),
            "resource": await browser.open(
                client.question(redirect_uri=WEB, resource=f"{byline.url}/api/v1")
            ),
            "destination": await browser.open(client.question(redirect_uri=other_place)),
        }
        more = await new["scope"].form(submit="Allow")
        less = await browser.open(client.question(redirect_uri=WEB))
    async with Browser(stop_at="https://") as browser:
        await byline.signed_in(browser, "bob")
        of_another_person = await browser.open(client.question(redirect_uri=WEB))

    assert is_asked(first)
    assert "code" in answer(allowed)
    assert not is_asked(again)
    assert (answer(again)["state"], answer(again)["iss"]) == ("st-2", byline.url)
    assert {name: is_asked(page) for name, page in new.items()} == dict.fromkeys(new, True)
    assert "<code>billing</code>: <code>refund</code>" in new["scope"].text
    assert "code" in answer(more)
    assert "code" in answer(less)
    assert is_asked(of_another_person)
    issued = await tokens(client, answer(less)["code"], redirect_uri=WEB)
    assert issued["scope"] == "mcp"
    assert [line["scopes"] for line in await trail(byline, "client.allowed", client)] == [
        ["mcp"],
        ["mcp", "billing"],
    ]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:45678/callback", SCHEME])
async def test_a_client_that_any_program_could_play_is_asked_about_every_time(
    byline: Byline, http: httpx2.AsyncClient, uri: str
) -> None:
    public = await application(http, byline, redirect_uris=[uri])
    with_secret = await application(
        http, byline, redirect_uris=[uri], token_endpoint_auth_method="client_secret_post"
    )
    seen = {}
    async with Browser(stop_at=uri) as browser:
        await byline.signed_in(browser, "alice")
        for client in (public, with_secret):
            question = await browser.open(client.question(redirect_uri=uri))
            await question.form(submit="Allow")
            again = await browser.open(client.question(redirect_uri=uri))
            seen[client.id] = ("Any program on your computer" in question.text, is_asked(again))

    assert seen == {public.id: (True, True), with_secret.id: (False, False)}


async def test_a_person_withdraws_an_application_and_none_of_its_tokens_works_any_more(
    byline: Byline, http: httpx2.AsyncClient
) -> None:
    client = await application(http, byline, client_name="<b>Chat</b>")
    theirs = await tokens(client, await client.code("bob", redirect_uri=WEB), redirect_uri=WEB)
    async with Browser(stop_at="https://") as browser:
        await byline.signed_in(browser, "alice")
        page = await (await browser.open(client.question(redirect_uri=WEB))).form(submit="Allow")
        issued = await tokens(client, answer(page)["code"], redirect_uri=WEB)
        unredeemed = answer(await browser.open(client.question(redirect_uri=WEB)))["code"]
        before = await byline.whoami(issued["access_token"])
        shown = await browser.open(f"{byline.url}/applications")
        forged = await browser._client.post(
            f"{byline.url}/applications", data={"client_id": client.id, "csrf_token": "guessed"}
        )
        headers = (await browser._client.get(f"{byline.url}/applications")).headers
        gone = await shown.form(submit="Withdraw <b>Chat</b>")
        twice = await shown.form(submit="Withdraw <b>Chat</b>")
        asked_again = await browser.open(client.question(redirect_uri=WEB))

    assert before.status_code == 200
    assert "&lt;b&gt;Chat&lt;/b&gt;" in shown.text
    assert "<strong>chat.example</strong>" in shown.text
    assert forged.status_code == 403
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "&lt;b&gt;Chat" not in gone.text
    assert twice.status == 410
    assert is_asked(asked_again)
    assert (await byline.whoami(issued["access_token"])).status_code == 401
    assert (await client.refresh(issued["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await client.redeem(unredeemed, redirect_uri=WEB)).json()["error"] == "invalid_grant"
    assert (await byline.whoami(theirs["access_token"])).status_code == 200
    withdrawn = await trail(byline, "client.withdrawn", client)
    assert len(withdrawn) == 2
    assert {line["principal"]["name"] for line in withdrawn} == {"Alice Liddell"}


async def test_the_page_asks_a_stranger_to_sign_in(http: httpx2.AsyncClient) -> None:
    shown = await http.get("/applications")
    sent = await http.post("/applications", data={"client_id": "x"})

    assert shown.headers["location"] == "/sign-in?next=%2Fapplications"
    assert sent.status_code == 403


@pytest.mark.parametrize("copied", ["a code", "a refresh token", "a token given back"])
async def test_what_ends_a_sign_in_ends_its_access_tokens_and_those_of_no_other(
    byline: Byline, http: httpx2.AsyncClient, copied: str
) -> None:
    client = await application(http, byline)
    other = await tokens(client, await client.code(redirect_uri=SCHEME), redirect_uri=SCHEME)
    code = await client.code(redirect_uri=SCHEME)
    issued = await tokens(client, code, redirect_uri=SCHEME)
    match copied:
        case "a code":
            await client.redeem(code, redirect_uri=SCHEME)
        case "a refresh token":
            renewed = (await client.refresh(issued["refresh_token"])).raise_for_status().json()
            assert (await byline.whoami(renewed["access_token"])).status_code == 200
            await client.refresh(issued["refresh_token"])
        case _:
            await http.post("/revoke", data={"token": issued["refresh_token"], "client_id": client.id})

    assert (await byline.whoami(issued["access_token"])).status_code == 401
    assert (await byline.whoami(other["access_token"])).status_code == 200


async def test_a_sign_in_that_nobody_uses_is_over_and_asked_about_again(
    byline: Byline, http: httpx2.AsyncClient
) -> None:
    client = await application(http, byline)
    issued = await tokens(client, await client.code(redirect_uri=WEB), redirect_uri=WEB)
    over = update(ClientConsentRow).where(col(ClientConsentRow.client_id) == client.id)
    async with byline.services.database.open_write_session() as session:
        await session.exec(over.values(expires_at=utc_now() - timedelta(seconds=1)))
    async with Browser(stop_at="https://") as browser:
        await byline.signed_in(browser, "alice")
        page = await browser.open(client.question(redirect_uri=WEB))

    assert (await byline.whoami(issued["access_token"])).status_code == 401
    assert (await client.refresh(issued["refresh_token"])).json()["error"] == "invalid_grant"
    assert is_asked(page)


async def test_a_client_that_was_registered_before_a_scope_was_named_may_ask_for_it(
    byline: Byline, http: httpx2.AsyncClient
) -> None:
    client = await application(http, byline, scope="mcp")
    code = await client.code(redirect_uri=SCHEME, scope="mcp billing")
    issued = await tokens(client, code, redirect_uri=SCHEME)
    narrowed = await client.token(
        {"grant_type": "refresh_token", "refresh_token": issued["refresh_token"], "scope": "billing"}
    )

    assert client.registered["scope"] == "mcp billing"
    assert issued["scope"] == "mcp billing"
    assert narrowed.json()["scope"] == "billing"
    assert (await byline.whoami(narrowed.json()["access_token"])).json()["scopes"] == ["billing"]


async def test_a_token_of_another_client_or_person_is_not_made_good_by_a_consent(
    byline: Byline, http: httpx2.AsyncClient
) -> None:
    client = await application(http, byline)
    issued = await tokens(client, await client.code(redirect_uri=SCHEME), redirect_uri=SCHEME)
    (bob,) = await byline.services.principals.find_by_name("Bob Baker")
    claims = await byline.services.signing_keys.verify_token(issued["access_token"], "at+jwt")
    backend, _ = await byline.gateway_services.oauth_tables.registered_clients.add_backend("Portal", ())

    for changed in (
        {"client_id": "another"},
        {"sub": bob.subject},
        {"sid": "another"},
        {"client_id": backend},
    ):
        altered = await byline.services.signing_keys.sign_claims({**claims, **changed}, "at+jwt")
        assert (await byline.whoami(altered)).status_code == 401, changed
