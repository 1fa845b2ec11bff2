import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from examples.chat import Person, chat
from tests.e2e.rounds import answer, call_tool
from tests.e2e.world import COLLECT, TOOL, World, outcome, said


async def parked(world: World, who: Person, record: str) -> tuple[str, str]:
    """A run of this person that waits for a sign-in: its id and the link."""
    async with chat(who, world.stack.mcp_url, elicitation=False) as client:
        waits = said(await client.call_tool(TOOL, {"record": record, "note": "waits"}))
    return str(waits["run_id"]), str(waits["links"][0]["url"])


async def test_a_link_that_somebody_else_opens_connects_nothing_and_is_in_the_trail(world: World) -> None:
    alice, mallory, record = await world.newcomer("alice"), await world.newcomer("mallory"), world.record()
    run, address = await parked(world, alice, record)

    page = await mallory.open(address)
    trail = await world.audit("--principal", f"Mallory {mallory.username[-6:]}")

    assert page.status == 403
    assert "This link was made for somebody else" in page.text
    assert [(line["kind"], line["request_id"]) for line in trail] == [
        ("authorization.refused", address.rpartition("/")[2])
    ]
    async with chat(alice, world.stack.mcp_url, elicitation=False) as client:
        assert said(await client.call_tool(COLLECT, {"run_id": run}))["status"] == "authorization_required"


async def test_another_persons_run_cannot_be_collected(world: World) -> None:
    alice, mallory, record = await world.newcomer("alice"), await world.newcomer("mallory"), world.record()
    run, _ = await parked(world, alice, record)
    async with chat(mallory, world.stack.mcp_url) as client:
        refused = [
            await client.call_tool(COLLECT, {"run_id": each}) for each in (run, "annotate_record-none")
        ]

    assert [said(result)["error"] for result in refused] == ["run_unknown", "run_unknown"]
    assert said(refused[0])["message"] == f"You have no run '{run}'."


async def test_a_call_without_a_token_is_told_where_tokens_come_from(world: World) -> None:
    for token in (None, "invented"):
        refused = await call_tool(world.stack.mcp_url, token, TOOL, {})
        assert refused.status_code == 401
        place = refused.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
        async with httpx2.AsyncClient() as http:
            metadata = (await http.get(place)).json()
        assert metadata["resource"] == world.stack.mcp_url
        assert metadata["authorization_servers"] == [world.stack.gateway_url]


async def test_a_tool_that_does_not_exist_is_said_so(world: World) -> None:
    async with chat(await world.newcomer("alice"), world.stack.mcp_url) as client:
        with pytest.raises(MCPError, match="There is no tool 'annotate_records'"):
            await client.call_tool("annotate_records", {})


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"record": "crm/accounts/acme"}, "note: Field required"),
        ({"record": "crm/accounts/acme", "note": 7}, "note: Input should be a valid string"),
        ({"record": "somewhere", "note": "x"}, "record: String should match pattern"),
        ({"record": "crm/accounts/acme", "note": ""}, "note: String should have at least 1 character"),
    ],
)
async def test_arguments_that_do_not_fit_are_told_by_field_and_start_nothing(
    world: World, arguments: dict[str, object], complaint: str
) -> None:
    alice = await world.newcomer("alice")
    async with chat(alice, world.stack.mcp_url) as client:
        refused = await client.call_tool(TOOL, arguments)

    assert refused.is_error
    assert said(refused)["error"] == "arguments_invalid"
    assert complaint in said(refused)["message"]
    assert await world.runs(alice) == []


async def test_request_state_serves_only_the_call_and_the_person_it_was_made_for(world: World) -> None:
    alice, mallory, record = await world.newcomer("alice"), await world.newcomer("mallory"), world.record()
    url, token = world.stack.mcp_url, await world.token(alice)
    arguments = {"record": record, "note": "waits"}
    first = answer(await call_tool(url, token, TOOL, arguments))["result"]
    state = first["requestState"]
    assert first["resultType"] == "input_required"
    assert record not in state

    altered = state[:-8] + ("A" if state[-8] != "A" else "B") + state[-7:]
    refused = [
        await call_tool(url, await world.token(mallory), TOOL, arguments, requestState=state),
        await call_tool(url, token, TOOL, arguments, requestState=altered),
        await call_tool(url, token, TOOL, {**arguments, "note": "other"}, requestState=state),
        await call_tool(url, token, COLLECT, {"run_id": "any"}, requestState=state),
        await call_tool(url, token, TOOL, arguments, requestState="invented"),
    ]

    assert [answer(each)["error"]["message"] for each in refused] == ["Invalid or expired requestState"] * 5
    assert len(await world.runs(alice)) == 1
    assert await world.runs(mallory) == []


async def test_a_round_that_is_played_again_joins_the_same_run(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    url, token = world.stack.mcp_url, await world.token(alice)
    arguments = {"record": record, "note": "once"}
    first = answer(await call_tool(url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    accepted = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}
    await world.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")

    outcomes = [answer(await call_tool(url, token, TOOL, arguments, **accepted))["result"] for _ in range(2)]

    assert [outcome["structuredContent"]["notes"] for outcome in outcomes] == [["once"]] * 2
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_a_link_is_a_question_that_its_person_can_answer_with_no(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    alice.has_signed_in.set()
    async with chat(alice, world.stack.mcp_url, elicitation=False) as client:
        waits = said(await client.call_tool(TOOL, {"record": record, "note": "x"}))
        page = await (await alice.open(waits["links"][0]["url"])).form(submit="Decline")
        declined = await outcome(client, waits["run_id"])

    assert "You declined Kinto" in page.text
    assert declined["error"] == "authorization_denied"
    assert world.authors(record) == []
