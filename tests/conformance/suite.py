"""Runs the public MCP conformance suite as a program, and reads what it found; it decides nothing about it."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from tests.support.foreign.node import NODE, SCRIPTS

_PACKAGE: Final = SCRIPTS / "node_modules/@modelcontextprotocol/conformance"
_STAMP: Final = re.compile(r"-\d{4}-\d\d-\d\dT[\dZ-]+$")
_SIGN_IN: Final = re.compile(r"^http://\S+response_type=code\S*$")
_WITHIN: Final = 300.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a scenario looked at: SUCCESS, FAILURE, WARNING, SKIPPED or INFO, and why."""

    scenario: str
    id: str
    status: str
    explanation: str


def list_scored_scenarios(revision: str) -> frozenset[str]:
    """The server scenarios that a revision of the protocol requires."""
    requirements = yaml.safe_load((_PACKAGE / f"requirements/{revision}.yaml").read_text())
    return frozenset(requirements["server"])


async def server_checks(url: str, revision: str, folder: Path) -> list[Check]:
    """Every check of the server scenarios of a revision, those that are not scored included."""
    async with _running(
        "server", "--url", url, "--requirements", revision, "--output-dir", str(folder)
    ) as process:
        await process.communicate()
    return _checks(folder, "server-")


async def authorization_checks(
    issuer: str,
    client_id: str,
    resource: str,
    port: int,
    folder: Path,
    sign_in: Callable[[str], Awaitable[None]],
) -> list[Check]:
    """Every check of an authorization server; whoever `sign_in` stands for opens the address that the suite names."""
    options = {"--url": issuer, "--client-id": client_id, "--resource": resource, "-p": str(port)}
    arguments = [word for option in options.items() for word in option]
    async with _running("authorization", *arguments, "--output-dir", str(folder)) as process:
        assert process.stdout is not None
        async for line in process.stdout:
            if _SIGN_IN.match(line.decode().strip()):
                await sign_in(line.decode().strip())
    return _checks(folder, "authorization-server-")


@asynccontextmanager
async def _running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        str(NODE),
        str(_PACKAGE / "dist/index.js"),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_WITHIN):
            yield process
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def _checks(folder: Path, prefix: str) -> list[Check]:
    check_files = sorted(folder.glob(f"{prefix}*/checks.json"), key=lambda path: path.stat().st_mtime)
    return [
        _check(_STAMP.sub("", path.parent.name).removeprefix(prefix), check_document)
        for path in check_files
        for check_document in json.loads(path.read_text())
    ]


def _check(scenario: str, check_document: Mapping[str, str]) -> Check:
    return Check(
        scenario, check_document["id"], check_document["status"], check_document.get("errorMessage", "")
    )
