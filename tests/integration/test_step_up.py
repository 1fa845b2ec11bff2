import json
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
from typing_extensions import override

from engine.policy.policy import PolicyFile, ToolPolicy
from examples.chat import Person, chat
from gateway.authorization_server.claims import FAMILY_CLAIM
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.tables import build_authorization_server_tables
from gateway.protected_resource import API_PATH, list_required_scopes
from gateway.sign_in.built_in_people import BuiltInPeople
from gateway.toolsets import MCP_PATH, SEARCH_PATH, list_mcp_paths
from tests.e2e.rounds import ENVELOPE, VERSION
from tests.platform import Platform
from tests.rest import Rest, consented, serving

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
class Reader(Person):
    """Somebody who reads what they are asked before they agree."""

    read: list[str] = field(default_factory=list)

    @override
    async def sign_in(self, url: str) -> str:
        page = await self.open(url)
        self.read.append(page.text)
        return (await page.form(submit="Allow")).url


async def token(rest: Rest, *scopes: str, path: str = MCP_PATH) -> str:
    """A token of somebody who consented to these scopes."""
    ann = await rest.person("ann", "Ann")
    client = ClientInformation(client_id="reports", redirect_uris=None)
    consent = replace(consented(ann, client, f"{rest.url}{path}"), scopes=scopes)
    await ClientConsents(rest.services.database).store_consent(consent)
    issued = await build_authorization_server_tables(rest.services).token_issuer.issue_tokens(
        ann, client, scopes, consent.id, resource=consent.resource, has_refresh_token=False
    )
    return issued.access_token


async def post(
    rest: Rest, bearer: str | None, sends: object, *, at: str = MCP_PATH, **headers: str
) -> httpx2.Response:
    """Send a document to an MCP endpoint, or bytes as they are."""
    body = sends if isinstance(sends, bytes) else json.dumps(sends).encode()
    sent = {**ACCEPT, **headers, **({} if bearer is None else {"Authorization": f"Bearer {bearer}"})}
    async with httpx2.AsyncClient(timeout=60) as http:
        return await http.post(f"{rest.url}{at}", content=body, headers=sent)


def call(tool: str = "refund", **more: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": {"amount": 1, "to": "Acme"}, "_meta": ENVELOPE}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params, **more}


async def test_a_chat_client_asks_for_another_scope_when_a_tool_needs_it_and_not_before(
    platform: Platform,
) -> None:
    ann = Reader("ann", "ann-demo", enters={"account": "Contoso"})
    async with serving(platform, mcp=True, policy=POLICY) as rest:
        await BuiltInPeople(rest.services.database).add_person("ann", "Ann", "ann-demo")
        async with chat(ann, f"{rest.url}/mcp") as client:
            listed = {tool.name for tool in (await client.list_tools()).tools}
            assert ann.tokens.tokens is not None
            before = ann.tokens.tokens.scope
            result = await client.call_tool("choose_account", {"name": "Nort"})

    (first, then) = ann.read
    assert {"choose_account", "refund"} <= listed
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
    "of today's protocol": (json.dumps(call()).encode(), MODERN),
    "of an older protocol": (json.dumps(call(params={"name": "refund"})).encode(), {}),
    "of one and the other": (json.dumps(call(params={"name": "refund"})).encode(), MODERN),
    "escaped": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools\\/call","params":{"name":"re\\u0066und"}}',
        {},
    ),
}
NO_MESSAGES: dict[str, bytes] = {
    "a batch": json.dumps([call("no_such_tool"), call()]).encode(),
    "a notification": json.dumps({**call(), "id": None}).encode(),
    "a call that is written twice": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call",'
        b'"params":{"name":"choose"},"params":{"name":"refund"}}'
    ),
    "a number without measure": (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"refund","arguments":{"amount":'
        + b"9" * 4000
        + b"}}}"
    ),
    "in another encoding": json.dumps(call()).encode("utf-16"),
}


async def test_a_call_is_answered_before_it_is_dispatched_with_the_scopes_that_it_takes(
    idle: Platform,
) -> None:
    async with serving(idle, mcp=True, policy=POLICY) as rest:
        short = await token(rest, "mcp", "accounts")
        refused = {name: await post(rest, short, body, **sent) for name, (body, sent) in CALLS.items()}
        unread = [await post(rest, short, body) for body in NO_MESSAGES.values()]
        unread += [await post(rest, short, body, **MODERN) for body in NO_MESSAGES.values()]
        other_tool = await post(rest, short, call("choose_account"), **MODERN)
        no_call = await post(rest, short, {"jsonrpc": "2.0", "id": 1, "method": "ping"}, **MODERN)

    metadata = f"{rest.url}/.well-known/oauth-protected-resource/mcp"
    for name, response in refused.items():
        assert response.status_code == 403, (name, response.text)
        assert response.json()["error"] == "insufficient_scope"
        assert response.headers["www-authenticate"] == (
            f'Bearer error="insufficient_scope", scope="mcp accounts billing", resource_metadata="{metadata}"'
        ), name
    assert {response.status_code for response in unread} == {400}
    # What the headers say of the body is not this layer's to judge, and is judged after it.
    assert (other_tool.status_code, no_call.status_code) == (400, 400)
    assert await idle.trail("tool.called") == []


