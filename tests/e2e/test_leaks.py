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

from examples.chat import Person, chat
from examples.demo import ACCOUNT, CUSTOMER, TICKET, person
from tests.e2e.wiretap import SECRET_FIELDS, Listening, Secrets
from tests.e2e.world import COLLECT, TOOL, UPSTREAMS, World, link, said

DISPUTE = {"account_id": ACCOUNT, "customer_id": CUSTOMER, "ticket_id": TICKET}
SHORTEST = 8
PLANTED = "planted in plain"


def forms(secret: str) -> set[bytes]:
    """A secret as it may look in a file: plain, in a URL, in JSON, or somewhere within base64 of either alphabet."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), raw.hex().encode()}
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + raw)
        # The characters at both ends also depend on what stands beside the secret.
        inner = whole[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


@dataclass
class Haystack:
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

    def places(self, secret: str) -> set[str]:
        """Where a secret lies open."""
        wanted = forms(secret)
        return {place for place, piece in self.pieces if any(form in piece for form in wanted)}


def test_the_search_finds_what_is_hidden_in_base64_at_any_offset() -> None:
    for before in range(4):
        for after in range(4):
            hidden = base64.b64encode(b"x" * before + b"the secret of Alice" + b"y" * after)
            haystack = Haystack([("here", b"..." + hidden + b"...")])
            assert haystack.places("the secret of Alice") == {"here"}


async def fault(world: World, system: str, **trouble: object) -> None:
    """Let a sandbox system have a trouble."""
    port = world.stack.variables[f"{system.upper()}_PORT"]
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"http://127.0.0.1:{port}/_sandbox/faults", json=trouble)
    answer.raise_for_status()


def passwords(*people: Person) -> Iterator[str]:
    for who in people:
        yield who.password
        yield from (password for _, password in who.upstream_accounts.values())


async def story(world: World, heard: Secrets) -> tuple[list[CallToolResult], list[Person]]:
    """Consents, refreshed tokens, upstreams that fail, refusals and a denial: what was answered, and to whom."""
    alice, bob = person("alice", world.stack), person("bob", world.stack)
    carol, record = await world.newcomer("carol"), world.record()
    results = []
    async with chat(alice, world.stack.mcp_url, transport=Listening(heard)) as client:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool("resolve_billing_dispute", DISPUTE))
            for _ in UPSTREAMS:
                await alice.connect(await link(alice))
            alice.has_signed_in.set()
        results.append(calling.result())
        await fault(world, "crm", status=401)
        await fault(world, "support", status=503)
        await fault(world, "billing", status=429, headers={"Retry-After": "1"})
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
        await fault(world, "support", status=400)
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
    async with chat(bob, world.stack.mcp_url, elicitation=False, transport=Listening(heard)) as client:
        results.append(await client.call_tool("resolve_billing_dispute", DISPUTE))
        for asked in said(results[-1])["links"]:
            await bob.connect(asked["url"])
        results.append(await client.call_tool(COLLECT, {"run_id": said(results[-1])["run_id"]}))
    async with chat(carol, world.stack.mcp_url, transport=Listening(heard)) as client:
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": PLANTED}))
            await world.consent(carol, await link(carol), "alice")
            carol.has_signed_in.set()
        results.append(calling.result())
    return results, [alice, bob, carol]


async def test_no_secret_of_a_whole_story_lies_open_anywhere(world: World) -> None:
    heard = world.secrets
    results, people = await story(world, heard)
    codes = [said(result).get("error", "") for result in results]
    assert codes == ["", "", "request_rejected", "", "permission_denied", ""], results

    data = Path(world.stack.variables["DATA_DIR"])
    secret_values = {value for value in [*heard.known, *passwords(*people)] if len(value) >= SHORTEST}
    secret_values |= set(json.loads((data / "secrets.json").read_text()).values())
    secret_values |= {str(cookie.value) for who in people for cookie in who.browser._client.cookies.jar}
    haystack = Haystack()
    for database in ("temporal.db", "byline.db"):
        for path in sorted(data.glob(f"{database}*")):
            haystack.add_file(path)
        haystack.add_cells(data / database)
    for path in sorted((data / "logs").glob("*.log")):
        haystack.add_file(path)
    for result in results:
        haystack.add_text("MCP result", result.model_dump_json(by_alias=True))
    haystack.add_text("audit", await world.byline("audit"))
    haystack.add_text("audit", await world.byline("audit", "--json"))

    assert set(heard.known.values()) == {*SECRET_FIELDS - {"password"}, "basic credential"}
    assert {place for value in secret_values for place in haystack.places(value)} == set()

    # The same search finds what is no secret, in every kind of place: it cannot pass by looking at nothing.
    assert {"MCP result", "temporal.db: history_node"} <= haystack.places(PLANTED)
    assert {"audit", "byline.db: audit_event", "temporal.db: history_node"} <= haystack.places(ACCOUNT)
    assert "gateway.log" in haystack.places("Uvicorn running")
