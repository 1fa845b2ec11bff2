import asyncio
import secrets
from datetime import timedelta

import pytest
from alembic import command
from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import OAuthClientInformationFull
from pydantic import AnyUrl
from sqlalchemy import text, update

from engine.db.database import Database, utc_now
from engine.db.migrate import make_alembic_config, upgrade_schema
from engine.db.tables import OAuthClientRow
from engine.errors import TooSoon
from engine.identity.model import Principal
from engine.services import Services
from engine.settings import DatabaseSettings
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import UNUSED_CONSENT_LIFE, ClientConsents
from gateway.authorization_server.tables import build_authorization_server_tables
from tests.support.administration import SHELL, registered_clients_of
from tests.support.api_server import build_consent
from tests.support.commands import Commands

RESOURCE = "https://byline.example/mcp"


async def test_a_client_is_registered_and_forgotten_from_a_shell_with_all_that_it_may_do(
    services: Services, alice: Principal, commands: Commands
) -> None:
    callback = "https://portal.example/callback"
    output = await commands.read_output("clients", "add", "Portal", "--redirect-uri", callback, "--secret")
    client_id, secret = output.split()[1], output.split()[3]
    registered_clients = registered_clients_of(services)
    await registered_clients.add_client(
        SHELL, "Desktop", ["http://127.0.0.1/cb"], is_confidential=False, may_assert=False
    )
    await registered_clients.add_client(SHELL, "Assistant", [], is_confidential=True, may_assert=True)
    client = await build_authorization_server_tables(services).oauth_clients.find_client(client_id)
    assert client is not None
    consent = build_consent(alice, client, RESOURCE)
    await ClientConsents(services.database).store_consent(consent)
    listing = await commands.read_output("clients", "list")
    removal_output = await commands.read_output("clients", "remove", client_id)
    twice = await commands.read_refusal("clients", "remove", client_id)

    assert (client.client_secret, client.known_by, client.application_type) == (
        secret,
        "administrator",
        "web",
    )
    rows = {line.split()[1]: line.split()[2:] for line in listing.splitlines()}
    assert rows == {
        "Portal": ["confidential", callback],
        "Desktop": ["public", "http://127.0.0.1/cb"],
        "Assistant": ["confidential", "assertions"],
    }
    assert client_id in removal_output
    assert "byline clients list" in twice
    assert await ClientConsents(services.database).find_consent(consent.id) is None


async def test_a_client_that_an_administrator_registered_is_not_forgotten_with_those_that_came_by_themselves(
    services: Services,
) -> None:
    oauth_tables = build_authorization_server_tables(services)
    clients, registered_clients = oauth_tables.oauth_clients, oauth_tables.registered_clients
    client_id, _ = await registered_clients.add_client(
        SHELL, "Desktop", ["http://127.0.0.1/cb"], is_confidential=False, may_assert=False
    )
    long_ago = update(OAuthClientRow).values(created_at=utc_now() - timedelta(days=365))
    async with services.database.open_write_session() as session:
        await session.exec(long_ago)
    for _ in range(services.settings.gateway.registrations_per_hour):
        await clients.register_client(build_client_information())
    with pytest.raises(TooSoon):
        await clients.register_client(build_client_information())
    with pytest.raises(RegistrationError):
        await clients.register_client(build_client_information("javascript:alert(1)"))

    assert await clients.find_client(client_id) is not None
    assert [client.client_name for client in await registered_clients.list_clients()] == ["Desktop"]


def build_client_information(uri: str = "http://127.0.0.1/cb") -> OAuthClientInformationFull:
    """A client as it registers itself."""
    return OAuthClientInformationFull(client_id=secrets.token_hex(8), redirect_uris=[AnyUrl(uri)])


async def test_a_consent_holds_for_one_person_client_place_and_resource_until_it_ends(
    services: Services, alice: Principal
) -> None:
    consents = ClientConsents(services.database)
    chat = ClientInformation(client_id="chat", redirect_uris=None)
    consent = build_consent(alice, chat, RESOURCE)
    over = build_consent(alice, chat, RESOURCE)
    await consents.store_consent(consent)
    await consents.extend_consent(consent.id)
    kept_consent = await consents.find_consent(consent.id)
    elsewhere = build_consent(alice, ClientInformation(client_id="other", redirect_uris=None), RESOURCE)

    assert kept_consent is not None
    assert kept_consent.expires_at > consent.created_at + UNUSED_CONSENT_LIFE
    assert await consents.has_consent_for(over)
    assert not await consents.has_consent_for(elsewhere)
    assert not await consents.has_consent_for(build_consent(alice, chat, f"{RESOURCE}/other"))
    assert await consents.withdraw_client(alice.id, "other") == []
    assert await consents.withdraw_client(alice.id, "chat") == [consent.id]
    assert await consents.find_consent(consent.id) is None
    assert await consents.list_consents(alice.id) == []


BEFORE = (
    """INSERT INTO principal (id, issuer, subject, name, active, created_at)
    VALUES ('p1', 'https://byline.example', 'alice', 'Alice', TRUE, :at)""",
    """INSERT INTO oauth_client (client_id, metadata, created_at)
    VALUES ('chat', '{"redirect_uris": ["http://127.0.0.1/cb"]}', :at), ('portal', '{"grant_types": []}', :at)""",
    """INSERT INTO refresh_token
    (token_hash, family, client_id, principal_id, scopes, resource, expires_at, revoked_at)
    VALUES ('h1', 'f1', 'chat', 'p1', 'mcp', 'https://byline.example/mcp', :later, NULL),
    ('h2', 'f1', 'chat', 'p1', 'mcp', 'https://byline.example/mcp', :later, NULL),
    ('h3', 'f2', 'chat', 'p1', 'mcp', NULL, :later, :at)""",
)


async def test_who_was_signed_in_before_there_were_consents_stays_so(empty_database: str) -> None:
    await asyncio.to_thread(command.upgrade, make_alembic_config(empty_database), "0002")
    database = Database(DatabaseSettings(url=empty_database))
    async with database.open_write_session() as session:
        connection = await session.connection()
        for statement in BEFORE:
            times = {"at": utc_now(), "later": utc_now() + UNUSED_CONSENT_LIFE}
            bound_times = {name: value for name, value in times.items() if f":{name}" in statement}
            await connection.execute(text(statement), bound_times)
    await asyncio.to_thread(upgrade_schema, empty_database)
    consents = ClientConsents(database)
    kept_consent, revoked_consent = await consents.find_consent("f1"), await consents.find_consent("f2")
    async with database.open_read_session() as session:
        connection = await session.connection()
        clients = await connection.execute(text("SELECT client_id, registered_by FROM oauth_client"))
        by = {row.client_id: row.registered_by for row in clients}
    await database.close_connections()

    assert kept_consent is not None
    assert (kept_consent.principal_id, kept_consent.client_id, kept_consent.scopes) == (
        "p1",
        "chat",
        ("mcp",),
    )
    assert revoked_consent is None
    assert by == {"chat": "itself", "portal": "administrator"}
