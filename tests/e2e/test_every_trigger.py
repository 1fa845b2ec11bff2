"""The same tool with the same arguments, by every door: the same wait, the same result, the same lines in the trail."""

import asyncio
import json
import re
import sys
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook

from examples.chat import Person, chat, signing_in
from tests.e2e.world import ROOT, TOOL, World, said

NOTE = "pays on time"
YEARLY = {"cron": ["0 0 1 1 *"]}
WAITS_FOR_SOMEBODY = 3
PATIENCE = 60.0


@dataclass(frozen=True)
class Caller:
    """A newcomer with an API token, who has connected nothing yet."""

    world: World
    person: Person
    token: str

    def http(self) -> httpx2.AsyncClient:
        """The API, as this person."""
        return httpx2.AsyncClient(
            base_url=f"{self.world.stack.gateway_url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=PATIENCE,
        )

    async def run(self, **of: str) -> dict[str, Any]:
        """The one run of this person, once it is there."""
        async with self.http() as http, asyncio.timeout(PATIENCE):
            while True:
                found = (await http.get("/runs", params=of)).raise_for_status().json()["items"]
                if found:
                    (run,) = found
                    return dict(run)
                await asyncio.sleep(0.1)

    async def state(self, run_id: str, status: str) -> dict[str, Any]:
        """A run, once it has come this far."""
        async with self.http() as http, asyncio.timeout(PATIENCE):
            while True:
                run = (await http.get(f"/runs/{run_id}")).raise_for_status().json()
                if run["status"] == status:
                    return dict(run)
                assert run["status"] in {"running", "waiting"}, run
                await asyncio.sleep(0.1)


async def newcomer(world: World) -> Caller:
    person = await world.newcomer("alice")
    page = await person.open(f"{world.stack.gateway_url}/tokens")
    page = await page.form(submit="Make the token", name="mine", reach="all")
    found = re.search(r"<code>(byline_[^<]+)</code>", page.text)
    assert found is not None, page.text
    return Caller(world, person, found[1])


async def by_chat(caller: Caller, arguments: Mapping[str, str]) -> str:
    async with chat(caller.person, caller.world.stack.mcp_url, elicitation=False) as client:
        return str(said(await client.call_tool(TOOL, dict(arguments)))["run_id"])


async def by_rest(caller: Caller, arguments: Mapping[str, str]) -> str:
    async with caller.http() as http:
        answer = await http.post(f"/tools/{TOOL}/runs", json=arguments)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"].endswith(f"/api/v1/runs/{answer.json()['id']}")
    return str(answer.json()["id"])


async def by_schedule(caller: Caller, arguments: Mapping[str, str]) -> str:
    wanted = {"name": "Yearly note", "tool": TOOL, "arguments": arguments, "timing": YEARLY}
    # A schedule outlives an API token: its maker signs in.
    api = f"{caller.world.stack.gateway_url}/api/v1"
    async with httpx2.AsyncClient(auth=signing_in(caller.person, api), timeout=PATIENCE) as http:
        answer = await http.post(f"{api}/schedules", json=wanted)
        assert answer.status_code == 201, answer.text
        made = answer.json()
    async with caller.http() as http:
        (await http.post(f"/schedules/{made['id']}/trigger")).raise_for_status()
        run = await caller.run(trigger="schedule")
        # The clock is not to bring a second one while this test looks at the first.
        (
            await http.post(f"/schedules/{made['id']}/pause", json={"reason": "once is enough"})
        ).raise_for_status()
    return str(run["id"])


