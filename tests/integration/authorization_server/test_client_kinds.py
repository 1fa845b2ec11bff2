import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata
from pydantic import AnyUrl
from sqlalchemy import update
from sqlmodel import col, select
from starlette.responses import JSONResponse, RedirectResponse, Response

from engine.db.database import utc_now
from engine.db.tables import OAuthClientRow
from engine.errors import ClientRefused, SettingsInvalid, UpstreamUnavailable
from engine.settings import OutgoingSettings
from examples.browser import Browser
from examples.chat import MemoryTokenStorage
from gateway.authorization_server.metadata_documents import MetadataDocuments
from gateway.protected_resource import MCP_SCOPE
from tests.integration.authorization_server.test_authorization_server import (
    REDIRECT_URI,
    HandwrittenClient,
    read_query,
    register_client,
)
from tests.support.administration import SHELL, registered_clients_of
from tests.support.page_server import PageServer, serve_pages
from tests.support.receivers import Receiver, run_receiver

HERE = OutgoingSettings(allow_http=True, allow_private=True)
WEB = "https://chat.example/callback"


@dataclass
class MetadataSite:
    """A client's own site, which describes the client at `/client.json`."""

    receiving: Receiver

    @property
    def address(self) -> str:
        """The client id."""
        return f"http://127.0.0.1:{self.receiving.port}/client.json"

    def describe_client(self, cache: str = "max-age=0", **changes: object) -> JSONResponse:
        """The description, as the next request is answered, but for what is changed."""
        document = {
            "client_id": self.address,
            "client_name": "Described",
            "redirect_uris": [WEB, "http://127.0.0.1/callback"],
            **changes,
        }
        document_fields = {name: value for name, value in document.items() if value is not None}
        return JSONResponse(document_fields, headers={"Cache-Control": cache})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def byline(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageServer]:
    async with serve_pages(tmp_path_factory.mktemp("clients"), outgoing=HERE) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(byline: PageServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[MetadataSite]:
    async with run_receiver() as receiving:
        yield MetadataSite(receiving)


pytestmark = pytest.mark.asyncio(loop_scope="session")


def describe_application(
    byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> HandwrittenClient:
    return HandwrittenClient(byline, http, {"client_id": site.address})


async def ask(application: HandwrittenClient, **changes: str | None) -> str:
    """What a person reads on the page that asks them."""
    async with Browser() as browser:
        await application.byline.sign_in(browser, "alice")
        return (await browser.open(application.build_question_url(**changes))).text


async def test_a_client_is_known_by_the_document_at_its_address(
    byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> None:
    site.receiving.answers.append(site.describe_client())
    client = describe_application(byline, http, site)
    read = await ask(client, redirect_uri=WEB)
    on_this_computer = await ask(client, redirect_uri="http://127.0.0.1:61234/callback")
    code = await client.fetch_code(redirect_uri="http://127.0.0.1:61234/callback")
    token_response = (await client.redeem_code(code, redirect_uri="http://127.0.0.1:61234/callback")).json()
    renewed_response = (await client.refresh_tokens(token_response["refresh_token"])).json()

    host = urlsplit(site.address).netloc
    assert f"described at <strong>{host}</strong>" in read
    assert "<strong>chat.example</strong>" in read
    assert "Any program on your computer" not in read
    assert "Any program on your computer" in on_this_computer
    assert (await byline.fetch_whoami(renewed_response["access_token"])).json()["client"] == site.address
    # Kept for a minute at least, whatever its cache headers say.
    assert [post.path for post in site.receiving.posts] == ["/client.json"]
    metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
    assert metadata["client_id_metadata_document_supported"] is True


DOCUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "that is another's": ({"client_id": "https://claude.example/client.json"}, "has to be its own address"),
    "that differs by a slash": ({"client_id": "http://127.0.0.1/client.json/"}, "has to be its own address"),
    "without an id": ({"client_id": None}, "see client_id"),
    "with a secret": ({"client_secret": "open"}, "everybody can read"),
    "that wants a secret": ({"token_endpoint_auth_method": "client_secret_basic"}, "is none"),
    "that sends people nowhere": ({"redirect_uris": []}, "no redirect_uris"),
    "that runs code": ({"redirect_uris": ["javascript:alert(1)"]}, "leads to no application"),
    "that sends codes in the clear": ({"redirect_uris": ["http://chat.example/"]}, "use https"),
    "of the wrong types": ({"redirect_uris": WEB}, "see redirect_uris"),
}


@pytest.mark.parametrize("kind", DOCUMENTS)
async def test_a_document_is_refused(
    kind: str, byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> None:
    changes, expected_message = DOCUMENTS[kind]
    site.receiving.answers.append(site.describe_client(**changes))
    response = await http.get(describe_application(byline, http, site).build_question_url(redirect_uri=WEB))

    assert response.status_code == 400
    assert response.headers["content-type"].startswith("text/html")
    assert "cannot continue" in response.text
    assert expected_message in response.text


ANSWERS: dict[str, tuple[Response, int, str]] = {
    "a redirect": (RedirectResponse("http://169.254.169.254/latest/meta-data"), 400, "not followed"),
    "a page": (Response("<html>", media_type="text/html"), 400, "text/html"),
    "nothing": (Response(status_code=404), 400, "answers 404"),
    "no JSON": (Response("{", media_type="application/json"), 400, "is not JSON"),
    "a list": (JSONResponse([]), 400, "does not describe"),
    "JSON without end": (Response("[" * 15_000, media_type="application/json"), 400, "is not JSON"),
    "too much": (Response("x" * 20_000, media_type="application/json"), 400, "more than 16,384 bytes"),
    "a failure": (Response(status_code=503), 503, "Try again later"),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_address_that_describes_no_client_is_reported_in_words(
    kind: str, byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> None:
    served_response, status, expected_message = ANSWERS[kind]
    site.receiving.answers.extend([served_response, served_response, served_response])
    page = await http.get(describe_application(byline, http, site).build_question_url(redirect_uri=WEB))
    token = await http.post(
        "/token", data={"grant_type": "refresh_token", "refresh_token": "x", "client_id": site.address}
    )

    revocation_response = await http.post("/revoke", data={"token": "x", "client_id": site.address})

    assert (page.status_code, expected_message in page.text) == (status, True), page.text
    attempts = [attempt["error"] for attempt in await byline.list_trail_events("attempt.refused")]
    assert status != 400 or attempts.count("client_refused") == 1
    for response in (token, revocation_response):
        assert response.status_code == (401 if status == 400 else 503)
        assert response.json()["error"] == ("invalid_client" if status == 400 else "temporarily_unavailable")
    assert len(site.receiving.posts) == 3


async def test_a_host_is_not_overrun_by_asking_for_clients_that_it_does_not_describe(
    byline: PageServer, site: MetadataSite
) -> None:
    documents = MetadataDocuments(byline.services.outgoing, [MCP_SCOPE])
    # Two minutes may meet in this, and each has its own hundred.
    results = await asyncio.gather(
        *(documents.find_client(site.address) for _ in range(202)), return_exceptions=True
    )
    refusals = [result for result in results if isinstance(result, UpstreamUnavailable)]

    assert {type(result) for result in results} == {ClientRefused, UpstreamUnavailable}
    assert all("Try again in a minute" in str(result) for result in refusals)
    assert len(site.receiving.posts) == len(results) - len(refusals) <= 200


async def test_a_document_that_was_good_stays_so_while_its_host_is_silent_and_no_longer_once_it_is_gone(
    byline: PageServer, site: MetadataSite
) -> None:
    seconds = 0.0
    documents = MetadataDocuments(byline.services.outgoing, [MCP_SCOPE], clock=lambda: seconds)
    site.receiving.answers.extend(
        [
            site.describe_client("max-age=120"),
            Response(status_code=503),
            site.describe_client("no-store"),
            Response(status_code=404),
        ]
    )
    shown_names = []
    for passes in (0, 119, 2, 0, 61):
        seconds += passes
        try:
            shown_names.append((await documents.find_client(site.address)).display_name)
        except ClientRefused:
            shown_names.append("gone")

    assert shown_names == ["Described"] * 4 + ["gone"]
    assert len(site.receiving.posts) == 4


async def test_a_redirect_that_the_document_does_not_name_gets_no_code(
    byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> None:
    site.receiving.answers.append(site.describe_client())
    client = describe_application(byline, http, site)
    refusals = [
        await http.get(client.build_question_url(redirect_uri=uri))
        for uri in (
            f"{WEB}/",
            f"{WEB}?x=1",
            "https://chat.example.evil.example/callback",
            "https://chat.example@evil.example/callback",
            "https://chat.example:8443/callback",
            "http://chat.example/callback",
            "http://127.0.0.1:1/callback/../other",
            "http://localhost/callback",
            "http://127.0.0.1.evil.example/callback",
            None,
        )
    ]

    assert [response.status_code for response in refusals] == [400] * 10
    assert all("location" not in response.headers for response in refusals)


async def test_a_stock_client_brings_its_address_in_the_place_of_a_registration(
    byline: PageServer, site: MetadataSite
) -> None:
    memory, answers = MemoryTokenStorage(), asyncio.Queue[AuthorizationCodeResult]()
    site.receiving.answers.append(site.describe_client(redirect_uris=[REDIRECT_URI]))

    async def show(url: str) -> None:
        async with Browser(stop_at=REDIRECT_URI) as browser:
            await byline.sign_in(browser, "bob")
            query = read_query(await (await browser.open(url)).form(submit="Allow"))
            await answers.put(AuthorizationCodeResult(**query))

    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(REDIRECT_URI)], client_name="Described")
    provider = OAuthClientProvider(f"{byline.url}/mcp", metadata, memory, show, answers.get)
    # It takes nothing but https for such an address, which a server of this machine does not have.
    provider.context.client_metadata_url = site.address
    async with httpx2.AsyncClient(auth=provider) as client:
        response = await client.get(f"{byline.url}/mcp")

    assert response.json()["client"] == site.address
    assert memory.client is not None
    assert memory.client.client_secret is None


@pytest.mark.parametrize(
    "address",
    [
        "https://169.254.169.254/client.json",
        "https://127.0.0.1/client.json",
        "https://[::1]/client.json",
        "https://2130706433/client.json",
        "http://chat.example/client.json",
        "https://chat.example/",
        "https://chat.example/a/../client.json",
        "https://chat.example/%2e%2e/client.json",
        "https://user:password@chat.example/client.json",
        "https://chat.example/client.json#part",
    ],
)
async def test_an_address_of_a_private_network_or_another_form_is_not_called(
    address: str, closed_gateway: PageServer
) -> None:
    async with httpx2.AsyncClient(base_url=closed_gateway.url) as http:
        response = await http.get(
            HandwrittenClient(closed_gateway, http, {"client_id": address}).build_question_url()
        )

    assert response.status_code == 422
    assert "cannot continue" in response.text


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def closed_gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageServer]:
    """A gateway as it is without development settings, at which nobody registers themselves."""
    folder = tmp_path_factory.mktemp("closed")
    async with serve_pages(folder, outgoing=OutgoingSettings(), open_registration=False) as running:
        yield running


async def test_clients_do_not_register_where_settings_say_so(closed_gateway: PageServer) -> None:
    async with httpx2.AsyncClient(base_url=closed_gateway.url) as http:
        metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
        refusal = await register_client(http)

    assert "registration_endpoint" not in metadata
    assert refusal.status_code == 404


async def test_an_administrators_client_is_named_as_such_and_needs_its_secret(
    closed_gateway: PageServer,
) -> None:
    clients = closed_gateway.gateway_services.oauth_tables.registered_clients
    open_id, none = await clients.add_client(
        SHELL, "Desktop", ["http://127.0.0.1/callback"], is_confidential=False, may_assert=False
    )
    client_id, secret = await clients.add_client(
        SHELL, "Portal", [WEB], is_confidential=True, may_assert=False
    )
    async with httpx2.AsyncClient(base_url=closed_gateway.url) as http:
        desktop = HandwrittenClient(closed_gateway, http, {"client_id": open_id})
        portal = HandwrittenClient(closed_gateway, http, {"client_id": client_id})
        read = await ask(portal, redirect_uri=WEB)
        first = await desktop.fetch_tokens()
        code = await portal.fetch_code(redirect_uri=WEB)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": WEB,
            "code_verifier": portal.verifier,
        }
        without = await http.post("/token", data={"client_id": client_id, **form})
        wrong = await http.post("/token", data=form, auth=(client_id, "guessed"))
        right = await http.post("/token", data=form, auth=(client_id, str(secret)))
        whoami = await closed_gateway.fetch_whoami(right.json()["access_token"])
        await clients.remove_client(SHELL, client_id)
        registered_names = [
            (client.client_name, client.application_type) for client in await clients.list_clients()
        ]

    assert none is None
    assert first["refresh_token"]
    assert "An administrator of Byline registered it" in read
    assert (without.status_code, wrong.status_code, right.status_code) == (401, 401, 200)
    assert whoami.json()["client"] == client_id
    assert registered_names == [("Desktop", "native")]


@pytest.mark.parametrize(
    ("uris", "options", "expected_message"),
    [
        ([], {}, "--redirect-uri"),
        (["/callback"], {}, "whole"),
        (["http://chat.example/"], {}, "use https"),
        ([WEB], {"asserts": True}, "--secret"),
    ],
)
async def test_a_client_that_makes_no_sense_is_not_registered(
    closed_gateway: PageServer, uris: list[str], options: dict[str, bool], expected_message: str
) -> None:
    with pytest.raises(SettingsInvalid, match=expected_message):
        await registered_clients_of(closed_gateway.services).add_client(
            SHELL, "Odd", uris, is_confidential=False, may_assert=options.get("asserts", False)
        )


@pytest.mark.parametrize(
    ("kind", "uri", "status"),
    [
        ("web", "http://127.0.0.1:4567/callback", 400),
        ("web", "cursor://callback", 400),
        ("web", WEB, 201),
        ("native", "cursor://callback", 201),
        ("native", WEB, 201),
    ],
)
async def test_a_web_application_registers_no_place_on_somebodys_computer(
    http: httpx2.AsyncClient, kind: Literal["web", "native"], uri: str, status: int
) -> None:
    response = await register_client(http, application_type=kind, redirect_uris=[uri])

    assert response.status_code == status
    assert status == 201 or response.json()["error"] == "invalid_redirect_uri"


async def test_registrations_are_so_many_an_hour_and_those_that_nobody_uses_are_forgotten(
    tmp_path: Path,
) -> None:
    async with (
        serve_pages(tmp_path, registrations_per_hour=3) as byline,
        httpx2.AsyncClient(base_url=byline.url) as http,
    ):
        used_client_id, unused_client_id, left = [
            (await register_client(http)).json()["client_id"] for _ in range(3)
        ]
        await HandwrittenClient(byline, http, {"client_id": used_client_id}).fetch_tokens()
        too_many = await register_client(http)
        await age_clients(
            byline,
            {
                used_client_id: timedelta(days=2),
                unused_client_id: timedelta(days=2),
                left: timedelta(hours=2),
            },
        )
        room = await register_client(http)
        async with byline.services.database.open_read_session() as session:
            kept_client_ids = set((await session.exec(select(OAuthClientRow.client_id))).all())

    assert too_many.status_code == 429
    assert too_many.json()["error"] == "temporarily_unavailable"
    assert "within the hour" in too_many.json()["error_description"]
    assert room.status_code == 201
    assert room.json()["scope"] == "mcp"
    assert kept_client_ids == {used_client_id, left, room.json()["client_id"]}


async def age_clients(byline: PageServer, by: Mapping[str, timedelta]) -> None:
    async with byline.services.database.open_write_session() as session:
        for client_id, ago in by.items():
            row = update(OAuthClientRow).where(col(OAuthClientRow.client_id) == client_id)
            await session.exec(row.values(created_at=utc_now() - ago))


async def test_a_client_that_uses_anothers_name_is_distinguished(
    byline: PageServer, http: httpx2.AsyncClient, site: MetadataSite
) -> None:
    registration = (
        await register_client(http, client_name="Claude", redirect_uris=["https://evil.example/cb"])
    ).json()
    itself = await ask(HandwrittenClient(byline, http, registration), redirect_uri="https://evil.example/cb")
    site.receiving.answers.append(
        site.describe_client(client_name="Claude", redirect_uris=["https://evil.example/cb"])
    )
    document = await ask(describe_application(byline, http, site), redirect_uri="https://evil.example/cb")

    assert "registered itself, and nobody has checked" in itself
    assert f"described at <strong>127.0.0.1:{site.receiving.port}</strong>" in document
    for read in (itself, document):
        assert "<strong>evil.example</strong>" in read
        assert "An administrator" not in read


async def test_a_client_cannot_register_under_an_address_nor_as_what_only_administrators_make(
    http: httpx2.AsyncClient,
) -> None:
    document_fields = {"client_id": "https://claude.example/client.json", "known_by": "administrator"}
    registration = (await register_client(http, **document_fields)).json()
    asserting = await register_client(
        http,
        grant_types=["authorization_code", "urn:ietf:params:oauth:grant-type:jwt-bearer"],
        token_endpoint_auth_method="client_secret_post",
    )

    assert not registration["client_id"].startswith("https")
    assert asserting.status_code == 400
    assert asserting.json()["error"] == "invalid_client_metadata"
