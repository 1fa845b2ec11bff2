"""Holds MCP servers as upstreams: found by their address, signed in to as the person, called in every protocol."""

import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import pytest
from starlette.responses import JSONResponse, Response

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.errors import AuthorizationRefused, ConnectionMisconfigured
from engine.oauth.discovery import Discovery
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient
from engine.runs.outcome import Failed, Finished
from engine.services import open_services
from engine.settings import GatewaySettings, OutgoingSettings
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser
from gateway.app import open_app
from tests.support.foreign.node import NODE, SCRIPTS
from tests.support.foreign.oidc_provider import OidcProvider, oidc_provider
from tests.support.foreign.process import free_port, run_program
from tests.support.page_server import PASSWORDS, serve_pages
from tests.support.platform import NORTHWIND, Platform
from tests.support.receivers import run_receiver, serve_application
from tests.support.samples import build_identity
from tests.support.sandbox_systems import CALLBACK
from tests.support.sign_ins import consent_page

HERE = OutgoingSettings(allow_http=True, allow_private=True)
NOTE = {"tool": "add_note", "arguments": {"text": "pays \u2028 on time"}}
CALL = "call_notes_server"
STRICT, OLDER = "@modelcontextprotocol/server", "@modelcontextprotocol/sdk"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), scopes=["notes"]) as here:
        yield here


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory, provider: OidcProvider) -> Iterator[str]:
    """The address of an MCP server in a process of its own."""
    port = free_port()
    script = str(Path(__file__).parents[2] / "support" / "foreign" / "notes_server.py")
    log = tmp_path_factory.mktemp("notes") / "notes.log"
    with run_program([sys.executable, script, str(port), provider.issuer], log=log, port=port):
        yield f"http://127.0.0.1:{port}/mcp"


def build_connection(url: str, **more: object) -> Connection:
    """An MCP server of which nothing but its address is declared."""
    return Connection.model_validate(
        {"name": "notes", "title": "Notes", "system": "notes", "mode": "user", "mcp": {"url": url}, **more}
    )


async def consent(
    platform: Platform, request: AuthorizationRequest, provider: OidcProvider, person: str
) -> str:
    """Let this person in at the provider as Alice's account; the address that the browser was sent to."""
    session = secrets.token_urlsafe()
    address = await consent_page(platform.services, request, session)
    async with Browser(stop_at=CALLBACK) as browser:
        page = await provider.let_in(await browser.open(address), person)
    answer = dict(parse_qsl(urlsplit(page.url).query))
    await platform.services.sign_ins.finish_redirect(answer, platform.alice, session)
    return address


