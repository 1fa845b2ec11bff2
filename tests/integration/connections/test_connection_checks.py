import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.connections.connection import Connection
from engine.outgoing.client import OutgoingClient
from engine.settings import OutgoingSettings
from engine.sign_in.connection_check import check_connection
from engine.sign_in.methods import SignInMethods
from tests.support.commands import Commands
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.process import free_port
from tests.support.hostile_server import build_answer, run_hostile_server
from tests.support.sign_ins import REDIRECT_URI as CALLBACK
from tests.support.sign_ins import checked, resources

HERE = OutgoingSettings(allow_http=True, allow_private=True)
SECRET = secrets.token_urlsafe(24)
CLIENTS = [
    RegisteredClient("people", SECRET, (CALLBACK,)),
    RegisteredClient("pushing", SECRET, (CALLBACK,), {"require_pushed_authorization_requests": True}),
    RegisteredClient("service", SECRET, (), {"grant_types": ["client_credentials"], "response_types": []}),
]
Outcome = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), CLIENTS) as running:
        yield running


@pytest.fixture
async def outgoing() -> AsyncIterator[OutgoingClient]:
    async with OutgoingClient(HERE) as outgoing_client:
        yield outgoing_client


def declare_connection(issuer: str, client_id: str = "people", **more: Any) -> dict[str, Any]:
    return {
        "title": "Example",
        "system": "example",
        "mode": "shared" if client_id == "service" else "user",
        "base_url": "http://127.0.0.1/api",
        "scopes": [] if client_id == "service" else ["openid"],
        "client_id": client_id,
        "client_secret": {"env": "SECRET"},
        "provider": {"issuer": issuer},
        **more,
    }


async def run_connection_check(
    outgoing: OutgoingClient, declaration: dict[str, Any], secret: str = SECRET
) -> Outcome:
    """What came of each part of a trial."""
    connection = Connection.model_validate({"name": "tried", **declaration})
    environment = {"SECRET": secret} if secret else {}
    results = await checked(connection, environment, outgoing)
    return {result.checked_part: (result.state, result.explanation) for result in results}


@pytest.mark.parametrize("client_id", ["people", "pushing"])
async def test_a_connection_that_people_can_sign_in_by_passes_and_shows_the_redirect_uri(
    provider: OidcProvider, outgoing: OutgoingClient, client_id: str
) -> None:
    results = await run_connection_check(outgoing, declare_connection(provider.issuer, client_id))

    assert {state for state, _ in results.values()} == {"ok"}
    assert list(results) == ["secret", "endpoints", "consent page", "client", "redirect URI", "upstream"]
    assert CALLBACK in results["redirect URI"][1]


async def test_a_shared_connection_is_checked_by_signing_in(
    provider: OidcProvider, outgoing: OutgoingClient
) -> None:
    results = await run_connection_check(outgoing, declare_connection(provider.issuer, "service"))

    assert {part: state for part, (state, _) in results.items()} == {
        "secret": "ok",
        "endpoints": "ok",
        "client": "ok",
        "upstream": "ok",
    }


@pytest.mark.parametrize("client_id", ["people", "service", "nobody"])
async def test_a_client_that_the_provider_does_not_accept_is_reported_as_that(
    provider: OidcProvider, outgoing: OutgoingClient, client_id: str
) -> None:
    results = await run_connection_check(
        outgoing, declare_connection(provider.issuer, client_id), secret="of somebody else"
    )

    assert results["client"][0] == "wrong"
    assert "does not accept it (invalid_client): check client_id, its secret" in results["client"][1]
    assert "of somebody else" not in str(results)


async def test_a_missing_secret_is_reported_before_any_request(outgoing: OutgoingClient) -> None:
    results = await run_connection_check(outgoing, declare_connection("http://127.0.0.1:9"), secret="")

    assert results["secret"] == ("wrong", "The client secret is not there: set SECRET.")
    assert list(results) == ["secret", "upstream"]


