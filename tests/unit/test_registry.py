import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field
from temporalio import workflow

from engine.errors import ArgumentsInvalid, SettingsInvalid, ToolUnknown
from engine.registry import Registry, Tool
from engine.sdk import action, tool


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
def offered(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return registry(monkeypatch, AnswerWorkflow, InnerWorkflow, BareWorkflow, read_ticket, Question, len)


@pytest.fixture
def answer(offered: Registry) -> Tool:
    return offered.tool("answer_ticket")


def test_workflows_and_actions_are_found_by_their_wire_names(offered: Registry) -> None:
    assert set(offered.workflows) == {"answer_ticket", "look_up", "tidy_up"}
    assert set(offered.activities) == {"zendesk.read_ticket"}


def test_only_what_is_declared_a_tool_is_offered_as_one(offered: Registry) -> None:
    assert set(offered.tools) == {"answer_ticket", "tidy_up"}
    with pytest.raises(ToolUnknown, match="no tool 'look_up'"):
        offered.tool("look_up")


def test_a_tool_tells_what_it_is_takes_and_gives(answer: Tool) -> None:
    assert answer.description == "Answer a ticket in a few words."
    assert (answer.declaration.title, answer.declaration.destructive) == ("Answer a ticket", False)
    assert answer.input_schema["required"] == ["ticket"]
    assert answer.input_schema["properties"]["ticket"]["description"] == "the ticket's number"
    assert answer.output_schema is not None
    assert answer.output_schema["properties"] == {"text": {"title": "Text", "type": "string"}}


def test_a_tool_without_arguments_takes_none(offered: Registry) -> None:
    bare = offered.tool("tidy_up")

    assert bare.arguments({}) == []
    assert bare.input_schema == {"type": "object", "properties": {}}
    assert bare.output_schema is None
    with pytest.raises(ArgumentsInvalid, match="takes no arguments"):
        bare.arguments({"ticket": 1})


def test_arguments_become_the_workflows_own_type(answer: Tool) -> None:
    assert answer.arguments({"ticket": 7, "words": ["a"]}) == [Question(ticket=7, words=["a"])]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "ticket: Field required"),
        ({"ticket": 0}, "ticket: Input should be greater than 0"),
        ({"ticket": "7"}, "ticket: Input should be a valid integer"),
        ({"ticket": 7, "words": ["a", 1]}, "words.1: Input should be a valid string"),
    ],
)
def test_arguments_that_do_not_fit_are_told_field_by_field(
    answer: Tool, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        answer.arguments(given)

    assert str(refused.value).startswith(f"The arguments do not fit answer_ticket: {told}")


def test_arguments_that_do_not_fit_are_not_repeated(answer: Tool) -> None:
    with pytest.raises(ArgumentsInvalid) as refused:
        answer.arguments({"ticket": "hidden"})

    assert "hidden" not in str(refused.value)


def test_arguments_that_are_nested_without_end_are_refused(answer: Tool) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(ArgumentsInvalid, match="nested"):
        answer.arguments({"question": deep})


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
