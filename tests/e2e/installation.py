"""A running Byline with a builder's own package, on Kinto and the sandbox, and newcomers who use it."""

import asyncio
import json
import os
import random
import re
import secrets
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp.client.client import Client as McpClient
from mcp_types import CallToolResult
from sqlmodel import col, select
from temporalio.client import Client as TemporalClient

from engine.db.database import Database
from engine.db.tables import PersonRow, PrincipalRow, RunRow
from engine.settings import DatabaseSettings
from engine.wire import OUTCOME_META
from examples.browser import Page
from examples.chat import Person, open_chat
from gateway.dev.compose import ComposeFile
from gateway.dev.data_directory import COMPOSE_PATH
from gateway.dev.stack import EmbeddedStack
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.e2e.wiretap import CapturedSecrets, run_wiretap
from tests.support.foreign.kinto import Kinto, build_user_id, kinto_server
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.process import is_listening

ROOT = COMPOSE_PATH.parent
BUILDER = ROOT / "examples" / "kinto_notes"
SANDBOX = ROOT / "examples" / "sandbox" / "connections.yml"
TOOL, COLLECT = "annotate_record", "byline_collect"
BYLINE = ("temporal", "migrate", "worker", "gateway")
UPSTREAMS = ("crm", "billing", "support")
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Installation:
    """All of it, and everything secret that its upstreams were told."""

    stack: EmbeddedStack
    provider: OidcProvider
    kinto: Kinto
    database: Database
    secrets: CapturedSecrets

    async def add_newcomer(self, name: str) -> Person:
        """Somebody who can sign in to Byline and has connected nothing yet."""
        who = Person(f"{name}-{secrets.token_hex(3)}", secrets.token_urlsafe(12))
        await BuiltInPeople(self.database).add_person(
            who.username, f"{name.title()} {who.username[-6:]}", who.password
        )
        return who

    async def issue_token(self, who: Person) -> str:
        """A bearer token for an MCP client of this person."""
        async with open_chat(who, self.stack.mcp_url):
            assert who.tokens.tokens is not None
            return who.tokens.tokens.access_token

    async def consent(self, who: Person, link: str, account: str) -> Page:
        """Open a link and let Byline use this account on Kinto."""
        page = await (await who.open(link)).form(submit="Continue")
        return await self.provider.let_in(page, account)

    def add_record(self, *, writers: Sequence[str] = ("alice",), readers: Sequence[str] = ()) -> str:
        """A new record, as `annotate_record` names it."""
        name = secrets.token_hex(4)
        self.kinto.add_record(
            f"/buckets/crm/collections/accounts/records/{name}",
            {"tier": "silver"},
            readers=readers,
            writers=writers,
        )
        return f"crm/accounts/{name}"

    def list_changes(self, record: str) -> list[dict[str, Any]]:
        """What Kinto says of who changed a record, oldest first."""
        bucket, collection, name = record.split("/")
        history = self.kinto.list_history(f"/buckets/{bucket}/collections/{collection}/records/{name}")
        return [entry for entry in reversed(history) if entry["action"] == "update"]

    def list_authors(self, record: str) -> list[str]:
        """The accounts that changed a record, according to Kinto, oldest first."""
        accounts = {build_user_id(name): name for name in ("alice", "bob")}
        return [accounts[entry["user_id"]] for entry in self.list_changes(record)]

    async def list_runs(self, who: Person) -> list[str]:
        """Every run of this person, oldest first; Temporal knows each and no other."""
        query = (
            select(RunRow.id, PrincipalRow.name)
            .join(PrincipalRow, col(PrincipalRow.id) == RunRow.principal_id)
            .join(PersonRow, col(PersonRow.subject) == PrincipalRow.subject)
            .where(PersonRow.username == who.username)
            .order_by(col(RunRow.started_at))
        )
        async with self.database.open_read_session() as session:
            rows = (await session.exec(query)).all()
        temporal = await self.connect_temporal()
        for name in {name for _, name in rows}:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                mine = f"BylinePrincipal = '{name}' AND BylineTool IS NOT NULL"
                while (await temporal.count_workflows(mine)).count != len(rows):
                    await asyncio.sleep(0.1)
        return [run for run, _ in rows]

    async def connect_temporal(self) -> TemporalClient:
        """A client of the Temporal server."""
        return await TemporalClient.connect(self.stack.temporal_address, namespace="byline")

    async def run_byline(self, *arguments: str) -> str:
        """What the command line answers."""
        command = (sys.executable, "-m", "gateway.cli", *arguments)
        return await run_command(command, self.stack.build_environment("gateway"))

    async def read_audit_lines(self, *arguments: str) -> list[dict[str, Any]]:
        """Lines of the trail."""
        return [
            json.loads(line) for line in (await self.run_byline("audit", "--json", *arguments)).splitlines()
        ]

    async def restart(self, *services: str) -> None:
        """Start services that were killed, and return when they are ready."""
        for name in services:
            await self.stack.start_service(name)
            await self.stack.wait_until_ready(name)


