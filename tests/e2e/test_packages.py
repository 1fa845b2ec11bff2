import asyncio
import os
import secrets
import shutil
import sys
from pathlib import Path

from examples.chat import Person, chat
from gateway.dev.data_directory import COMPOSE_PATH
from gateway.dev.stack import EmbeddedStack
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.e2e.world import BUILDER, BYLINE, ROOT, TOOL, World, installed, link, output, own_ports, said
from tests.foreign.kinto import kinto_server
from tests.foreign.oidc_provider import Client, oidc_provider

ALICE = next(person for person in DEMO_PEOPLE if person.username == "alice")


async def test_a_builders_package_is_found_by_its_entry_point(world: World) -> None:
    assert "kinto_notes" not in world.stack.build_environment("worker")["BYLINE_MODULES"]
    async with chat(await world.newcomer("alice"), world.stack.mcp_url) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    annotate = tools[TOOL]
    assert annotate.title == "Annotate a record"
    assert annotate.description == "Add a note to a Kinto record, in the name of the person who asks."
    assert set(annotate.input_schema["properties"]) == {"record", "note"}
    assert annotate.output_schema is not None
    assert annotate.annotations is not None
    assert annotate.annotations.destructive_hint is False


async def test_the_wheel_serves_a_call_without_the_repository(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path))
    await output(build, {**os.environ})
    (wheel,) = tmp_path.glob("byline-*.whl")
    site = tmp_path / "site"
    await installed(wheel, site)
    await installed(BUILDER, site)
    compose = tmp_path / COMPOSE_PATH.name
    shutil.copy(COMPOSE_PATH, compose)
    client_secret = secrets.token_urlsafe(24)
    environment = {
        **os.environ,
        **own_ports(),
        "PYTHONPATH": str(site),
        "BYLINE_CONNECTIONS_FILE": str(BUILDER / "connections.yml"),
        "BYLINE_MODULES": '["workflows", "activities", "kinto_notes"]',
        "KINTO_CLIENT_SECRET": client_secret,
    }
    where = "import engine, gateway, workflows, activities as a; print(engine.__file__, gateway.__file__, a.__file__)"
    places = (await output((sys.executable, "-c", where), environment, tmp_path)).split()
    assert all(place.startswith(str(site)) for place in places)
    assert not any(str(ROOT) in place for place in places)

    alice = Person(ALICE.username, ALICE.password)
    async with EmbeddedStack(
        tmp_path / "data", environment=environment, compose_path=compose, report_progress=lambda _: None
    ) as stack:
        client_of_kinto = Client("byline", client_secret, (f"{stack.gateway_url}/oauth/callback",))
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
            async with chat(alice, stack.mcp_url) as client, asyncio.TaskGroup() as group:
                note = {"record": "crm/accounts/acme", "note": "from a wheel"}
                calling = group.create_task(client.call_tool(TOOL, note))
                page = await (await alice.open(await link(alice))).form(submit="Continue")
                await provider.let_in(page, "alice")
                alice.has_signed_in.set()

    assert said(calling.result())["notes"] == ["from a wheel"]
