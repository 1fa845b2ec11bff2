"""Every test of the data layer runs on a SQLite file and on a real PostgreSQL server."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from engine.identity.model import Principal
from engine.services import Services, open_services
from engine.settings import DatabaseSettings, OutgoingSettings, Settings, VaultSettings
from tests.support.commands import Commands, InProcessCommands
from tests.support.databases import postgres_database, sqlite_database
from tests.support.foreign.postgres import Postgres, postgres_server

Opener = Callable[[], Awaitable[Services]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Postgres | None:
    """The PostgreSQL server that the test runs on, or None where it runs on a SQLite file."""
    if request.param == "sqlite":
        return None
    postgres_server: Postgres = request.getfixturevalue("postgres")
    return postgres_server


@pytest.fixture
async def empty_database(server: Postgres | None, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a database without tables."""
    if server is None:
        yield f"sqlite+aiosqlite:///{tmp_path / 'byline.db'}"
        return
    async with server.create_database() as address:
        yield address


@pytest.fixture
async def address(server: Postgres | None, tmp_path: Path) -> str:
    """The address of a database with the current schema and no row."""
    return await sqlite_database(tmp_path) if server is None else await postgres_database(server)


@pytest.fixture
def keyring_file(tmp_path: Path) -> Path:
    return tmp_path / "keyring.json"


@pytest.fixture
def environment() -> Mapping[str, str]:
    """Where connections find their client secrets."""
    return {}


@pytest.fixture
async def another_process(
    address: str, keyring_file: Path, environment: Mapping[str, str]
) -> AsyncIterator[Opener]:
    """Opens the services as one more process would: its own pool, its own memory, the same database and keyring."""
    settings = Settings(
        database=DatabaseSettings(url=address),
        vault=VaultSettings(keyring_file=keyring_file),
        outgoing=OutgoingSettings(allow_http=True, allow_private=True),
    )
    async with AsyncExitStack() as exit_stack:
        yield lambda: exit_stack.enter_async_context(open_services(settings, environment))


@pytest.fixture
async def services(another_process: Opener) -> Services:
    return await another_process()


@pytest.fixture
async def other(another_process: Opener) -> Services:
    """The services of a second process."""
    return await another_process()


@pytest.fixture
async def alice(services: Services) -> Principal:
    return await services.principals.resolve_principal("https://people.example", "alice", "Alice Adams")


@pytest.fixture
async def bob(services: Services) -> Principal:
    return await services.principals.resolve_principal("https://people.example", "bob", "Bob Baker")


@pytest.fixture
def commands(address: str, keyring_file: Path) -> Commands:
    return InProcessCommands(
        {
            "BYLINE_DATABASE__URL": address,
            "BYLINE_VAULT__KEYRING_FILE": str(keyring_file),
            "BYLINE_OUTGOING__ALLOW_HTTP": "true",
            "BYLINE_OUTGOING__ALLOW_PRIVATE": "true",
        },
        keyring_file.parent,
    )
