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
from examples.chat import Memory
from gateway.authorization_server.metadata_documents import MetadataDocuments
from gateway.protected_resource import MCP_SCOPE
from tests.integration.test_authorization_server import REDIRECT_URI, Application, answer, register
from tests.listeners import Receiver, receiver
from tests.pages import Byline, serving

HERE = OutgoingSettings(allow_http=True, allow_private=True)
WEB = "https://chat.example/callback"


@dataclass
class Site:
    """A client's own site, which describes the client at `/client.json`."""

    receiving: Receiver

    @property
    def address(self) -> str:
        """The client id."""
        return f"http://127.0.0.1:{self.receiving.port}/client.json"

    def describes(self, cache: str = "max-age=0", **changed: object) -> JSONResponse:
        """The description, as the next request is answered, but for what is changed."""
        document = {
            "client_id": self.address,
            "client_name": "Described",
            "redirect_uris": [WEB, "http://127.0.0.1/callback"],
            **changed,
        }
        stated = {name: value for name, value in document.items() if value is not None}
        return JSONResponse(stated, headers={"Cache-Control": cache})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def byline(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Byline]:
    async with serving(tmp_path_factory.mktemp("clients"), outgoing=HERE) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def http(byline: Byline) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=byline.url) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[Site]:
    async with receiver() as receiving:
        yield Site(receiving)


pytestmark = pytest.mark.asyncio(loop_scope="session")


def described(byline: Byline, http: httpx2.AsyncClient, site: Site) -> Application:
    return Application(byline, http, {"client_id": site.address})


async def asked(application: Application, **changed: str | None) -> str:
    """What a person reads on the page that asks them."""
    async with Browser() as browser:
        await application.byline.signed_in(browser, "alice")
        return (await browser.open(application.question(**changed))).text


async def test_a_client_is_known_by_the_document_at_its_address(
    byline: Byline, http: httpx2.AsyncClient, site: Site
) -> None:
    site.receiving.answers.append(site.describes())
    client = described(byline, http, site)
    read = await asked(client, redirect_uri=WEB)
    on_this_computer = await asked(client, redirect_uri="http://127.0.0.1:61234/callback")
    code = await client.code(redirect_uri="http://127.0.0.1:61234/callback")
    issued = (await client.redeem(code, redirect_uri="http://127.0.0.1:61234/callback")).json()
    renewed = (await client.refresh(issued["refresh_token"])).json()

    host = urlsplit(site.address).netloc
    assert f"described at <strong>{host}</strong>" in read
    assert "<strong>chat.example</strong>" in read
    assert "Any program on your computer" not in read
    assert "Any program on your computer" in on_this_computer
    assert (await byline.whoami(renewed["access_token"])).json()["client"] == site.address
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
async def test_a_document_is_refused(kind: str, byline: Byline, http: httpx2.AsyncClient, site: Site) -> None:
    changed, told = DOCUMENTS[kind]
    site.receiving.answers.append(site.describes(**changed))
    response = await http.get(described(byline, http, site).question(redirect_uri=WEB))

    assert response.status_code == 400
    assert response.headers["content-type"].startswith("text/html")
    assert "cannot continue" in response.text
    assert told in response.text


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
async def test_an_address_that_describes_no_client_is_told_in_words(
    kind: str, byline: Byline, http: httpx2.AsyncClient, site: Site
) -> None:
    given, status, told = ANSWERS[kind]
    site.receiving.answers.extend([given, given, given])
    page = await http.get(described(byline, http, site).question(redirect_uri=WEB))
    token = await http.post(
        "/token", data={"grant_type": "refresh_token", "refresh_token": "x", "client_id": site.address}
    )

    revoked = await http.post("/revoke", data={"token": "x", "client_id": site.address})

    assert (page.status_code, told in page.text) == (status, True), page.text
    tried = [each["error"] for each in await byline.trail("attempt.refused")]
    assert status != 400 or tried.count("client_refused") == 1
    for response in (token, revoked):
        assert response.status_code == (401 if status == 400 else 503)
        assert response.json()["error"] == ("invalid_client" if status == 400 else "temporarily_unavailable")
    assert len(site.receiving.posts) == 3


