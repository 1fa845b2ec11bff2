import asyncio
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientMetadata,
)
from pydantic import AnyUrl
from sqlmodel import select

from engine.db.tables import OAuthClientRow, OAuthCodeRow, RefreshTokenRow
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser, Page
from examples.chat import MemoryTokenStorage
from tests.support.administration import set_active
from tests.support.page_server import PASSWORDS, PageServer, serve_pages

REDIRECT_URI = "http://127.0.0.1:45678/callback"


@pytest.fixture
async def byline(tmp_path: Path) -> AsyncIterator[PageServer]:
    async with serve_pages(tmp_path) as running:
        yield running


@dataclass
class HandwrittenClient:
    """A client written by hand against the RFCs, for what a well-behaved one would never send."""

    byline: PageServer
    http: httpx2.AsyncClient
    registration: dict[str, Any]
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @property
    def id(self) -> str:
        return str(self.registration["client_id"])

    def build_question_url(self, **changes: str | None) -> str:
        challenge = urlsafe_b64encode(sha256(self.verifier.encode()).digest()).decode().rstrip("=")
        parameters: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.id,
            "redirect_uri": REDIRECT_URI,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "state": "st-1",
        }
        query_fields = {name: value for name, value in {**parameters, **changes}.items() if value is not None}
        return f"{self.byline.url}/authorize?{urlencode(query_fields)}"

    async def fetch_code(self, person: str = "alice", **changes: str | None) -> str:
        async with Browser(stop_at=str(changes.get("redirect_uri") or REDIRECT_URI)) as browser:
            await self.byline.sign_in(browser, person)
            page = await (await browser.open(self.build_question_url(**changes))).form(submit="Allow")
        return read_query(page)["code"]

    async def redeem_code(self, code: str, **changes: str) -> httpx2.Response:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
        return await self.request_token({**form, "code_verifier": self.verifier, **changes})

    async def refresh_tokens(self, refresh_token: str) -> httpx2.Response:
        return await self.request_token({"grant_type": "refresh_token", "refresh_token": refresh_token})

    async def request_token(self, form: dict[str, str]) -> httpx2.Response:
        return await self.http.post("/token", data={"client_id": self.id, **form})

    async def fetch_tokens(self, person: str = "alice") -> dict[str, Any]:
        response = await self.redeem_code(await self.fetch_code(person))
        token_response: dict[str, Any] = response.raise_for_status().json()
        return token_response


@pytest.fixture
async def http(byline: PageServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        yield client


async def register_client(http: httpx2.AsyncClient, **metadata: Any) -> httpx2.Response:
    client_metadata = {
        "redirect_uris": [REDIRECT_URI],
        "token_endpoint_auth_method": "none",
        "client_name": "Chat",
    }
    return await http.post("/register", json={**client_metadata, **metadata})


@pytest.fixture
async def application(byline: PageServer, http: httpx2.AsyncClient) -> HandwrittenClient:
    return HandwrittenClient(byline, http, (await register_client(http)).raise_for_status().json())


def read_query(page: Page) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(page.url).query))


async def test_a_stock_mcp_client_discovers_registers_and_signs_a_person_in(byline: PageServer) -> None:
    memory, arrived_pages = MemoryTokenStorage(), asyncio.Queue[Page]()
    seen_urls = []

    async def show(url: str) -> None:
        async with Browser(stop_at=REDIRECT_URI) as browser:
            page = await browser.open(url)
            page = await page.form(submit="Sign in", username="alice", password="alice-demo")
            seen_urls.append(page.text)
            await arrived_pages.put(await page.form(submit="Allow"))

    async def receive() -> AuthorizationCodeResult:
        query = read_query(await arrived_pages.get())
        return AuthorizationCodeResult(code=query["code"], state=query["state"], iss=query["iss"])

    metadata = OAuthClientMetadata(
        redirect_uris=[AnyUrl(REDIRECT_URI)], client_name="Stock client", token_endpoint_auth_method="none"
    )
    provider = OAuthClientProvider(f"{byline.url}/mcp", metadata, memory, show, receive)
    async with httpx2.AsyncClient(auth=provider) as client:
        response = await client.get(f"{byline.url}/mcp")

    (alice,) = await byline.services.principals.find_by_name("Alice Liddell")
    assert memory.tokens is not None
    assert memory.tokens.refresh_token
    assert response.json()["principal"] == alice.id
    assert response.json()["name"] == "Alice Liddell"
    assert response.json()["scopes"] == ["mcp"]
    assert "Stock client" in seen_urls[0]
    assert "127.0.0.1" in seen_urls[0]


