import asyncio
import base64
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import httpx2
from mcp_types import CallToolResult

from examples.chat import Person, open_chat
from examples.demo import ACCOUNT, CUSTOMER, TICKET, find_person
from tests.e2e.installation import COLLECT, TOOL, UPSTREAMS, Installation, next_link, read_result
from tests.e2e.wiretap import SECRET_FIELDS, CapturedSecrets, CapturingTransport

DISPUTE = {"account_id": ACCOUNT, "customer_id": CUSTOMER, "ticket_id": TICKET}
SHORTEST = 8
PLANTED_TEXT = "planted in plain"


def encode_forms(secret: str) -> set[bytes]:
    """A secret as it may look in a file: plain, in a URL, in JSON, or somewhere within base64 of either alphabet."""
    raw = secret.encode()
    encoded_forms = {
        raw,
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
        raw.hex().encode(),
    }
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + raw)
        # The characters at both ends also depend on what stands beside the secret.
        inner = whole[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        encoded_forms |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return encoded_forms


@dataclass
class LeakSearch:
    """Everything that Byline and Temporal keep or say, by where it is kept or said."""

    pieces: list[tuple[str, bytes]] = field(default_factory=list)

    def add_text(self, place: str, text: str) -> None:
        self.pieces.append((place, text.encode()))

    def add_file(self, path: Path) -> None:
        self.pieces.append((path.name, path.read_bytes()))

    def add_cells(self, database: Path) -> None:
        """Every value of every row, since a long one lies scattered over the pages of its file."""
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                values = (value if isinstance(value, bytes) else str(value).encode() for value in row)
                self.pieces.append((f"{database.name}: {table}", b"\n".join(values)))
        connection.close()

    def find_places(self, secret: str) -> set[str]:
        """Where a secret lies open."""
        encoded_forms = encode_forms(secret)
        return {place for place, piece in self.pieces if any(form in piece for form in encoded_forms)}


def test_the_search_finds_what_is_hidden_in_base64_at_any_offset() -> None:
    for before in range(4):
        for after in range(4):
            hidden_text = base64.b64encode(b"x" * before + b"the secret of Alice" + b"y" * after)
            haystack = LeakSearch([("here", b"..." + hidden_text + b"...")])
            assert haystack.find_places("the secret of Alice") == {"here"}


async def cause_fault(installation: Installation, system: str, **trouble: object) -> None:
    """Let a sandbox system have a trouble."""
    port = installation.stack.variables[f"{system.upper()}_PORT"]
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"http://127.0.0.1:{port}/_sandbox/faults", json=trouble)
    answer.raise_for_status()


def list_passwords(*people: Person) -> Iterator[str]:
    for who in people:
        yield who.password
        yield from (password for _, password in who.upstream_accounts.values())


async def play_story(
    installation: Installation, captured_secrets: CapturedSecrets
) -> tuple[list[CallToolResult], list[Person]]:
    """Consents, refreshed tokens, upstreams that fail, refusals and a denial: what was answered, and to whom."""
    alice, bob = find_person("alice", installation.stack), find_person("bob", installation.stack)
    carol, record = await installation.add_newcomer("carol"), installation.add_record()
    results = []
    async with open_chat(
        alice, installation.stack.mcp_url, transport=CapturingTransport(captured_secrets)
    ) as client:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool("resolve_billing_dispute", DISPUTE))
            for _ in UPSTREAMS:
                await alice.connect(await next_link(alice))
            alice.has_signed_in.set()
        results.append(calling.result())
        await cause_fault(installation, "crm", status=401)
        await cause_fault(installation, "support", status=503)
        await cause_fault(installation, "billing", status=429, headers={"Retry-After": "1"})
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
        await cause_fault(installation, "support", status=400)
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
    async with open_chat(
        bob, installation.stack.mcp_url, elicitation=False, transport=CapturingTransport(captured_secrets)
    ) as client:
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
        for link_document in read_result(results[-1])["links"]:
            await bob.connect(link_document["url"])
        results.append(await client.call_tool(COLLECT, {"run_id": read_result(results[-1])["run_id"]}))
    async with open_chat(
        carol, installation.stack.mcp_url, transport=CapturingTransport(captured_secrets)
    ) as client:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": PLANTED_TEXT}))
            await installation.consent(carol, await next_link(carol), "alice")
            carol.has_signed_in.set()
        results.append(calling.result())
    return results, [alice, bob, carol]


async def test_no_secret_of_a_whole_story_lies_open_anywhere(installation: Installation) -> None:
    captured_secrets = installation.secrets
    results, people = await play_story(installation, captured_secrets)
    codes = [read_result(result).get("error", "") for result in results]
    assert codes == ["", "", "request_rejected", "", "permission_denied", ""], results

    data = Path(installation.stack.variables["DATA_DIR"])
    secret_values = {
        value
        for value in [*captured_secrets.name_by_secret, *list_passwords(*people)]
        if len(value) >= SHORTEST
    }
    secret_values |= set(json.loads((data / "secrets.json").read_text()).values())
    secret_values |= {str(cookie.value) for who in people for cookie in who.browser._client.cookies.jar}
    haystack = LeakSearch()
    for database in ("temporal.db", "byline.db"):
        for path in sorted(data.glob(f"{database}*")):
            haystack.add_file(path)
        haystack.add_cells(data / database)
    for path in sorted((data / "logs").glob("*.log")):
        haystack.add_file(path)
    for result in results:
        haystack.add_text("MCP result", result.model_dump_json(by_alias=True))
    haystack.add_text("audit", await installation.run_byline("audit"))
    haystack.add_text("audit", await installation.run_byline("audit", "--json"))

    assert set(captured_secrets.name_by_secret.values()) == {
        *SECRET_FIELDS - {"password"},
        "basic credential",
    }
    assert {place for value in secret_values for place in haystack.find_places(value)} == set()

    # The same search finds what is no secret, in every kind of place: it cannot pass by looking at nothing.
    assert {"MCP result", "temporal.db: history_node"} <= haystack.find_places(PLANTED_TEXT)
    assert {"audit", "byline.db: audit_event", "temporal.db: history_node"} <= haystack.find_places(ACCOUNT)
    assert "gateway.log" in haystack.find_places("Uvicorn running")