async def test_a_host_is_not_overrun_by_asking_for_clients_that_it_does_not_describe(
    byline: Byline, site: Site
) -> None:
    documents = MetadataDocuments(byline.services.outgoing, [MCP_SCOPE])
    # Two minutes may meet in this, and each has its own hundred.
    told = await asyncio.gather(
        *(documents.find_client(site.address) for _ in range(202)), return_exceptions=True
    )
    refused = [each for each in told if isinstance(each, UpstreamUnavailable)]

    assert {type(each) for each in told} == {ClientRefused, UpstreamUnavailable}
    assert all("Try again in a minute" in str(each) for each in refused)
    assert len(site.receiving.posts) == len(told) - len(refused) <= 200


async def test_a_document_that_was_good_stays_so_while_its_host_is_silent_and_no_longer_once_it_is_gone(
    byline: Byline, site: Site
) -> None:
    seconds = 0.0
    documents = MetadataDocuments(byline.services.outgoing, [MCP_SCOPE], clock=lambda: seconds)
    site.receiving.answers.extend(
        [
            site.describes("max-age=120"),
            Response(status_code=503),
            site.describes("no-store"),
            Response(status_code=404),
        ]
    )
    seen = []
    for passes in (0, 119, 2, 0, 61):
        seconds += passes
        try:
            seen.append((await documents.find_client(site.address)).display_name)
        except ClientRefused:
            seen.append("gone")

    assert seen == ["Described"] * 4 + ["gone"]
    assert len(site.receiving.posts) == 4


async def test_a_redirect_that_the_document_does_not_name_gets_no_code(
    byline: Byline, http: httpx2.AsyncClient, site: Site
) -> None:
    site.receiving.answers.append(site.describes())
    client = described(byline, http, site)
    refused = [
        await http.get(client.question(redirect_uri=uri))
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

    assert [response.status_code for response in refused] == [400] * 10
    assert all("location" not in response.headers for response in refused)


async def test_a_stock_client_brings_its_address_in_the_place_of_a_registration(
    byline: Byline, site: Site
) -> None:
    memory, answers = Memory(), asyncio.Queue[AuthorizationCodeResult]()
    site.receiving.answers.append(site.describes(redirect_uris=[REDIRECT_URI]))

    async def show(url: str) -> None:
        async with Browser(stop_at=REDIRECT_URI) as browser:
            await byline.signed_in(browser, "bob")
            got = answer(await (await browser.open(url)).form(submit="Allow"))
            await answers.put(AuthorizationCodeResult(**got))

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
    address: str, closed: Byline
) -> None:
    async with httpx2.AsyncClient(base_url=closed.url) as http:
        response = await http.get(Application(closed, http, {"client_id": address}).question())

    assert response.status_code == 422
    assert "cannot continue" in response.text


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def closed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Byline]:
    """A gateway as it is without development settings, at which nobody registers themselves."""
    folder = tmp_path_factory.mktemp("closed")
    async with serving(folder, outgoing=OutgoingSettings(), open_registration=False) as running:
        yield running


async def test_clients_do_not_register_where_settings_say_so(closed: Byline) -> None:
    async with httpx2.AsyncClient(base_url=closed.url) as http:
        metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
        refused = await register(http)

    assert "registration_endpoint" not in metadata
    assert refused.status_code == 404


async def test_an_administrators_client_is_named_as_such_and_needs_its_secret(closed: Byline) -> None:
    clients = closed.gateway_services.oauth_tables.registered_clients
    open_id, none = await clients.add_client(
        "Desktop", ["http://127.0.0.1/callback"], is_confidential=False, may_assert=False
    )
    client_id, secret = await clients.add_client("Portal", [WEB], is_confidential=True, may_assert=False)
    async with httpx2.AsyncClient(base_url=closed.url) as http:
        desktop = Application(closed, http, {"client_id": open_id})
        portal = Application(closed, http, {"client_id": client_id})
        read = await asked(portal, redirect_uri=WEB)
        first = await desktop.tokens()
        code = await portal.code(redirect_uri=WEB)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": WEB,
            "code_verifier": portal.verifier,
        }
        without = await http.post("/token", data={"client_id": client_id, **form})
        wrong = await http.post("/token", data=form, auth=(client_id, "guessed"))
        right = await http.post("/token", data=form, auth=(client_id, str(secret)))
        seen = await closed.whoami(right.json()["access_token"])
        await clients.remove_client(client_id)
        registered = [(each.client_name, each.application_type) for each in await clients.list_clients()]

    assert none is None
    assert first["refresh_token"]
    assert "An administrator of Byline registered it" in read
    assert (without.status_code, wrong.status_code, right.status_code) == (401, 401, 200)
    assert seen.json()["client"] == client_id
    assert registered == [("Desktop", "native")]


