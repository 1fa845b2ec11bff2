import sys
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from temporalio import workflow

from engine.errors import ArgumentsInvalid, PromptUnknown, ResourceUnknown, SettingsInvalid, ToolUnknown
from engine.sdk import Content, Document, Message, Messages, Text, action, prompt, resource, tool
from engine.tools.registry import CompositeTool, Registry


class Question(BaseModel):
    ticket: int = Field(gt=0, description="the ticket's number")
    words: list[str] = []


@dataclass
class Answer:
    text: str


@tool(title="Answer a ticket", read_only=False, destructive=False, idempotent=True)
@workflow.defn(name="answer_ticket")
class AnswerWorkflow:
    """Answer a ticket in a few words."""

    @workflow.run
    async def run(self, question: Question) -> Answer:
        return Answer(str(question.ticket))


@workflow.defn(name="look_up")
class InnerWorkflow:
    @workflow.run
    async def run(self, ticket: int) -> str:
        return str(ticket)


@tool(title="Tidy up")
@workflow.defn(name="tidy_up")
class BareWorkflow:
    @workflow.run
    async def run(self) -> None: ...


@workflow.defn(name="answer_ticket")
class OtherWorkflow:
    @workflow.run
    async def run(self) -> None: ...


@tool(title="x")
@workflow.defn(name="Answer Ticket")
class BadlyNamedWorkflow:
    @workflow.run
    async def run(self) -> None: ...


@tool(title="x")
@workflow.defn(name="two_arguments")
class GreedyWorkflow:
    @workflow.run
    async def run(self, one: Question, two: Question) -> None: ...


@tool(title="x")
@workflow.defn(name="takes_a_number")
class NumberWorkflow:
    @workflow.run
    async def run(self, number: int) -> None: ...


@action("zendesk.read_ticket", connection="support")
async def read_ticket(ticket: int) -> str:
    return str(ticket)


def registry(monkeypatch: pytest.MonkeyPatch, *definitions: Any) -> Registry:
    """What a module with these definitions offers."""
    module = ModuleType("a_builders_module")
    for number, definition in enumerate(definitions):
        setattr(module, f"definition_{number}", definition)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Registry((module.__name__,))


@pytest.fixture
def offered_tools(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return registry(monkeypatch, AnswerWorkflow, InnerWorkflow, BareWorkflow, read_ticket, Question, len)


@pytest.fixture
def answer(offered_tools: Registry) -> CompositeTool:
    return offered_tools.find_tool("answer_ticket")


def test_workflows_and_actions_are_found_by_their_wire_names(offered_tools: Registry) -> None:
    assert set(offered_tools.workflows) == {"answer_ticket", "look_up", "tidy_up"}
    assert set(offered_tools.activities) == {"zendesk.read_ticket"}


def test_only_what_is_declared_a_tool_is_offered_as_one(offered_tools: Registry) -> None:
    assert set(offered_tools.tools) == {"answer_ticket", "tidy_up"}
    with pytest.raises(ToolUnknown, match="no tool 'look_up'"):
        offered_tools.find_tool("look_up")


def test_a_tool_describes_itself_its_arguments_and_its_result(answer: CompositeTool) -> None:
    assert answer.description == "Answer a ticket in a few words."
    assert (answer.declaration.title, answer.declaration.is_destructive) == ("Answer a ticket", False)
    assert answer.input_schema["required"] == ["ticket"]
    assert answer.input_schema["properties"]["ticket"]["description"] == "the ticket's number"
    assert answer.output_schema is not None
    assert answer.output_schema["properties"] == {"text": {"title": "Text", "type": "string"}}


def test_a_tool_without_arguments_takes_none(offered_tools: Registry) -> None:
    bare = offered_tools.find_tool("tidy_up")

    assert bare.validate_arguments({}) == []
    assert bare.input_schema == {"type": "object", "properties": {}}
    assert bare.output_schema is None
    with pytest.raises(ArgumentsInvalid, match="takes no arguments"):
        bare.validate_arguments({"ticket": 1})


def test_arguments_become_the_workflows_own_type(answer: CompositeTool) -> None:
    assert answer.validate_arguments({"ticket": 7, "words": ["a"]}) == [Question(ticket=7, words=["a"])]


@pytest.mark.parametrize(
    ("arguments", "expected_message"),
    [
        ({}, "ticket: Field required"),
        ({"ticket": 0}, "ticket: Input should be greater than 0"),
        ({"ticket": "7"}, "ticket: Input should be a valid integer"),
        ({"ticket": 7, "words": ["a", 1]}, "words.1: Input should be a valid string"),
    ],
)
def test_invalid_arguments_are_reported_field_by_field(
    answer: CompositeTool, arguments: dict[str, Any], expected_message: str
) -> None:
    with pytest.raises(ArgumentsInvalid) as error_info:
        answer.validate_arguments(arguments)

    assert str(error_info.value).startswith(f"The arguments do not fit answer_ticket: {expected_message}")


def test_arguments_that_do_not_fit_are_not_repeated(answer: CompositeTool) -> None:
    with pytest.raises(ArgumentsInvalid) as error_info:
        answer.validate_arguments({"ticket": "hidden"})

    assert "hidden" not in str(error_info.value)


def test_arguments_that_are_nested_without_end_are_refused(answer: CompositeTool) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(ArgumentsInvalid, match="nested"):
        answer.validate_arguments({"question": deep})


def test_two_definitions_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="Two definitions are named 'answer_ticket'"):
        registry(monkeypatch, AnswerWorkflow, OtherWorkflow)