async def by_webhook(caller: Caller, arguments: Mapping[str, str]) -> str:
    mapping = {"arguments": {name: {"pointer": f"/customer/{name}"} for name in arguments}}
    wanted = {"name": "Payments", "tool": TOOL, "scheme": "standard", "mapping": mapping}
    # What a webhook's secret is good for is more than an API token is: its maker signs in.
    api = f"{caller.world.stack.gateway_url}/api/v1"
    async with httpx2.AsyncClient(auth=signing_in(caller.person, api), timeout=PATIENCE) as http:
        made = (await http.post(f"{api}/webhooks", json=wanted)).raise_for_status().json()
    body, event, at = json.dumps({"customer": arguments}), f"msg_{uuid.uuid4()}", datetime.now(UTC)
    headers = {
        "webhook-id": event,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(made["secret"]).sign(event, at, body),
        "Content-Type": "application/json",
    }
    async with httpx2.AsyncClient(timeout=PATIENCE) as sender:
        for _ in range(2):
            (await sender.post(made["url"], content=body, headers=headers)).raise_for_status()
    return str((await caller.run(trigger="webhook"))["id"])


async def by_command(caller: Caller, arguments: Mapping[str, str]) -> str:
    given = [word for name, value in arguments.items() for word in ("--arg", f"{name}={value}")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "call", TOOL, *given, "--json"),
        cwd=ROOT,
        env={"BYLINE_URL": caller.world.stack.gateway_url, "BYLINE_TOKEN": caller.token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, complaints = await process.communicate()
    assert process.returncode == WAITS_FOR_SOMEBODY, complaints.decode()
    return str(json.loads(told)["id"])


Door = Callable[[Caller, Mapping[str, str]], Awaitable[str]]
DOORS: dict[str, tuple[Door, str, tuple[str, str]]] = {
    "chat": (by_chat, "mcp", ("mcp_client", "A chat client")),
    "rest": (by_rest, "rest", ("api_token", "mine")),
    "schedule": (by_schedule, "schedule", ("schedule", "Yearly note")),
    "webhook": (by_webhook, "webhook", ("webhook", "Payments")),
    "command": (by_command, "rest", ("api_token", "mine")),
}
DONE = {
    "connection": "kinto",
    "record_id": "record/RECORD",
    "account": "alice",
    "status": 200,
    "verdict": "allowed",
}
THE_SAME_BY_EVERY_DOOR = [
    ("tool.called", {}),
    ("authorization.requested", {"connection": "kinto"}),
    ("action.ended", {**DONE, "action": "kinto.read_record", "method": "GET"}),
    ("action.ended", {**DONE, "action": "kinto.change_record", "method": "PATCH"}),
]
TOLD = ("connection", "action", "method", "record_id", "account", "status", "verdict", "error")


@pytest.mark.parametrize("door", DOORS)
async def test_the_same_call_by_every_door_waits_acts_and_is_told_alike(world: World, door: str) -> None:
    begin, trigger, actor = DOORS[door]
    caller, record = await newcomer(world), world.record()

    run_id = await begin(caller, {"record": record, "note": NOTE})
    waiting = await caller.state(run_id, "waiting")
    (step,) = waiting["steps"]
    (wait,) = step["waiting_for"]
    await world.consent(caller.person, wait["url"], "alice")
    ended = await caller.state(run_id, "completed")

    assert (ended["tool"], ended["trigger"], ended["result"]) == (
        TOOL,
        trigger,
        {"record": record, "notes": [NOTE]},
    )
    assert world.authors(record) == ["alice"]
    assert await world.runs(caller.person) == [run_id]
    lines = await world.audit("--run", run_id)
    assert [
        (line["kind"], {name: alike(line[name], record) for name in TOLD if name in line}) for line in lines
    ] == THE_SAME_BY_EVERY_DOOR
    assert {
        (line["principal"]["name"], line["principal"]["kind"], line["trigger"], line["tool"])
        for line in lines
    } == {(f"Alice {caller.person.username[-6:]}", "person", trigger, TOOL)}
    assert {(line["actor"]["kind"], line["actor"]["name"]) for line in lines} == {actor}
    assert {tuple(line["chain"]) for line in lines if "chain" in line} == {(f"{TOOL}:{run_id}",)}
    assert "The trail holds" in await world.byline("audit", "verify")


def alike(value: object, record: str) -> object:
    return value.replace(record, "RECORD") if isinstance(value, str) else value
