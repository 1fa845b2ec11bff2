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
from tests.data.samples import identity_of
from tests.foreign.node import NODE, SCRIPTS
from tests.foreign.oidc_provider import OidcProvider, oidc_provider
from tests.foreign.process import free_port, running
from tests.listeners import receiver, served
from tests.pages import PASSWORDS, serving
from tests.platform import NORTHWIND, Platform
from tests.sandbox import CALLBACK
from tests.signing_in import consent_page

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
    script = str(Path(__file__).parents[1] / "foreign" / "notes_server.py")
    log = tmp_path_factory.mktemp("notes") / "notes.log"
    with running([sys.executable, script, str(port), provider.issuer], log=log, port=port):
        yield f"http://127.0.0.1:{port}/mcp"


def at(url: str, **more: object) -> Connection:
    """An MCP server of which nothing but its address is declared."""
    return Connection.model_validate(
        {"name": "notes", "title": "Notes", "system": "notes", "mode": "user", "mcp": {"url": url}, **more}
    )


async def consented(
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
    await platform.services.catalogue.store_connections([at(notes)])
    run = await platform.start(CALL, NOTE, platform.alice)
    (request,) = await platform.parked(run)
    address = await consented(platform, request, provider, "bob")
    outcome = await platform.outcome(run)
    again = await platform.outcome(await platform.start(CALL, NOTE, platform.alice))
    failing = await platform.outcome(await platform.start(CALL, {"tool": "fail"}, platform.alice))
    unknown = await platform.outcome(await platform.start(CALL, {"tool": "gone"}, platform.alice))

    asked = parse_qs(urlsplit(address).query)
    assert set(asked) == {"client_id", "request_uri"}
    for each in (outcome, again):
        assert isinstance(each, Finished)
        assert each.value["structured"] == {"by": "bob", "text": "pays \u2028 on time"}
    assert isinstance(failing, Finished)
    assert failing.value["is_error"]
    assert isinstance(unknown, Finished)
    assert unknown.value["is_error"]
    asking, calling = await platform.trail("action.intended", run)
    assert {event["resource"] for event in (asking, calling)} == {"/mcp"}
    assert (asking.get("record_id"), calling["record_id"]) == (None, "tool/add_note")


async def test_byline_registers_itself_once_for_each_issuer_and_keeps_what_it_is_told_sealed(
    idle: Platform, notes: str, provider: OidcProvider
) -> None:
    registrations = idle.services.registrations
    endpoints = await Discovery(idle.services.outgoing).find_endpoints(at(notes))

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
    assert first.client_secret.encode() not in Path(str(idle.services.database.url.database)).read_bytes()


async def connected(platform: Platform, port: int) -> None:
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


def of_node(sdk: str, port: int, folder: Path, *, sessions: bool = True) -> AbstractContextManager[None]:
    """A server of a TypeScript SDK."""
    asked = json.dumps({"port": port, "sdk": sdk, "sessions": sessions})
    command = [str(NODE), str(SCRIPTS / "mcp-server.mjs"), asked]
    return running(command, log=folder / "node.log", port=port)


def of_python(port: int, folder: Path) -> AbstractContextManager[None]:
    """A server of the Python SDK, for clients of every version."""
    script = str(Path(__file__).parents[1] / "foreign" / "dual_server.py")
    return running([sys.executable, script, str(port)], log=folder / "python.log", port=port)


async def noted(platform: Platform) -> tuple[int, list[str]]:
    """How many notes are kept after one more, and by which requests, of which only the call is of a record."""
    text = secrets.token_hex(4)
    run = await platform.start(CALL, {"tool": "add_note", "arguments": {"text": text}}, platform.alice)
    outcome = await platform.outcome(run)
    assert isinstance(outcome, Finished)
    assert outcome.value["structured"]["text"] == text
    made = await platform.trail("action.ended", run)
    # Whatever comes before it, the call is the action's first write: it would not be made twice in another try.
    (key,) = [event["idempotency_key"] for event in made if "idempotency_key" in event]
    assert "." not in key
    told = [
        " ".join(filter(None, (event["method"], event.get("record_id"), str(event["status"]))))
        for event in made
    ]
    return outcome.value["structured"]["kept"], told


ASKED, REFUSED, BEGUN, READY = "POST 200", "POST 400", "POST 200", "POST 202"
CALLED, ENDED = "POST tool/add_note 200", "DELETE 200"


@pytest.mark.parametrize(
    ("sdk", "sessions", "first", "then"),
    [
        (STRICT, False, [ASKED, CALLED], [CALLED]),
        (OLDER, True, [REFUSED, BEGUN, READY, CALLED, ENDED], [BEGUN, READY, CALLED, ENDED]),
        (OLDER, False, [REFUSED, BEGUN, READY, CALLED], [BEGUN, READY, CALLED]),
        ("sdk-of-2025-06-18", True, [REFUSED, BEGUN, READY, CALLED, ENDED], [BEGUN, READY, CALLED, ENDED]),
        ("sdk-of-2025-03-26", True, [REFUSED, BEGUN, READY, CALLED, ENDED], [BEGUN, READY, CALLED, ENDED]),
        # It would have taken the newer protocol's call for one of its own: what asks must not be the call.
        ("sdk-of-2025-03-26", False, [ASKED, BEGUN, READY, CALLED], [BEGUN, READY, CALLED]),
    ],
)
async def test_a_server_is_called_in_the_protocol_that_it_speaks_once_and_on_record(
    platform: Platform, tmp_path: Path, sdk: str, first: list[str], then: list[str], *, sessions: bool
) -> None:
    port = free_port()
    await connected(platform, port)
    with of_node(sdk, port, tmp_path, sessions=sessions):
        assert await noted(platform) == (1, first)
        assert await noted(platform) == (2, then)
        if sessions:
            async with httpx2.AsyncClient() as http:
                assert (await http.get(f"http://127.0.0.1:{port}/sessions")).text == "0"


async def test_a_server_that_speaks_another_protocol_since_is_called_in_that(
    platform: Platform, tmp_path: Path
) -> None:
    port = free_port()
    await connected(platform, port)
    with of_node(OLDER, port, tmp_path):
        assert await noted(platform) == (1, [REFUSED, BEGUN, READY, CALLED, ENDED])
    with of_python(port, tmp_path):
        assert await noted(platform) == (1, [BEGUN, READY, CALLED, ENDED])
    with of_node(STRICT, port, tmp_path):
        assert await noted(platform) == (1, [REFUSED, ASKED, CALLED])
    with of_python(port, tmp_path):
        assert await noted(platform) == (1, [CALLED])
    with of_node(OLDER, port, tmp_path):
        set_back = await platform.outcome(await platform.start(CALL, NOTE, platform.alice))
        assert isinstance(set_back, Failed)
        assert set_back.code == "request_rejected"
        assert await noted(platform) == (1, [REFUSED, BEGUN, READY, CALLED, ENDED])


def said(result: dict[str, object]) -> JSONResponse:
    return JSONResponse(
        {"jsonrpc": "2.0", "id": 1, "result": result}, headers={"Mcp-Session-Id": "session-1"}
    )


def agreed(version: str) -> JSONResponse:
    return said({"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "n", "version": "1"}})


async def test_an_answer_stands_however_its_session_ends(platform: Platform) -> None:
    answer = said({"content": [{"type": "text", "text": "kept"}]})
    older = [Response(status_code=400), agreed("2025-06-18"), Response(status_code=202), answer]
    async with receiver([*older, Response(status_code=500)]) as server:
        await connected(platform, server.port)
        outcome = await platform.outcome(await platform.start(CALL, NOTE, platform.alice))

    assert isinstance(outcome, Finished)
    assert outcome.value["text"] == "kept"
    session = [
        (post.headers["mcp-protocol-version"], post.headers["mcp-session-id"]) for post in server.posts[2:]
    ]
    assert session == [("2025-06-18", "session-1")] * 3


async def test_an_action_that_only_reads_sends_the_calls_that_only_read_and_ends_their_sessions(
    platform: Platform,
) -> None:
    answer = said({"content": [{"type": "text", "text": "kept"}]})
    begun = [agreed("2025-06-18"), Response(status_code=202)]
    answers = [Response(status_code=400), *begun, answer, Response(status_code=204)]
    async with receiver([*answers, *begun, Response(status_code=204)]) as server:
        await connected(platform, server.port)
        outcomes = [
            await platform.outcome(
                await platform.start(
                    "look_at_notes_server", {**NOTE, "read_only": reads_only}, platform.alice
                )
            )
            for reads_only in (True, False)
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
    modern = said({"supportedVersions": ["2026-07-28"]})
    async with receiver([modern, Response(answer, media_type="application/json")]) as server:
        await connected(platform, server.port)
        run = await platform.start(CALL, NOTE, platform.alice)
        outcome = await platform.outcome(run)

    assert isinstance(outcome, Failed)
    assert outcome.code == "ValueError"
    assert "planted" not in f"{outcome}{await platform.history(run)}"


@pytest.mark.parametrize(
    "answers", [[Response("ok"), Response("ok")], [Response(status_code=404), agreed("2031-01-01")]]
)
async def test_what_speaks_no_version_that_is_spoken_here_is_not_called(
    platform: Platform, answers: list[Response]
) -> None:
    async with receiver(answers) as server:
        await connected(platform, server.port)
        outcome = await platform.outcome(await platform.start(CALL, NOTE, platform.alice))

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
        async with open_app(settings, platform.environment) as app, served(app, listener):
            yield url


async def test_byline_is_an_upstream_of_byline_and_knows_who_calls(platform: Platform) -> None:
    async with gateway(platform) as url:
        await platform.services.catalogue.store_connections([at(f"{url}/mcp")])
        run = await platform.start(
            CALL, {"tool": "say_again", "arguments": {"text": "hello"}}, platform.alice
        )
        (request,) = await platform.parked(run)
        session = secrets.token_urlsafe()
        address = await consent_page(platform.services, request, session)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await browser.open(address)
            page = await page.form(submit="Sign in", username="bob", password=PASSWORDS["bob"])
            page = await page.form(submit="Allow")
        answer = dict(parse_qsl(urlsplit(page.url).query))
        await platform.services.sign_ins.finish_redirect(answer, platform.alice, session)
        outcome = await platform.outcome(run)

    asked = parse_qs(urlsplit(address).query)
    (bob,) = [
        each for each in await platform.services.principals.find_by_name("Bob Baker") if each.issuer == url
    ]
    called = [event for event in await platform.trail("tool.called") if event["tool"] == "say_again"]
    assert isinstance(outcome, Finished)
    assert outcome.value["structured"] == {"text": "hello"}
    assert [event["principal"]["id"] for event in called] == [bob.id]
    assert (asked["resource"], asked["scope"]) == ([f"{url}/mcp"], ["mcp"])
    assert answer["iss"] == url


async def test_a_request_that_no_file_is_about_is_made_as_the_person_too(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)
    path = f"/services/data/v63.0/sobjects/Account/{NORTHWIND}"
    read = {"path": path, "record": f"account/{NORTHWIND}"}

    run = await platform.start("send_to_crm", read, platform.alice)
    outcome = await platform.outcome(run)
    astray = await platform.outcome(
        await platform.start("send_to_crm", {"path": "/services/../admin"}, platform.alice)
    )

    (ended,) = await platform.trail("action.ended", run)
    assert isinstance(outcome, Finished)
    assert (outcome.value["status"], outcome.value["body"]["Id"]) == (200, NORTHWIND)
    assert ended["record_id"] == f"account/{NORTHWIND}"
    assert isinstance(astray, Failed)


CHALLENGE = {"WWW-Authenticate": 'Bearer resource_metadata="ORIGIN/meta", scope="notes"'}


def sequence(origin: str, *answers: tuple[object, int]) -> list[Response]:
    """A challenge, and what comes after it; ORIGIN is the server's own."""
    challenge = {name: value.replace("ORIGIN", origin) for name, value in CHALLENGE.items()}
    told = [
        JSONResponse(json.loads(json.dumps(body).replace("ORIGIN", origin)), status)
        for body, status in answers
    ]
    return [JSONResponse({}, 401, challenge), *told]


RESOURCE = {"resource": "ORIGIN/mcp", "authorization_servers": ["ORIGIN"]}
ISSUER = {
    "issuer": "ORIGIN",
    "authorization_endpoint": "ORIGIN/authorize",
    "token_endpoint": "ORIGIN/token",
    "code_challenge_methods_supported": ["S256"],
}
WITHOUT_PKCE = {name: value for name, value in ISSUER.items() if not name.startswith("code")}


@pytest.mark.parametrize(
    ("answers", "told"),
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
async def test_a_server_whose_word_does_not_hold_is_not_signed_in_to(
    answers: list[tuple[object, int]], told: str
) -> None:
    named = OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))
    async with receiver() as server, OutgoingClient(named) as outgoing:
        origin = f"http://127.0.0.1:{server.port}"
        server.answers = sequence(origin, *answers)
        with pytest.raises(ConnectionMisconfigured, match=told):
            await Discovery(outgoing).find_endpoints(at(f"{origin}/mcp"))

    assert len(server.posts) == len(answers) + 1


@pytest.mark.parametrize(
    ("challenge", "told"),
    [
        (JSONResponse({}), "asks nobody to sign in"),
        (JSONResponse({}, 307, {"Location": "http://169.254.169.254/"}), "redirect, which is not followed"),
        (
            JSONResponse({}, 401, {"WWW-Authenticate": 'Bearer resource_metadata="http://169.254.169.254/"'}),
            "is not on the public Internet",
        ),
    ],
)
async def test_a_challenge_leads_nowhere_inside_the_network(challenge: Response, told: str) -> None:
    named = OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))
    async with receiver([challenge]) as server, OutgoingClient(named) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match=told):
            await Discovery(outgoing).find_endpoints(at(f"http://127.0.0.1:{server.port}/mcp"))

    assert len(server.posts) == 1