async def test_the_metadata_says_what_the_server_does(byline: PageServer, http: httpx2.AsyncClient) -> None:
    server = (await http.get("/.well-known/oauth-authorization-server")).json()
    resources = [
        (await http.get(f"/.well-known/oauth-protected-resource{suffix}")).json() for suffix in ("", "/mcp")
    ]

    assert server["issuer"] == byline.url
    assert server["code_challenge_methods_supported"] == ["S256"]
    assert set(server["token_endpoint_auth_methods_supported"]) == {
        "none",
        "client_secret_basic",
        "client_secret_post",
    }
    assert server["authorization_response_iss_parameter_supported"] is True
    for resource in resources:
        assert resource["resource"] == f"{byline.url}/mcp"
        assert resource["authorization_servers"] == [byline.url]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/.well-known/oauth-protected-resource/mcp", "GET"),
        ("/.well-known/oauth-authorization-server", "GET"),
        ("/register", "POST"),
        ("/token", "POST"),
    ],
)
async def test_a_chat_client_in_a_browser_may_ask_from_its_own_origin(
    http: httpx2.AsyncClient, path: str, method: str
) -> None:
    request_headers = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, mcp-protocol-version",
    }
    response = await http.options(path, headers=request_headers)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


async def test_a_page_that_knows_a_session_is_closed_to_other_origins(http: httpx2.AsyncClient) -> None:
    response = await http.get("/authorize", headers={"Origin": "https://chat.example"})

    assert "access-control-allow-origin" not in response.headers


async def test_a_token_is_good_only_at_the_resource_that_the_person_was_asked_about(
    application: HandwrittenClient, http: httpx2.AsyncClient
) -> None:
    api = f"{application.byline.url}/api/v1"
    async with Browser(stop_at=REDIRECT_URI) as browser:
        await application.byline.sign_in(browser, "alice")
        question_page = await browser.open(application.build_question_url(resource=api))
    token_response = (
        (await application.redeem_code(await application.fetch_code(resource=api))).raise_for_status().json()
    )
    renewed_response = (
        (await application.refresh_tokens(token_response["refresh_token"])).raise_for_status().json()
    )
    keys = KeySet.import_key_set((await http.get("/.well-known/jwks.json")).json())

    assert "make schedules, webhooks, notifications and tokens that act as you" in question_page.text
    for tokens in (token_response, renewed_response):
        assert jwt.decode(tokens["access_token"], keys, algorithms=["Ed25519"]).claims["aud"] == api
        assert (await application.byline.fetch_whoami(tokens["access_token"])).status_code == 401


async def test_an_access_token_is_an_rfc_9068_jwt_that_the_published_keys_verify(
    application: HandwrittenClient, http: httpx2.AsyncClient
) -> None:
    token_response = await application.fetch_tokens()
    key_set = (await http.get("/.well-known/jwks.json")).json()
    algorithms = [key["alg"] for key in key_set["keys"]]
    token = jwt.decode(token_response["access_token"], KeySet.import_key_set(key_set), algorithms=algorithms)

    assert token.header["typ"] == "at+jwt"
    assert token.claims["iss"] == application.byline.url
    assert token.claims["aud"] == f"{application.byline.url}/mcp"
    assert token.claims["client_id"] == application.id
    assert token.claims["scope"] == "mcp"
    assert token.claims["exp"] - token.claims["iat"] == token_response["expires_in"]
    assert {"sub", "jti"} <= set(token.claims)


async def test_a_client_is_still_registered_after_a_restart(tmp_path: Path) -> None:
    async with serve_pages(tmp_path) as byline, httpx2.AsyncClient(base_url=byline.url) as http:
        registration = (await register_client(http)).json()
        port = urlsplit(byline.url).port
    async with (
        serve_pages(tmp_path, port=port or 0) as byline,
        httpx2.AsyncClient(base_url=byline.url) as http,
    ):
        token_response = await HandwrittenClient(byline, http, registration).fetch_tokens()

    assert token_response["access_token"]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_confidential_client_needs_its_secret(
    byline: PageServer, http: httpx2.AsyncClient, method: str
) -> None:
    registration = (await register_client(http, token_endpoint_auth_method=method)).json()
    application = HandwrittenClient(byline, http, registration)
    form = {
        "grant_type": "authorization_code",
        "code": await application.fetch_code(),
        "redirect_uri": REDIRECT_URI,
        "code_verifier": application.verifier,
    }
    refusal = await http.post("/token", data={"client_id": application.id, **form})
    secret = registration["client_secret"]
    if method == "client_secret_basic":
        authorization = "Basic " + b64encode(f"{application.id}:{secret}".encode()).decode()
        allowed_response = await http.post("/token", data=form, headers={"Authorization": authorization})
    else:
        allowed_response = await http.post(
            "/token", data={**form, "client_id": application.id, "client_secret": secret}
        )

    assert refusal.status_code == 401
    assert allowed_response.status_code == 200


