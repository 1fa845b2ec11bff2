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

from examples.chat import Person, build_oauth_provider, open_chat
from tests.e2e.installation import ROOT, TOOL, Installation, read_result

NOTE = "pays on time"
YEARLY = {"cron": ["0 0 1 1 *"]}
WAITS_FOR_SOMEBODY = 3
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class TriggerCaller:
    """A newcomer with an API token, who has connected nothing yet."""

    installation: Installation
    person: Person
    token: str

    def open_http(self) -> httpx2.AsyncClient:
        """The API, as this person."""
        return httpx2.AsyncClient(
            base_url=f"{self.installation.stack.gateway_url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=TIMEOUT_SECONDS,
        )

    async def find_run(self, **of: str) -> dict[str, Any]:
        """The one run of this person, once it is there."""
        async with self.open_http() as http, asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                runs = (await http.get("/runs", params=of)).raise_for_status().json()["items"]
                if runs:
                    (run,) = runs
                    return dict(run)
                await asyncio.sleep(0.1)

    async def wait_for_state(self, run_id: str, status: str) -> dict[str, Any]:
        """A run, once it has come this far."""
        async with self.open_http() as http, asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                run = (await http.get(f"/runs/{run_id}")).raise_for_status().json()
                if run["status"] == status:
                    return dict(run)
                assert run["status"] in {"running", "waiting"}, run
                await asyncio.sleep(0.1)


async def add_caller(installation: Installation) -> TriggerCaller:
    person = await installation.add_newcomer("alice")
    page = await person.open(f"{installation.stack.gateway_url}/tokens")
    page = await page.form(submit="Make the token", name="mine", reach="all")
    match = re.search(r"<code>(byline_[^<]+)</code>", page.text)
    assert match is not None, page.text
    return TriggerCaller(installation, person, match[1])


async def call_by_chat(caller: TriggerCaller, arguments: Mapping[str, str]) -> str:
    async with open_chat(caller.person, caller.installation.stack.mcp_url, elicitation=False) as client:
        return str(read_result(await client.call_tool(TOOL, dict(arguments)))["run_id"])


async def call_by_rest(caller: TriggerCaller, arguments: Mapping[str, str]) -> str:
    async with caller.open_http() as http:
        answer = await http.post(f"/tools/{TOOL}/runs", json=arguments)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"].endswith(f"/api/v1/runs/{answer.json()['id']}")
    return str(answer.json()["id"])


async def call_by_schedule(caller: TriggerCaller, arguments: Mapping[str, str]) -> str:
    wanted_schedule = {"name": "Yearly note", "tool": TOOL, "arguments": arguments, "timing": YEARLY}
    # A schedule outlives an API token: its maker signs in.
    api = f"{caller.installation.stack.gateway_url}/api/v1"
    async with httpx2.AsyncClient(
        auth=build_oauth_provider(caller.person, api), timeout=TIMEOUT_SECONDS
    ) as http:
        answer = await http.post(f"{api}/schedules", json=wanted_schedule)
        assert answer.status_code == 201, answer.text
        schedule = answer.json()
    async with caller.open_http() as http:
        (await http.post(f"/schedules/{schedule['id']}/trigger")).raise_for_status()
        run = await caller.find_run(trigger="schedule")
        # The clock is not to bring a second one while this test looks at the first.
        (
            await http.post(f"/schedules/{schedule['id']}/pause", json={"reason": "once is enough"})
        ).raise_for_status()
    return str(run["id"])


async def call_by_webhook(caller: TriggerCaller, arguments: Mapping[str, str]) -> str:
    mapping = {"arguments": {name: {"pointer": f"/customer/{name}"} for name in arguments}}
    wanted_webhook = {"name": "Payments", "tool": TOOL, "scheme": "standard", "mapping": mapping}
    # What a webhook's secret is good for is more than an API token is: its maker signs in.
    api = f"{caller.installation.stack.gateway_url}/api/v1"
    async with httpx2.AsyncClient(
        auth=build_oauth_provider(caller.person, api), timeout=TIMEOUT_SECONDS
    ) as http:
        webhook = (await http.post(f"{api}/webhooks", json=wanted_webhook)).raise_for_status().json()
    body, event, signed_at = json.dumps({"customer": arguments}), f"msg_{uuid.uuid4()}", datetime.now(UTC)
    headers = {
        "webhook-id": event,
        "webhook-timestamp": str(int(signed_at.timestamp())),
        "webhook-signature": Webhook(webhook["secret"]).sign(event, signed_at, body),
        "Content-Type": "application/json",
    }
    async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS) as sender:
        for _ in range(2):
            (await sender.post(webhook["url"], content=body, headers=headers)).raise_for_status()
    return str((await caller.find_run(trigger="webhook"))["id"])


