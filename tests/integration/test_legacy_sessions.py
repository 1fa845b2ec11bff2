from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
import structlog
from mcp_types import INTERNAL_ERROR
from sqlalchemy import text

from engine.runs.control import RunControl
from engine.telemetry import configure_logging
from gateway.app import build_application
from gateway.mcp.server import create_mcp_servers
from gateway.services import build_gateway_services
from gateway.toolsets import MCP_PATH
from tests.e2e.rounds import answer
from tests.gateways import ByHand
from tests.platform import NORTHWIND, Platform, until
from tests.rest import serving


@pytest.fixture
def logging_as_a_gateway_does() -> Iterator[None]:
    configure_logging("INFO")
    yield
    structlog.reset_defaults()


async def test_a_session_that_is_idle_ends_by_itself(idle: Platform) -> None:
    limits = idle.settings.gateway.limits.model_copy(update={"session_idle": timedelta(seconds=0.2)})
    gateway = idle.settings.gateway.model_copy(update={"limits": limits})
    services = replace(idle.services, settings=idle.settings.model_copy(update={"gateway": gateway}))
    control = RunControl(services, idle.temporal, idle.runs)
    own = build_gateway_services(services)
    servers = create_mcp_servers(
        services, own.token_verifiers, idle.registry, idle.runs, control, idle.temporal
    )
    app = build_application(services, own, idle.registry, idle.runs, idle.temporal, servers)
    secret = (await services.api_tokens.create_token(idle.alice, "by hand")).token_text
    manager = servers[MCP_PATH].session_manager
    transport = httpx2.ASGITransport(app)
    async with manager.run(), httpx2.AsyncClient(transport=transport, timeout=60) as http:
        alice = ByHand(http, f"{services.settings.public_url}{MCP_PATH}", secret)
        session = await alice.open_session()

        async def is_over() -> bool:
            return not manager._server_instances

        await until(is_over)
        late = await alice.legacy(session, "ping")

    assert late.status_code == 404


@pytest.mark.usefixtures("logging_as_a_gateway_does")
async def test_an_error_that_nobody_expected_tells_no_client_what_it_is_and_no_log_what_was_secret(
    idle: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(idle, mcp=True) as rest, httpx2.AsyncClient(timeout=60) as http:
        token = await rest.token(await rest.person("alice", "Alice"), MCP_PATH)
        alice = ByHand(http, f"{rest.url}{MCP_PATH}", token)
        session = await alice.open_session()
        async with idle.services.database.open_write_session() as database:
            await (await database.connection()).execute(text("ALTER TABLE run RENAME TO gone"))
        call = {"name": "read_once", "arguments": {"account_id": NORTHWIND}}
        told = [await alice.legacy(session, "tools/call", call), await alice.modern("tools/call", call)]

    for each in told:
        assert answer(each)["error"]["code"] == INTERNAL_ERROR
        assert "no such table" not in each.text
    logged = capsys.readouterr().out
    assert "no such table: run" in logged
    assert "locals" not in logged
    assert token[:40] not in logged
