import json
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
from typing_extensions import override

from engine.policy.policy import PolicyFile, ToolPolicy
from examples.chat import Person, open_chat
from gateway.authorization_server.claims import FAMILY_CLAIM
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.tables import build_authorization_server_tables
from gateway.protected_resource import API_PATH, list_required_scopes
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.toolsets import MCP_PATH, SEARCH_PATH, list_mcp_paths
from tests.support.api_server import ApiServer, build_consent, serve_api
from tests.support.mcp_requests import ENVELOPE, VERSION
from tests.support.platform import Platform

POLICY = PolicyFile(
    tools={
        "choose_account": ToolPolicy(scope="accounts"),
        "refund": ToolPolicy(scope="billing"),
        "read_once": ToolPolicy(scope="billing"),
    }
)
MODERN = {"MCP-Protocol-Version": VERSION, "Mcp-Method": "tools/call", "Mcp-Name": "refund"}
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@dataclass
class CarefulPerson(Person):
    """Somebody who reads what they are asked before they agree."""

    read: list[str] = field(default_factory=list)

    @override
    async def sign_in(self, url: str) -> str:
        page = await self.open(url)
        self.read.append(page.text)
        return (await page.form(submit="Allow")).url


async def issue_token(api_server: ApiServer, *scopes: str, path: str = MCP_PATH) -> str:
    """A token of somebody who consented to these scopes."""
    ann = await api_server.add_person("ann", "Ann")
    client = ClientInformation(client_id="reports", redirect_uris=None)
    consent = replace(build_consent(ann, client, f"{api_server.url}{path}"), scopes=scopes)
    await ClientConsents(api_server.services.database).store_consent(consent)
    issued_tokens = await build_authorization_server_tables(api_server.services).token_issuer.issue_tokens(
        ann, client, scopes, consent.id, resource=consent.resource, has_refresh_token=False
    )
    return issued_tokens.access_token


async def post_message(
    api_server: ApiServer, bearer: str | None, sends: object, *, url_path: str = MCP_PATH, **headers: str
) -> httpx2.Response:
    """Send a document to an MCP endpoint, or bytes as they are."""
    body = sends if isinstance(sends, bytes) else json.dumps(sends).encode()
    request_headers = {
        **ACCEPT,
        **headers,
        **({} if bearer is None else {"Authorization": f"Bearer {bearer}"}),
    }
    async with httpx2.AsyncClient(timeout=60) as http:
        return await http.post(f"{api_server.url}{url_path}", content=body, headers=request_headers)


def build_call(tool: str = "refund", **more: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": {"amount": 1, "to": "Acme"}, "_meta": ENVELOPE}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **more}


async def test_a_chat_client_asks_for_another_scope_when_a_tool_needs_it_and_not_before(
    platform: Platform,
) -> None:
    ann = CarefulPerson("ann", "ann-demo", enters={"account": "Contoso"})
    async with serve_api(platform, mcp=True, policy=POLICY) as api_server:
        await BuiltInPeople(api_server.services.database).add_person("ann", "Ann", "ann-demo")
        async with open_chat(ann, f"{api_server.url}/mcp") as client:
            listing = {tool.name for tool in (await client.list_tools()).tools}
            assert ann.tokens.tokens is not None
            before = ann.tokens.tokens.scope
            result = await client.call_tool("choose_account", {"name": "Nort"})

    (first, then) = ann.read
    assert {"choose_account", "refund"} <= listing
    assert (before, ann.tokens.tokens.scope) == ("mcp", "mcp accounts")
    assert "also call those that take" not in first
    assert "<code>accounts</code>: <code>choose_account</code>" in then
    assert result.structured_content == {
        "account": "Contoso",
        "discount": 0,
        "note": None,
        "urgent": False,
    }


CALLS: dict[str, tuple[bytes, dict[str, str]]] = {
    "of today's protocol": (json.dumps(build_call()).encode(), MODERN),
    "of an older protocol": (json.dumps(build_call(params={"name": "refund"})).encode(), {}),
    "of one and the other": (json.dumps(build_call(params={"name": "refund"})).encode(), MODERN),
    "escaped": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools\\/call","params":{"name":"re\\u0066und"}}',
        {},
    ),
}
NO_MESSAGES: dict[str, bytes] = {
    "a batch": json.dumps([build_call("no_such_tool"), build_call()]).encode(),
    "a notification": json.dumps({**build_call(), "id": None}).encode(),
    "a call that is written twice": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call",'
        b'"params":{"name":"choose"},"params":{"name":"refund"}}'
    ),
    "a number without measure": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"refund","arguments":{"amount":'
        + b"9" * 4000
        + b"}}}"
    ),
    "in another encoding": json.dumps(build_call()).encode("utf-16"),
}