async def test_secrets_codes_and_refresh_tokens_are_not_in_the_database(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    registration = (await register_client(http, token_endpoint_auth_method="client_secret_post")).json()
    application = HandwrittenClient(byline, http, registration)
    code = await application.fetch_code()
    token_response = (await application.redeem_code(code, client_secret=registration["client_secret"])).json()
    async with byline.services.database.open_read_session() as session:
        rows = [repr((await session.exec(select(table))).all()) for table in (OAuthClientRow, OAuthCodeRow)]
        rows.append(repr((await session.exec(select(RefreshTokenRow))).all()))

    for secret in (
        registration["client_secret"],
        code,
        token_response["refresh_token"],
        token_response["access_token"],
    ):
        assert secret not in "".join(rows)


@pytest.mark.parametrize(
    "uri",
    ["javascript:alert(1)", "data:text/html,x", "http://chat.example/callback", "https://chat.example/#x"],
)
async def test_a_redirect_uri_that_cannot_be_trusted_is_not_registered(
    http: httpx2.AsyncClient, uri: str
) -> None:
    response = await register_client(http, redirect_uris=[uri])

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_redirect_uri"


@pytest.mark.parametrize(
    "uri", ["cursor://anysphere.cursor-mcp/oauth/callback", "https://chat.example/callback"]
)
async def test_applications_and_web_sites_can_register(http: httpx2.AsyncClient, uri: str) -> None:
    assert (await register_client(http, redirect_uris=[uri])).status_code == 201


async def test_a_program_on_this_machine_may_listen_on_any_port(application: HandwrittenClient) -> None:
    uri = "http://127.0.0.1:61001/callback"
    code = await application.fetch_code(redirect_uri=uri)
    response = await application.redeem_code(code, redirect_uri=uri)

    assert response.status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"redirect_uri": "http://127.0.0.1:45678/other"},
        {"redirect_uri": "https://evil.example/callback"},
        {"redirect_uri": "http://localhost.evil.example/callback"},
        {"client_id": "nobody"},
    ],
)
async def test_a_request_with_a_wrong_client_or_redirect_gets_a_page_and_no_redirect(
    application: HandwrittenClient, http: httpx2.AsyncClient, changes: dict[str, str]
) -> None:
    response = await http.get(application.build_question_url(**changes))

    assert response.status_code == 400
    assert response.headers["content-type"].startswith("text/html")
    assert "cannot continue" in response.text
    attempts = [
        (attempt["error"], attempt["actor"]["id"])
        for attempt in await application.byline.list_trail_events("attempt.refused")
    ]
    assert attempts == ([] if "client_id" in changes else [("redirect_refused", application.id)])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"resource": "https://other.example/mcp"}, "invalid_target"),
    ],
)
async def test_other_mistakes_are_reported_to_the_client_with_state_and_issuer(
    application: HandwrittenClient, http: httpx2.AsyncClient, changes: dict[str, str | None], error: str
) -> None:
    response = await http.get(application.build_question_url(**changes))
    query = parse_qs(urlsplit(response.headers["location"]).query)

    assert response.headers["location"].startswith(REDIRECT_URI)
    assert query["error"] == [error]
    assert query["state"] == ["st-1"]
    assert query["iss"] == [application.byline.url]