async def test_a_person_whom_such_a_server_would_have_led_astray_is_named_in_the_trail(
    idle: Platform,
) -> None:
    settings = idle.settings.model_copy(
        update={"outgoing": OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))}
    )
    inside = {"Location": "http://169.254.169.254/latest/meta-data"}
    metadata = {"WWW-Authenticate": 'Bearer resource_metadata="ORIGIN/meta"'}
    async with receiver() as server, open_services(settings, idle.environment) as services:
        origin = f"http://127.0.0.1:{server.port}"
        challenge = {name: value.replace("ORIGIN", origin) for name, value in metadata.items()}
        server.answers = [JSONResponse({}, 401, challenge), JSONResponse({}, 302, inside)]
        await services.catalogue.store_connections([at(f"{origin}/mcp")])
        connection = await services.catalogue.get_connection("notes")
        asked = await services.authorization_requests.open_request_ahead(idle.alice, connection, ())
        with pytest.raises(ConnectionMisconfigured, match="redirect, which is not followed"):
            await consent_page(services, asked, "session")

    (refused,) = await idle.trail("authorization.refused")
    assert (refused["principal"]["id"], refused["request_id"]) == (idle.alice.id, asked.id)
    assert (refused["error"], refused["connection"]) == ("connection_misconfigured", "notes")
    assert len(server.posts) == 2