async def test_a_call_is_answered_before_it_is_dispatched_with_the_scopes_that_it_takes(
    idle_platform: Platform,
) -> None:
    async with serve_api(idle_platform, mcp=True, policy=POLICY) as api_server:
        short = await issue_token(api_server, "mcp", "accounts")
        refusals = {
            name: await post_message(api_server, short, body, **extra_headers)
            for name, (body, extra_headers) in CALLS.items()
        }
        unread = [await post_message(api_server, short, body) for body in NO_MESSAGES.values()]
        unread += [await post_message(api_server, short, body, **MODERN) for body in NO_MESSAGES.values()]
        other_tool = await post_message(api_server, short, build_call("choose_account"), **MODERN)
        no_call = await post_message(
            api_server, short, {"jsonrpc": "2.0", "id": 1, "method": "ping"}, **MODERN
        )

    metadata = f"{api_server.url}/.well-known/oauth-protected-resource/mcp"
    for name, response in refusals.items():
        assert response.status_code == 403, (name, response.text)
        assert response.json()["error"] == "insufficient_scope"
        assert response.headers["www-authenticate"] == (
            f'Bearer error="insufficient_scope", scope="mcp accounts billing", resource_metadata="{metadata}"'
        ), name
    assert {response.status_code for response in unread} == {400}
    # What the headers say of the body is not this layer's to judge, and is judged after it.
    assert (other_tool.status_code, no_call.status_code) == (400, 400)
    assert await idle_platform.list_trail_events("tool.called") == []


async def test_collecting_a_run_takes_the_scope_that_its_tool_takes(idle_platform: Platform) -> None:
    async with serve_api(idle_platform, mcp=True, policy=POLICY) as api_server:
        ann, bob = await api_server.add_person("ann", "Ann"), await api_server.add_person("bob", "Bob")
        await idle_platform.register(idle_platform.build_identity(ann, "refund-of-ann", "refund"))
        await idle_platform.register(idle_platform.build_identity(bob, "refund-of-bob", "refund"))
        collected_response, *others = [
            {"name": "byline_collect", "arguments": {"run_id": run}}
            for run in ("refund-of-ann", "refund-of-bob", "no such run", 7)
        ]
        short = await issue_token(api_server, "mcp")
        refusals = {
            method: await post_message(
                api_server, short, build_call(method=method, params={"taskId": "refund-of-ann"}), **MODERN
            )
            for method in ("tasks/get", "tasks/update", "tasks/cancel")
        }
        refusals["collected"] = await post_message(api_server, short, build_call(params=collected_response))
        searching = await issue_token(api_server, "mcp", path=SEARCH_PATH)
        within = {"name": "byline_call", "arguments": collected_response}
        refusals["within"] = await post_message(
            api_server, searching, build_call(params=within), url_path=SEARCH_PATH
        )
        headers = {**MODERN, "Mcp-Name": "byline_collect"}
        unknown = [
            await post_message(api_server, short, build_call(params={**other, "_meta": ENVELOPE}), **headers)
            for other in others
        ]
        wide = await post_message(
            api_server,
            await issue_token(api_server, "mcp", "billing"),
            build_call(params={**collected_response, "_meta": ENVELOPE}),
            **headers,
        )

    for name, response in refusals.items():
        assert response.status_code == 403, (name, response.text)
        assert 'error="insufficient_scope", scope="mcp billing"' in response.headers["www-authenticate"]
    assert [response.status_code for response in (*unknown, wide)] == [200, 200, 200, 200]
    assert "You have no run 'refund-of-bob'" in unknown[0].text
    assert "You have no run" not in wide.text


