"""The sandbox systems' sign-in and their routes for faults, on real processes."""

import secrets
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from authlib.integrations.base_client import OAuthError

from examples.browser import Browser
from examples.sandbox import crm
from tests.sandbox import CALLBACK, ROOT, Running, running, until

# OAuth, at each system's own paths


async def test_a_token_names_the_upstream_account_of_the_person_who_allowed_it(any_system: Running) -> None:
    token = await any_system.access_token("alice")
    userinfo = any_system.get(any_system.system.oauth.userinfo, token).json()
    assert userinfo["preferred_username"] == any_system.account("alice")
    assert userinfo["sub"]
    assert userinfo["name"].startswith("Alice")


async def test_allowing_redirects_with_code_state_and_issuer(any_system: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, any_system.client() as client:
        page, _ = await any_system.ask(browser, "alice", client)
        page = await page.form(submit="Allow")
    answer = parse_qs(urlsplit(page.url).query)
    assert answer.keys() == {"code", "state", "iss"}
    assert answer["state"] == ["st-1"]
    assert answer["iss"] == [any_system.url]


async def test_denying_redirects_with_access_denied_state_and_issuer(any_system: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, any_system.client() as client:
        page, _ = await any_system.ask(browser, "bob", client)
        page = await page.form(submit="Deny")
    answer = parse_qs(urlsplit(page.url).query)
    assert answer == {"error": ["access_denied"], "state": ["st-1"], "iss": [any_system.url]}


def test_the_metadata_names_the_endpoints_and_announces_iss_and_s256(any_system: Running) -> None:
    metadata = any_system.get("/.well-known/oauth-authorization-server").json()
    paths = any_system.system.oauth
    assert metadata["issuer"] == any_system.url
    assert metadata["authorization_endpoint"] == any_system.url + paths.authorize
    assert metadata["token_endpoint"] == any_system.url + paths.tokens
    assert metadata["revocation_endpoint"] == any_system.url + paths.revoke
    assert metadata["userinfo_endpoint"] == any_system.url + paths.userinfo
    assert metadata["authorization_response_iss_parameter_supported"] is True
    assert metadata["code_challenge_methods_supported"] == ["S256"]


async def test_a_wrong_password_asks_again(the_crm: Running) -> None:
    async with Browser() as browser, the_crm.client() as client:
        address, _ = client.create_authorization_url(
            the_crm.url + the_crm.system.oauth.authorize, code_verifier=secrets.token_urlsafe(48)
        )
        page = await browser.open(address)
        page = await page.form(submit="Sign in", username=the_crm.account("alice"), password="bob-crm")
    assert page.status == 400
    assert "The account name or the password is wrong." in page.text


async def test_someone_else_can_sign_in_on_the_consent_page(the_crm: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.client() as client:
        page, _ = await the_crm.ask(browser, "alice", client)
        page = await page.form(submit="Use another account")
        page = await page.form(submit="Sign in", username=the_crm.account("bob"), password="bob-crm")
    assert the_crm.account("bob") in page.text
    assert the_crm.account("alice") not in page.text


async def test_a_consent_without_the_pages_own_token_is_not_a_consent(the_crm: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.client() as client:
        page, _ = await the_crm.ask(browser, "alice", client)
        page = await page.form(submit="Allow", form_token="guessed")
    assert page.status == 400
    assert "code=" not in page.url


@pytest.mark.parametrize(
    "wrong", [{"redirect_uri": CALLBACK + "/"}, {"redirect_uri": ""}, {"client_id": "another"}]
)
def test_a_client_that_can_not_be_trusted_gets_a_page_instead_of_a_redirect(
    any_system: Running, wrong: dict[str, str]
) -> None:
    right = {"client_id": "byline", "redirect_uri": CALLBACK, "response_type": "code"}
    response = httpx2.get(any_system.url + any_system.system.oauth.authorize, params=right | wrong)
    assert response.status_code == 400
    assert "location" not in response.headers


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "everything"}, "invalid_scope"),
    ],
)
def test_a_wrong_authorization_request_is_told_to_the_client(
    the_crm: Running, wrong: dict[str, str], error: str
) -> None:
    right = {
        "client_id": "byline",
        "redirect_uri": CALLBACK,
        "response_type": "code",
        "state": "st-2",
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
    }
    response = httpx2.get(the_crm.url + the_crm.system.oauth.authorize, params=right | wrong)
    answer = parse_qs(urlsplit(response.headers["location"]).query)
    assert answer == {"error": [error], "state": ["st-2"], "iss": [the_crm.url]}