async def test_a_server_is_found_by_its_address_and_called_as_whoever_signed_in(
    platform: Platform, notes: str, provider: OidcProvider
) -> None:
    await platform.services.catalogue.store_connections([build_connection(notes)])
    run = await platform.start_run(CALL, NOTE, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    address = await consent(platform, request, provider, "bob")
    outcome = await platform.wait_for_outcome(run)
    again = await platform.wait_for_outcome(await platform.start_run(CALL, NOTE, platform.alice))
    failing = await platform.wait_for_outcome(
        await platform.start_run(CALL, {"tool": "fail"}, platform.alice)
    )
    unknown = await platform.wait_for_outcome(
        await platform.start_run(CALL, {"tool": "gone"}, platform.alice)
    )

    query = parse_qs(urlsplit(address).query)
    assert set(query) == {"client_id", "request_uri"}
    for call_outcome in (outcome, again):
        assert isinstance(call_outcome, Finished)
        assert call_outcome.value["structured"] == {"by": "bob", "text": "pays \u2028 on time"}
    assert isinstance(failing, Finished)
    assert failing.value["is_error"]
    assert isinstance(unknown, Finished)
    assert unknown.value["is_error"]
    asking, calling = await platform.list_trail_events("action.intended", run)
    assert {event["resource"] for event in (asking, calling)} == {"/mcp"}
    assert (asking.get("record_id"), calling["record_id"]) == (None, "tool/add_note")


async def test_byline_registers_itself_once_for_each_issuer_and_seals_the_registration(
    idle_platform: Platform, notes: str, provider: OidcProvider
) -> None:
    registrations = idle_platform.services.registrations
    endpoints = await Discovery(idle_platform.services.outgoing).find_endpoints(build_connection(notes))

    first = await registrations.find_identity("notes", endpoints)
    second = await registrations.find_identity("notes", endpoints)
    await registrations.delete_registration(provider.issuer)
    third = await registrations.find_identity("notes", endpoints)

    assert endpoints.issuer == provider.issuer
    assert first == second
    assert first.client_id != third.client_id
    assert (first.auth_method, first.is_registered) == ("client_secret_basic", True)
    assert first.client_secret is not None
    assert first.client_secret not in repr(first)
    assert (
        first.client_secret.encode()
        not in Path(str(idle_platform.services.database.url.database)).read_bytes()
    )


async def connect_server(platform: Platform, port: int) -> None:
    """Have Alice's key for a server that asks nobody to sign in."""
    connection = Connection.model_validate(
        {
            "name": "notes",
            "title": "Notes",
            "system": "notes",
            "mode": "user",
            "base_url": f"http://127.0.0.1:{port}/mcp",
            "sign_in": "personal_access_token",
        }
    )
    await platform.services.catalogue.store_connections([connection])
    async with platform.services.database.open_write_session() as session:
        tokens = UpstreamTokens("key", None, None, ())
        await platform.services.grants.store_grant(session, connection, platform.alice.id, tokens, "alice")


def run_node_server(
    sdk: str, port: int, folder: Path, *, sessions: bool = True
) -> AbstractContextManager[None]:
    """A server of a TypeScript SDK."""
    options_text = json.dumps({"port": port, "sdk": sdk, "sessions": sessions})
    command = [str(NODE), str(SCRIPTS / "mcp-server.mjs"), options_text]
    return run_program(command, log=folder / "node.log", port=port)


def run_python_server(port: int, folder: Path) -> AbstractContextManager[None]:
    """A server of the Python SDK, for clients of every version."""
    script = str(Path(__file__).parents[2] / "support" / "foreign" / "dual_server.py")
    return run_program([sys.executable, script, str(port)], log=folder / "python.log", port=port)


async def call_and_list_requests(platform: Platform) -> tuple[int, list[str]]:
    """How many notes are kept after one more, and by which requests, of which only the call is of a record."""
    text = secrets.token_hex(4)
    run = await platform.start_run(CALL, {"tool": "add_note", "arguments": {"text": text}}, platform.alice)
    outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Finished)
    assert outcome.value["structured"]["text"] == text
    ended_events = await platform.list_trail_events("action.ended", run)
    # Whatever comes before it, the call is the action's first write: it would not be made twice in another try.
    (key,) = [event["idempotency_key"] for event in ended_events if "idempotency_key" in event]
    assert "." not in key
    request_lines = [
        " ".join(filter(None, (event["method"], event.get("record_id"), str(event["status"]))))
        for event in ended_events
    ]
    return outcome.value["structured"]["kept"], request_lines


POSTED_OK, POSTED_BAD_REQUEST, INITIALIZED_OK, READY = "POST 200", "POST 400", "POST 200", "POST 202"
TOOL_CALLED, SESSION_DELETED = "POST tool/add_note 200", "DELETE 200"


