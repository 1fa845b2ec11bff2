import pytest
from sqlmodel import select

from engine.connections.secret_reader import SecretReader
from engine.db.tables import ClientSecretRow, ConnectionRow
from engine.errors import ConnectionMisconfigured, ConnectionUnknown, SettingsInvalid, VaultSealBroken
from engine.services import Services
from tests.database.conftest import Opener
from tests.support.commands import Commands
from tests.support.samples import build_connection

SECRET = "of-the-client"
VAULT_SECRET = {"vault": True}


async def test_a_declared_connection_is_known_to_every_process(services: Services, other: Services) -> None:
    await services.catalogue.store_connections([build_connection("billing"), build_connection("crm")])

    assert list(await other.catalogue.list_connections()) == ["billing", "crm"]
    assert await other.catalogue.get_connection("crm") == build_connection("crm")


async def test_a_later_declaration_takes_the_place_of_an_earlier_one(services: Services) -> None:
    await services.catalogue.store_connections([build_connection(scopes=("read_only",))])
    await services.catalogue.store_connections([build_connection(scopes=("read_only", "refunds"))])

    assert (await services.catalogue.get_connection("billing")).scopes == ("read_only", "refunds")


async def test_the_mode_of_a_connection_is_set_once(services: Services) -> None:
    await services.catalogue.store_connections([build_connection(mode="user")])
    with pytest.raises(SettingsInvalid, match="declare the shared one under another name"):
        await services.catalogue.store_connections([build_connection(mode="shared", scopes=("everything",))])

    assert await services.catalogue.get_connection("billing") == build_connection(mode="user")


async def test_an_undeclared_connection_is_reported_with_where_to_declare_it(services: Services) -> None:
    with pytest.raises(ConnectionUnknown, match="BYLINE_CONNECTIONS_FILE"):
        await services.catalogue.get_connection("billing")


async def read_secret(services: Services, name: str) -> str:
    reference = (await services.catalogue.get_connection(name)).client_secret
    assert reference is not None
    return SecretReader({}, services.client_secrets).read_secret(name, reference)


async def test_a_client_secret_lies_in_the_vault_from_a_command_on_until_another(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    await services.catalogue.store_connections(
        [build_connection(client_secret=VAULT_SECRET), build_connection("public")]
    )
    with pytest.raises(ConnectionMisconfigured, match="set it with `byline connections secret set`"):
        await read_secret(services, "billing")
    result = await commands("connections", "secret", "set", "billing", stdin_text=f"{SECRET}\n")
    result_for_public = await commands("connections", "secret", "set", "public", stdin_text=SECRET)
    empty = await commands("connections", "secret", "set", "billing", stdin_text="\n")
    unknown = await commands("connections", "secret", "set", "nowhere", stdin_text=SECRET)
    later = await another_process()

    assert (result.code, result.err) == (0, "")
    assert "write `client_secret: {vault: true}` there" in result_for_public.err
    assert (empty.code, unknown.code) == (1, 1)
    assert "nothing was changed" in empty.err
    assert await read_secret(later, "billing") == SECRET
    assert SECRET not in repr(await later.catalogue.get_connection("billing"))
    async with later.database.open_read_session() as session:
        rows = (await session.exec(select(ClientSecretRow))).all()
        connection_rows = (await session.exec(select(ConnectionRow))).all()
    assert SECRET not in str([row.model_dump() for row in connection_rows])
    assert all(SECRET.encode() not in row.sealed_secret for row in rows)
    assert "client secrets: 2 of 2" in (await commands("vault", "rotate")).err
    assert await read_secret(await another_process(), "billing") == SECRET

    await commands.read_output("connections", "secret", "remove", "billing")
    assert "has no secret" in await commands.read_refusal("connections", "secret", "remove", "billing")
    with pytest.raises(ConnectionMisconfigured):
        await read_secret(await another_process(), "billing")
    kinds = [line.kind for line in await services.trail.find_lines() if line.kind.startswith("connection.")]
    assert sorted(kinds) == ["connection.secret_put", "connection.secret_put", "connection.secret_removed"]


async def test_a_client_secret_moved_to_another_connection_fails_there_and_nowhere_else(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    await services.catalogue.store_connections(
        [build_connection(client_secret=VAULT_SECRET), build_connection("crm", client_secret=VAULT_SECRET)]
    )
    for name in ("billing", "crm"):
        await commands("connections", "secret", "set", name, stdin_text=f"{SECRET} at {name}")
    async with services.database.open_write_session() as session:
        rows = {row.connection: row for row in (await session.exec(select(ClientSecretRow))).all()}
        rows["crm"].sealed_secret = rows["billing"].sealed_secret
        session.add(rows["crm"])
    later = await another_process()

    assert await read_secret(later, "billing") == f"{SECRET} at billing"
    with pytest.raises(VaultSealBroken, match="belongs to another row"):
        await read_secret(later, "crm")
