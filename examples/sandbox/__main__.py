"""Starts one sandbox system: `python -m examples.sandbox crm …`. It does not start without a client secret."""

import argparse
import os
from pathlib import Path

import uvicorn

from examples.sandbox import billing, crm, support
from examples.sandbox.app import create_app
from examples.sandbox.people import SandboxPeople
from examples.sandbox.sessions import Sessions
from examples.sandbox.storage import Database
from examples.sandbox.system import Client, Sandbox
from examples.sandbox.tokens import Tokens

SYSTEMS = {system.name: system for system in (crm.SYSTEM, billing.SYSTEM, support.SYSTEM)}


def main() -> None:
    """Read the command line, fill the database on the first start, and serve."""
    parser = argparse.ArgumentParser(prog="python -m examples.sandbox", description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--public-url", help="the issuer, if it is reached by another address")
    parser.add_argument(
        "--database", type=Path, required=True, help="SQLite file, created on the first start"
    )
    parser.add_argument("--client-id", default="byline")
    parser.add_argument(
        "--client-secret-env", required=True, metavar="NAME", help="environment variable holding the secret"
    )
    parser.add_argument("--redirect-uri", action="append", required=True, help="may be given more than once")
    parser.add_argument("--access-token-seconds", type=int, default=3600)
    arguments = parser.parse_args()

    secret = os.environ.get(arguments.client_secret_env)
    if not secret:
        parser.error(f"set the environment variable {arguments.client_secret_env} to the client's secret")
    database = Database(arguments.database)
    sandbox = Sandbox(
        system=SYSTEMS[arguments.system],
        issuer=arguments.public_url or f"http://{arguments.host}:{arguments.port}",
        client=Client(arguments.client_id, secret, tuple(arguments.redirect_uri)),
        database=database,
        people=SandboxPeople(database),
        sessions=Sessions(database),
        tokens=Tokens(database, arguments.access_token_seconds),
    )
    sandbox.seed()
    uvicorn.run(
        create_app(sandbox),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
