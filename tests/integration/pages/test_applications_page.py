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
from tests.integration.authorization_server.test_authorization_server import (
    HandwrittenClient,
    read_query,
    register_client,
)
from tests.support.administration import SHELL, registered_clients_of
from tests.support.page_server import PageServer, serve_pages

WEB = "https://chat.example/callback"
SCHEME = "cursor://anysphere.cursor-mcp/oauth/callback"

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def byline(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageServer]:
    policy = "tools: {refund: {scope: billing}}"
    async with serve_pages(tmp_path_factory.mktemp("applications"), policy=policy) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(byline: PageServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        yield client


async def register_application(
    http: httpx2.AsyncClient, byline: PageServer, **metadata: Any
) -> HandwrittenClient:
    metadata = {"redirect_uris": [WEB, SCHEME], **metadata}
    return HandwrittenClient(
        byline, http, (await register_client(http, **metadata)).raise_for_status().json()
    )


async def redeem_code(client: HandwrittenClient, code: str, **form: str) -> dict[str, Any]:
    token_response: dict[str, Any] = (await client.redeem_code(code, **form)).raise_for_status().json()
    return token_response


def asks_for_consent(page: Page) -> bool:
    return "act for you?" in page.text


async def list_events(byline: PageServer, kind: str, client: HandwrittenClient) -> list[dict[str, Any]]:
    lines = await byline.services.trail.find_lines(limit=None)
    return [line.event for line in lines if line.kind == kind and line.event["actor"]["id"] == client.id]


async def test_what_a_person_allowed_is_asked_again_only_for_something_new(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    other_place = "https://other.example/callback"
    client = await register_application(http, byline, redirect_uris=[WEB, other_place, SCHEME])
    async with Browser(stop_at="https://") as browser:
        await byline.sign_in(browser, "alice")
        first = await browser.open(client.build_question_url(redirect_uri=WEB))
        allowed_page = await first.form(submit="Allow")
        again = await browser.open(client.build_question_url(redirect_uri=WEB, state="st-2"))
        new = {
            "scope": await browser.open(client.build_question_url(redirect_uri=WEB, scope="mcp billing")),
            "resource": await browser.open(
                client.build_question_url(redirect_uri=WEB, resource=f"{byline.url}/api/v1")
            ),
            "destination": await browser.open(client.build_question_url(redirect_uri=other_place)),
        }
        more = await new["scope"].form(submit="Allow")
        less = await browser.open(client.build_question_url(redirect_uri=WEB))
    async with Browser(stop_at="https://") as browser:
        await byline.sign_in(browser, "bob")
        of_another_person = await browser.open(client.build_question_url(redirect_uri=WEB))

    assert asks_for_consent(first)
    assert "code" in read_query(allowed_page)
    assert not asks_for_consent(again)
    assert (read_query(again)["state"], read_query(again)["iss"]) == ("st-2", byline.url)
    assert {name: asks_for_consent(page) for name, page in new.items()} == dict.fromkeys(new, True)
    assert "<code>billing</code>: <code>refund</code>" in new["scope"].text
    assert "code" in read_query(more)
    assert "code" in read_query(less)
    assert asks_for_consent(of_another_person)
    token_response = await redeem_code(client, read_query(less)["code"], redirect_uri=WEB)
    assert token_response["scope"] == "mcp"
    assert [line["scopes"] for line in await list_events(byline, "client.allowed", client)] == [
        ["mcp"],
        ["mcp", "billing"],
    ]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:45678/callback", SCHEME])
async def test_a_client_that_any_program_could_imitate_needs_consent_every_time(
    byline: PageServer, http: httpx2.AsyncClient, uri: str
) -> None:
    public = await register_application(http, byline, redirect_uris=[uri])
    with_secret = await register_application(
        http, byline, redirect_uris=[uri], token_endpoint_auth_method="client_secret_post"
    )
    page_by_client = {}
    async with Browser(stop_at=uri) as browser:
        await byline.sign_in(browser, "alice")
        for client in (public, with_secret):
            question = await browser.open(client.build_question_url(redirect_uri=uri))
            await question.form(submit="Allow")
            again = await browser.open(client.build_question_url(redirect_uri=uri))
            page_by_client[client.id] = (
                "Any program on your computer" in question.text,
                asks_for_consent(again),
            )

    assert page_by_client == {public.id: (True, True), with_secret.id: (False, False)}


async def test_a_person_withdraws_an_application_and_none_of_its_tokens_works_any_more(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    client = await register_application(http, byline, client_name="<b>Chat</b>")
    theirs = await redeem_code(client, await client.fetch_code("bob", redirect_uri=WEB), redirect_uri=WEB)
    async with Browser(stop_at="https://") as browser:
        await byline.sign_in(browser, "alice")
        page = await (await browser.open(client.build_question_url(redirect_uri=WEB))).form(submit="Allow")
        token_response = await redeem_code(client, read_query(page)["code"], redirect_uri=WEB)
        unredeemed_code = read_query(await browser.open(client.build_question_url(redirect_uri=WEB)))["code"]
        before = await byline.fetch_whoami(token_response["access_token"])
        applications_page = await browser.open(f"{byline.url}/applications")
        forged_response = await browser._client.post(
            f"{byline.url}/applications", data={"client_id": client.id, "csrf_token": "guessed"}
        )
        headers = (await browser._client.get(f"{byline.url}/applications")).headers
        page_after_withdrawal = await applications_page.form(submit="Withdraw <b>Chat</b>")
        twice = await applications_page.form(submit="Withdraw <b>Chat</b>")
        repeated_page = await browser.open(client.build_question_url(redirect_uri=WEB))

    assert before.status_code == 200
    assert "&lt;b&gt;Chat&lt;/b&gt;" in applications_page.text
    assert "<strong>chat.example</strong>" in applications_page.text
    assert forged_response.status_code == 403
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "&lt;b&gt;Chat" not in page_after_withdrawal.text
    assert twice.status == 410
    assert asks_for_consent(repeated_page)
    assert (await byline.fetch_whoami(token_response["access_token"])).status_code == 401
    assert (await client.refresh_tokens(token_response["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await client.redeem_code(unredeemed_code, redirect_uri=WEB)).json()["error"] == "invalid_grant"
    assert (await byline.fetch_whoami(theirs["access_token"])).status_code == 200
    withdrawn = await list_events(byline, "client.withdrawn", client)
    assert len(withdrawn) == 2
    assert {line["principal"]["name"] for line in withdrawn} == {"Alice Liddell"}


async def test_the_page_asks_a_stranger_to_sign_in(http: httpx2.AsyncClient) -> None:
    page_response = await http.get("/applications")
    form_response = await http.post("/applications", data={"client_id": "x"})

    assert page_response.headers["location"] == "/sign-in?next=%2Fapplications"
    assert form_response.status_code == 403


@pytest.mark.parametrize("copied_credential", ["a code", "a refresh token", "a token given back"])
async def test_what_ends_a_consent_ends_its_access_tokens_and_those_of_no_other(
    byline: PageServer, http: httpx2.AsyncClient, copied_credential: str
) -> None:
    client = await register_application(http, byline)
    other = await redeem_code(client, await client.fetch_code(redirect_uri=SCHEME), redirect_uri=SCHEME)
    code = await client.fetch_code(redirect_uri=SCHEME)
    token_response = await redeem_code(client, code, redirect_uri=SCHEME)
    match copied_credential:
        case "a code":
            await client.redeem_code(code, redirect_uri=SCHEME)
        case "a refresh token":
            renewed_response = (
                (await client.refresh_tokens(token_response["refresh_token"])).raise_for_status().json()
            )
            assert (await byline.fetch_whoami(renewed_response["access_token"])).status_code == 200
            await client.refresh_tokens(token_response["refresh_token"])
        case _:
            await http.post(
                "/revoke", data={"token": token_response["refresh_token"], "client_id": client.id}
            )

    assert (await byline.fetch_whoami(token_response["access_token"])).status_code == 401
    assert (await byline.fetch_whoami(other["access_token"])).status_code == 200


async def test_a_sign_in_that_nobody_uses_is_over_and_asked_about_again(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    client = await register_application(http, byline)
    token_response = await redeem_code(client, await client.fetch_code(redirect_uri=WEB), redirect_uri=WEB)
    over = update(ClientConsentRow).where(col(ClientConsentRow.client_id) == client.id)
    async with byline.services.database.open_write_session() as session:
        await session.exec(over.values(expires_at=utc_now() - timedelta(seconds=1)))
    async with Browser(stop_at="https://") as browser:
        await byline.sign_in(browser, "alice")
        page = await browser.open(client.build_question_url(redirect_uri=WEB))

    assert (await byline.fetch_whoami(token_response["access_token"])).status_code == 401
    assert (await client.refresh_tokens(token_response["refresh_token"])).json()["error"] == "invalid_grant"
    assert asks_for_consent(page)


async def test_a_client_that_was_registered_before_a_scope_was_named_may_ask_for_it(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    client = await register_application(http, byline, scope="mcp")
    code = await client.fetch_code(redirect_uri=SCHEME, scope="mcp billing")
    token_response = await redeem_code(client, code, redirect_uri=SCHEME)
    narrowed_response = await client.request_token(
        {"grant_type": "refresh_token", "refresh_token": token_response["refresh_token"], "scope": "billing"}
    )

    assert client.registration["scope"] == "mcp billing"
    assert token_response["scope"] == "mcp billing"
    assert narrowed_response.json()["scope"] == "billing"
    assert (await byline.fetch_whoami(narrowed_response.json()["access_token"])).json()["scopes"] == [
        "billing"
    ]


async def test_a_token_of_another_client_or_person_is_not_made_good_by_a_consent(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    client = await register_application(http, byline)
    token_response = await redeem_code(
        client, await client.fetch_code(redirect_uri=SCHEME), redirect_uri=SCHEME
    )
    (bob,) = await byline.services.principals.find_by_name("Bob Baker")
    claims = await byline.services.signing_keys.verify_token(token_response["access_token"], "at+jwt")
    backend, _ = await registered_clients_of(byline.services).add_backend(SHELL, "Portal", ())

    for changes in (
        {"client_id": "another"},
        {"sub": bob.subject},
        {"sid": "another"},
        {"client_id": backend},
    ):
        altered_token = await byline.services.signing_keys.sign_claims({**claims, **changes}, "at+jwt")
        assert (await byline.fetch_whoami(altered_token)).status_code == 401, changes
