"""Byline's engine at work for tests: a real Temporal server, worker and sandbox, and people who consent."""

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from google.protobuf.duration_pb2 import Duration
from sqlmodel import select
from temporalio.api.common.v1 import Header, Payload, Payloads, WorkflowType
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import Client, RetryConfig
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from engine.audit.trail import AuditEvent
from engine.authorization.requests import AuthorizationRequest
from engine.db.tables import WaiterRow
from engine.identity.model import Actor, Identity, Principal, TriggerKind
from engine.interceptors.client import IdentityClientInterceptor
from engine.oauth.tokens import UpstreamTokens
from engine.runs.caller import Caller
from engine.runs.outcome import Outcome, PendingWaits
from engine.runs.records import build_run_row
from engine.runs.runs import Runs, build_runs
from engine.services import Services, open_services
from engine.settings import (
    DatabaseSettings,
    GatewaySettings,
    OutgoingSettings,
    Settings,
    TemporalSettings,
    VaultSettings,
)
from engine.sign_in.declarations import read_connections
from engine.temporal import connect_temporal
from engine.tools.registry import Registry
from engine.waiting.delivery import deliver_wake_ups
from engine.wire import IDENTITY_TYPE
from engine.worker import build_worker
from examples.browser import Browser
from gateway.dev.compose import ComposeFile
from gateway.dev.data_directory import COMPOSE_PATH
from gateway.dev.readiness import is_ready
from tests.support.databases import sqlite_database
from tests.support.sandbox_systems import CALLBACK, ROOT, SandboxProcess
from tests.support.sign_ins import consent_page

NORTHWIND = "001D000000IRFmaIAP"
CONTOSO = "001D000000IqhSLIAZ"
DISPUTE = 35436
CONNECTIONS = ROOT / "examples/sandbox/connections.yml"
MODULES = ("workflows", "activities", "tests.fixtures.tools")
NAMESPACE = "byline"
DEADLINE = 60.0

CHAT = Actor("mcp_client", "chat", "Chat")


@asynccontextmanager
async def temporal_server() -> AsyncIterator[str]:
    """The address of a Temporal server with search attributes and dynamic configuration as in the Compose file."""
    compose = ComposeFile(COMPOSE_PATH)
    command = compose.build_services(compose.variable_defaults)["temporal"].command
    server_flags = [
        flag for flag in command if flag.startswith(("--search-attribute=", "--dynamic-config-value="))
    ]
    environment = await WorkflowEnvironment.start_local(
        namespace=NAMESPACE,
        dev_server_existing_path=str(Path(sys.executable).parent / "temporal"),
        dev_server_extra_args=server_flags,
        dev_server_startup_timeout=timedelta(seconds=DEADLINE),
    )
    async with environment:
        yield environment.client.service_client.config.target_host


