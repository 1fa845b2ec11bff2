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
from tests.support.sandbox_systems import CALLBACK, ROOT, SandboxProcess, run_sandbox_system, wait_until

# OAuth, at each system's own paths


async def test_a_token_names_the_upstream_account_of_the_person_who_allowed_it(
    any_system: SandboxProcess,
) -> None:
    token = await any_system.fetch_access_token("alice")
    userinfo = any_system.get_path(any_system.system.oauth.userinfo, token).json()
    assert userinfo["preferred_username"] == any_system.find_account("alice")
    assert userinfo["sub"]
    assert userinfo["name"].startswith("Alice")


async def test_allowing_redirects_with_code_state_and_issuer(any_system: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, any_system.build_client() as client:
        page, _ = await any_system.open_consent_page(browser, "alice", client)
        page = await page.form(submit="Allow")
    answer = parse_qs(urlsplit(page.url).query)
    assert answer.keys() == {"code", "state", "iss"}
    assert answer["state"] == ["st-1"]
    assert answer["iss"] == [any_system.url]


async def test_denying_redirects_with_access_denied_state_and_issuer(any_system: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, any_system.build_client() as client:
        page, _ = await any_system.open_consent_page(browser, "bob", client)
        page = await page.form(submit="Deny")
    answer = parse_qs(urlsplit(page.url).query)
    assert answer == {"error": ["access_denied"], "state": ["st-1"], "iss": [any_system.url]}


def test_the_metadata_names_the_endpoints_and_announces_iss_and_s256(any_system: SandboxProcess) -> None:
    metadata = any_system.get_path("/.well-known/oauth-authorization-server").json()
    paths = any_system.system.oauth
    assert metadata["issuer"] == any_system.url
    assert metadata["authorization_endpoint"] == any_system.url + paths.authorize
    assert metadata["token_endpoint"] == any_system.url + paths.tokens
    assert metadata["revocation_endpoint"] == any_system.url + paths.revoke
    assert metadata["userinfo_endpoint"] == any_system.url + paths.userinfo
    assert metadata["authorization_response_iss_parameter_supported"] is True
    assert metadata["code_challenge_methods_supported"] == ["S256"]


async def test_a_wrong_password_asks_again(the_crm: SandboxProcess) -> None:
    async with Browser() as browser, the_crm.build_client() as client:
        address, _ = client.create_authorization_url(
            the_crm.url + the_crm.system.oauth.authorize, code_verifier=secrets.token_urlsafe(48)
        )
        page = await browser.open(address)
        page = await page.form(submit="Sign in", username=the_crm.find_account("alice"), password="bob-crm")
    assert page.status == 400
    assert "The account name or the password is wrong." in page.text


async def test_someone_else_can_sign_in_on_the_consent_page(the_crm: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.build_client() as client:
        page, _ = await the_crm.open_consent_page(browser, "alice", client)
        page = await page.form(submit="Use another account")
        page = await page.form(submit="Sign in", username=the_crm.find_account("bob"), password="bob-crm")
    assert the_crm.find_account("bob") in page.text
    assert the_crm.find_account("alice") not in page.text


async def test_a_consent_without_the_pages_own_token_is_not_a_consent(the_crm: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.build_client() as client:
        page, _ = await the_crm.open_consent_page(browser, "alice", client)
        page = await page.form(submit="Allow", form_token="guessed")
    assert page.status == 400
    assert "code=" not in page.url


@pytest.mark.parametrize(
    "wrong", [{"redirect_uri": CALLBACK + "/"}, {"redirect_uri": ""}, {"client_id": "another"}]
)
def test_a_client_that_can_not_be_trusted_gets_a_page_instead_of_a_redirect(
    any_system: SandboxProcess, wrong: dict[str, str]
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
def test_a_wrong_authorization_request_is_reported_to_the_client(
    the_crm: SandboxProcess, wrong: dict[str, str], error: str
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


async def test_a_code_is_of_no_use_without_its_verifier(the_crm: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_crm.build_client() as client:
        page, _ = await the_crm.open_consent_page(browser, "alice", client)
        page = await page.form(submit="Allow")
        with pytest.raises(OAuthError, match="invalid_grant"):
            await the_crm.exchange_code(client, page.url, secrets.token_urlsafe(48))


async def test_a_code_used_twice_ends_the_tokens_it_gave(the_billing: SandboxProcess) -> None:
    async with Browser(stop_at=CALLBACK) as browser, the_billing.build_client() as client:
        page, verifier = await the_billing.open_consent_page(browser, "alice", client)
        page = await page.form(submit="Allow")
        first = await the_billing.exchange_code(client, page.url, verifier)
        with pytest.raises(OAuthError, match="invalid_grant"):
            await the_billing.exchange_code(client, page.url, verifier)
    assert the_billing.get_path("/v1/invoices", first["access_token"]).status_code == 401


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_refresh_gives_new_tokens_and_spends_the_old_one(
    any_system: SandboxProcess, method: str
) -> None:
    first = await any_system.fetch_tokens("alice")
    endpoint = any_system.url + any_system.system.oauth.tokens
    async with any_system.build_client(method=method) as client:
        second = await client.refresh_token(endpoint, first["refresh_token"])
        assert second["refresh_token"] != first["refresh_token"]
        assert (
            any_system.get_path(any_system.system.oauth.userinfo, second["access_token"]).status_code == 200
        )
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(endpoint, first["refresh_token"])
        # The second use of the first refresh token ended all that came of the consent.
        with pytest.raises(OAuthError, match="invalid_grant"):
            await client.refresh_token(endpoint, second["refresh_token"])
    assert any_system.get_path(any_system.system.oauth.userinfo, second["access_token"]).status_code == 401


async def test_a_refresh_may_narrow_the_scope_and_never_widen_it(the_support: SandboxProcess) -> None:
    first = await the_support.fetch_tokens("alice", "tickets:read")
    endpoint = the_support.url + the_support.system.oauth.tokens
    async with the_support.build_client() as client:
        with pytest.raises(OAuthError, match="invalid_scope"):
            await client.refresh_token(endpoint, first["refresh_token"], scope="tickets:read tickets:write")
        narrowed_tokens = await client.refresh_token(endpoint, first["refresh_token"], scope="tickets:read")
    assert narrowed_tokens["scope"] == "tickets:read"


async def test_revoking_a_refresh_token_ends_its_access_tokens_too(any_system: SandboxProcess) -> None:
    tokens = await any_system.fetch_tokens("alice")
    paths = any_system.system.oauth
    async with any_system.build_client() as client:
        response = await client.revoke_token(
            any_system.url + paths.revoke, tokens["refresh_token"], token_type_hint="refresh_token"
        )
        assert response.status_code == 200
        unknown = await client.revoke_token(any_system.url + paths.revoke, "nobody-knows-it")
        assert unknown.status_code == 200
    assert any_system.get_path(paths.userinfo, tokens["access_token"]).status_code == 401


async def test_the_client_gets_a_token_of_the_service_account_for_itself(any_system: SandboxProcess) -> None:
    endpoint = any_system.url + any_system.system.oauth.tokens
    async with any_system.build_client() as client:
        response = await client.fetch_token(endpoint, grant_type="client_credentials")
    assert "refresh_token" not in response
    userinfo = any_system.get_path(any_system.system.oauth.userinfo, response["access_token"]).json()
    assert userinfo["sub"] == any_system.system.service_account


async def test_a_wrong_client_secret_is_refused(any_system: SandboxProcess) -> None:
    endpoint = any_system.url + any_system.system.oauth.tokens
    form = {"grant_type": "client_credentials"}
    response = httpx2.post(endpoint, data=form, auth=("byline", "guessed"))
    assert response.status_code == 401
    assert response.json()["error"] == "invalid_client"
    assert response.headers["www-authenticate"].startswith("Basic")


async def test_an_access_token_ends_and_a_refresh_goes_on(tmp_path: Path) -> None:
    with run_sandbox_system("crm", tmp_path / "crm.db", "--access-token-seconds", "1") as system:
        tokens = await system.fetch_tokens("alice")
        path = f"{crm.API}/sobjects/Account/{crm.NORTHWIND}"
        wait_until(lambda: system.get_path(path, tokens["access_token"]).status_code == 401)
        async with system.build_client() as client:
            endpoint = system.url + system.system.oauth.tokens
            fresh = await client.refresh_token(endpoint, tokens["refresh_token"])
        assert system.get_path(path, fresh["access_token"]).status_code == 200


async def test_what_a_system_knows_survives_its_sudden_death(tmp_path: Path) -> None:
    with run_sandbox_system("crm", tmp_path / "crm.db") as system:
        token = await system.fetch_access_token("alice")
        system.process.kill()
        system.process.wait(10)
    with run_sandbox_system("crm", tmp_path / "crm.db") as again:
        assert again.get_path(f"{crm.API}/sobjects/Account/{crm.NORTHWIND}", token).status_code == 200


async def test_a_token_of_one_system_is_nothing_to_another(systems: dict[str, SandboxProcess]) -> None:
    token = await systems["crm"].fetch_access_token("alice")
    assert systems["billing"].get_path("/v1/invoices", token).status_code == 401
    assert systems["support"].get_path("/api/v2/users/me.json", token).status_code == 401
    names = {system.find_account("alice") for system in systems.values()}
    assert len(names) == 3


def test_a_system_without_a_client_secret_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.sandbox", "crm", "--port", "1", "--redirect-uri", CALLBACK]
    command += ["--database", str(tmp_path / "crm.db"), "--client-secret-env", "SANDBOX_NO_SUCH_SECRET"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert completed.returncode == 2
    assert "set the environment variable SANDBOX_NO_SUCH_SECRET" in completed.stderr


# The routes for faults


async def test_a_system_has_the_faults_that_a_test_adds(the_crm: SandboxProcess) -> None:
    path = f"{crm.API}/sobjects/Account/{crm.NORTHWIND}"
    token = await the_crm.fetch_access_token("alice")
    the_crm.add_fault(status=503, count=2)
    the_crm.add_fault(status=429, headers={"Retry-After": "7"})
    assert [the_crm.get_path(path, token).status_code for _ in range(2)] == [503, 503]
    limited_response = the_crm.get_path(path, token)
    assert (limited_response.status_code, limited_response.headers["retry-after"]) == (429, "7")
    assert limited_response.json()[0]["errorCode"] == "REQUEST_LIMIT_EXCEEDED"
    assert the_crm.get_path(path, token).status_code == 200


async def test_troubles_of_the_token_endpoint_leave_the_api_alone(the_crm: SandboxProcess) -> None:
    tokens = await the_crm.fetch_tokens("alice")
    the_crm.add_fault(on="token", status=500)
    assert the_crm.get_path(f"{crm.API}/query?q=SELECT Id FROM Account", tokens["access_token"]).is_success
    async with the_crm.build_client() as client:
        endpoint = the_crm.url + the_crm.system.oauth.tokens
        with pytest.raises(httpx2.HTTPStatusError):
            await client.refresh_token(endpoint, tokens["refresh_token"])
        assert (await client.refresh_token(endpoint, tokens["refresh_token"]))["access_token"]


async def test_troubles_can_be_called_off(the_crm: SandboxProcess) -> None:
    token = await the_crm.fetch_access_token("alice")
    the_crm.add_fault(status=500, count=100)
    httpx2.delete(the_crm.url + "/_sandbox/faults").raise_for_status()
    assert the_crm.get_path(f"{crm.API}/sobjects/Account/{crm.NORTHWIND}", token).status_code == 200


async def test_a_request_that_hangs_is_listed_without_an_answer(the_support: SandboxProcess) -> None:
    token = await the_support.fetch_access_token("alice")
    the_support.add_fault(hang_seconds=60)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(
            the_support.url + "/api/v2/users/me.json",
            headers={"Authorization": f"Bearer {token}"},
            timeout=0.3,
        )
    assert the_support.list_requests()[-1]["status"] is None