async def next_link(who: Person) -> str:
    """The next link that this person's chat client is shown."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await who.links.get()


async def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


async def collect_outcome(client: McpClient, run_id: str) -> dict[str, Any]:
    """What a run that nobody need sign in for any more ends with, collected however often that takes."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            result = read_result(await client.call_tool(COLLECT, {"run_id": run_id}))
            if "status" not in result:
                return result


def read_result(result: CallToolResult) -> dict[str, Any]:
    """What a result tells programs: the tool's value, or what there is instead of one."""
    result_document = (result.meta or {}).get(OUTCOME_META) if result.is_error else result.structured_content
    assert isinstance(result_document, dict), result
    return result_document


async def run_command(
    command: Sequence[str], environment: dict[str, str], working_folder: Path = ROOT
) -> str:
    """What a command says when all goes well."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=working_folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output_bytes, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return output_bytes.decode()


def choose_ports() -> dict[str, str]:
    """A port for each service, away from the usual ones, which whoever else works on this machine would take."""
    names = [name for name in ComposeFile(COMPOSE_PATH).variable_defaults if name.endswith("_PORT")]
    # Below the ephemeral range, so that no outgoing connection takes the port of a service that was killed.
    free = (port for port in random.sample(range(20_000, 32_000), 1_000) if not is_listening(port))
    return {name: str(port) for name, port in zip(names, free, strict=False)}


async def install_package(package: Path, site: Path) -> str:
    """Install a package, without what it depends on, into a folder of its own; the PYTHONPATH that adds it."""
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    await run_command(
        [*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(package)], {**os.environ}
    )
    return str(site)


@asynccontextmanager
async def run_installation(folder: Path) -> AsyncIterator[Installation]:
    """Start it: the sandbox's systems, the builder's package by its entry point, and a wiretap on every upstream."""
    captured_secrets = CapturedSecrets()
    client_secret = secrets.token_urlsafe(24)
    connections = folder / "connections.yml"
    environment = {
        **os.environ,
        **choose_ports(),
        "PYTHONPATH": await install_package(BUILDER, folder / "site"),
        "BYLINE_CONNECTIONS_FILE": str(connections),
        "BYLINE_MODULES": json.dumps(
            [
                "workflows",
                "activities",
                "tests.fixtures.tools.questions",
                "tests.fixtures.tools.prompts_and_resources",
            ]
        ),
        "BYLINE_GATEWAY__ANSWER_WITHIN": "4",
        "KINTO_CLIENT_SECRET": client_secret,
    }
    async with EmbeddedStack(
        folder / "data", environment=environment, report_progress=lambda _: None
    ) as stack:
        client = RegisteredClient("byline", client_secret, (f"{stack.gateway_url}/oauth/callback",))
        upstreams = {
            name: f"http://127.0.0.1:{stack.variables[f'{name.upper()}_PORT']}" for name in UPSTREAMS
        }
        with oidc_provider(folder, [client]) as provider, kinto_server(folder, provider.issuer) as kinto:
            kinto.add_collection("crm", "accounts")
            upstreams |= {"kinto": kinto.url, "provider": provider.issuer}
            async with run_wiretap(upstreams, captured_secrets) as tap:
                connections.write_text(_write_connections(tap))
                environment |= {"KINTO_URL": f"{tap}/kinto", "KINTO_ISSUER": provider.issuer}
                await stack.start_all_services()
                database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/data/byline.db"))
                yield Installation(stack, provider, kinto, database, captured_secrets)
                await database.close_connections()


def _write_connections(tap: str) -> str:
    """The connections of sandbox and builder, with all that Byline itself asks upstreams going through the tap."""
    sandbox, builder = SANDBOX.read_text(), (BUILDER / "connections.yml").read_text()
    text = sandbox + builder.partition("connections:\n")[2]
    for name in UPSTREAMS:
        text = _route_through_tap(text, f"${{{name.upper()}_URL}}", f"{tap}/{name}")
    return _route_through_tap(text, "${KINTO_ISSUER}", f"{tap}/provider")


def _route_through_tap(text: str, origin: str, tap: str) -> str:
    called_urls = r"(base_url|token_endpoint|revocation_endpoint|userinfo_endpoint): "
    return re.sub(called_urls + re.escape(origin), rf"\1: {tap}", text)


async def empty_environment(folder: Path, wheel: Path, *packages: Path) -> Path:
    """An environment without the repository, with Byline's wheel, what it depends on and packages; its programs."""
    await run_command((sys.executable, "-m", "venv", "--without-pip", str(folder)), {**os.environ})
    programs = folder / "bin"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(programs / "python"),
        "install",
        "--quiet",
        "--no-index",
    )
    await run_command([*pip, "--no-deps", str(wheel)], {**os.environ})
    (site,) = folder.glob("lib/python*/site-packages")
    # What lies in a folder that is named here is found, and what is installed in it to be edited is not.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (programs / "temporal").symlink_to(Path(sys.executable).parent / "temporal")
    for package in packages:
        await run_command([*pip, "--no-deps", "--no-build-isolation", str(package)], {**os.environ})
    return programs
