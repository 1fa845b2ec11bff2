"""Holds a tool that asks people to waiting in the open for the right one, whichever way they answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp_types import CallToolResult
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, Worker

from engine.identity.model import Principal
from engine.questions.questions import Question
from engine.runs.outcome import Failed, Finished, PendingWaits
from engine.services import open_services
from engine.wire import ASK_ACTIVITY, OUTCOME_META
from examples.browser import Browser
from examples.chat import Person as ChatPerson
from examples.chat import open_chat
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.fixtures.tools.questions import ChooseAccount, Matching, RefundMoney
from tests.support.administration import give_role, take_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.platform import NAMESPACE, Platform, wait_until

ROLE = "refund-approver"
SIGNALLED_EVENT = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
CHOSEN_ANSWER = {"account": "Contoso", "discount": 0, "note": None, "urgent": False}
REFUND = {"amount": 500, "to": "Acme"}


async def wait_for_question(platform: Platform, run: str) -> Question:
    """What a run asks, once its workflow waits for the answer."""

    async def waits() -> bool:
        return bool(await platform.services.questions.list_awaited_questions(run))

    await wait_until(waits)
    (awaited_question,) = await platform.services.questions.list_awaited_questions(run)
    return awaited_question


async def wait_until_parked(platform: Platform, run: str) -> Question:
    async def waits() -> bool:
        return await platform.read_awaited_connections(run) is not None

    await wait_until(waits)
    return await wait_for_question(platform, run)


@asynccontextmanager
async def open_browser(api_server: ApiServer, username: str) -> AsyncIterator[tuple[Browser, Principal]]:
    """Somebody of the built-in sign-in, signed in to Byline."""
    people = BuiltInPeople(api_server.services.database)
    await people.add_person(username, username.title(), f"{username}-demo")
    signed_in_person = await people.authenticate_person(username, f"{username}-demo")
    assert signed_in_person is not None
    async with Browser() as browser:
        page = await browser.open(f"{api_server.url}/sign-in?next=/")
        await page.form(submit="Sign in", username=username, password=f"{username}-demo")
        yield (
            browser,
            await api_server.services.principals.resolve_principal(api_server.url, *signed_in_person),
        )


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        yield api_server


@pytest.mark.parametrize("tool", ["choose_account", "choose_in_a_child"])
async def test_a_question_is_answered_on_its_page_and_the_tool_goes_on(
    api_server: ApiServer, platform: Platform, tool: str
) -> None:
    async with open_browser(api_server, "ann") as (browser, ann):
        run = await platform.start_run(tool, {"name": "Nort"}, ann)
        open_question = await wait_for_question(platform, run)
        outcome = await platform.runs.outcomes.wait_for_outcome(run, timeout_seconds=30)
        front = await browser.open(api_server.url)
        page = await browser.open(f"{api_server.url}/questions/{open_question.id}")
        wrong = await page.form(submit="Answer", **{"answer.account": "Contoso", "answer.discount": "70"})
        answer_fields = {"answer.account": "Contoso", "answer.discount": "7", "answer.note": "<b>soon"}
        answer_page = await wrong.form(submit="Answer", **answer_fields)

    assert isinstance(outcome, PendingWaits)
    assert outcome.ids == [open_question.id]
    assert "1 question is waiting" in front.text
    assert f"/questions/{open_question.id}" in front.text
    assert "Two accounts match Nort. Which one?" in page.text
    assert (wrong.status, "discount: this should be at most 50" in wrong.text) == (422, True)
    assert 'value="70"' in wrong.text
    assert '<option value="Contoso" selected>' in wrong.text
    assert "This is answered" in answer_page.text
    expected_answer = {"account": "Contoso", "discount": 7, "note": "<b>soon", "urgent": False}
    assert await platform.wait_for_outcome(run) == Finished(expected_answer)
    assert [
        event["principal"]["name"] for event in await platform.list_trail_events("question.answered", run)
    ] == ["Ann"]
    assert await platform.list_trail_events("question.asked", run)


async def test_a_question_is_listed_and_answered_by_rest(api_server: ApiServer, platform: Platform) -> None:
    ann, ben = await api_server.add_person("ann", "Ann"), await api_server.add_person("ben", "Ben")
    run = await platform.start_run("choose_account", {"name": "Nort"}, ann)
    open_question = await wait_for_question(platform, run)
    async with api_server.open_client(ann) as client, api_server.open_client(ben) as stranger:
        state = (await client.get(f"/runs/{run}")).json()
        listing = (await client.get("/questions")).json()
        question_document = (await client.get(f"/questions/{open_question.id}")).json()
        refusals = [
            await stranger.get(f"/questions/{open_question.id}"),
            await stranger.post(
                f"/questions/{open_question.id}/answer", json={"answer": {"account": "Contoso"}}
            ),
            await stranger.post(f"/questions/{open_question.id}/decline"),
        ]
        unfit = await client.post(
            f"/questions/{open_question.id}/answer", json={"answer": {"account": "Fabrikam"}}
        )
        answer_response = await client.post(
            f"/questions/{open_question.id}/answer", json={"answer": {"account": "Contoso"}}
        )
        again = await client.post(
            f"/questions/{open_question.id}/answer", json={"answer": {"account": "Contoso"}}
        )
        others_documents = (await stranger.get("/questions")).json()

    (waits_for,) = state["steps"][0]["waiting_for"]
    assert (waits_for["kind"], waits_for["url"]) == (
        "question",
        f"{api_server.url}/questions/{open_question.id}",
    )
    assert [item["id"] for item in listing["items"]] == [open_question.id]
    assert (question_document["kind"], question_document["tool"], question_document["state"]) == (
        "question",
        "choose_account",
        "open",
    )
    assert question_document["answer_schema"]["properties"]["account"]["enum"] == ["Northwind", "Contoso"]
    assert [answer.status_code for answer in refusals] == [403, 403, 403]
    assert (unfit.status_code, unfit.json()["type"]) == (422, "urn:byline:error:answer_invalid")
    assert (answer_response.status_code, answer_response.json()["state"]) == (200, "answered")
    assert (again.status_code, again.json()["type"]) == (409, "urn:byline:error:question_closed")
    assert others_documents["items"] == []
    assert await platform.wait_for_outcome(run) == Finished(CHOSEN_ANSWER)
    assert len(await platform.list_trail_events("question.refused", run)) == 3


async def test_what_the_client_is_asked_is_put_to_no_person_and_its_answers_go_to_the_tool(
    api_server: ApiServer, platform: Platform
) -> None:
    async with open_browser(api_server, "ann") as (browser, ann), api_server.open_client(ann) as client:
        run = await platform.start_run("ask_the_client", {}, ann)

        async def asks_both() -> bool:
            return len(await platform.services.questions.list_awaited_questions(run)) == 2

        await wait_until(asks_both)
        question_by_key = {
            client_question.key: client_question
            for client_question in await platform.services.questions.list_awaited_questions(run)
        }
        pages = [
            await browser.open(f"{api_server.url}/questions/{client_question.id}")
            for client_question in question_by_key.values()
        ]
        responses = [
            await client.get(f"/questions/{client_question.id}")
            for client_question in question_by_key.values()
        ]
        listing = (await client.get("/questions")).json()
        state = (await client.get(f"/runs/{run}")).json()
        completion = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "Hello."}}
        await platform.services.questions.answer_question(question_by_key["greeting"].id, ann, completion)
        await platform.services.questions.answer_question(
            question_by_key["folders"].id, ann, {"roots": [{"uri": "file:///work", "name": "Work"}]}
        )

    assert question_by_key["greeting"].parameters == {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Say hello."}}],
        "maxTokens": 20,
        "systemPrompt": "Be short.",
    }
    assert [page.status for page in pages] == [answer.status_code for answer in responses] == [404, 404]
    assert listing["items"] == []
    waits = state["steps"][0]["waiting_for"]
    assert [(client_question["kind"], client_question["url"]) for client_question in waits] == [
        ("client", None)
    ] * 2
    assert await platform.wait_for_outcome(run) == Finished({"text": "Hello.", "roots": ["file:///work"]})


async def test_what_only_a_client_can_answer_ends_at_once_where_a_program_called(
    api_server: ApiServer, platform: Platform
) -> None:
    ann = await api_server.add_person("ann", "Ann")
    async with api_server.open_client(ann) as client:
        run_response = await client.post("/tools/ask_the_client/runs", json={})

    assert await platform.wait_for_outcome(run_response.json()["id"]) == Failed(
        "question_declined", "No MCP client called this run, and nothing else can answer."
    )


async def serve_and_call_in_chat(
    platform: Platform, who: ChatPerson, tool: str, arguments: dict[str, Any], *, elicitation: bool = True
) -> CallToolResult:
    """What a chat client of somebody is told of a call."""
    async with serve_api(platform, mcp=True) as api_server:
        return await call_in_chat(api_server, who, tool, arguments, elicitation=elicitation)


async def call_in_chat(
    api_server: ApiServer, who: ChatPerson, tool: str, arguments: dict[str, Any], *, elicitation: bool = True
) -> CallToolResult:
    await BuiltInPeople(api_server.services.database).add_person(
        who.username, who.username.title(), who.password
    )
    async with open_chat(who, f"{api_server.url}/mcp", elicitation=elicitation) as client:
        return await client.call_tool(tool, arguments)


async def test_a_client_that_can_show_forms_asks_in_the_chat(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo", enters={"account": "Contoso", "discount": 5})

    result = await serve_and_call_in_chat(platform, ann, "choose_account", {"name": "Nort"})

    form = ann.forms.get_nowait()
    assert form.message == "Two accounts match Nort. Which one?"
    assert form.requested_schema["required"] == ["account"]
    assert ann.forms.empty()
    assert result.structured_content == {**CHOSEN_ANSWER, "discount": 5}


async def test_an_answer_that_does_not_fit_is_asked_for_again_in_the_chat(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo", enters={"account": "Fabrikam"})

    calling = asyncio.create_task(serve_and_call_in_chat(platform, ann, "choose_account", {"name": "Nort"}))
    await ann.forms.get()
    ann.enters = {"account": "Contoso"}
    result = await calling

    assert not ann.forms.empty()
    assert result.structured_content == CHOSEN_ANSWER


@pytest.mark.parametrize("decision", ["decline", "cancel"])
async def test_a_no_in_the_chat_ends_the_wait_and_a_dismissed_form_leaves_the_link(
    platform: Platform, decision: Literal["decline", "cancel"]
) -> None:
    ann = ChatPerson("ann", "ann-demo", decision=decision)

    result = await serve_and_call_in_chat(platform, ann, "choose_account", {"name": "Nort"})

    outcome_document = (result.meta or {})[OUTCOME_META]
    assert result.is_error
    if decision == "decline":
        assert outcome_document["error"] == "question_declined"
    else:
        assert outcome_document["status"] == "answer_required"
        assert urlsplit(outcome_document["links"][0]["url"]).path.startswith("/questions/")


async def test_a_client_without_forms_is_given_the_link_for_its_person(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo")

    async with serve_api(platform, mcp=True) as api_server:
        result = await call_in_chat(api_server, ann, "choose_account", {"name": "Nort"}, elicitation=False)
        outcome_document = (result.meta or {})[OUTCOME_META]
        (link,) = outcome_document["links"]
        page = await (await ann.open(link["url"])).form(submit="Answer", **{"answer.account": "Contoso"})

    assert outcome_document["status"] == "answer_required"
    assert link["question"] == "Two accounts match Nort. Which one?"
    assert "This is answered" in page.text
    assert await platform.wait_for_outcome(outcome_document["run_id"]) == Finished(CHOSEN_ANSWER)


async def test_the_chat_of_who_needs_an_approval_reads_which_role_it_waits_for_and_gets_no_link(
    platform: Platform,
) -> None:
    ann = ChatPerson("ann", "ann-demo")

    async with serve_api(platform, mcp=True) as api_server, open_browser(api_server, "ben") as (browser, ben):
        result = await call_in_chat(api_server, ann, "refund", REFUND)
        outcome_document = (result.meta or {})[OUTCOME_META]
        await give_role(platform.services, ben.id, ROLE)
        open_question = await wait_for_question(platform, outcome_document["run_id"])
        front = await browser.open(api_server.url)
        page = await browser.open(f"{api_server.url}/questions/{open_question.id}")
        await page.form(submit="Approve")

    assert (outcome_document["status"], outcome_document["links"]) == ("approval_required", [])
    assert outcome_document["approvals"] == [{"question": "Refund 500 EUR to Acme?", "role": ROLE}]
    assert "/questions/" not in str(result.content)
    assert "Refund 500 EUR to Acme?" in front.text
    assert "<strong>Ann</strong> called <code>refund</code>" in page.text
    assert await platform.wait_for_outcome(outcome_document["run_id"]) == Finished({"approved_by": "Ben"})


async def test_neither_the_requester_nor_somebody_without_the_role_can_approve(
    api_server: ApiServer, platform: Platform
) -> None:
    async with (
        open_browser(api_server, "ann") as (browser, ann),
        open_browser(api_server, "ben") as (other_browser, ben),
    ):
        await give_role(platform.services, ann.id, ROLE)
        run = await platform.start_run("refund", REFUND, ann)
        open_question = await wait_until_parked(platform, run)
        address = f"{api_server.url}/questions/{open_question.id}"

        own = await browser.open(address)
        without = await other_browser.open(address)
        await give_role(platform.services, ben.id, ROLE)
        page = await other_browser.open(address)
        await take_role(platform.services, ben.id, ROLE)
        too_late = await page.form(submit="Approve")
        async with api_server.open_client(ann) as client:
            state = (await client.get(f"/runs/{run}")).json()
            by_rest = await client.post(f"/questions/{open_question.id}/answer", json={"answer": {}})

    assert [response.status for response in (own, without, page, too_late)] == [403, 403, 200, 403]
    assert "made for somebody else" in own.text
    assert "Refund" not in own.text + without.text
    assert by_rest.status_code == 403
    (waits_for,) = state["steps"][0]["waiting_for"]
    assert (waits_for["kind"], waits_for["role"], waits_for["url"]) == ("approval", ROLE, None)
    assert await platform.read_awaited_connections(run) == [f"approval:{ROLE}"]
    assert (await platform.services.questions.list_awaited_questions(run))[0].is_open
    refusals = [
        event["principal"]["name"] for event in await platform.list_trail_events("question.refused", run)
    ]
    assert sorted(refusals) == ["Ann", "Ann", "Ben", "Ben"]


async def test_a_token_answers_for_its_owner_where_it_reaches_the_tool_and_approves_nothing(
    api_server: ApiServer, platform: Platform
) -> None:
    ann, ben = await api_server.add_person("ann", "Ann"), await api_server.add_person("ben", "Ben")
    await give_role(platform.services, ben.id, ROLE)
    choice_question = await wait_for_question(
        platform, await platform.start_run("choose_account", {"name": "Nort"}, ann)
    )
    refund_question = await wait_for_question(platform, await platform.start_run("refund", REFUND, ann))

    async def answer_as(
        owner: Principal, tools: set[str], open_question: Question, answer: dict[str, str]
    ) -> int:
        api_token = await api_server.services.api_tokens.create_token(
            owner, "-".join(tools), tool_names=tools
        )
        headers = {"Authorization": f"Bearer {api_token.token_text}"}
        address = f"{api_server.url}/api/v1/questions/{open_question.id}/answer"
        async with httpx2.AsyncClient(headers=headers, timeout=60) as client:
            return (await client.post(address, json={"answer": answer})).status_code

    assert await answer_as(ben, {"refund"}, refund_question, {}) == 403
    assert await answer_as(ann, {"refund"}, choice_question, {"account": "Contoso"}) == 403
    assert await answer_as(ann, {"choose_account"}, choice_question, {"account": "Contoso"}) == 200
    assert await platform.wait_for_outcome(choice_question.run_id) == Finished(CHOSEN_ANSWER)
    assert (await wait_for_question(platform, refund_question.run_id)).is_open


async def test_a_no_to_an_approval_ends_the_run_and_says_who_said_it(platform: Platform) -> None:
    await give_role(platform.services, platform.bob.id, ROLE)
    run = await platform.start_run("refund", REFUND, platform.alice)

    await platform.services.questions.decline_question(
        (await wait_for_question(platform, run)).id, platform.bob
    )

    assert await platform.wait_for_outcome(run) == Failed(
        "approval_denied", f"Bob Baker, who has the role '{ROLE}', said no."
    )


@pytest.mark.parametrize(
    ("tool", "arguments", "expected_outcome"),
    [
        (
            "choose_account",
            {"name": "Nort", "seconds": 1.0},
            Failed("question_expired", "Alice Liddell did not answer in time."),
        ),
        ("choose_or_go_on", {"name": "Nort", "seconds": 1.0}, Finished({"because": "question_expired"})),
        (
            "refund",
            {**REFUND, "seconds": 1.0},
            Failed("approval_expired", f"Nobody with the role '{ROLE}' answered in time."),
        ),
    ],
)
async def test_a_question_that_nobody_answers_in_time_ends_with_that_outcome_for_the_tool(
    platform: Platform, tool: str, arguments: dict[str, Any], expected_outcome: object
) -> None:
    run = await platform.start_run(tool, arguments, platform.alice)

    assert await platform.wait_for_outcome(run) == expected_outcome
    assert len(await platform.list_trail_events("question.expired", run)) == 1


async def test_a_cancelled_run_asks_nothing_any_more(api_server: ApiServer, platform: Platform) -> None:
    async with open_browser(api_server, "ann") as (browser, ann):
        run = await platform.start_run("choose_account", {"name": "Nort"}, ann)
        open_question = await wait_until_parked(platform, run)
        await platform.temporal.get_workflow_handle(run).cancel()

        assert await platform.wait_for_outcome(run) == Failed("run_cancelled", "The run was cancelled.")
        page = await browser.open(f"{api_server.url}/questions/{open_question.id}")

    assert (page.status, "Nobody waits for this any more" in page.text) == (410, True)
    assert await platform.services.questions.list_open_questions(ann) == []


async def test_an_answer_is_not_lost_with_the_gateway_that_took_it(idle_platform: Platform) -> None:
    async with idle_platform.run_worker():
        run = await idle_platform.start_run("choose_account", {"name": "Nort"}, idle_platform.alice)
        open_question = await wait_until_parked(idle_platform, run)
        async with open_services(idle_platform.settings, idle_platform.environment) as dying:
            await dying.questions.answer_question(
                open_question.id, idle_platform.alice, {"account": "Contoso"}
            )
        assert await idle_platform.count_events(run, SIGNALLED_EVENT) == 0

        async with idle_platform.run_wake_up_delivery():
            assert await idle_platform.wait_for_outcome(run) == Finished(CHOSEN_ANSWER)

    assert await idle_platform.count_events(run, SIGNALLED_EVENT) == 1
    history = await idle_platform.temporal.get_workflow_handle(run).fetch_history()
    assert history.events


async def test_a_question_outlives_gateway_and_worker(idle_platform: Platform) -> None:
    async with (
        serve_api(idle_platform) as first,
        idle_platform.run_worker(),
        open_browser(first, "ann") as (_, ann),
    ):
        run = await idle_platform.start_run("choose_account", {"name": "Nort"}, ann)
        open_question = await wait_until_parked(idle_platform, run)
    port = urlsplit(first.url).port or 0

    async with serve_api(idle_platform, port=port) as second, open_browser(second, "ann") as (browser, _):
        page = await browser.open(f"{second.url}/questions/{open_question.id}")
        await page.form(submit="Answer", **{"answer.account": "Contoso"})
    async with idle_platform.run_worker(), idle_platform.run_wake_up_delivery():
        assert await idle_platform.wait_for_outcome(run) == Finished(CHOSEN_ANSWER)


async def test_a_wake_up_without_an_answer_asks_nothing_anew(platform: Platform) -> None:
    run = await platform.start_run("choose_account", {"name": "Nort"}, platform.alice)
    open_question = await wait_until_parked(platform, run)
    (waiter,) = await platform.list_waiters(run)

    await platform.temporal.get_workflow_handle(run).signal(
        "byline.look_again", {"v": 1, "waiter": waiter.id}
    )

    async def has_looked_again() -> bool:
        return await platform.count_events(run, EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED) == 2

    await wait_until(has_looked_again)
    assert (await wait_until_parked(platform, run)).id == open_question.id
    assert [row.id for row in await platform.list_waiters(run)] == [waiter.id]
    assert len(await platform.list_trail_events("question.asked", run)) == 1


async def test_a_run_reports_its_progress(api_server: ApiServer, platform: Platform) -> None:
    ann = await api_server.add_person("ann", "Ann")
    run = await platform.start_run("choose_in_a_child", {"name": "Nort"}, ann)
    open_question = await wait_for_question(platform, run)

    async with api_server.open_client(ann) as client:
        meanwhile = (await client.get(f"/runs/{run}")).json()
        await platform.services.questions.answer_question(open_question.id, ann, {"account": "Contoso"})
        await platform.wait_for_outcome(run)
        after = (await client.get(f"/runs/{run}")).json()

    assert meanwhile["progress"] == {"message": "Asking", "done": 1, "of": 3}
    assert after["progress"] == {"message": "Asked", "done": 3, "of": 3}


async def test_a_tool_that_asks_runs_on_plain_temporal_where_a_test_answers_for_people(
    temporal_address: str,
) -> None:
    @activity.defn(name=ASK_ACTIVITY)
    async def answer(question: dict[str, Any]) -> dict[str, Any]:
        content = {} if question["role"] else {"account": "Contoso"}
        return {"content": content, "by": {"id": "1", "name": "Somebody"}}

    client = await Client.connect(
        temporal_address, namespace=NAMESPACE, data_converter=pydantic_data_converter
    )
    async with Worker(
        client, task_queue="plain-asking", workflows=[ChooseAccount, RefundMoney], activities=[answer]
    ):
        handle = await client.start_workflow(
            ChooseAccount.run, Matching(name="Nort"), id="plain-asking-1", task_queue="plain-asking"
        )
        choice = await handle.result()
        refund = await client.execute_workflow(
            "refund", REFUND, id="plain-asking-2", task_queue="plain-asking", result_type=dict
        )

    assert choice.account == "Contoso"
    assert refund == {"approved_by": "Somebody"}
    replayer = Replayer(workflows=[ChooseAccount], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(await handle.fetch_history())


async def test_a_run_that_only_waits_is_not_under_way_and_one_with_a_child_is(
    platform: Platform,
) -> None:
    alone = await platform.start_run("choose_account", {"name": "Nort"}, platform.alice)
    with_child = await platform.start_run("choose_in_a_child", {"name": "Nort"}, platform.alice)
    await wait_until_parked(platform, alone)
    await wait_for_question(platform, with_child)

    assert not await platform.runs.workflows.is_under_way(alone)
    assert await platform.runs.workflows.is_under_way(with_child)