async def test_an_issuer_that_the_connection_names_has_to_be_one_of_the_servers(notes: str) -> None:
    elsewhere = at(notes, provider={"issuer": "https://other.example"})
    async with OutgoingClient(HERE) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match="takes no tokens of"):
            await Discovery(outgoing).find_endpoints(elsewhere)


async def test_a_server_that_changes_its_sign_in_service_meanwhile_is_told_no_code(
    platform: Platform, provider: OidcProvider
) -> None:
    honest = {"resource": "ORIGIN/mcp", "authorization_servers": [provider.issuer]}
    async with receiver() as server:
        origin = f"http://127.0.0.1:{server.port}"
        await platform.services.catalogue.store_connections([at(f"{origin}/mcp")])
        run = await platform.start(CALL, NOTE, platform.alice)
        (request,) = await platform.parked(run)
        session = secrets.token_urlsafe()
        server.answers = sequence(origin, (honest, 200))
        address = await consent_page(platform.services, request, session)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await provider.let_in(await browser.open(address), "alice")
        answer = dict(parse_qsl(urlsplit(page.url).query))
        before = len(server.posts)
        server.answers = sequence(origin, (RESOURCE, 200), (ISSUER, 200))
        async with open_services(platform.settings, platform.environment) as another_gateway:
            with pytest.raises(AuthorizationRefused, match="another sign-in service"):
                await another_gateway.sign_ins.finish_redirect(answer, platform.alice, session)

    assert not [post for post in server.posts[before:] if answer["code"].encode() in post.body]
    (refused,) = await platform.trail("authorization.refused")
    assert refused["error"] == "authorization_refused"
    await platform.temporal.get_workflow_handle(run).terminate()


