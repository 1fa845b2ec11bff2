import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, inspect
from sqlmodel import SQLModel

from engine.db.database import Database
from engine.db.migrate import downgrade_schema, make_alembic_config, upgrade_schema
from engine.errors import SettingsInvalid
from engine.services import open_services
from engine.settings import DatabaseSettings, Settings, VaultSettings
from tests.support.commands import Commands
from tests.support.foreign.postgres import Postgres
from tests.support.foreign.process import free_port


async def list_tables(address: str) -> set[str]:
    def list_names(connection: Connection) -> Iterable[str]:
        return inspect(connection).get_table_names()

    database = Database(DatabaseSettings(url=address))
    async with database.open_read_session() as session:
        table_names = await (await session.connection()).run_sync(list_names)
    await database.close_connections()
    return set(table_names)


async def test_an_empty_database_gets_every_table(empty_database: str) -> None:
    await asyncio.to_thread(upgrade_schema, empty_database)

    assert await list_tables(empty_database) == {*SQLModel.metadata.tables, "alembic_version"}


async def test_the_migrations_and_the_models_describe_one_schema(address: str) -> None:
    await asyncio.to_thread(command.check, make_alembic_config(address))


async def test_the_schema_goes_down_and_up_again(address: str) -> None:
    await asyncio.to_thread(downgrade_schema, address, "base")
    down = await list_tables(address)
    await asyncio.to_thread(upgrade_schema, address)

    assert down == {"alembic_version"}
    await asyncio.to_thread(command.check, make_alembic_config(address))


async def test_a_database_that_is_there_already_stays_as_it_is(address: str) -> None:
    before = await list_tables(address)
    await asyncio.to_thread(upgrade_schema, address)

    assert await list_tables(address) == before


async def test_a_database_without_the_schema_is_reported_and_not_used(
    empty_database: str, keyring_file: Path
) -> None:
    settings = Settings(
        database=DatabaseSettings(url=empty_database), vault=VaultSettings(keyring_file=keyring_file)
    )
    with pytest.raises(SettingsInvalid, match="run `byline migrate`"):
        async with open_services(settings, {}):
            pass


@pytest.mark.parametrize(
    ("address", "expected_message"),
    [
        ("nonsense", "BYLINE_DATABASE__URL is not a database URL"),
        ("mysql://root@127.0.0.1/byline", "BYLINE_DATABASE__URL names 'mysql'"),
    ],
)
def test_an_address_of_an_unsupported_database_is_reported(address: str, expected_message: str) -> None:
    with pytest.raises(SettingsInvalid, match=expected_message):
        upgrade_schema(address)


def test_a_server_that_does_not_answer_is_reported_without_the_password() -> None:
    address = f"postgresql+asyncpg://byline:hidden@127.0.0.1:{free_port()}/byline"

    with pytest.raises(SettingsInvalid, match="cannot be reached") as error_info:
        upgrade_schema(address)

    assert "hidden" not in str(error_info.value)


def test_a_server_that_refuses_the_password_is_reported(postgres: Postgres) -> None:
    with pytest.raises(SettingsInvalid, match=r"cannot be reached \(password authentication failed"):
        upgrade_schema(postgres.build_url("postgres").replace(postgres.password, "guessed"))


def test_a_path_that_is_no_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"cannot be reached \(it is a folder\)"):
        upgrade_schema(f"sqlite+aiosqlite:///{tmp_path}")


async def test_services_tell_of_a_server_that_does_not_answer(keyring_file: Path) -> None:
    address = f"postgresql+asyncpg://byline:hidden@127.0.0.1:{free_port()}/byline"
    settings = Settings(
        database=DatabaseSettings(url=address), vault=VaultSettings(keyring_file=keyring_file)
    )
    with pytest.raises(SettingsInvalid, match="cannot be reached"):
        async with open_services(settings, {}):
            pass


def test_a_percent_sign_in_the_path_of_the_scripts_is_a_percent_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "100%s" / "migrations"
    scripts.mkdir(parents=True)
    monkeypatch.setattr("engine.db.migrate._PACKAGED_MIGRATIONS", scripts)

    assert make_alembic_config("").get_main_option("script_location") == str(scripts)


async def test_the_command_migrates_and_every_other_command_asks_for_it(
    empty_database: str, keyring_file: Path
) -> None:
    environment = {
        "BYLINE_DATABASE__URL": empty_database,
        "BYLINE_VAULT__KEYRING_FILE": str(keyring_file),
    }
    byline = Commands(environment, keyring_file.parent)
    before = await byline("audit")
    output = await byline("migrate")
    after = await byline("audit")

    assert before.code == 1
    assert "run `byline migrate`" in before.err
    assert "Traceback" not in before.err
    assert output.code == 0, output.err
    assert after.out == "The trail has nothing that fits.\n"
