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
from examples.chat import chat
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.administration import give_role, take_role
from tests.platform import NAMESPACE, Platform, until
from tests.rest import Rest, serving
from tests.tools.asking import ChooseAccount, Matching, RefundMoney

ROLE = "refund-approver"
SIGNALLED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
CHOSEN = {"account": "Contoso", "discount": 0, "note": None, "urgent": False}
REFUND = {"amount": 500, "to": "Acme"}


async def question(platform: Platform, run: str) -> Question:
    """What a run asks, once its workflow waits for the answer."""

    async def waits() -> bool:
        return bool(await platform.services.questions.list_awaited_questions(run))

    await until(waits)
    (asked,) = await platform.services.questions.list_awaited_questions(run)
    return asked


async def parked(platform: Platform, run: str) -> Question:
    async def waits() -> bool:
        return await platform.awaiting(run) is not None

    await until(waits)
    return await question(platform, run)


@asynccontextmanager
async def browsing(rest: Rest, username: str) -> AsyncIterator[tuple[Browser, Principal]]:
    """Somebody of the built-in sign-in, signed in to Byline."""
    people = BuiltInPeople(rest.services.database)
    await people.add_person(username, username.title(), f"{username}-demo")
    known = await people.authenticate_person(username, f"{username}-demo")
    assert known is not None
    async with Browser() as browser:
        page = await browser.open(f"{rest.url}/sign-in?next=/")
        await page.form(submit="Sign in", username=username, password=f"{username}-demo")
        yield browser, await rest.services.principals.resolve_principal(rest.url, *known)


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        yield rest


@pytest.mark.parametrize("tool", ["choose_account", "choose_in_a_child"])
async def test_a_question_is_answered_on_its_page_and_the_tool_goes_on(
    rest: Rest, platform: Platform, tool: str
) -> None:
    async with browsing(rest, "ann") as (browser, ann):
        run = await platform.start(tool, {"name": "Nort"}, ann)
        asked = await question(platform, run)
        told = await platform.runs.outcomes.wait_for_outcome(run, timeout_seconds=30)
        front = await browser.open(rest.url)
        page = await browser.open(f"{rest.url}/questions/{asked.id}")
        wrong = await page.form(submit="Answer", **{"answer.account": "Contoso", "answer.discount": "70"})
        entered = {"answer.account": "Contoso", "answer.discount": "7", "answer.note": "<b>soon"}
        done = await wrong.form(submit="Answer", **entered)

    assert isinstance(told, PendingWaits)
    assert told.ids == [asked.id]
    assert "1 question is waiting" in front.text
    assert f"/questions/{asked.id}" in front.text
    assert "Two accounts match Nort. Which one?" in page.text
    assert (wrong.status, "discount: this should be at most 50" in wrong.text) == (422, True)
    assert 'value="70"' in wrong.text
    assert '<option value="Contoso" selected>' in wrong.text
    assert "This is answered" in done.text
    expected = {"account": "Contoso", "discount": 7, "note": "<b>soon", "urgent": False}
    assert await platform.outcome(run) == Finished(expected)
    assert [event["principal"]["name"] for event in await platform.trail("question.answered", run)] == ["Ann"]
    assert await platform.trail("question.asked", run)