async def call_by_command(caller: TriggerCaller, arguments: Mapping[str, str]) -> str:
    argument_options = [word for name, value in arguments.items() for word in ("--arg", f"{name}={value}")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "call", TOOL, *argument_options, "--json"),
        cwd=ROOT,
        env={"BYLINE_URL": caller.installation.stack.gateway_url, "BYLINE_TOKEN": caller.token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, complaints = await process.communicate()
    assert process.returncode == WAITS_FOR_SOMEBODY, complaints.decode()
    return str(json.loads(output)["id"])


Door = Callable[[TriggerCaller, Mapping[str, str]], Awaitable[str]]
DOORS: dict[str, tuple[Door, str, tuple[str, str]]] = {
    "chat": (call_by_chat, "mcp", ("mcp_client", "A chat client")),
    "rest": (call_by_rest, "rest", ("api_token", "mine")),
    "schedule": (call_by_schedule, "schedule", ("schedule", "Yearly note")),
    "webhook": (call_by_webhook, "webhook", ("webhook", "Payments")),
    "command": (call_by_command, "rest", ("api_token", "mine")),
}
EXPECTED_RESULT = {
    "connection": "kinto",
    "record_id": "record/RECORD",
    "account": "alice",
    "status": 200,
    "verdict": "allowed",
}
THE_SAME_BY_EVERY_DOOR = [
    ("tool.called", {}),
    ("authorization.requested", {"connection": "kinto"}),
    ("action.ended", {**EXPECTED_RESULT, "action": "kinto.read_record", "method": "GET"}),
    ("action.ended", {**EXPECTED_RESULT, "action": "kinto.change_record", "method": "PATCH"}),
]
COMPARED_FIELDS = ("connection", "action", "method", "record_id", "account", "status", "verdict", "error")


@pytest.mark.parametrize("door", DOORS)
async def test_the_same_call_by_every_trigger_waits_acts_and_is_recorded_alike(
    installation: Installation, door: str
) -> None:
    begin, trigger, actor = DOORS[door]
    caller, record = await add_caller(installation), installation.add_record()

    run_id = await begin(caller, {"record": record, "note": NOTE})
    waiting = await caller.wait_for_state(run_id, "waiting")
    (step,) = waiting["steps"]
    (wait,) = step["waiting_for"]
    await installation.consent(caller.person, wait["url"], "alice")
    run_state = await caller.wait_for_state(run_id, "completed")

    assert (run_state["tool"], run_state["trigger"], run_state["result"]) == (
        TOOL,
        trigger,
        {"record": record, "notes": [NOTE]},
    )
    assert installation.list_authors(record) == ["alice"]
    assert await installation.list_runs(caller.person) == [run_id]
    lines = await installation.read_audit_lines("--run", run_id)
    assert [
        (line["kind"], {name: strip_trigger(line[name], record) for name in COMPARED_FIELDS if name in line})
        for line in lines
    ] == THE_SAME_BY_EVERY_DOOR
    assert {
        (line["principal"]["name"], line["principal"]["kind"], line["trigger"], line["tool"])
        for line in lines
    } == {(f"Alice {caller.person.username[-6:]}", "person", trigger, TOOL)}
    assert {(line["actor"]["kind"], line["actor"]["name"]) for line in lines} == {actor}
    assert {tuple(line["chain"]) for line in lines if "chain" in line} == {(f"{TOOL}:{run_id}",)}
    assert "The trail holds" in await installation.run_byline("audit", "verify")


def strip_trigger(value: object, record: str) -> object:
    return value.replace(record, "RECORD") if isinstance(value, str) else value
