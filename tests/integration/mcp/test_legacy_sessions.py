from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
import structlog
from mcp_types import INTERNAL_ERROR
from sqlalchemy import text

from engine.telemetry import configure_logging
from gateway.app import build_application
from gateway.mcp.server import create_mcp_servers
from gateway.services import build_gateway_services
from gateway.toolsets import MCP_PATH
from tests.support.api_server import serve_api
from tests.support.gateway_processes import RawMcpClient
from tests.support.mcp_requests import read_answer
from tests.support.platform import NORTHWIND, Platform, wait_until


@pytest.fixture
def logging_as_a_gateway_does() -> Iterator[None]:
    configure_logging("INFO")
    yield
    structlog.reset_defaults()


async def test_a_session_that_is_idle_ends_by_itself(idle_platform: Platform) -> None:
    limits = idle_platform.settings.gateway.limits.model_copy(update={"session_idle": timedelta(seconds=0.2)})
    gateway = idle_platform.settings.gateway.model_copy(update={"limits": limits})
    services = replace(
        idle_platform.services, settings=idle_platform.settings.model_copy(update={"gateway": gateway})
    )
    own = build_gateway_services(services)
    servers = create_mcp_servers(
        services, own.token_verifiers, idle_platform.registry, idle_platform.runs, idle_platform.temporal
    )
    app = build_application(
        services, own, idle_platform.registry, idle_platform.runs, idle_platform.temporal, servers
    )
    secret = (await services.api_tokens.create_token(idle_platform.alice, "by hand")).token_text
    manager = servers[MCP_PATH].session_manager
    transport = httpx2.ASGITransport(app)
    async with manager.run(), httpx2.AsyncClient(transport=transport, timeout=60) as http:
        alice = RawMcpClient(http, f"{services.settings.public_url}{MCP_PATH}", secret)
        session = await alice.open_session()

        async def is_over() -> bool:
            return not manager._server_instances

        await wait_until(is_over)
        late = await alice.send_legacy(session, "ping")

    assert late.status_code == 404


@pytest.mark.usefixtures("logging_as_a_gateway_does")
async def test_an_unexpected_error_shows_no_detail_to_a_client_and_no_secret_in_the_log(
    idle_platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_api(idle_platform, mcp=True) as api_server, httpx2.AsyncClient(timeout=60) as http:
        token = await api_server.issue_token(await api_server.add_person("alice", "Alice"), MCP_PATH)
        alice = RawMcpClient(http, f"{api_server.url}{MCP_PATH}", token)
        session = await alice.open_session()
        async with idle_platform.services.database.open_write_session() as database:
            await (await database.connection()).execute(text("ALTER TABLE run RENAME TO gone"))
        call = {"name": "read_once", "arguments": {"account_id": NORTHWIND}}
        responses = [
            await alice.send_legacy(session, "tools/call", call),
            await alice.send_modern("tools/call", call),
        ]

    for response in responses:
        assert read_answer(response)["error"]["code"] == INTERNAL_ERROR
        assert "no such table" not in response.text
    log_text = capsys.readouterr().out
    assert "no such table: run" in log_text
    assert "locals" not in log_text
    assert token[:40] not in log_text