async def test_whatever_asks_for_no_scoped_tool_goes_through(idle_platform: Platform) -> None:
    bodies: list[object] = [
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}},
        build_call("no_such_tool"),
        build_call(params={"name": 7}),
        build_call(params=["refund"]),
        b"{",
        b"",
        b"[" * 100_000,
        "tools/call",
    ]
    async with serve_api(idle_platform, mcp=True, policy=POLICY) as api_server:
        ann, bearer = await api_server.add_person("ann", "Ann"), await issue_token(api_server, "mcp")
        answers = [await post_message(api_server, bearer, body, **MODERN) for body in bodies]
        api_token = await api_server.services.api_tokens.create_token(ann, "reports", tool_names=["refund"])
        without_arguments = build_call(params={"name": "refund", "arguments": {}, "_meta": ENVELOPE})
        by_api_token = await post_message(api_server, api_token.token_text, without_arguments, **MODERN)

    assert all(response.status_code in {200, 400, 404} for response in answers), answers
    assert "www-authenticate" not in {name for response in answers for name in response.headers}
    # Its owner chose its tools one by one; the arguments are wrong, and so the call was looked at.
    assert by_api_token.status_code == 200
    assert "arguments_invalid" in by_api_token.text


async def test_a_challenge_says_what_to_ask_for(idle_platform: Platform) -> None:
    body, headers = build_call("choose_account"), {**MODERN, "Mcp-Name": "choose_account"}
    async with serve_api(idle_platform, mcp=True, policy=POLICY) as api_server:
        empty = await post_message(api_server, None, body)
        wrong = await post_message(api_server, "guessed", body)
        elsewhere = await post_message(api_server, await issue_token(api_server, "mcp", path=API_PATH), body)
        without = await post_message(api_server, await issue_token(api_server, "accounts"), body, **headers)
        claims = await api_server.services.signing_keys.verify_token(
            await issue_token(api_server, "mcp"), "at+jwt"
        )
        of_no_consent = await post_message(
            api_server,
            await api_server.services.signing_keys.sign_claims(
                {**claims, FAMILY_CLAIM: "invented"}, "at+jwt"
            ),
            body,
        )
        async with httpx2.AsyncClient(base_url=api_server.url) as http:
            server = (await http.get("/.well-known/oauth-authorization-server")).json()
            resources = [
                (await http.get(f"/.well-known/oauth-protected-resource{path}")).json()
                for path in ("", *list_mcp_paths(api_server.services.settings), API_PATH)
            ]

    challenge_start = (
        f'scope="mcp", resource_metadata="{api_server.url}/.well-known/oauth-protected-resource/mcp"'
    )
    assert (empty.status_code, empty.headers["www-authenticate"]) == (401, f"Bearer {challenge_start}")
    for response in (wrong, elsewhere, of_no_consent):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == f'Bearer error="invalid_token", {challenge_start}'
    assert without.status_code == 403
    assert 'scope="accounts mcp"' in without.headers["www-authenticate"]
    assert list_required_scopes(api_server.services.settings) == ("mcp",)
    assert server["scopes_supported"] == ["mcp", "accounts", "billing"]
    assert [
        metadata_document["resource"].removeprefix(api_server.url) for metadata_document in resources
    ] == [
        "/mcp",
        "/mcp",
        "/mcp/search",
        "/api/v1",
    ]
    *mcp, api = [metadata_document["scopes_supported"] for metadata_document in resources]
    assert mcp == [["mcp", "accounts", "billing"]] * 3
    assert api == ["mcp"]