async def test_a_question_is_listed_and_answered_by_rest(rest: Rest, platform: Platform) -> None:
    ann, ben = await rest.person("ann", "Ann"), await rest.person("ben", "Ben")
    run = await platform.start("choose_account", {"name": "Nort"}, ann)
    asked = await question(platform, run)
    async with rest.calling_as(ann) as client, rest.calling_as(ben) as stranger:
        state = (await client.get(f"/runs/{run}")).json()
        listed = (await client.get("/questions")).json()
        found = (await client.get(f"/questions/{asked.id}")).json()
        refused = [
            await stranger.get(f"/questions/{asked.id}"),
            await stranger.post(f"/questions/{asked.id}/answer", json={"answer": {"account": "Contoso"}}),
            await stranger.post(f"/questions/{asked.id}/decline"),
        ]
        unfit = await client.post(f"/questions/{asked.id}/answer", json={"answer": {"account": "Fabrikam"}})
        answered = await client.post(f"/questions/{asked.id}/answer", json={"answer": {"account": "Contoso"}})
        again = await client.post(f"/questions/{asked.id}/answer", json={"answer": {"account": "Contoso"}})
        seen_by_others = (await stranger.get("/questions")).json()

    (waits_for,) = state["steps"][0]["waiting_for"]
    assert (waits_for["kind"], waits_for["url"]) == ("question", f"{rest.url}/questions/{asked.id}")
    assert [each["id"] for each in listed["items"]] == [asked.id]
    assert (found["kind"], found["tool"], found["state"]) == ("question", "choose_account", "open")
    assert found["answer_schema"]["properties"]["account"]["enum"] == ["Northwind", "Contoso"]
    assert [answer.status_code for answer in refused] == [403, 403, 403]
    assert (unfit.status_code, unfit.json()["type"]) == (422, "urn:byline:error:answer_invalid")
    assert (answered.status_code, answered.json()["state"]) == (200, "answered")
    assert (again.status_code, again.json()["type"]) == (409, "urn:byline:error:question_closed")
    assert seen_by_others["items"] == []
    assert await platform.outcome(run) == Finished(CHOSEN)
    assert len(await platform.trail("question.refused", run)) == 3


async def test_what_the_client_is_asked_is_put_to_no_person_and_its_answers_go_to_the_tool(
    rest: Rest, platform: Platform
) -> None:
    async with browsing(rest, "ann") as (browser, ann), rest.calling_as(ann) as client:
        run = await platform.start("ask_the_client", {}, ann)

        async def asks_both() -> bool:
            return len(await platform.services.questions.list_awaited_questions(run)) == 2

        await until(asks_both)
        asked = {each.key: each for each in await platform.services.questions.list_awaited_questions(run)}
        pages = [await browser.open(f"{rest.url}/questions/{each.id}") for each in asked.values()]
        found = [await client.get(f"/questions/{each.id}") for each in asked.values()]
        listed = (await client.get("/questions")).json()
        state = (await client.get(f"/runs/{run}")).json()
        written = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "Hello."}}
        await platform.services.questions.answer_question(asked["greeting"].id, ann, written)
        await platform.services.questions.answer_question(
            asked["folders"].id, ann, {"roots": [{"uri": "file:///work", "name": "Work"}]}
        )

    assert asked["greeting"].parameters == {
        "messages": [{"role": "user", "content": {"type": "text", "text": "Say hello."}}],
        "maxTokens": 20,
        "systemPrompt": "Be short.",
    }
    assert [page.status for page in pages] == [answer.status_code for answer in found] == [404, 404]
    assert listed["items"] == []
    waits = state["steps"][0]["waiting_for"]
    assert [(each["kind"], each["url"]) for each in waits] == [("client", None)] * 2
    assert await platform.outcome(run) == Finished({"text": "Hello.", "roots": ["file:///work"]})


async def test_what_only_a_client_can_answer_ends_at_once_where_a_program_called(
    rest: Rest, platform: Platform
) -> None:
    ann = await rest.person("ann", "Ann")
    async with rest.calling_as(ann) as client:
        begun = await client.post("/tools/ask_the_client/runs", json={})

    assert await platform.outcome(begun.json()["id"]) == Failed(
        "question_declined", "No MCP client called this run, and nothing else can answer."
    )


async def in_chat(
    platform: Platform, who: ChatPerson, tool: str, arguments: dict[str, Any], *, elicitation: bool = True
) -> CallToolResult:
    """What a chat client of somebody is told of a call."""
    async with serving(platform, mcp=True) as rest:
        return await called(rest, who, tool, arguments, elicitation=elicitation)


async def called(
    rest: Rest, who: ChatPerson, tool: str, arguments: dict[str, Any], *, elicitation: bool = True
) -> CallToolResult:
    await BuiltInPeople(rest.services.database).add_person(who.username, who.username.title(), who.password)
    async with chat(who, f"{rest.url}/mcp", elicitation=elicitation) as client:
        return await client.call_tool(tool, arguments)


