import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from examples.chat import Person, open_chat
from tests.e2e.installation import COLLECT, TOOL, Installation, collect_outcome, read_result
from tests.support.mcp_requests import call_tool, read_answer


async def park_run(installation: Installation, who: Person, record: str) -> tuple[str, str]:
    """A run of this person that waits for a sign-in: its id and the link."""
    async with open_chat(who, installation.stack.mcp_url, elicitation=False) as client:
        waits = read_result(await client.call_tool(TOOL, {"record": record, "note": "waits"}))
    return str(waits["run_id"]), str(waits["links"][0]["url"])


async def test_a_link_that_somebody_else_opens_connects_nothing_and_is_in_the_trail(
    installation: Installation,
) -> None:
    alice, mallory, record = (
        await installation.add_newcomer("alice"),
        await installation.add_newcomer("mallory"),
        installation.add_record(),
    )
    run, address = await park_run(installation, alice, record)

    page = await mallory.open(address)
    trail = await installation.read_audit_lines("--principal", f"Mallory {mallory.username[-6:]}")

    assert page.status == 403
    assert "This link was made for somebody else" in page.text
    assert [(line["kind"], line["request_id"]) for line in trail] == [
        ("authorization.refused", address.rpartition("/")[2])
    ]
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False) as client:
        assert (
            read_result(await client.call_tool(COLLECT, {"run_id": run}))["status"]
            == "authorization_required"
        )


async def test_another_persons_run_cannot_be_collected(installation: Installation) -> None:
    alice, mallory, record = (
        await installation.add_newcomer("alice"),
        await installation.add_newcomer("mallory"),
        installation.add_record(),
    )
    run, _ = await park_run(installation, alice, record)
    async with open_chat(mallory, installation.stack.mcp_url) as client:
        refusals = [
            await client.call_tool(COLLECT, {"run_id": run_id}) for run_id in (run, "annotate_record-none")
        ]

    assert [read_result(result)["error"] for result in refusals] == ["run_unknown", "run_unknown"]
    assert read_result(refusals[0])["message"] == f"You have no run '{run}'."


async def test_a_call_without_a_token_gets_the_address_of_the_authorization_server(
    installation: Installation,
) -> None:
    for token in (None, "invented"):
        refusal = await call_tool(installation.stack.mcp_url, token, TOOL, {})
        assert refusal.status_code == 401
        place = refusal.headers["www-authenticate"].partition('resource_metadata="')[2].partition('"')[0]
        async with httpx2.AsyncClient() as http:
            metadata = (await http.get(place)).json()
        assert metadata["resource"] == installation.stack.mcp_url
        assert metadata["authorization_servers"] == [installation.stack.gateway_url]


async def test_a_tool_that_does_not_exist_is_said_so(installation: Installation) -> None:
    async with open_chat(await installation.add_newcomer("alice"), installation.stack.mcp_url) as client:
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
async def test_invalid_arguments_are_reported_by_field_and_start_nothing(
    installation: Installation, arguments: dict[str, object], complaint: str
) -> None:
    alice = await installation.add_newcomer("alice")
    async with open_chat(alice, installation.stack.mcp_url) as client:
        refusal = await client.call_tool(TOOL, arguments)

    assert refusal.is_error
    assert read_result(refusal)["error"] == "arguments_invalid"
    assert complaint in read_result(refusal)["message"]
    assert await installation.list_runs(alice) == []


async def test_request_state_serves_only_the_call_and_the_person_it_was_made_for(
    installation: Installation,
) -> None:
    alice, mallory, record = (
        await installation.add_newcomer("alice"),
        await installation.add_newcomer("mallory"),
        installation.add_record(),
    )
    url, token = installation.stack.mcp_url, await installation.issue_token(alice)
    arguments = {"record": record, "note": "waits"}
    first = read_answer(await call_tool(url, token, TOOL, arguments))["result"]
    state = first["requestState"]
    assert first["resultType"] == "input_required"
    assert record not in state

    altered_state = state[:-8] + ("A" if state[-8] != "A" else "B") + state[-7:]
    refusals = [
        await call_tool(url, await installation.issue_token(mallory), TOOL, arguments, requestState=state),
        await call_tool(url, token, TOOL, arguments, requestState=altered_state),
        await call_tool(url, token, TOOL, {**arguments, "note": "other"}, requestState=state),
        await call_tool(url, token, COLLECT, {"run_id": "any"}, requestState=state),
        await call_tool(url, token, TOOL, arguments, requestState="invented"),
    ]

    assert [read_answer(response)["error"]["message"] for response in refusals] == [
        "Invalid or expired requestState"
    ] * 5
    assert len(await installation.list_runs(alice)) == 1
    assert await installation.list_runs(mallory) == []


async def test_a_round_that_is_sent_again_joins_the_same_run(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    url, token = installation.stack.mcp_url, await installation.issue_token(alice)
    arguments = {"record": record, "note": "once"}
    first = read_answer(await call_tool(url, token, TOOL, arguments))["result"]
    (question,) = first["inputRequests"]
    acceptance = {"requestState": first["requestState"], "inputResponses": {question: {"action": "accept"}}}
    await installation.consent(alice, first["inputRequests"][question]["params"]["url"], "alice")

    outcomes = [
        read_answer(await call_tool(url, token, TOOL, arguments, **acceptance))["result"] for _ in range(2)
    ]

    assert [outcome["structuredContent"]["notes"] for outcome in outcomes] == [["once"]] * 2
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_a_link_is_a_question_that_its_person_can_answer_with_no(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    alice.has_signed_in.set()
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False) as client:
        waits = read_result(await client.call_tool(TOOL, {"record": record, "note": "x"}))
        page = await (await alice.open(waits["links"][0]["url"])).form(submit="Decline")
        declined_outcome = await collect_outcome(client, waits["run_id"])

    assert "You declined Kinto" in page.text
    assert declined_outcome["error"] == "authorization_denied"
    assert installation.list_authors(record) == []