@pytest.mark.parametrize(
    ("base_url", "expected_message"),
    [
        ("http://127.0.0.1/api", "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        ("http://169.254.169.254/latest", "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        ("http://no..such..host/", "is not known"),
    ],
)
async def test_an_upstream_that_no_action_may_call_is_reported_ahead(
    provider: OidcProvider, base_url: str, expected_message: str
) -> None:
    async with OutgoingClient(OutgoingSettings(allow_http=True)) as careful:
        results = await run_connection_check(careful, declare_connection(provider.issuer, base_url=base_url))

    assert results["upstream"][0] == "wrong"
    assert expected_message in results["upstream"][1]


@pytest.mark.parametrize(
    ("settings", "expected_message"),
    [
        (OutgoingSettings(allow_http=True), "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        (OutgoingSettings(), "BYLINE_OUTGOING__ALLOW_HTTP"),
    ],
)
@pytest.mark.parametrize("client_id", ["people", "service"])
async def test_a_sign_in_service_that_may_not_be_called_is_reported_beside_the_rest(
    client_id: str, settings: OutgoingSettings, expected_message: str
) -> None:
    inside = "http://127.0.0.1"
    endpoints = {"authorization_endpoint": f"{inside}/authorize", "token_endpoint": f"{inside}/token"}
    async with OutgoingClient(settings) as careful:
        results = await run_connection_check(
            careful, declare_connection(inside, client_id, provider=endpoints)
        )

    assert results["client"][0] == "wrong"
    assert expected_message in results["client"][1]
    assert results["upstream"][0] == "wrong"


async def test_an_unreachable_issuer_is_reported(outgoing: OutgoingClient) -> None:
    results = await run_connection_check(outgoing, declare_connection(f"http://127.0.0.1:{free_port()}"))

    assert results["endpoints"][0] == "wrong"
    assert "cannot be reached" in results["endpoints"][1]
    assert "client" not in results


async def test_endpoints_that_nobody_serves_are_reported_one_by_one(outgoing: OutgoingClient) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    endpoints = {"authorization_endpoint": f"{nowhere}/authorize", "token_endpoint": f"{nowhere}/token"}
    results = await run_connection_check(outgoing, declare_connection("", provider=endpoints))

    assert (results["consent page"][0], results["client"][0]) == ("wrong", "wrong")
    assert "Check token_endpoint" in results["client"][1]


async def test_an_unregistered_redirect_uri_is_reported(
    provider: OidcProvider, outgoing: OutgoingClient
) -> None:
    connection = Connection.model_validate({"name": "tried", **declare_connection(provider.issuer)})
    elsewhere = replace(
        resources(outgoing, {"SECRET": SECRET}), redirect_uri="https://elsewhere.example.com/callback"
    )
    results = {
        result.checked_part: result
        for result in await check_connection(connection, SignInMethods(elsewhere), outgoing)
    }

    assert results["consent page"].state == "wrong"
    assert "that the redirect URI is registered" in results["consent page"].explanation


@pytest.mark.parametrize(
    ("status", "body", "consent_page", "client", "expected_message"),
    [
        (404, b"{}", "wrong", "wrong", "gives"),
        (503, b"{}", "wrong", "wrong", "503"),
        (400, b'{"error": "invalid_grant"}', "unclear", "ok", "knows it"),
        (200, b'{"error": "invalid_grant"}', "ok", "ok", "knows it"),
        (200, b'{"error": "bad_client_secret"}', "ok", "wrong", "bad_client_secret"),
        (200, b'{"error": "bad_verification_code"}', "ok", "ok", "knows it"),
        (200, b'{"error": "no_such_code"}', "ok", "unclear", "says nothing of the client"),
        (200, b'{"access_token": "a"}', "ok", "wrong", "a code that nobody issued"),
        (200, b"<html>", "ok", "wrong", "Check token_endpoint"),
    ],
)
async def test_a_provider_with_words_of_its_own_is_understood_as_far_as_that_goes(
    outgoing: OutgoingClient, status: int, body: bytes, consent_page: str, client: str, expected_message: str
) -> None:
    async with run_hostile_server() as server:
        server.answers = [build_answer(body, "Content-Type: application/json", status=status)]
        endpoints = {"authorization_endpoint": server.url, "token_endpoint": server.url}
        results = await run_connection_check(outgoing, declare_connection("", provider=endpoints))

    assert results["consent page"][0] == consent_page
    assert results["client"][0] == client
    assert expected_message in results["client"][1] or status == 404


async def test_a_check_reads_the_connections_file_as_it_is_now(
    provider: OidcProvider, tmp_path: Path
) -> None:
    file = tmp_path / "connections.yml"
    byline = Commands(
        {
            "BYLINE_DATABASE__URL": f"sqlite+aiosqlite:///{tmp_path / 'byline.db'}",
            "BYLINE_VAULT__KEYRING_FILE": str(tmp_path / "keyring.json"),
            "BYLINE_GATEWAY__PUBLIC_URL": "https://byline.example.com",
            "BYLINE_CONNECTIONS_FILE": str(file),
            "BYLINE_OUTGOING__ALLOW_HTTP": "true",
            "BYLINE_OUTGOING__ALLOW_PRIVATE": "true",
            "SECRET": SECRET,
            "WRONG": "of somebody else",
        },
        tmp_path,
    )
    wrong = declare_connection(provider.issuer, client_secret={"env": "WRONG"})
    file.write_text(
        yaml.safe_dump({"connections": {"fine": declare_connection(provider.issuer), "wrong": wrong}})
    )

    await byline.read_output("migrate")
    fine = await byline.read_output("connections", "test", "fine")
    refusal = await byline("connections", "test", "wrong")
    unknown = await byline.read_refusal("connections", "test", "nowhere")

    assert f"register {CALLBACK} with the provider" in fine
    assert refusal.code == 1
    assert "invalid_client" in refusal.out
    assert "of somebody else" not in refusal.out + refusal.err
    assert "There is no connection 'nowhere'" in unknown
