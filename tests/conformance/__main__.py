"""Holds Byline against the public MCP conformance suite: every scored scenario, every one of tasks, and the sign-in.

`python -m tests.conformance [revision …]` starts a whole Byline with the fixtures as an ordinary builder's package,
signs a person in, and runs the suite against the gateway through a proxy that adds the person's token.
"""

import asyncio
import json
import os
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from engine.db.database import Database
from engine.settings import DatabaseSettings
from examples.chat import Person, open_chat
from gateway.dev.stack import EmbeddedStack
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.conformance.suite import Check, authorization_checks, list_scored_scenarios, server_checks
from tests.conformance.token_proxy import token_proxy
from tests.e2e.installation import BYLINE, choose_ports
from tests.support.foreign.process import free_port

_HERE: Final = Path(__file__).parent
_REVISIONS: Final = ("2025-11-25", "2026-07-28")
_SIGN_IN: Final = ("authorization-server-metadata-endpoint", "authorization-code-grant")
_NOT_FINE: Final = ("FAILURE", "WARNING")


async def main(revisions: Iterable[str]) -> int:
    """Run it, print what was found, and return 1 where something that has to pass did not."""
    has_passed = []
    with tempfile.TemporaryDirectory(prefix="byline-conformance-") as name:
        folder = Path(name)
        async with _byline(folder) as stack:
            person, token = await _signed_in(stack, folder)
            async with token_proxy(stack.gateway_url, token) as proxy:
                for revision in revisions:
                    checks = await server_checks(f"{proxy}/mcp", revision, folder / revision)
                    has_passed.append(_report_checks(revision, checks, list_scored_scenarios(revision)))
            checks = await _sign_in_checks(stack, person, folder / "authorization")
            has_passed.append(_report_checks("authorization", checks, _SIGN_IN))
    return 0 if all(has_passed) else 1


@asynccontextmanager
async def _byline(folder: Path) -> AsyncIterator[EmbeddedStack]:
    connections = folder / "connections.yml"
    connections.write_text("connections: {}\n")
    environment = {
        **os.environ,
        **choose_ports(),
        "BYLINE_CONNECTIONS_FILE": str(connections),
        "BYLINE_MODULES": json.dumps(["tests.conformance.fixtures"]),
        "BYLINE_POLICY_FILE": str(_HERE / "policy.yml"),
    }
    async with EmbeddedStack(
        folder / "data", environment=environment, report_progress=lambda _: None
    ) as stack:
        for name in BYLINE:
            await stack.start_service(name)
            await stack.wait_until_ready(name)
        yield stack


async def _signed_in(stack: EmbeddedStack, folder: Path) -> tuple[Person, str]:
    person = Person("conformance", secrets.token_urlsafe(12))
    database = Database(DatabaseSettings(url=f"sqlite+aiosqlite:///{folder}/data/byline.db"))
    await BuiltInPeople(database).add_person(person.username, "Carol Clark", person.password)
    await database.close_connections()
    async with open_chat(person, stack.mcp_url):
        assert person.tokens.tokens is not None
        return person, person.tokens.tokens.access_token


async def _sign_in_checks(stack: EmbeddedStack, person: Person, folder: Path) -> list[Check]:
    port = free_port()
    registration = {
        "client_name": "MCP conformance",
        "redirect_uris": [f"http://127.0.0.1:{port}/callback"],
        "token_endpoint_auth_method": "none",
    }

    async def sign_in(address: str) -> None:
        page = await (await person.open(address)).form(submit="Allow")
        assert urlsplit(page.url).port == port, page.url

    async with httpx2.AsyncClient() as http:
        metadata = await http.get(f"{stack.gateway_url}/.well-known/oauth-authorization-server")
        registration_response = await http.post(metadata.json()["registration_endpoint"], json=registration)
    client_id = registration_response.raise_for_status().json()["client_id"]
    issuer = metadata.json()["issuer"]
    return await authorization_checks(issuer, client_id, stack.mcp_url, port, folder, sign_in)


def _report_checks(what: str, checks: list[Check], required_scenarios: Collection[str]) -> bool:
    """Print the figures, and say whether all that has to pass did: a warning is no pass."""
    has_to_pass = [
        scenario_check
        for scenario_check in checks
        if scenario_check.scenario in required_scenarios or scenario_check.scenario.startswith("tasks-")
    ]
    besides = [scenario_check for scenario_check in checks if scenario_check not in has_to_pass]
    print(f"{what}: {_figures(has_to_pass)}" + (f"; not scored: {_figures(besides)}" if besides else ""))
    for check in checks:
        if check.status in _NOT_FINE:
            print(f"  {check.status} {check.scenario} {check.id}: {check.explanation}")
    # A scenario that was skipped whole has shown nothing.
    missing = sorted(
        set(required_scenarios) - {check.scenario for check in checks if check.status == "SUCCESS"}
    )
    for scenario in missing:
        print(f"  NOTHING PASSED {scenario}")
    return not missing and not any(check.status in _NOT_FINE for check in has_to_pass)


def _figures(checks: Collection[Check]) -> str:
    status_counts = Counter(check.status for check in checks)
    return f"{status_counts['SUCCESS']} passed, {status_counts['FAILURE']} failed, {status_counts['WARNING']} warnings"


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:] or _REVISIONS)))