@pytest.mark.parametrize(
    ("sdk", "sessions", "first", "then"),
    [
        (STRICT, False, [POSTED_OK, TOOL_CALLED], [TOOL_CALLED]),
        (
            OLDER,
            True,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
            [INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        ),
        (
            OLDER,
            False,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED],
            [INITIALIZED_OK, READY, TOOL_CALLED],
        ),
        (
            "sdk-of-2025-06-18",
            True,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
            [INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        ),
        (
            "sdk-of-2025-03-26",
            True,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
            [INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        ),
        # It would have taken the newer protocol's call for one of its own: what asks must not be the call.
        (
            "sdk-of-2025-03-26",
            False,
            [POSTED_OK, INITIALIZED_OK, READY, TOOL_CALLED],
            [INITIALIZED_OK, READY, TOOL_CALLED],
        ),
    ],
)
async def test_a_server_is_called_in_the_protocol_that_it_speaks_once_and_on_record(
    platform: Platform, tmp_path: Path, sdk: str, first: list[str], then: list[str], *, sessions: bool
) -> None:
    port = free_port()
    await connect_server(platform, port)
    with run_node_server(sdk, port, tmp_path, sessions=sessions):
        assert await call_and_list_requests(platform) == (1, first)
        assert await call_and_list_requests(platform) == (2, then)
        if sessions:
            async with httpx2.AsyncClient() as http:
                assert (await http.get(f"http://127.0.0.1:{port}/sessions")).text == "0"


async def test_a_server_that_speaks_another_protocol_since_is_called_in_that(
    platform: Platform, tmp_path: Path
) -> None:
    port = free_port()
    await connect_server(platform, port)
    with run_node_server(OLDER, port, tmp_path):
        assert await call_and_list_requests(platform) == (
            1,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        )
    with run_python_server(port, tmp_path):
        assert await call_and_list_requests(platform) == (
            1,
            [INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        )
    with run_node_server(STRICT, port, tmp_path):
        assert await call_and_list_requests(platform) == (1, [POSTED_BAD_REQUEST, POSTED_OK, TOOL_CALLED])
    with run_python_server(port, tmp_path):
        assert await call_and_list_requests(platform) == (1, [TOOL_CALLED])
    with run_node_server(OLDER, port, tmp_path):
        set_back = await platform.wait_for_outcome(await platform.start_run(CALL, NOTE, platform.alice))
        assert isinstance(set_back, Failed)
        assert set_back.code == "request_rejected"
        assert await call_and_list_requests(platform) == (
            1,
            [POSTED_BAD_REQUEST, INITIALIZED_OK, READY, TOOL_CALLED, SESSION_DELETED],
        )


def build_result(result: dict[str, object]) -> JSONResponse:
    return JSONResponse(
        {"jsonrpc": "2.0", "id": 1, "result": result}, headers={"Mcp-Session-Id": "session-1"}
    )


def build_initialize_result(version: str) -> JSONResponse:
    return build_result(
        {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "n", "version": "1"}}
    )


async def test_an_answer_stands_however_its_session_ends(platform: Platform) -> None:
    answer = build_result({"content": [{"type": "text", "text": "kept"}]})
    older = [
        Response(status_code=400),
        build_initialize_result("2025-06-18"),
        Response(status_code=202),
        answer,
    ]
    async with run_receiver([*older, Response(status_code=500)]) as server:
        await connect_server(platform, server.port)
        outcome = await platform.wait_for_outcome(await platform.start_run(CALL, NOTE, platform.alice))

    assert isinstance(outcome, Finished)
    assert outcome.value["text"] == "kept"
    session = [
        (post.headers["mcp-protocol-version"], post.headers["mcp-session-id"]) for post in server.posts[2:]
    ]
    assert session == [("2025-06-18", "session-1")] * 3


async def test_an_action_that_only_reads_calls_the_tools_that_its_declaration_names_whatever_the_caller_says(
    platform: Platform,
) -> None:
    answer = build_result({"content": [{"type": "text", "text": "kept"}]})
    begun = [build_initialize_result("2025-06-18"), Response(status_code=202)]
    answers = [Response(status_code=400), *begun, answer, Response(status_code=204)]
    async with run_receiver([*answers, *begun, Response(status_code=204)]) as server:
        await connect_server(platform, server.port)
        outcomes = [
            await platform.wait_for_outcome(
                await platform.start_run("look_at_notes_server", tool_call, platform.alice)
            )
            for tool_call in ({**NOTE, "tool": "read_notes"}, {**NOTE, "read_only": True})
        ]

    read, refused = outcomes
    assert isinstance(read, Finished)
    assert isinstance(refused, Failed)
    assert refused.code == "read_only_violated"
    bodies = [json.loads(post.body or b"{}").get("method") for post in server.posts]
    assert bodies == [
        *("server/discover", "initialize", "notifications/initialized", "tools/call", None),
        *("initialize", "notifications/initialized", None),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"id": 1, "error": {"code": "planted", "message": "planted"}}',
        b'{"id": 1, "error": {"code": {"planted": "planted"}}}',
        b'{"id": 1, "error": "planted"}',
        b'{"id": 1, "result": {"structuredContent": {"planted": ' + b"[" * 900 + b"]" * 900 + b"}}}",
        b'{"id": 1, "result": {"content": [{"type": "text", "text": "planted \\ud800"}]}}',
        b'{"id": 1, "result": "planted"}',
        b"planted",
    ],
    ids=range(7),
)
async def test_what_a_server_says_instead_of_a_result_is_not_quoted(
    platform: Platform, answer: bytes
) -> None:
    modern = build_result({"supportedVersions": ["2026-07-28"]})
    async with run_receiver([modern, Response(answer, media_type="application/json")]) as server:
        await connect_server(platform, server.port)
        run = await platform.start_run(CALL, NOTE, platform.alice)
        outcome = await platform.wait_for_outcome(run)

    assert isinstance(outcome, Failed)
    assert outcome.code == "ValueError"
    assert "planted" not in f"{outcome}{await platform.fetch_history(run)}"