def test_the_same_definition_seen_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(registry(monkeypatch, AnswerWorkflow, AnswerWorkflow).tools) == ["answer_ticket"]


def test_a_name_that_a_chat_could_not_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="'Answer Ticket' is no name for a tool"):
        registry(monkeypatch, BadlyNamedWorkflow)


def test_a_tool_takes_one_argument_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="should take one annotated argument, or none"):
        registry(monkeypatch, GreedyWorkflow)


def test_a_tool_takes_and_gives_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match="should be objects"):
        registry(monkeypatch, NumberWorkflow)


class Tone(StrEnum):
    KIND = "kind"
    KEEN = "keen"
    FIRM = "firm"


class Reply(BaseModel):
    words: str = Field(description="what to say")
    tone: Tone = Tone.KIND
    language: Literal["de", "en"] | None = None


class Account(BaseModel):
    account_id: str


@prompt(title="Reply to a customer")
@workflow.defn(name="reply")
class ReplyWorkflow:
    """Reply in a tone."""

    @workflow.run
    async def run(self, reply: Reply) -> Messages:
        return Messages([Message("user", Text(reply.words))])


@resource(uri="crm://accounts/{account_id}", title="An account", mime_type="application/json")
@workflow.defn(name="account")
class AccountWorkflow:
    """One account."""

    @workflow.run
    async def run(self, account: Account) -> Document:
        return Document(account.account_id)


@resource(uri="crm://accounts/mine", title="My account")
@workflow.defn(name="my_account")
class MyAccountWorkflow:
    @workflow.run
    async def run(self) -> Document:
        return Document("mine")


@tool(title="Show")
@workflow.defn(name="show")
class ShowWorkflow:
    @workflow.run
    async def run(self) -> Content:
        return Content([Text("shown")])


@prompt(title="x")
@workflow.defn(name="counts")
class CountingPrompt:
    @workflow.run
    async def run(self, question: Question) -> Messages:
        return Messages([Message("user", Text(str(question.ticket)))])


@prompt(title="x")
@workflow.defn(name="gives_nothing")
class EmptyPrompt:
    @workflow.run
    async def run(self) -> None: ...


@resource(uri="crm://accounts/{id}", title="x")
@workflow.defn(name="other_variable")
class MisnamedResource:
    @workflow.run
    async def run(self, account: Account) -> Document:
        return Document(account.account_id)


@resource(uri="crm://accounts/{+id}", title="x")
@workflow.defn(name="other_level")
class AmbitiousResource:
    @workflow.run
    async def run(self) -> Document:
        return Document("")


@resource(uri="crm://accounts/mine", title="x")
@workflow.defn(name="gives_text")
class TextResource:
    @workflow.run
    async def run(self) -> str:
        return ""


@resource(uri="crm://accounts/mine", title="x")
@workflow.defn(name="my_account_too")
class SameAddressWorkflow:
    @workflow.run
    async def run(self) -> Document:
        return Document("")


@action("zendesk.close_ticket", connection="support")
async def close_ticket(ticket: int) -> str:
    return str(ticket)


@action("zendesk.look_at_ticket", connection="support", reads_only=True)
async def look_at_ticket(ticket: int) -> str:
    return str(ticket)


@tool(title="x", read_only=True)
@workflow.defn(name="only_looks")
class LookingWorkflow:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(look_at_ticket, 1)


@tool(title="x", read_only=True)
@workflow.defn(name="says_it_only_looks")
class DishonestWorkflow:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(look_at_ticket, 1)
        await workflow.execute_activity(close_ticket, 1)


@resource(uri="tickets://closed", title="x")
@workflow.defn(name="closes_as_it_is_read")
class DishonestResource:
    @workflow.run
    async def run(self) -> Document:
        return Document(str(await workflow.execute_activity(close_ticket, 1)))