async def test_what_became_of_a_run_takes_the_scope_that_its_tool_takes(idle: Platform) -> None:
    async with serving(idle, mcp=True, policy=POLICY) as rest:
        ann, bob = await rest.person("ann", "Ann"), await rest.person("bob", "Bob")
        await idle.register(idle.identity(ann, "refund-of-ann", "refund"))
        await idle.register(idle.identity(bob, "refund-of-bob", "refund"))
        collected, *others = [
            {"name": "byline_collect", "arguments": {"run_id": run}}
            for run in ("refund-of-ann", "refund-of-bob", "no such run", 7)
        ]
        short = await token(rest, "mcp")
        refused = {
            method: await post(rest, short, call(method=method, params={"taskId": "refund-of-ann"}), **MODERN)
            for method in ("tasks/get", "tasks/update", "tasks/cancel")
        }
        refused["collected"] = await post(rest, short, call(params=collected))
        searching = await token(rest, "mcp", path=SEARCH_PATH)
        within = {"name": "byline_call", "arguments": collected}
        refused["within"] = await post(rest, searching, call(params=within), at=SEARCH_PATH)
        headers = {**MODERN, "Mcp-Name": "byline_collect"}
        unknown = [
            await post(rest, short, call(params={**other, "_meta": ENVELOPE}), **headers) for other in others
        ]
        wide = await post(
            rest,
            await token(rest, "mcp", "billing"),
            call(params={**collected, "_meta": ENVELOPE}),
            **headers,
        )

    for name, response in refused.items():
        assert response.status_code == 403, (name, response.text)
        assert 'error="insufficient_scope", scope="mcp billing"' in response.headers["www-authenticate"]
    assert [response.status_code for response in (*unknown, wide)] == [200, 200, 200, 200]
    assert "You have no run 'refund-of-bob'" in unknown[0].text
    assert "You have no run" not in wide.text


async def test_whatever_asks_for_no_scoped_tool_goes_through(idle: Platform) -> None:
    bodies: list[object] = [
        {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": ENVELOPE}},
        call("no_such_tool"),
        call(params={"name": 7}),
        call(params=["refund"]),
        b"{",
        b"",
        b"[" * 100_000,
        "tools/call",
    ]
    async with serving(idle, mcp=True, policy=POLICY) as rest:
        ann, bearer = await rest.person("ann", "Ann"), await token(rest, "mcp")
        answers = [await post(rest, bearer, body, **MODERN) for body in bodies]
        made = await rest.services.api_tokens.create_token(ann, "reports", tool_names=["refund"])
        without_arguments = call(params={"name": "refund", "arguments": {}, "_meta": ENVELOPE})
        by_api_token = await post(rest, made.token_text, without_arguments, **MODERN)

    assert all(response.status_code in {200, 400, 404} for response in answers), answers
    assert "www-authenticate" not in {name for response in answers for name in response.headers}
    # Its owner chose its tools one by one; the arguments are wrong, and so the call was looked at.
    assert by_api_token.status_code == 200
    assert "arguments_invalid" in by_api_token.text


async def test_a_challenge_says_what_to_ask_for(idle: Platform) -> None:
    body, headers = call("choose_account"), {**MODERN, "Mcp-Name": "choose_account"}
    async with serving(idle, mcp=True, policy=POLICY) as rest:
        empty = await post(rest, None, body)
        wrong = await post(rest, "guessed", body)
        elsewhere = await post(rest, await token(rest, "mcp", path=API_PATH), body)
        without = await post(rest, await token(rest, "accounts"), body, **headers)
        claims = await rest.services.signing_keys.verify_token(await token(rest, "mcp"), "at+jwt")
        of_no_consent = await post(
            rest,
            await rest.services.signing_keys.sign_claims({**claims, FAMILY_CLAIM: "invented"}, "at+jwt"),
            body,
        )
        async with httpx2.AsyncClient(base_url=rest.url) as http:
            server = (await http.get("/.well-known/oauth-authorization-server")).json()
            resources = [
                (await http.get(f"/.well-known/oauth-protected-resource{path}")).json()
                for path in ("", *list_mcp_paths(rest.services.settings), API_PATH)
            ]

    at = f'scope="mcp", resource_metadata="{rest.url}/.well-known/oauth-protected-resource/mcp"'
    assert (empty.status_code, empty.headers["www-authenticate"]) == (401, f"Bearer {at}")
    for response in (wrong, elsewhere, of_no_consent):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == f'Bearer error="invalid_token", {at}'
    assert without.status_code == 403
    assert 'scope="accounts mcp"' in without.headers["www-authenticate"]
    assert list_required_scopes(rest.services.settings) == ("mcp",)
    assert server["scopes_supported"] == ["mcp", "accounts", "billing"]
    assert [each["resource"].removeprefix(rest.url) for each in resources] == [
        "/mcp",
        "/mcp",
        "/mcp/search",
        "/api/v1",
    ]
    *mcp, api = [each["scopes_supported"] for each in resources]
    assert mcp == [["mcp", "accounts", "billing"]] * 3
    assert api == ["mcp"]