@pytest.mark.parametrize(
    "answers",
    [[Response("ok"), Response("ok")], [Response(status_code=404), build_initialize_result("2031-01-01")]],
)
async def test_what_speaks_no_version_that_is_spoken_here_is_not_called(
    platform: Platform, answers: list[Response]
) -> None:
    async with run_receiver(answers) as server:
        await connect_server(platform, server.port)
        outcome = await platform.wait_for_outcome(await platform.start_run(CALL, NOTE, platform.alice))

    assert isinstance(outcome, Failed)
    assert "This is no MCP server, or one of another version" in outcome.message
    assert len(server.posts) == 2


@asynccontextmanager
async def gateway(platform: Platform) -> AsyncIterator[str]:
    """The address of a gateway of this platform at another port, with people of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        own = GatewaySettings(public_url=url, demo_people=True)
        settings = platform.settings.model_copy(update={"gateway": own})
        async with open_app(settings, platform.environment) as app, serve_application(app, listener):
            yield url


async def test_byline_is_an_upstream_of_byline_and_knows_who_calls(platform: Platform) -> None:
    async with gateway(platform) as url:
        await platform.services.catalogue.store_connections([build_connection(f"{url}/mcp")])
        run = await platform.start_run(
            CALL, {"tool": "say_again", "arguments": {"text": "hello"}}, platform.alice
        )
        (request,) = await platform.wait_until_parked(run)
        session = secrets.token_urlsafe()
        address = await consent_page(platform.services, request, session)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await browser.open(address)
            page = await page.form(submit="Sign in", username="bob", password=PASSWORDS["bob"])
            page = await page.form(submit="Allow")
        answer = dict(parse_qsl(urlsplit(page.url).query))
        await platform.services.sign_ins.finish_redirect(answer, platform.alice, session)
        outcome = await platform.wait_for_outcome(run)

    query = parse_qs(urlsplit(address).query)
    (bob,) = [
        candidate
        for candidate in await platform.services.principals.find_by_name("Bob Baker")
        if candidate.issuer == url
    ]
    called_events = [
        event for event in await platform.list_trail_events("tool.called") if event["tool"] == "say_again"
    ]
    assert isinstance(outcome, Finished)
    assert outcome.value["structured"] == {"text": "hello"}
    assert [event["principal"]["id"] for event in called_events] == [bob.id]
    assert (query["resource"], query["scope"]) == ([f"{url}/mcp"], ["mcp"])
    assert answer["iss"] == url


async def test_a_request_that_no_file_is_about_is_made_as_the_person_too(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)
    path = f"/services/data/v63.0/sobjects/Account/{NORTHWIND}"
    read = {"path": path, "record": f"account/{NORTHWIND}"}

    run = await platform.start_run("send_to_crm", read, platform.alice)
    outcome = await platform.wait_for_outcome(run)
    astray = await platform.wait_for_outcome(
        await platform.start_run("send_to_crm", {"path": "/services/../admin"}, platform.alice)
    )

    (ended_event,) = await platform.list_trail_events("action.ended", run)
    assert isinstance(outcome, Finished)
    assert (outcome.value["status"], outcome.value["body"]["Id"]) == (200, NORTHWIND)
    assert ended_event["record_id"] == f"account/{NORTHWIND}"
    assert isinstance(astray, Failed)


CHALLENGE = {"WWW-Authenticate": 'Bearer resource_metadata="ORIGIN/meta", scope="notes"'}


def build_responses(origin: str, *answers: tuple[object, int]) -> list[Response]:
    """A challenge, and what comes after it; ORIGIN is the server's own."""
    challenge = {name: value.replace("ORIGIN", origin) for name, value in CHALLENGE.items()}
    responses = [
        JSONResponse(json.loads(json.dumps(body).replace("ORIGIN", origin)), status)
        for body, status in answers
    ]
    return [JSONResponse({}, 401, challenge), *responses]


