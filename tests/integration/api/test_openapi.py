import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
from jsonschema import Draft202012Validator
from openapi_pydantic import OpenAPI

from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.runs.runs import build_runs
from engine.schedules.schedules import Schedules
from engine.tools.registry import Registry
from gateway.api.router import build_api
from gateway.protected_resource import API_PATH
from gateway.services import build_gateway_services
from tests.docs.markdown import ROOT, read_table
from tests.support.administration import give_role
from tests.support.api_server import serve_api
from tests.support.platform import NORTHWIND, Platform

ALLOWED_SECONDS = 300
# What the schema of a schedule could be varied in is more than all the rest; its fuzzing is enough.
CONFIGURATION = """
[[operations]]
include-path-regex = "^/runs/"
parameters = {{ run_id = "{run}" }}

[[operations]]
include-path-regex = "^/(schedules|webhooks)"
include-method-regex = "POST|PUT|PATCH"
phases.coverage.enabled = false
"""


async def test_the_document_is_openapi_3_1_and_every_reference_in_it_leads_somewhere(
    idle_platform: Platform,
) -> None:
    async with serve_api(idle_platform) as api_server, httpx2.AsyncClient(base_url=api_server.url) as nobody:
        answer = await nobody.get("/api/v1/openapi.json")

    document = answer.json()
    assert answer.status_code == 200
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)
    components = document["components"]["schemas"]
    assert set(references(document)) <= {f"#/components/schemas/{name}" for name in components}
    for schema in components.values():
        Draft202012Validator.check_schema(schema)
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert all(operation["security"] == [{"bearer": []}] for operation in operations(document))
    assert {f"/tools/{tool}/runs" for tool in idle_platform.registry.tools} <= set(document["paths"])


async def test_every_operation_is_documented_in_the_reference(idle_platform: Platform) -> None:
    document = build_api(
        idle_platform.services,
        build_gateway_services(idle_platform.services).token_verifiers[API_PATH],
        idle_platform.registry,
        idle_platform.runs,
        Schedules(idle_platform.services, idle_platform.temporal),
    ).openapi()
    own = {f"/tools/{tool}/runs": "/tools/{tool}/runs" for tool in idle_platform.registry.tools}
    offered_operations = {
        f"{method.upper()} {own.get(path, path)}"
        for path, operations in document["paths"].items()
        for method in operations
    }

    assert set(read_table(ROOT / "docs" / "reference" / "rest-api.md", "operation")) == offered_operations


async def test_no_request_makes_the_api_answer_otherwise_than_its_document_says(
    platform: Platform, tmp_path: Path
) -> None:
    # Tools without appetite: what an API answers does not depend on how many children a run starts.
    registry = Registry(("workflows", "activities", "tests.fixtures.tools.note_creation"))
    runs = build_runs(platform.services, platform.temporal, registry)
    report = tmp_path / "report.txt"
    async with serve_api(replace(platform, registry=registry, runs=runs)) as api_server:
        person = await api_server.add_person("alice", "Alice")
        await platform.give_grant("crm", person)
        await give_role(platform.services, person.id, ADMINISTRATOR_ROLE)
        run = await platform.start_run("read_once", {"account_id": NORTHWIND}, person)
        await platform.wait_for_outcome(run)
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(run=run))
        with report.open("wb") as report_file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{api_server.url}/api/v1/openapi.json"),
                *("--header", f"Authorization: Bearer {await api_server.issue_token(person)}"),
                *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "5"),
                *("--seed", "1", "--generation-deterministic", "--continue-on-failure", "--no-shrink"),
                *("--exclude-checks", "positive_data_acceptance", "--no-color", "--request-timeout", "30"),
                cwd=tmp_path,
                env=dict(os.environ),
                stdout=report_file,
                stderr=report_file,
            )
            try:
                async with asyncio.timeout(ALLOWED_SECONDS):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    assert process.returncode == 0, report.read_text()


def references(part: Any) -> Iterator[str]:
    match part:
        case {"$ref": str(reference), **rest}:
            yield reference
            yield from references(rest)
        case dict():
            for value in part.values():
                yield from references(value)
        case list():
            for value in part:
                yield from references(value)


def operations(document: Any) -> Iterator[Any]:
    for path in document["paths"].values():
        yield from path.values()
