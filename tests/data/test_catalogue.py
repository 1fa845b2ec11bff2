import pytest
from sqlmodel import select

from engine.connections.secret_reader import SecretReader
from engine.db.tables import ClientSecretRow, ConnectionRow
from engine.errors import ConnectionMisconfigured, ConnectionUnknown, SettingsInvalid, VaultSealBroken
from engine.services import Services
from tests.data.commands import Commands
from tests.data.conftest import Opener
from tests.data.samples import connection

SECRET = "of-the-client"
VAULTED = {"vault": True}


async def test_a_declared_connection_is_known_to_every_process(services: Services, other: Services) -> None:
    await services.catalogue.store_connections([connection("billing"), connection("crm")])

    assert list(await other.catalogue.list_connections()) == ["billing", "crm"]
    assert await other.catalogue.get_connection("crm") == connection("crm")


async def test_a_later_declaration_takes_the_place_of_an_earlier_one(services: Services) -> None:
    await services.catalogue.store_connections([connection(scopes=("read_only",))])
    await services.catalogue.store_connections([connection(scopes=("read_only", "refunds"))])

    assert (await services.catalogue.get_connection("billing")).scopes == ("read_only", "refunds")


async def test_the_mode_of_a_connection_is_set_once(services: Services) -> None:
    await services.catalogue.store_connections([connection(mode="user")])
    with pytest.raises(SettingsInvalid, match="declare the shared one under another name"):
        await services.catalogue.store_connections([connection(mode="shared", scopes=("everything",))])

    assert await services.catalogue.get_connection("billing") == connection(mode="user")


async def test_a_connection_that_nobody_declared_is_told_with_where_to_declare_it(services: Services) -> None:
    with pytest.raises(ConnectionUnknown, match="BYLINE_CONNECTIONS_FILE"):
        await services.catalogue.get_connection("billing")


async def secret_of(services: Services, name: str) -> str:
    reference = (await services.catalogue.get_connection(name)).client_secret
    assert reference is not None
    return SecretReader({}, services.client_secrets).read_secret(name, reference)


async def test_a_client_secret_lies_in_the_vault_from_a_command_on_until_another(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    await services.catalogue.store_connections([connection(client_secret=VAULTED), connection("public")])
    with pytest.raises(ConnectionMisconfigured, match="set it with `byline connections secret set`"):
        await secret_of(services, "billing")
    told = await commands("connections", "secret", "set", "billing", given=f"{SECRET}\n")
    unused = await commands("connections", "secret", "set", "public", given=SECRET)
    empty = await commands("connections", "secret", "set", "billing", given="\n")
    unknown = await commands("connections", "secret", "set", "nowhere", given=SECRET)
    later = await another_process()

    assert (told.code, told.err) == (0, "")
    assert "write `client_secret: {vault: true}` there" in unused.err
    assert (empty.code, unknown.code) == (1, 1)
    assert "nothing was changed" in empty.err
    assert await secret_of(later, "billing") == SECRET
    assert SECRET not in repr(await later.catalogue.get_connection("billing"))
    async with later.database.open_read_session() as session:
        rows = (await session.exec(select(ClientSecretRow))).all()
        declared = (await session.exec(select(ConnectionRow))).all()
    assert SECRET not in str([row.model_dump() for row in declared])
    assert all(SECRET.encode() not in row.sealed_secret for row in rows)
    assert "client secrets: 2 of 2" in (await commands("vault", "rotate")).err
    assert await secret_of(await another_process(), "billing") == SECRET

    await commands.answer("connections", "secret", "remove", "billing")
    assert "has no secret" in await commands.refusal("connections", "secret", "remove", "billing")
    with pytest.raises(ConnectionMisconfigured):
        await secret_of(await another_process(), "billing")
    kinds = [line.kind for line in await services.trail.find_lines(limit=10)]
    assert sorted(kinds) == ["connection.secret_put", "connection.secret_put", "connection.secret_removed"]


async def test_a_client_secret_moved_to_another_connection_fails_there_and_nowhere_else(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    await services.catalogue.store_connections(
        [connection(client_secret=VAULTED), connection("crm", client_secret=VAULTED)]
    )
    for name in ("billing", "crm"):
        await commands("connections", "secret", "set", name, given=f"{SECRET} at {name}")
    async with services.database.open_write_session() as session:
        rows = {row.connection: row for row in (await session.exec(select(ClientSecretRow))).all()}
        rows["crm"].sealed_secret = rows["billing"].sealed_secret
        session.add(rows["crm"])
    later = await another_process()

    assert await secret_of(later, "billing") == f"{SECRET} at billing"
    with pytest.raises(VaultSealBroken, match="belongs to another row"):
        await secret_of(later, "crm")