async def test_a_code_is_of_no_use_without_its_verifier(the_crm: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.client() as client:
        page, _ = await the_crm.ask(browser, "alice", client)
        page = await page.form(submit="Allow")
        with pytest.raises(OAuthError, match="invalid_grant"):
            await the_crm.exchange(client, page.url, secrets.token_urlsafe(48))


async def test_a_code_used_twice_ends_the_tokens_it_gave(the_billing: Running) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_billing.client() as client:
        page, verifier = await the_billing.ask(browser, "alice", client)
        page = await page.form(submit="Allow")
        first = await the_billing.exchange(client, page.url, verifier)
        with pytest.raises(OAuthError, match="invalid_grant"):
            await the_billing.exchange(client, page.url, verifier)
    assert the_billing.get("/v1/invoices", first["access_token"]).status_code == 401


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_refresh_gives_new_tokens_and_spends_the_old_one(any_system: Running, method: str) -> None:
    first = await any_system.tokens("alice")
    endpoint = any_system.url + any_system.system.oauth.tokens
    async with any_system.client(method=method) as client:
        second = await client.refresh_token(endpoint, first["refresh_token"])
        assert second["refresh_token"] != first["refresh_token"]
        assert any_system.get(any_system.system.oauth.userinfo, second["access_token"]).status_code == 200
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(endpoint, first["refresh_token"])
        # The second use of the first refresh token ended all that came of the consent.
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(endpoint, second["refresh_token"])
    assert any_system.get(any_system.system.oauth.userinfo, second["access_token"]).status_code == 401


async def test_a_refresh_may_narrow_the_scope_and_never_widen_it(the_support: Running) -> None:
    first = await the_support.tokens("alice", "tickets:read")
    endpoint = the_support.url + the_support.system.oauth.tokens
    async with the_support.client() as client:
        with pytest.raises(OAuthError, match="invalid_scope"):
            await client.refresh_token(endpoint, first["refresh_token"], scope="tickets:read tickets:write")
        narrowed = await client.refresh_token(endpoint, first["refresh_token"], scope="tickets:read")
    assert narrowed["scope"] == "tickets:read"


async def test_revoking_a_refresh_token_ends_its_access_tokens_too(any_system: Running) -> None:
    tokens = await any_system.tokens("alice")
    paths = any_system.system.oauth
    async with any_system.client() as client:
        response = await client.revoke_token(
            any_system.url + paths.revoke, tokens["refresh_token"], token_type_hint="refresh_token"
        )
        assert response.status_code == 200
        unknown = await client.revoke_token(any_system.url + paths.revoke, "nobody-knows-it")
        assert unknown.status_code == 200
    assert any_system.get(paths.userinfo, tokens["access_token"]).status_code == 401


async def test_the_client_gets_a_token_of_the_service_account_for_itself(any_system: Running) -> None:
    endpoint = any_system.url + any_system.system.oauth.tokens
    async with any_system.client() as client:
        response = await client.fetch_token(endpoint, grant_type="client_credentials")
    assert "refresh_token" not in response
    userinfo = any_system.get(any_system.system.oauth.userinfo, response["access_token"]).json()
    assert userinfo["sub"] == any_system.system.service_account


async def test_a_wrong_client_secret_is_refused(any_system: Running) -> None:
    endpoint = any_system.url + any_system.system.oauth.tokens
    form = {"grant_type": "client_credentials"}
    response = httpx2.post(endpoint, data=form, auth=("byline", "guessed"))
    assert response.status_code == 401
    assert response.json()["error"] == "invalid_client"
    assert response.headers["www-authenticate"].startswith("Basic")


async def test_an_access_token_ends_and_a_refresh_goes_on(tmp_path: Path) -> None:
    with running("crm", tmp_path / "crm.db", "--access-token-seconds", "1") as system:
        tokens = await system.tokens("alice")
        path = f"{crm.API}/sobjects/Account/{crm.NORTHWIND}"
        until(lambda: system.get(path, tokens["access_token"]).status_code == 401)
        async with system.client() as client:
            endpoint = system.url + system.system.oauth.tokens
            fresh = await client.refresh_token(endpoint, tokens["refresh_token"])
        assert system.get(path, fresh["access_token"]).status_code == 200


async def test_what_a_system_knows_survives_its_sudden_death(tmp_path: Path) -> None:
    with running("crm", tmp_path / "crm.db") as system:
        token = await system.access_token("alice")
        system.process.kill()
        system.process.wait(10)
    with running("crm", tmp_path / "crm.db") as again:
        assert again.get(f"{crm.API}/sobjects/Account/{crm.NORTHWIND}", token).status_code == 200


async def test_a_token_of_one_system_is_nothing_to_another(systems: dict[str, Running]) -> None:
    token = await systems["crm"].access_token("alice")
    assert systems["billing"].get("/v1/invoices", token).status_code == 401
    assert systems["support"].get("/api/v2/users/me.json", token).status_code == 401
    names = {system.account("alice") for system in systems.values()}
    assert len(names) == 3


def test_a_system_without_a_client_secret_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.sandbox", "crm", "--port", "1", "--redirect-uri", CALLBACK]
    command += ["--database", str(tmp_path / "crm.db"), "--client-secret-env", "SANDBOX_NO_SUCH_SECRET"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert "set the environment variable SANDBOX_NO_SUCH_SECRET" in ended.stderr


# The routes for faults


async def test_a_system_has_the_troubles_it_is_told_to_have(the_crm: Running) -> None:
    path = f"{crm.API}/sobjects/Account/{crm.NORTHWIND}"
    token = await the_crm.access_token("alice")
    the_crm.fault(status=503, count=2)
    the_crm.fault(status=429, headers={"Retry-After": "7"})
    assert [the_crm.get(path, token).status_code for _ in range(2)] == [503, 503]
    limited = the_crm.get(path, token)
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert limited.json()[0]["errorCode"] == "REQUEST_LIMIT_EXCEEDED"
    assert the_crm.get(path, token).status_code == 200


async def test_troubles_of_the_token_endpoint_leave_the_api_alone(the_crm: Running) -> None:
    tokens = await the_crm.tokens("alice")
    the_crm.fault(on="token", status=500)
    assert the_crm.get(f"{crm.API}/query?q=SELECT Id FROM Account", tokens["access_token"]).is_success
    async with the_crm.client() as client:
        endpoint = the_crm.url + the_crm.system.oauth.tokens
        with pytest.raises(httpx2.HTTPStatusError):
            await client.refresh_token(endpoint, tokens["refresh_token"])
        assert (await client.refresh_token(endpoint, tokens["refresh_token"]))["access_token"]


async def test_troubles_can_be_called_off(the_crm: Running) -> None:
    token = await the_crm.access_token("alice")
    the_crm.fault(status=500, count=100)
    httpx2.delete(the_crm.url + "/_sandbox/faults").raise_for_status()
    assert the_crm.get(f"{crm.API}/sobjects/Account/{crm.NORTHWIND}", token).status_code == 200


async def test_a_request_that_hangs_is_listed_without_an_answer(the_support: Running) -> None:
    token = await the_support.access_token("alice")
    the_support.fault(hang_seconds=60)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(
            the_support.url + "/api/v2/users/me.json",
            headers={"Authorization": f"Bearer {token}"},
            timeout=0.3,
        )
    assert the_support.requests()[-1]["status"] is None