async def test_a_client_that_can_show_forms_asks_in_the_chat(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo", enters={"account": "Contoso", "discount": 5})

    result = await in_chat(platform, ann, "choose_account", {"name": "Nort"})

    form = ann.forms.get_nowait()
    assert form.message == "Two accounts match Nort. Which one?"
    assert form.requested_schema["required"] == ["account"]
    assert ann.forms.empty()
    assert result.structured_content == {**CHOSEN, "discount": 5}


async def test_an_answer_that_does_not_fit_is_asked_for_again_in_the_chat(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo", enters={"account": "Fabrikam"})

    calling = asyncio.create_task(in_chat(platform, ann, "choose_account", {"name": "Nort"}))
    await ann.forms.get()
    ann.enters = {"account": "Contoso"}
    result = await calling

    assert not ann.forms.empty()
    assert result.structured_content == CHOSEN


@pytest.mark.parametrize("decision", ["decline", "cancel"])
async def test_a_no_in_the_chat_ends_the_wait_and_a_dismissed_form_leaves_the_link(
    platform: Platform, decision: Literal["decline", "cancel"]
) -> None:
    ann = ChatPerson("ann", "ann-demo", decision=decision)

    result = await in_chat(platform, ann, "choose_account", {"name": "Nort"})

    told = (result.meta or {})[OUTCOME_META]
    assert result.is_error
    if decision == "decline":
        assert told["error"] == "question_declined"
    else:
        assert told["status"] == "answer_required"
        assert urlsplit(told["links"][0]["url"]).path.startswith("/questions/")


async def test_a_client_without_forms_is_given_the_link_for_its_person(platform: Platform) -> None:
    ann = ChatPerson("ann", "ann-demo")

    async with serving(platform, mcp=True) as rest:
        result = await called(rest, ann, "choose_account", {"name": "Nort"}, elicitation=False)
        told = (result.meta or {})[OUTCOME_META]
        (link,) = told["links"]
        page = await (await ann.open(link["url"])).form(submit="Answer", **{"answer.account": "Contoso"})

    assert told["status"] == "answer_required"
    assert link["question"] == "Two accounts match Nort. Which one?"
    assert "This is answered" in page.text
    assert await platform.outcome(told["run_id"]) == Finished(CHOSEN)


async def test_the_chat_of_who_needs_an_approval_is_told_whom_it_waits_for_and_given_no_link(
    platform: Platform,
) -> None:
    ann = ChatPerson("ann", "ann-demo")

    async with serving(platform, mcp=True) as rest, browsing(rest, "ben") as (browser, ben):
        result = await called(rest, ann, "refund", REFUND)
        told = (result.meta or {})[OUTCOME_META]
        await give_role(platform.services, ben.id, ROLE)
        asked = await question(platform, told["run_id"])
        front = await browser.open(rest.url)
        page = await browser.open(f"{rest.url}/questions/{asked.id}")
        await page.form(submit="Approve")

    assert (told["status"], told["links"]) == ("approval_required", [])
    assert told["approvals"] == [{"question": "Refund 500 EUR to Acme?", "role": ROLE}]
    assert "/questions/" not in str(result.content)
    assert "Refund 500 EUR to Acme?" in front.text
    assert "<strong>Ann</strong> called <code>refund</code>" in page.text
    assert await platform.outcome(told["run_id"]) == Finished({"approved_by": "Ben"})


async def test_an_approval_is_not_to_be_had_from_the_requester_nor_without_the_role(
    rest: Rest, platform: Platform
) -> None:
    async with browsing(rest, "ann") as (browser, ann), browsing(rest, "ben") as (other_browser, ben):
        await give_role(platform.services, ann.id, ROLE)
        run = await platform.start("refund", REFUND, ann)
        asked = await parked(platform, run)
        address = f"{rest.url}/questions/{asked.id}"

        own = await browser.open(address)
        without = await other_browser.open(address)
        await give_role(platform.services, ben.id, ROLE)
        page = await other_browser.open(address)
        await take_role(platform.services, ben.id, ROLE)
        too_late = await page.form(submit="Approve")
        async with rest.calling_as(ann) as client:
            state = (await client.get(f"/runs/{run}")).json()
            by_rest = await client.post(f"/questions/{asked.id}/answer", json={"answer": {}})

    assert [each.status for each in (own, without, page, too_late)] == [403, 403, 200, 403]
    assert "made for somebody else" in own.text
    assert "Refund" not in own.text + without.text
    assert by_rest.status_code == 403
    (waits_for,) = state["steps"][0]["waiting_for"]
    assert (waits_for["kind"], waits_for["role"], waits_for["url"]) == ("approval", ROLE, None)
    assert await platform.awaiting(run) == [f"approval:{ROLE}"]
    assert (await platform.services.questions.list_awaited_questions(run))[0].is_open
    refused = [event["principal"]["name"] for event in await platform.trail("question.refused", run)]
    assert sorted(refused) == ["Ann", "Ann", "Ben", "Ben"]


async def test_a_token_answers_for_its_owner_where_it_reaches_the_tool_and_approves_nothing(
    rest: Rest, platform: Platform
) -> None:
    ann, ben = await rest.person("ann", "Ann"), await rest.person("ben", "Ben")
    await give_role(platform.services, ben.id, ROLE)
    chosen = await question(platform, await platform.start("choose_account", {"name": "Nort"}, ann))
    refunded = await question(platform, await platform.start("refund", REFUND, ann))

    async def answered(owner: Principal, tools: set[str], asked: Question, answer: dict[str, str]) -> int:
        made = await rest.services.api_tokens.create_token(owner, "-".join(tools), tool_names=tools)
        headers = {"Authorization": f"Bearer {made.token_text}"}
        address = f"{rest.url}/api/v1/questions/{asked.id}/answer"
        async with httpx2.AsyncClient(headers=headers, timeout=60) as client:
            return (await client.post(address, json={"answer": answer})).status_code

    assert await answered(ben, {"refund"}, refunded, {}) == 403
    assert await answered(ann, {"refund"}, chosen, {"account": "Contoso"}) == 403
    assert await answered(ann, {"choose_account"}, chosen, {"account": "Contoso"}) == 200
    assert await platform.outcome(chosen.run_id) == Finished(CHOSEN)
    assert (await question(platform, refunded.run_id)).is_open


async def test_a_no_to_an_approval_ends_the_run_and_says_who_said_it(platform: Platform) -> None:
    await give_role(platform.services, platform.bob.id, ROLE)
    run = await platform.start("refund", REFUND, platform.alice)

    await platform.services.questions.decline_question((await question(platform, run)).id, platform.bob)

    assert await platform.outcome(run) == Failed(
        "approval_denied", f"Bob Baker, who has the role '{ROLE}', said no."
    )


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
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
async def test_a_question_that_nobody_answers_in_time_is_told_to_the_tool(
    platform: Platform, tool: str, arguments: dict[str, Any], told: object
) -> None:
    run = await platform.start(tool, arguments, platform.alice)

    assert await platform.outcome(run) == told
    assert len(await platform.trail("question.expired", run)) == 1


async def test_a_cancelled_run_asks_nothing_any_more(rest: Rest, platform: Platform) -> None:
    async with browsing(rest, "ann") as (browser, ann):
        run = await platform.start("choose_account", {"name": "Nort"}, ann)
        asked = await parked(platform, run)
        await platform.temporal.get_workflow_handle(run).cancel()

        assert await platform.outcome(run) == Failed("run_cancelled", "The run was cancelled.")
        page = await browser.open(f"{rest.url}/questions/{asked.id}")

    assert (page.status, "Nobody waits for this any more" in page.text) == (410, True)
    assert await platform.services.questions.list_open_questions(ann) == []


async def test_an_answer_is_not_lost_with_the_gateway_that_took_it(idle: Platform) -> None:
    async with idle.working():
        run = await idle.start("choose_account", {"name": "Nort"}, idle.alice)
        asked = await parked(idle, run)
        async with open_services(idle.settings, idle.environment) as dying:
            await dying.questions.answer_question(asked.id, idle.alice, {"account": "Contoso"})
        assert await idle.count(run, SIGNALLED) == 0

        async with idle.delivering():
            assert await idle.outcome(run) == Finished(CHOSEN)

    assert await idle.count(run, SIGNALLED) == 1
    history = await idle.temporal.get_workflow_handle(run).fetch_history()
    assert history.events


async def test_a_question_outlives_gateway_and_worker(idle: Platform) -> None:
    async with serving(idle) as first, idle.working(), browsing(first, "ann") as (_, ann):
        run = await idle.start("choose_account", {"name": "Nort"}, ann)
        asked = await parked(idle, run)
    port = urlsplit(first.url).port or 0

    async with serving(idle, port=port) as second, browsing(second, "ann") as (browser, _):
        page = await browser.open(f"{second.url}/questions/{asked.id}")
        await page.form(submit="Answer", **{"answer.account": "Contoso"})
    async with idle.working(), idle.delivering():
        assert await idle.outcome(run) == Finished(CHOSEN)


async def test_a_wake_up_without_an_answer_asks_nothing_anew(platform: Platform) -> None:
    run = await platform.start("choose_account", {"name": "Nort"}, platform.alice)
    asked = await parked(platform, run)
    (waiter,) = await platform.waiters(run)

    await platform.temporal.get_workflow_handle(run).signal(
        "byline.look_again", {"v": 1, "waiter": waiter.id}
    )

    async def has_looked_again() -> bool:
        return await platform.count(run, EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED) == 2

    await until(has_looked_again)
    assert (await parked(platform, run)).id == asked.id
    assert [row.id for row in await platform.waiters(run)] == [waiter.id]
    assert len(await platform.trail("question.asked", run)) == 1


async def test_a_run_tells_how_far_it_is(rest: Rest, platform: Platform) -> None:
    ann = await rest.person("ann", "Ann")
    run = await platform.start("choose_in_a_child", {"name": "Nort"}, ann)
    asked = await question(platform, run)

    async with rest.calling_as(ann) as client:
        meanwhile = (await client.get(f"/runs/{run}")).json()
        await platform.services.questions.answer_question(asked.id, ann, {"account": "Contoso"})
        await platform.outcome(run)
        after = (await client.get(f"/runs/{run}")).json()

    assert meanwhile["progress"] == {"message": "Asking", "done": 1, "of": 3}
    assert after["progress"] == {"message": "Asked", "done": 3, "of": 3}


async def test_a_tool_that_asks_runs_on_plain_temporal_where_a_test_answers_for_people(
    temporal_address: str,
) -> None:
    @activity.defn(name=ASK_ACTIVITY)
    async def answer(asked: dict[str, Any]) -> dict[str, Any]:
        content = {} if asked["role"] else {"account": "Contoso"}
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
        chosen = await handle.result()
        refunded = await client.execute_workflow(
            "refund", REFUND, id="plain-asking-2", task_queue="plain-asking", result_type=dict
        )

    assert chosen.account == "Contoso"
    assert refunded == {"approved_by": "Somebody"}
    replayer = Replayer(workflows=[ChooseAccount], data_converter=pydantic_data_converter)
    await replayer.replay_workflow(await handle.fetch_history())


async def test_a_run_that_does_nothing_but_wait_is_told_of_without_a_pause_for_others(
    platform: Platform,
) -> None:
    alone = await platform.start("choose_account", {"name": "Nort"}, platform.alice)
    with_child = await platform.start("choose_in_a_child", {"name": "Nort"}, platform.alice)
    await parked(platform, alone)
    await question(platform, with_child)

    assert not await platform.runs.workflows.is_under_way(alone)
    assert await platform.runs.workflows.is_under_way(with_child)