RESOURCE = {"resource": "ORIGIN/mcp", "authorization_servers": ["ORIGIN"]}
ISSUER = {
    "issuer": "ORIGIN",
    "authorization_endpoint": "ORIGIN/authorize",
    "token_endpoint": "ORIGIN/token",
    "code_challenge_methods_supported": ["S256"],
}
WITHOUT_PKCE = {name: value for name, value in ISSUER.items() if not name.startswith("code")}


@pytest.mark.parametrize(
    ("answers", "expected_message"),
    [
        ([({}, 404), ({}, 404), ({}, 404)], "does not say who signs people in"),
        ([({"resource": "ORIGIN/mcp"}, 200)], "cannot be read"),
        ([({**RESOURCE, "resource": "https://other.example/mcp"}, 200)], "is another by its own name"),
        ([({**RESOURCE, "resource": "ORIGIN/m"}, 200)], "is another by its own name"),
        ([({**RESOURCE, "authorization_servers": ["http://169.254.169.254"]}, 200)], "cannot be asked"),
        ([(RESOURCE, 200), ({**ISSUER, "issuer": "https://other.example"}, 200)], "by its own name"),
        ([(RESOURCE, 200), (WITHOUT_PKCE, 200)], "does not say that it takes PKCE"),
        (
            [(RESOURCE, 200), ({**ISSUER, "token_endpoint": "http://169.254.169.254/token"}, 200)],
            "token_endpoint .* is not called",
        ),
    ],
    ids=range(8),
)
async def test_a_server_with_false_metadata_is_not_signed_in_to(
    answers: list[tuple[object, int]], expected_message: str
) -> None:
    named_hosts = OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))
    async with run_receiver() as server, OutgoingClient(named_hosts) as outgoing:
        origin = f"http://127.0.0.1:{server.port}"
        server.answers = build_responses(origin, *answers)
        with pytest.raises(ConnectionMisconfigured, match=expected_message):
            await Discovery(outgoing).find_endpoints(build_connection(f"{origin}/mcp"))

    assert len(server.posts) == len(answers) + 1


@pytest.mark.parametrize(
    ("challenge", "expected_message"),
    [
        (JSONResponse({}), "asks nobody to sign in"),
        (JSONResponse({}, 307, {"Location": "http://169.254.169.254/"}), "redirect, which is not followed"),
        (
            JSONResponse({}, 401, {"WWW-Authenticate": 'Bearer resource_metadata="http://169.254.169.254/"'}),
            "is not on the public Internet",
        ),
    ],
)
async def test_a_challenge_leads_nowhere_inside_the_network(
    challenge: Response, expected_message: str
) -> None:
    named_hosts = OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))
    async with run_receiver([challenge]) as server, OutgoingClient(named_hosts) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match=expected_message):
            await Discovery(outgoing).find_endpoints(build_connection(f"http://127.0.0.1:{server.port}/mcp"))

    assert len(server.posts) == 1


async def test_the_trail_names_the_person_whose_sign_in_such_a_server_redirected(
    idle_platform: Platform,
) -> None:
    settings = idle_platform.settings.model_copy(
        update={"outgoing": OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))}
    )
    inside = {"Location": "http://169.254.169.254/latest/meta-data"}
    metadata = {"WWW-Authenticate": 'Bearer resource_metadata="ORIGIN/meta"'}
    async with run_receiver() as server, open_services(settings, idle_platform.environment) as services:
        origin = f"http://127.0.0.1:{server.port}"
        challenge = {name: value.replace("ORIGIN", origin) for name, value in metadata.items()}
        server.answers = [JSONResponse({}, 401, challenge), JSONResponse({}, 302, inside)]
        await services.catalogue.store_connections([build_connection(f"{origin}/mcp")])
        connection = await services.catalogue.get_connection("notes")
        request_ahead = await services.authorization_requests.open_request_ahead(
            idle_platform.alice, connection, ()
        )
        with pytest.raises(ConnectionMisconfigured, match="redirect, which is not followed"):
            await consent_page(services, request_ahead, "session")

    (refused_event,) = await idle_platform.list_trail_events("authorization.refused")
    assert (refused_event["principal"]["id"], refused_event["request_id"]) == (
        idle_platform.alice.id,
        request_ahead.id,
    )
    assert (refused_event["error"], refused_event["connection"]) == ("connection_misconfigured", "notes")
    assert len(server.posts) == 2


