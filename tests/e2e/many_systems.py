"""A running Byline whose tools note on many systems, at once or in turn, and whose gateway is quick to answer."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

from engine.db.database import Database
from engine.settings import DatabaseSettings
from gateway.dev.stack import EmbeddedStack
from tests.e2e.installation import ROOT, Installation, choose_ports
from tests.e2e.wiretap import CapturedSecrets
from tests.fixtures.many_systems.notes import System
from tests.support.foreign.kinto import kinto_server
from tests.support.foreign.oidc_provider import RegisteredClient, oidc_provider

ROUND, HOLD = 1.2, 10.0


@asynccontextmanager
async def run_errands_installation(folder: Path) -> AsyncIterator[Installation]:
    """Start it; a modern client is held for `ROUND` seconds at a time, and a legacy one for `HOLD`."""
    client_secret = secrets.token_urlsafe(24)
    environment = {
        **os.environ,
        **choose_ports(),
        "BYLINE_CONNECTIONS_FILE": str(ROOT / "tests/fixtures/many_systems/connections.yml"),
        "BYLINE_MODULES": '["tests.fixtures.many_systems"]',
        "BYLINE_GATEWAY__ANSWER_WITHIN": str(ROUND),
        "BYLINE_GATEWAY__HOLD_WITHIN": str(HOLD),
        "KINTO_CLIENT_SECRET": client_secret,
    }
    async with EmbeddedStack(
        folder / "data", environment=environment, report_progress=lambda _: None
    ) as stack:
        client = RegisteredClient("byline", client_secret, (f"{stack.gateway_url}/oauth/callback",))
        with oidc_provider(folder, [client]) as provider, kinto_server(folder, provider.issuer) as kinto:
            for system in get_args(System):
                kinto.add_collection("errands", system, creators=["alice"])
            environment |= {"KINTO_URL": kinto.url, "KINTO_ISSUER": provider.issuer}
            database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/data/byline.db"))
            installation = Installation(stack, provider, kinto, database, CapturedSecrets())
            await asyncio.gather(installation.restart("temporal"), installation.restart("migrate"))
            await asyncio.gather(installation.restart("worker"), installation.restart("gateway"))
            yield installation
            await database.close_connections()
