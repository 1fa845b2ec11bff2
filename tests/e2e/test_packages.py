import asyncio
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from subprocess import PIPE, STDOUT
from textwrap import dedent

from examples.chat import Person, open_chat
from gateway.dev.data_directory import COMPOSE_PATH
from gateway.dev.stack import EmbeddedStack
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.e2e.installation import (
    BUILDER,
    BYLINE,
    ROOT,
    TOOL,
    Installation,
    choose_ports,
    empty_environment,
    install_package,
    next_link,
    read_result,
    run_command,
)
from tests.support.foreign.kinto import kinto_server
from tests.support.foreign.oidc_provider import RegisteredClient, oidc_provider
from tests.support.sandbox_systems import SYSTEMS

ALICE = next(person for person in DEMO_PEOPLE if person.username == "alice")
DISPUTE = {"account_id": "001D000000IRFmaIAP", "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": 35436}
DESK = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "desk"
        version = "1"

        [project.entry-points."byline.modules"]
        workflows = "workflows"
        activities = "activities"

        [tool.hatch.build.targets.wheel]
        packages = ["workflows", "activities"]
        """,
    "activities/__init__.py": "",
    "activities/accounts.py": """
        from byline import Upstream, action, upstream
        from pydantic import BaseModel


        class Account(BaseModel):
            name: str


        async def read(crm: Upstream, account_id: str) -> Account:
            answer = await crm.get(f"/services/data/v63.0/sobjects/Account/{account_id}")
            return Account(name=answer.json()["Name"])


        @action("desk.read_account", connection="crm", scopes=("api",), reads_only=True)
        async def read_account(account_id: str) -> Account:
            return await read(upstream(), account_id)
        """,
    "workflows/__init__.py": "",
    "workflows/accounts.py": """
        from datetime import timedelta

        from byline import tool
        from pydantic import BaseModel
        from temporalio import workflow

        from activities.accounts import Account, read_account


        class Which(BaseModel):
            account_id: str


        @tool(title="Read an account at the desk", read_only=True)
        @workflow.defn(name="desk_read_account")
        class ReadAccount:
            @workflow.run
            async def run(self, which: Which) -> Account:
                return await workflow.execute_activity(
                    read_account, which.account_id, start_to_close_timeout=timedelta(seconds=30)
                )
        """,
}


async def test_a_builders_package_is_found_by_its_entry_point(installation: Installation) -> None:
    assert "kinto_notes" not in installation.stack.build_environment("worker")["BYLINE_MODULES"]
    async with open_chat(await installation.add_newcomer("alice"), installation.stack.mcp_url) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    annotate = tools[TOOL]
    assert annotate.title == "Annotate a record"
    assert annotate.description == "Add a note to a Kinto record, in the name of the person who asks."
    assert set(annotate.input_schema["properties"]) == {"record", "note"}
    assert annotate.output_schema is not None
    assert annotate.annotations is not None
    assert annotate.annotations.destructive_hint is False


async def test_the_wheel_serves_a_call_without_the_repository(tmp_path: Path, wheel: Path) -> None:
    site = tmp_path / "site"
    await install_package(wheel, site)
    await install_package(BUILDER, site)
    compose = tmp_path / COMPOSE_PATH.name
    shutil.copy(COMPOSE_PATH, compose)
    client_secret = secrets.token_urlsafe(24)
    environment = {
        **os.environ,
        **choose_ports(),
        "PYTHONPATH": str(site),
        "BYLINE_CONNECTIONS_FILE": str(BUILDER / "connections.yml"),
        "BYLINE_MODULES": '["kinto_notes"]',
        "KINTO_CLIENT_SECRET": client_secret,
    }
    where = "import byline, engine, gateway; print(byline.__file__, engine.__file__, gateway.__file__)"
    places = (await run_command((sys.executable, "-c", where), environment, tmp_path)).split()
    assert all(place.startswith(str(site)) for place in places)
    assert not any(str(ROOT) in place for place in places)

    alice = Person(ALICE.username, ALICE.password)
    async with EmbeddedStack(
        tmp_path / "data", environment=environment, compose_path=compose, report_progress=lambda _: None
    ) as stack:
        client_of_kinto = RegisteredClient("byline", client_secret, (f"{stack.gateway_url}/oauth/callback",))
        with (
            oidc_provider(tmp_path, [client_of_kinto]) as provider,
            kinto_server(tmp_path, provider.issuer) as kinto,
        ):
            environment |= {"KINTO_URL": kinto.url, "KINTO_ISSUER": provider.issuer}
            kinto.add_collection("crm", "accounts")
            kinto.add_record("/buckets/crm/collections/accounts/records/acme", {}, writers=["alice"])
            for name in BYLINE:
                await stack.start_service(name)
                await stack.wait_until_ready(name)
            async with open_chat(alice, stack.mcp_url) as client, asyncio.TaskGroup() as group:
                note = {"record": "crm/accounts/acme", "note": "from a wheel"}
                calling = group.create_task(client.call_tool(TOOL, note))
                page = await (await alice.open(await next_link(alice))).form(submit="Continue")
                await provider.let_in(page, "alice")
                alice.has_signed_in.set()

    assert read_result(calling.result())["notes"] == ["from a wheel"]


@asynccontextmanager
async def byline_dev(programs: Path, folder: Path, environment: dict[str, str]) -> AsyncIterator[str]:
    """Run `byline dev` as it is installed, in this folder; the address of the MCP endpoint that it tells."""
    process = await asyncio.create_subprocess_exec(
        programs / "byline", "dev", cwd=folder, env=environment, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    told = ""
    try:
        while "claude mcp add" not in told:
            line = await process.stdout.readline()
            assert line, told
            told += line.decode()
        yield told.split()[-1]
    finally:
        process.terminate()
        await process.communicate()


async def test_the_wheel_runs_the_demo_in_an_empty_folder_beside_a_builders_workflows_and_activities(
    tmp_path: Path, wheel: Path
) -> None:
    for name, text in DESK.items():
        path = tmp_path / "desk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip())
    programs = await empty_environment(tmp_path / "environment", wheel, tmp_path / "desk")
    folder, ports = tmp_path / "empty", choose_ports()
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BYLINE_")}
    environment |= {"PATH": "/usr/bin:/bin", **ports}
    accounts = {
        f"127.0.0.1:{ports[f'{name.upper()}_PORT']}": (seed.username, seed.password)
        for name, system in SYSTEMS.items()
        for seed in system.people
        if seed.password == f"alice-{name}"
    }
    alice = Person(ALICE.username, ALICE.password, accounts)

    await run_command((str(programs / "byline"), "migrate"), environment, folder)
    async with byline_dev(programs, folder, environment) as url, open_chat(alice, url) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        calling = asyncio.create_task(client.call_tool("resolve_billing_dispute", DISPUTE))
        for address in [await next_link(alice) for _ in SYSTEMS]:
            assert (await alice.connect(address)).status == HTTPStatus.OK
        alice.has_signed_in.set()
        resolved = read_result(await calling)
        read = read_result(await client.call_tool("desk_read_account", {"account_id": DISPUTE["account_id"]}))

    (site,) = tmp_path.glob("environment/lib/python*/site-packages")
    assert {"resolve_billing_dispute", "desk_read_account"} <= tools
    assert resolved["ticket_status"] == "pending"
    assert read == {"name": resolved["account"]}
    assert [path.name for path in sorted((site / "workflows").glob("*.py"))] == ["__init__.py", "accounts.py"]
    assert not any(str(ROOT) in log.read_text() for log in folder.glob(".byline/logs/*.log"))