async def test_nobody_is_sent_to_a_site_that_anybody_registered_before_they_were_asked(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    site = "https://phishing.example/sign-in"
    registration = (
        await register_client(http, redirect_uris=[site], application_type="web")
    ).raise_for_status()
    question_url = HandwrittenClient(byline, http, registration.json()).build_question_url(
        redirect_uri=site, scope="admin"
    )
    response = await http.get(question_url)

    assert (response.status_code, response.headers.get("location")) == (400, None)
    assert "Go back to phishing.example" in response.text
    assert "error=invalid_scope" in response.text


async def test_who_asks_leaves_nothing_in_the_database_before_a_person_answers(
    application: HandwrittenClient, http: httpx2.AsyncClient
) -> None:
    for _ in range(3):
        question_response = await http.get(application.build_question_url(state=secrets.token_hex(1000)))
        await http.get(question_response.headers["location"])

    async with application.byline.services.database.open_read_session() as session:
        assert (await session.exec(select(OAuthCodeRow))).all() == []


async def test_a_question_outlasts_signing_in_however_much_the_client_wants_back(
    application: HandwrittenClient,
) -> None:
    state = secrets.token_hex(1000)
    async with Browser(stop_at=REDIRECT_URI) as browser:
        page = await browser.open(application.build_question_url(state=state))
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        page = await page.form(submit="Allow")

    assert read_query(page)["state"] == state


async def test_a_state_too_long_for_an_address_is_reported_to_the_client(
    application: HandwrittenClient, http: httpx2.AsyncClient
) -> None:
    response = await http.get(application.build_question_url(state=secrets.token_hex(3000)))

    assert parse_qs(urlsplit(response.headers["location"]).query)["error"] == ["invalid_request"]


async def test_a_question_that_is_made_up_is_none(application: HandwrittenClient) -> None:
    async with Browser() as browser:
        await application.byline.sign_in(browser, "alice")
        for made_up in ("x", "AgExAAAA", "4f1c4f1c-4f1c-4f1c-4f1c-4f1c4f1c4f1c"):
            page = await browser.open(f"{application.byline.url}/authorize/{made_up}")
            assert page.status == 410


async def test_a_declined_consent_is_reported_to_the_client_and_can_be_given_once(
    application: HandwrittenClient,
) -> None:
    async with Browser(stop_at=REDIRECT_URI) as browser:
        await application.byline.sign_in(browser, "alice")
        question = await browser.open(application.build_question_url())
        declined_page = await question.form(submit="Decline")
        again = await question.form(submit="Allow")

    assert read_query(declined_page) == {
        "error": "access_denied",
        "state": "st-1",
        "iss": application.byline.url,
    }
    assert again.status == 410


async def test_a_yes_carries_code_state_and_issuer(application: HandwrittenClient) -> None:
    async with Browser(stop_at=REDIRECT_URI) as browser:
        await application.byline.sign_in(browser, "alice")
        page = await (await browser.open(application.build_question_url())).form(submit="Allow")

    assert set(read_query(page)) == {"code", "state", "iss"}
    assert read_query(page)["iss"] == application.byline.url


async def test_a_yes_that_another_site_sends_is_refused(application: HandwrittenClient) -> None:
    async with Browser(stop_at=REDIRECT_URI) as browser:
        await application.byline.sign_in(browser, "alice")
        question = await browser.open(application.build_question_url())
        forged_response = await browser._client.post(
            question.url, data={"decision": "allow", "csrf_token": "guessed"}
        )

    assert forged_response.status_code == 403


async def test_the_question_cannot_be_framed_and_escapes_what_the_client_calls_itself(
    byline: PageServer, http: httpx2.AsyncClient
) -> None:
    registration = (await register_client(http, client_name="<script>alert(1)</script>")).json()
    async with Browser() as browser:
        await byline.sign_in(browser, "alice")
        page = await browser.open(HandwrittenClient(byline, http, registration).build_question_url())
        headers = (await browser._client.get(page.url)).headers

    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_a_code_is_worth_tokens_once_and_its_second_use_revokes_them(
    application: HandwrittenClient,
) -> None:
    code = await application.fetch_code()
    first = await application.redeem_code(code)
    second = await application.redeem_code(code)
    refresh_response = await application.refresh_tokens(first.json()["refresh_token"])

    assert first.status_code == 200
    assert second.json()["error"] == "invalid_grant"
    assert refresh_response.json()["error"] == "invalid_grant"
    (withdrawn,) = await application.byline.list_trail_events("client.withdrawn")
    assert "its code came a second time" in withdrawn["message"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "x" * 48}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1:1/callback"}, "invalid_request"),
        ({"resource": "https://other.example/mcp"}, "invalid_target"),
    ],
)
async def test_a_code_is_bound_to_verifier_redirect_and_resource(
    application: HandwrittenClient, changes: dict[str, str], error: str
) -> None:
    response = await application.redeem_code(await application.fetch_code(), **changes)

    assert response.status_code == 400
    assert response.json()["error"] == error


async def test_a_code_is_not_redeemed_with_its_challenge_nor_without_a_verifier(
    application: HandwrittenClient,
) -> None:
    challenge = parse_qs(urlsplit(application.build_question_url()).query)["code_challenge"][0]
    code = await application.fetch_code()
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT_URI}
    refusals = [
        await application.request_token(form),
        await application.request_token({**form, "code_verifier": challenge}),
        await application.request_token(
            {**form, "code_verifier": challenge, "code_challenge_method": "plain"}
        ),
    ]

    assert [response.status_code for response in refusals] == [400, 400, 400]
    assert (await application.redeem_code(code)).status_code == 200


