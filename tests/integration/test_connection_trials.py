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
from tests.data.commands import Commands
from tests.foreign.oidc_provider import Client, OidcProvider, oidc_provider
from tests.foreign.process import free_port
from tests.hostile import answer, hostile
from tests.signing_in import REDIRECT_URI as CALLBACK
from tests.signing_in import checked, resources

HERE = OutgoingSettings(allow_http=True, allow_private=True)
SECRET = secrets.token_urlsafe(24)
CLIENTS = [
    Client("people", SECRET, (CALLBACK,)),
    Client("pushing", SECRET, (CALLBACK,), {"require_pushed_authorization_requests": True}),
    Client("service", SECRET, (), {"grant_types": ["client_credentials"], "response_types": []}),
]
Outcome = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), CLIENTS) as running:
        yield running


@pytest.fixture
async def outgoing() -> AsyncIterator[OutgoingClient]:
    async with OutgoingClient(HERE) as opened:
        yield opened


def declaration(issuer: str, client_id: str = "people", **more: Any) -> dict[str, Any]:
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


async def tried(outgoing: OutgoingClient, declared: dict[str, Any], secret: str = SECRET) -> Outcome:
    """What came of each part of a trial."""
    connection = Connection.model_validate({"name": "tried", **declared})
    environment = {"SECRET": secret} if secret else {}
    found = await checked(connection, environment, outgoing)
    return {each.checked_part: (each.state, each.explanation) for each in found}


@pytest.mark.parametrize("client_id", ["people", "pushing"])
async def test_a_connection_that_people_can_sign_in_by_passes_and_tells_the_redirect_uri(
    provider: OidcProvider, outgoing: OutgoingClient, client_id: str
) -> None:
    found = await tried(outgoing, declaration(provider.issuer, client_id))

    assert {state for state, _ in found.values()} == {"ok"}
    assert list(found) == ["secret", "endpoints", "consent page", "client", "redirect URI", "upstream"]
    assert CALLBACK in found["redirect URI"][1]


async def test_a_shared_connection_is_tried_by_signing_in(
    provider: OidcProvider, outgoing: OutgoingClient
) -> None:
    found = await tried(outgoing, declaration(provider.issuer, "service"))

    assert {part: state for part, (state, _) in found.items()} == {
        "secret": "ok",
        "endpoints": "ok",
        "client": "ok",
        "upstream": "ok",
    }


@pytest.mark.parametrize("client_id", ["people", "service", "nobody"])
async def test_a_client_that_the_provider_does_not_accept_is_told_as_that(
    provider: OidcProvider, outgoing: OutgoingClient, client_id: str
) -> None:
    found = await tried(outgoing, declaration(provider.issuer, client_id), secret="of somebody else")

    assert found["client"][0] == "wrong"
    assert "does not accept it (invalid_client): check client_id, its secret" in found["client"][1]
    assert "of somebody else" not in str(found)


async def test_a_secret_that_is_not_there_is_told_before_anybody_is_called(outgoing: OutgoingClient) -> None:
    found = await tried(outgoing, declaration("http://127.0.0.1:9"), secret="")

    assert found["secret"] == ("wrong", "The client secret is not there: set SECRET.")
    assert list(found) == ["secret", "upstream"]


@pytest.mark.parametrize(
    ("base_url", "told"),
    [
        ("http://127.0.0.1/api", "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        ("http://169.254.169.254/latest", "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        ("http://no..such..host/", "is not known"),
    ],
)
async def test_an_upstream_that_no_action_may_call_is_told_ahead(
    provider: OidcProvider, base_url: str, told: str
) -> None:
    async with OutgoingClient(OutgoingSettings(allow_http=True)) as careful:
        found = await tried(careful, declaration(provider.issuer, base_url=base_url))

    assert found["upstream"][0] == "wrong"
    assert told in found["upstream"][1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (OutgoingSettings(allow_http=True), "BYLINE_OUTGOING__PRIVATE_HOSTS"),
        (OutgoingSettings(), "BYLINE_OUTGOING__ALLOW_HTTP"),
    ],
)
@pytest.mark.parametrize("client_id", ["people", "service"])
async def test_a_sign_in_service_that_may_not_be_called_is_told_beside_the_rest(
    client_id: str, settings: OutgoingSettings, told: str
) -> None:
    inside = "http://127.0.0.1"
    endpoints = {"authorization_endpoint": f"{inside}/authorize", "token_endpoint": f"{inside}/token"}
    async with OutgoingClient(settings) as careful:
        found = await tried(careful, declaration(inside, client_id, provider=endpoints))

    assert found["client"][0] == "wrong"
    assert told in found["client"][1]
    assert found["upstream"][0] == "wrong"


async def test_an_issuer_that_is_not_there_is_told(outgoing: OutgoingClient) -> None:
    found = await tried(outgoing, declaration(f"http://127.0.0.1:{free_port()}"))

    assert found["endpoints"][0] == "wrong"
    assert "cannot be reached" in found["endpoints"][1]
    assert "client" not in found


async def test_endpoints_that_nobody_serves_are_told_one_by_one(outgoing: OutgoingClient) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    endpoints = {"authorization_endpoint": f"{nowhere}/authorize", "token_endpoint": f"{nowhere}/token"}
    found = await tried(outgoing, declaration("", provider=endpoints))

    assert (found["consent page"][0], found["client"][0]) == ("wrong", "wrong")
    assert "Check token_endpoint" in found["client"][1]


async def test_a_redirect_uri_that_is_not_registered_is_told(
    provider: OidcProvider, outgoing: OutgoingClient
) -> None:
    connection = Connection.model_validate({"name": "tried", **declaration(provider.issuer)})
    elsewhere = replace(
        resources(outgoing, {"SECRET": SECRET}), redirect_uri="https://elsewhere.example.com/callback"
    )
    found = {
        each.checked_part: each
        for each in await check_connection(connection, SignInMethods(elsewhere), outgoing)
    }

    assert found["consent page"].state == "wrong"
    assert "that the redirect URI is registered" in found["consent page"].explanation


@pytest.mark.parametrize(
    ("status", "body", "consent_page", "client", "told"),
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
    outgoing: OutgoingClient, status: int, body: bytes, consent_page: str, client: str, told: str
) -> None:
    async with hostile() as server:
        server.answers = [answer(body, "Content-Type: application/json", status=status)]
        endpoints = {"authorization_endpoint": server.url, "token_endpoint": server.url}
        found = await tried(outgoing, declaration("", provider=endpoints))

    assert found["consent page"][0] == consent_page
    assert found["client"][0] == client
    assert told in found["client"][1] or status == 404


async def test_an_administrator_is_told_from_the_file_as_it_is_now(
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
    wrong = declaration(provider.issuer, client_secret={"env": "WRONG"})
    file.write_text(yaml.safe_dump({"connections": {"fine": declaration(provider.issuer), "wrong": wrong}}))

    await byline.answer("migrate")
    fine = await byline.answer("connections", "test", "fine")
    refused = await byline("connections", "test", "wrong")
    unknown = await byline.refusal("connections", "test", "nowhere")

    assert f"register {CALLBACK} with the provider" in fine
    assert refused.code == 1
    assert "invalid_client" in refused.out
    assert "of somebody else" not in refused.out + refused.err
    assert "There is no connection 'nowhere'" in unknown