@pytest.fixture
def full_registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return registry(
        monkeypatch, ReplyWorkflow, AccountWorkflow, MyAccountWorkflow, ShowWorkflow, AnswerWorkflow
    )


def test_a_prompt_and_a_resource_are_offered_beside_tools_and_are_none(full_registry: Registry) -> None:
    assert set(full_registry.tools) == {"answer_ticket", "show"}
    assert set(full_registry.prompts) == {"reply"}
    assert set(full_registry.resources) == {"account", "my_account"}
    for name in ("reply", "account", "show"):
        assert full_registry.find_offer(name).name == name
    assert [full_registry.find_title(name) for name in ("show", "reply", "account", "gone")] == [
        *("Show", "Reply to a customer", "An account", "gone")
    ]
    with pytest.raises(ToolUnknown):
        full_registry.find_tool("reply")
    with pytest.raises(ToolUnknown):
        full_registry.find_offer("nothing")
    with pytest.raises(PromptUnknown):
        full_registry.find_prompt("show")


def test_a_tool_that_gives_blocks_has_no_output_schema(full_registry: Registry) -> None:
    assert full_registry.find_tool("show").returns_content
    assert full_registry.find_tool("show").output_schema is None
    assert not full_registry.find_tool("answer_ticket").returns_content


def test_a_prompt_takes_texts(full_registry: Registry) -> None:
    reply = full_registry.find_prompt("reply")

    assert reply.validate_arguments({"words": "Hello", "tone": "firm"}) == [
        Reply(words="Hello", tone=Tone.FIRM)
    ]
    assert reply.input_schema["required"] == ["words"]
    with pytest.raises(ArgumentsInvalid, match="tone"):
        reply.validate_arguments({"words": "Hello", "tone": "rude"})


def test_what_is_typed_is_completed_from_what_can_be_chosen(full_registry: Registry) -> None:
    reply = full_registry.find_prompt("reply")

    assert reply.list_completions("tone", "") == ["kind", "keen", "firm"]
    assert reply.list_completions("tone", "KE") == ["keen"]
    assert reply.list_completions("language", "d") == ["de"]
    assert reply.list_completions("words", "He") == []
    with pytest.raises(ArgumentsInvalid, match="no argument 'mood'"):
        reply.list_completions("mood", "")


def test_a_resource_is_found_at_its_address_and_a_fixed_one_first(full_registry: Registry) -> None:
    resource, values = full_registry.find_resource("crm://accounts/A%201")
    assert (resource.name, values) == ("account", {"account_id": "A 1"})
    assert resource.validate_arguments(values) == [Account(account_id="A 1")]
    assert full_registry.find_resource("crm://accounts/mine")[0].name == "my_account"
    with pytest.raises(ResourceUnknown):
        full_registry.find_resource("crm://accounts/1/2")


def test_a_tool_that_says_it_only_reads_uses_actions_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(registry(monkeypatch, LookingWorkflow, look_at_ticket).tools) == {"only_looks"}
    with pytest.raises(SettingsInvalid, match=r"'says_it_only_looks' .* 'zendesk\.close_ticket'"):
        registry(monkeypatch, DishonestWorkflow, look_at_ticket, close_ticket)


def test_a_prompt_and_a_resource_use_actions_that_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsInvalid, match=r"'closes_as_it_is_read' .* 'zendesk\.close_ticket'"):
        registry(monkeypatch, DishonestResource, close_ticket)


def test_what_only_reads_is_known_by_name(full_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("reply", "account", "answer_ticket", "not_offered_here")

    assert [full_registry.is_read_only(name) for name in names] == [True, True, False, False]
    assert registry(monkeypatch, LookingWorkflow, look_at_ticket).is_read_only("only_looks")


@pytest.mark.parametrize(
    ("definitions", "expected_message"),
    [
        ([CountingPrompt], "'ticket' of prompt 'counts' should be a str"),
        ([EmptyPrompt], "'gives_nothing' should be annotated to return Messages"),
        ([MisnamedResource], "takes account_id, and its uri has id"),
        ([AmbitiousResource], "'other_level' cannot be used: .* no other expression"),
        ([TextResource], "'gives_text' should be annotated to return a Document"),
        ([MyAccountWorkflow, SameAddressWorkflow], "crm://accounts/mine"),
    ],
)
def test_what_cannot_be_offered_as_declared_is_reported(
    monkeypatch: pytest.MonkeyPatch, definitions: list[Any], expected_message: str
) -> None:
    with pytest.raises(SettingsInvalid, match=expected_message):
        registry(monkeypatch, *definitions)