@pytest.mark.parametrize(
    ("uris", "options", "told"),
    [
        ([], {}, "--redirect-uri"),
        (["/callback"], {}, "whole"),
        (["http://chat.example/"], {}, "use https"),
        ([WEB], {"asserts": True}, "--secret"),
    ],
)
async def test_a_client_that_makes_no_sense_is_not_registered(
    closed: Byline, uris: list[str], options: dict[str, bool], told: str
) -> None:
    with pytest.raises(SettingsInvalid, match=told):
        await closed.gateway_services.oauth_tables.registered_clients.add_client(
            "Odd", uris, is_confidential=False, may_assert=options.get("asserts", False)
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
    response = await register(http, application_type=kind, redirect_uris=[uri])

    assert response.status_code == status
    assert status == 201 or response.json()["error"] == "invalid_redirect_uri"


async def test_registrations_are_so_many_an_hour_and_those_that_nobody_uses_are_forgotten(
    tmp_path: Path,
) -> None:
    async with (
        serving(tmp_path, registrations_per_hour=3) as byline,
        httpx2.AsyncClient(base_url=byline.url) as http,
    ):
        used, unused, left = [(await register(http)).json()["client_id"] for _ in range(3)]
        await Application(byline, http, {"client_id": used}).tokens()
        too_many = await register(http)
        await age(byline, {used: timedelta(days=2), unused: timedelta(days=2), left: timedelta(hours=2)})
        room = await register(http)
        async with byline.services.database.open_read_session() as session:
            kept = set((await session.exec(select(OAuthClientRow.client_id))).all())

    assert too_many.status_code == 429
    assert too_many.json()["error"] == "temporarily_unavailable"
    assert "within the hour" in too_many.json()["error_description"]
    assert room.status_code == 201
    assert room.json()["scope"] == "mcp"
    assert kept == {used, left, room.json()["client_id"]}


async def age(byline: Byline, by: Mapping[str, timedelta]) -> None:
    async with byline.services.database.open_write_session() as session:
        for client_id, ago in by.items():
            row = update(OAuthClientRow).where(col(OAuthClientRow.client_id) == client_id)
            await session.exec(row.values(created_at=utc_now() - ago))


async def test_a_client_that_takes_anothers_name_is_told_apart(
    byline: Byline, http: httpx2.AsyncClient, site: Site
) -> None:
    registered = (
        await register(http, client_name="Claude", redirect_uris=["https://evil.example/cb"])
    ).json()
    itself = await asked(Application(byline, http, registered), redirect_uri="https://evil.example/cb")
    site.receiving.answers.append(
        site.describes(client_name="Claude", redirect_uris=["https://evil.example/cb"])
    )
    document = await asked(described(byline, http, site), redirect_uri="https://evil.example/cb")

    assert "registered itself, and nobody has checked" in itself
    assert f"described at <strong>127.0.0.1:{site.receiving.port}</strong>" in document
    for read in (itself, document):
        assert "<strong>evil.example</strong>" in read
        assert "An administrator" not in read


async def test_a_client_cannot_register_under_an_address_nor_as_what_only_administrators_make(
    http: httpx2.AsyncClient,
) -> None:
    stated = {"client_id": "https://claude.example/client.json", "known_by": "administrator"}
    registered = (await register(http, **stated)).json()
    asserting = await register(
        http,
        grant_types=["authorization_code", "urn:ietf:params:oauth:grant-type:jwt-bearer"],
        token_endpoint_auth_method="client_secret_post",
    )

    assert not registered["client_id"].startswith("https")
    assert asserting.status_code == 400
    assert asserting.json()["error"] == "invalid_client_metadata"