async def test_a_code_is_worth_nothing_to_another_client(
    application: HandwrittenClient, http: httpx2.AsyncClient
) -> None:
    other = HandwrittenClient(
        application.byline, http, (await register_client(http)).json(), application.verifier
    )
    response = await other.redeem_code(await application.fetch_code())

    assert response.json()["error"] == "invalid_grant"


async def test_a_refresh_token_rotates_and_a_copied_one_ends_the_family(
    application: HandwrittenClient,
) -> None:
    first = await application.fetch_tokens()
    second = (await application.refresh_tokens(first["refresh_token"])).raise_for_status().json()
    copied_response = await application.refresh_tokens(first["refresh_token"])
    newest = await application.refresh_tokens(second["refresh_token"])

    assert second["refresh_token"] != first["refresh_token"]
    assert copied_response.json()["error"] == "invalid_grant"
    assert newest.json()["error"] == "invalid_grant"
    await application.refresh_tokens(first["refresh_token"])
    (withdrawn,) = await application.byline.list_trail_events("client.withdrawn")
    assert (withdrawn["principal"]["name"], withdrawn["actor"]["id"]) == ("Alice Liddell", application.id)
    assert "its refresh token came a second time" in withdrawn["message"]


async def test_of_two_refreshes_at_once_one_is_answered(application: HandwrittenClient) -> None:
    token_response = await application.fetch_tokens()
    both = await asyncio.gather(
        *(application.refresh_tokens(token_response["refresh_token"]) for _ in range(2))
    )

    assert sorted(response.status_code for response in both) == [200, 400]


@pytest.mark.parametrize("kind", ["refresh_token", "access_token"])
async def test_revoking_either_token_ends_the_family(
    application: HandwrittenClient, http: httpx2.AsyncClient, kind: str
) -> None:
    token_response = await application.fetch_tokens()
    revocation_response = await http.post(
        "/revoke", data={"token": token_response[kind], "client_id": application.id}
    )
    refresh_response = await application.refresh_tokens(token_response["refresh_token"])

    assert revocation_response.status_code == 200
    assert refresh_response.json()["error"] == "invalid_grant"


async def test_a_deactivated_persons_tokens_stop_working_at_once(application: HandwrittenClient) -> None:
    byline, token_response = application.byline, await application.fetch_tokens("bob")
    (bob,) = await byline.services.principals.find_by_name("Bob Baker")
    before = await byline.fetch_whoami(token_response["access_token"])
    await set_active(byline.services, bob.id, is_active=False)
    after = await byline.fetch_whoami(token_response["access_token"])
    refresh_response = await application.refresh_tokens(token_response["refresh_token"])

    assert before.json()["principal"] == bob.id
    assert after.status_code == 401
    assert "resource_metadata=" in after.headers["www-authenticate"]
    assert refresh_response.json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "changes",
    [{"aud": "https://other.example/mcp"}, {"iss": "https://other.example"}, {"exp": 1}, {"sub": "nobody"}],
)
async def test_a_token_for_another_server_person_or_time_is_not_taken(
    application: HandwrittenClient, changes: dict[str, Any]
) -> None:
    byline, token_response = application.byline, await application.fetch_tokens()
    claims = await byline.services.signing_keys.verify_token(token_response["access_token"], "at+jwt")
    forged_token = await byline.services.signing_keys.sign_claims({**claims, **changes}, "at+jwt")
    whole = await byline.services.signing_keys.sign_claims(claims, "at+jwt")

    assert (await byline.fetch_whoami(whole)).status_code == 200
    for _ in range(3):
        assert (await byline.fetch_whoami(forged_token)).status_code == 401
    # What is good nowhere tells of nobody; what is good elsewhere was taken from somebody, or strayed.
    attempts = [
        (attempt["error"], attempt["principal"]["name"], attempt["actor"]["id"])
        for attempt in await byline.list_trail_events("attempt.refused")
    ]
    assert attempts == ([("token_misdirected", "Alice Liddell", application.id)] if "aud" in changes else [])


async def test_a_signed_identity_is_no_access_token(application: HandwrittenClient) -> None:
    byline, token_response = application.byline, await application.fetch_tokens()
    claims = await byline.services.signing_keys.verify_token(token_response["access_token"], "at+jwt")
    identity = await byline.services.signing_keys.sign_claims(claims, IDENTITY_TYPE)

    assert (await byline.fetch_whoami(identity)).status_code == 401
    assert (await byline.fetch_whoami("a.b.c")).status_code == 401