async def test_an_issuer_that_the_connection_names_has_to_be_one_of_the_servers(notes: str) -> None:
    elsewhere = build_connection(notes, provider={"issuer": "https://other.example"})
    async with OutgoingClient(HERE) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match="takes no tokens of"):
            await Discovery(outgoing).find_endpoints(elsewhere)


async def test_a_server_that_changes_its_sign_in_service_meanwhile_gets_no_code(
    platform: Platform, provider: OidcProvider
) -> None:
    honest = {"resource": "ORIGIN/mcp", "authorization_servers": [provider.issuer]}
    async with run_receiver() as server:
        origin = f"http://127.0.0.1:{server.port}"
        await platform.services.catalogue.store_connections([build_connection(f"{origin}/mcp")])
        run = await platform.start_run(CALL, NOTE, platform.alice)
        (request,) = await platform.wait_until_parked(run)
        session = secrets.token_urlsafe()
        server.answers = build_responses(origin, (honest, 200))
        address = await consent_page(platform.services, request, session)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await provider.let_in(await browser.open(address), "alice")
        answer = dict(parse_qsl(urlsplit(page.url).query))
        before = len(server.posts)
        server.answers = build_responses(origin, (RESOURCE, 200), (ISSUER, 200))
        async with open_services(platform.settings, platform.environment) as another_gateway:
            with pytest.raises(AuthorizationRefused, match="another sign-in service"):
                await another_gateway.sign_ins.finish_redirect(answer, platform.alice, session)

    assert not [post for post in server.posts[before:] if answer["code"].encode() in post.body]
    (refused_event,) = await platform.list_trail_events("authorization.refused")
    assert refused_event["error"] == "authorization_refused"
    await platform.temporal.get_workflow_handle(run).terminate()


async def test_an_issuer_without_registration_is_reported_with_what_to_register(
    idle_platform: Platform,
) -> None:
    registrations = idle_platform.services.registrations
    async with run_receiver() as server:
        origin = f"http://127.0.0.1:{server.port}"
        server.answers = build_responses(origin, (RESOURCE, 200), (ISSUER, 200))
        endpoints = await Discovery(idle_platform.services.outgoing).find_endpoints(
            build_connection(f"{origin}/mcp")
        )
        with pytest.raises(ConnectionMisconfigured, match=f"redirect URI {CALLBACK}"):
            await registrations.find_identity("notes", endpoints)
        server.answers = [JSONResponse({"error": "invalid_redirect_uri"}, 400)]
        with pytest.raises(ConnectionMisconfigured, match="does not register Byline"):
            await registrations.find_identity(
                "notes", replace(endpoints, registration_endpoint=f"{origin}/register")
            )


async def test_byline_is_known_by_its_document_where_a_server_reads_it(tmp_path: Path) -> None:
    port, origin = free_port(), "https://byline.example"
    documents = {origin: f"http://127.0.0.1:{port}"}
    with oidc_provider(tmp_path, documents=documents) as provider:
        async with serve_pages(tmp_path, port=port, public_url=origin) as byline, run_receiver() as server:
            here = f"http://127.0.0.1:{server.port}"
            resource = {"resource": f"{here}/mcp", "authorization_servers": [provider.issuer]}
            server.answers = build_responses(here, (resource, 200))
            services, connection = byline.services, build_connection(f"{here}/mcp", scopes=["openid"])
            await services.catalogue.store_connections([connection])
            alice = await services.principals.resolve_principal("https://id.example", "alice", "Alice")
            identity = build_identity(alice)
            await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
            requirement = await services.authorization_requests.require_authorization(
                identity, connection, ("openid",), ParkedAction("w", "r", "k"), run_id="run-1"
            )
            assert requirement is not None
            request = await services.authorization_requests.find_request(requirement.request_id)
            assert request is not None
            address = await consent_page(services, request, "session")
            async with Browser(stop_at=f"{origin}/oauth/callback") as browser:
                page = await provider.let_in(await browser.open(address), "alice")
            await services.sign_ins.finish_redirect(
                dict(parse_qsl(urlsplit(page.url).query)), alice, "session"
            )
            grants = await services.grants.list_grants(alice.id)

    (client_id,) = parse_qs(urlsplit(address).query)["client_id"]
    assert client_id == f"{origin}/oauth/client.json"
    assert [(grant.connection_name, grant.account) for grant in grants] == [("notes", "alice")]