@dataclass
class Platform:
    """An installation with a database and task queue of its own; workers and delivery run where a test says so."""

    settings: Settings
    environment: Mapping[str, str]
    services: Services
    temporal: Client
    registry: Registry
    runs: Runs
    systems: Mapping[str, SandboxProcess]
    alice: Principal
    bob: Principal
    opened_at: datetime

    @asynccontextmanager
    async def run_worker(self, task_queue: str | None = None, **services: Any) -> AsyncIterator[None]:
        """Have a worker in this process; `services` take the place of the platform's own."""
        queue = task_queue or self.settings.temporal.task_queue
        # The sandbox costs more than all the rest; replays and the workers of their own processes run in it.
        cheap = {"task_queue": queue, "workflow_sandbox": False}
        temporal = self.settings.temporal.model_copy(update=cheap)
        settings = self.settings.model_copy(update={"temporal": temporal})
        async with build_worker(settings, replace(self.services, **services), self.temporal, self.registry):
            yield

    @asynccontextmanager
    async def run_wake_up_delivery(self) -> AsyncIterator[None]:
        """Deliver wake-ups, as a gateway does."""
        async with deliver_wake_ups(self.services.waiters, self.temporal):
            yield

    @asynccontextmanager
    async def run_worker_process(
        self, task_queue: str | None = None, **environment: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Have a worker in a process of its own, once it polls; `environment` says what is different about it."""
        queue = task_queue or self.settings.temporal.task_queue
        since = datetime.now(UTC)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "worker"),
            cwd=ROOT,
            env={**os.environ, **self.environment, **variables(self.settings, queue), **environment},
        )
        worker_address = f"temporal://{self.settings.temporal.address}/{NAMESPACE}/{queue}"
        if build := environment.get("BYLINE_TEMPORAL__BUILD_ID"):
            worker_address += f"?build_id={build}"

        async def polls() -> bool:
            assert process.returncode is None, "the worker ended instead of starting"
            return await is_ready(worker_address, polled_since=since)

        try:
            await wait_until(polls)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def start_run(self, tool: str, arguments: Mapping[str, Any], principal: Principal) -> str:
        """Call a tool as somebody, and give the run's id."""
        return (
            await self.runs.starter.start_or_attach(tool, arguments, Caller(principal, CHAT, "mcp"))
        ).run_id

    async def wait_for_outcome(self, run_id: str) -> Outcome:
        """How a run ends, whatever it waits for on the way."""
        announced_waits: set[str] = set()
        async with asyncio.timeout(DEADLINE):
            while True:
                outcome = await self.runs.outcomes.wait_for_outcome(
                    run_id, timeout_seconds=DEADLINE, announced_waits=announced_waits
                )
                if not isinstance(outcome, PendingWaits):
                    return outcome
                announced_waits |= set(outcome.ids)

    async def wait_for_requests(self, run_id: str, questions: int = 1) -> list[AuthorizationRequest]:
        """What the run asks its principal, once it has asked this many questions."""

        async def has_asked() -> bool:
            return len(await self.services.authorization_requests.list_awaited_requests(run_id)) == questions

        await wait_until(has_asked)
        return await self.services.authorization_requests.list_awaited_requests(run_id)

    async def wait_until_parked(self, run_id: str, questions: int = 1) -> list[AuthorizationRequest]:
        """As `asked`, once the root workflow itself has also begun to wait."""
        requests = await self.wait_for_requests(run_id, questions)

        async def waits() -> bool:
            return await self.read_awaited_connections(run_id) is not None

        await wait_until(waits)
        return requests

    async def read_awaited_connections(self, workflow_id: str) -> list[str] | None:
        """The connections that a workflow says it waits for."""
        description = await self.temporal.get_workflow_handle(workflow_id).describe()
        awaited_connections = description.search_attributes.get("BylineAwaiting")
        return None if not awaited_connections else [str(connection) for connection in awaited_connections]

    async def consent(
        self, request: AuthorizationRequest, principal: Principal, *, account: str | None = None
    ) -> None:
        """Let the principal answer with yes at the upstream's own sign-in page, with the account of this person."""
        await self.answer_sign_in(request, principal, "Allow", by=self.services, account=account)

    async def answer_sign_in(
        self,
        request: AuthorizationRequest,
        principal: Principal,
        button: str,
        *,
        by: Services,
        account: str | None = None,
    ) -> None:
        """Play the round trip to the upstream's consent page, and take the answer to the services of a gateway."""
        system, session = self.systems[request.connection_name], secrets.token_urlsafe()
        account = account or principal.subject
        address = await consent_page(by, request, session)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await browser.open(address)
            page = await page.form(
                submit="Sign in",
                username=system.find_account(account),
                password=f"{account}-{system.system.name}",
            )
            page = await page.form(submit=button)
        await by.sign_ins.finish_redirect(dict(parse_qsl(urlsplit(page.url).query)), principal, session)

    async def give_grant(
        self, connection: str, principal: Principal, scope: str | None = None, *, account: str | None = None
    ) -> UpstreamTokens:
        """Give a principal a grant before anything asks for it, with tokens that the upstream issued."""
        declaration = await self.services.catalogue.get_connection(connection)
        scope_text, system = scope or " ".join(declaration.scopes), self.systems[connection]
        account = account or principal.subject
        tokens = UpstreamTokens.from_response(
            await system.fetch_tokens(account, scope_text), tuple(scope_text.split())
        )
        async with self.services.database.open_write_session() as session:
            await self.services.grants.store_grant(
                session, declaration, principal.id, tokens, system.find_account(account)
            )
        return tokens

    async def redeclare(self, connection: str, **changes: object) -> None:
        """Declare a connection otherwise."""
        declaration = await self.services.catalogue.get_connection(connection)
        await self.services.catalogue.store_connections([declaration.model_copy(update=changes)])

    def build_identity(
        self, principal: Principal, root: str, tool: str, trigger: TriggerKind = "mcp"
    ) -> Identity:
        """The identity of a run that no gateway started."""
        return Identity(
            principal_id=principal.id,
            issuer=principal.issuer,
            subject=principal.subject,
            name=principal.name,
            actor=CHAT,
            trigger=trigger,
            run_id=root,
            tool_name=tool,
            call_digest=secrets.token_hex(8),
        )

    async def sign_identity(self, identity: Identity) -> str:
        """The signed header of an identity."""
        return await self.services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)

    async def register(self, identity: Identity) -> None:
        """Register the run of an identity, as the gateway does when it starts one."""
        called_event = AuditEvent(kind="tool.called", identity=identity, run_id=identity.run_id)
        await self.services.trail.append_event(called_event, build_run_row(identity))

    async def start_past_the_gateway(
        self, workflow: str, argument: object, *, run_id: str, headers: Mapping[str, Payload]
    ) -> None:
        """Start a workflow as anybody could who reaches the Temporal server, with whatever headers they like."""
        payloads = await self.temporal.data_converter.encode([argument])
        await self.temporal.workflow_service.start_workflow_execution(
            StartWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_id=run_id,
                workflow_type=WorkflowType(name=workflow),
                task_queue=TaskQueue(name=self.settings.temporal.task_queue),
                input=Payloads(payloads=payloads),
                header=Header(fields=headers),
                request_id=secrets.token_hex(16),
                workflow_task_timeout=Duration(seconds=10),
            )
        )

    async def fetch_history(self, workflow_id: str) -> list[HistoryEvent]:
        """Everything that happened to a workflow."""
        history = await self.temporal.get_workflow_handle(workflow_id).fetch_history()
        return list(history.events)

    async def count_events(self, workflow_id: str, kind: EventType.ValueType) -> int:
        """How often something happened to a workflow."""
        return sum(event.event_type == kind for event in await self.fetch_history(workflow_id))

    async def fetch_headers(self, workflow_id: str) -> dict[str, Payload]:
        """The headers that a workflow was started with, as anybody can read them in its history."""
        started_attributes = (await self.fetch_history(workflow_id))[
            0
        ].workflow_execution_started_event_attributes
        return dict(started_attributes.header.fields)

    async def list_waiters(self, run_id: str) -> list[WaiterRow]:
        """Every wait of a run, as stored."""
        async with self.services.database.open_read_session() as session:
            return list((await session.exec(select(WaiterRow).where(WaiterRow.run_id == run_id))).all())

    async def list_trail_events(self, kind: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """The events of a kind, of one run or of all."""
        lines = await self.services.trail.find_lines(run_id=run_id, limit=10_000)
        return [line.event for line in lines if line.kind == kind]

    def list_requests(self, system: str, kind: str = "api") -> list[dict[str, Any]]:
        """What a system was asked since this platform was opened."""
        requests = self.systems[system].list_requests(kind)
        return [request for request in requests if datetime.fromisoformat(request["time"]) > self.opened_at]


@asynccontextmanager
async def open_platform(
    folder: Path,
    temporal_address: str,
    systems: Mapping[str, SandboxProcess],
    vault: VaultSettings | None = None,
) -> AsyncIterator[Platform]:
    """A platform with the sandbox's connections declared and two people known; nothing works or delivers yet."""
    url = await sqlite_database(folder)
    environment = {f"{name.upper()}_URL": system.url for name, system in systems.items()}
    environment |= {f"{name.upper()}_CLIENT_SECRET": system.secret for name, system in systems.items()}
    settings = Settings(
        database=DatabaseSettings(url=url),
        temporal=TemporalSettings(
            address=temporal_address, namespace=NAMESPACE, task_queue=f"q-{secrets.token_hex(6)}"
        ),
        vault=vault or VaultSettings(keyring_file=folder / "keyring.json"),
        gateway=GatewaySettings(public_url=CALLBACK.removesuffix("/oauth/callback")),
        outgoing=OutgoingSettings(allow_http=True, allow_private=True),
        modules=MODULES,
    )
    temporal = await connect_temporal(settings.temporal, [IdentityClientInterceptor()])
    registry = Registry(settings.modules)
    async with open_services(settings, environment) as services:
        await services.catalogue.store_connections(read_connections(CONNECTIONS, environment))
        issuer = "https://id.example"
        yield Platform(
            settings=settings,
            environment=environment,
            services=services,
            temporal=temporal,
            registry=registry,
            runs=build_runs(services, temporal, registry),
            systems=systems,
            alice=await services.principals.resolve_principal(issuer, "alice", "Alice Liddell"),
            bob=await services.principals.resolve_principal(issuer, "bob", "Bob Baker"),
            opened_at=datetime.now(UTC),
        )


async def wait_until(holds: Callable[[], Any], seconds: float = DEADLINE) -> None:
    """Wait for something to become true, with a deadline."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.02)


def variables(settings: Settings, task_queue: str) -> dict[str, str]:
    """The settings as a process of its own reads them."""
    return {
        "BYLINE_DATABASE__URL": settings.database.url,
        "BYLINE_TEMPORAL__ADDRESS": settings.temporal.address,
        "BYLINE_TEMPORAL__NAMESPACE": settings.temporal.namespace,
        "BYLINE_TEMPORAL__TASK_QUEUE": task_queue,
        "BYLINE_VAULT__KEYRING_FILE": str(settings.vault.keyring_file),
        "BYLINE_OUTGOING__ALLOW_HTTP": "true",
        "BYLINE_OUTGOING__ALLOW_PRIVATE": "true",
        "BYLINE_MODULES": json.dumps(settings.modules),
    }


@asynccontextmanager
async def connect_severed_client(platform: Platform) -> AsyncIterator[Client]:
    """A client whose connection to Temporal broke after it was made."""
    host, _, port = platform.settings.temporal.address.rpartition(":")
    pipes: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pipes.append(writer)
        while chunk := await reader.read(65536):
            writer.write(chunk)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    address = ":".join(map(str, server.sockets[0].getsockname()))
    client = await Client.connect(
        address,
        namespace=NAMESPACE,
        data_converter=pydantic_data_converter,
        interceptors=[IdentityClientInterceptor()],
        retry_config=RetryConfig(max_retries=1),
    )
    server.close()
    for pipe in pipes:
        pipe.close()
    yield client