async def test_an_issuer_that_registers_nobody_is_told_with_what_to_register(idle: Platform) -> None:
    registrations = idle.services.registrations
    async with receiver() as server:
        origin = f"http://127.0.0.1:{server.port}"
        server.answers = sequence(origin, (RESOURCE, 200), (ISSUER, 200))
        endpoints = await Discovery(idle.services.outgoing).find_endpoints(at(f"{origin}/mcp"))
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
        async with serving(tmp_path, port=port, public_url=origin) as byline, receiver() as server:
            here = f"http://127.0.0.1:{server.port}"
            resource = {"resource": f"{here}/mcp", "authorization_servers": [provider.issuer]}
            server.answers = sequence(here, (resource, 200))
            services, connection = byline.services, at(f"{here}/mcp", scopes=["openid"])
            await services.catalogue.store_connections([connection])
            alice = await services.principals.resolve_principal("https://id.example", "alice", "Alice")
            identity = identity_of(alice)
            await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
            required = await services.authorization_requests.require_authorization(
                identity, connection, ("openid",), ParkedAction("w", "r", "k"), run_id="run-1"
            )
            assert required is not None
            request = await services.authorization_requests.find_request(required.request_id)
            assert request is not None
            address = await consent_page(services, request, "session")
            async with Browser(stop_at=f"{origin}/oauth/callback") as browser:
                page = await provider.let_in(await browser.open(address), "alice")
            await services.sign_ins.finish_redirect(
                dict(parse_qsl(urlsplit(page.url).query)), alice, "session"
            )
            granted = await services.grants.list_grants(alice.id)

    (client_id,) = parse_qs(urlsplit(address).query)["client_id"]
    assert client_id == f"{origin}/oauth/client.json"
    assert [(grant.connection_name, grant.account) for grant in granted] == [("notes", "alice")]
