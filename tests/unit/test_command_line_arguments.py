import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from gateway.client.command_errors import UsageInvalid
from gateway.client.parse_arguments import describe_schema, parse_arguments, parse_value


class Address(BaseModel):
    city: str


class Order(BaseModel):
    ticket: int
    note: str = ""
    amount: float = 0
    urgent: bool = False
    kind: Literal["refund", "credit"] = "refund"
    limit: int | None = None
    reference: int | str = 0
    tags: list[str] = Field(default_factory=list)
    parts: list[int] = Field(default_factory=list)
    address: Address | None = None


SCHEMA: dict[str, Any] = Order.model_json_schema()


@pytest.mark.parametrize(
    ("pairs", "expected_arguments"),
    [
        (["ticket=35436"], {"ticket": 35436}),
        (["ticket=-1", "note=a=b"], {"ticket": -1, "note": "a=b"}),
        (["ticket=1", "note="], {"ticket": 1, "note": ""}),
        (["ticket=1", "note=17"], {"ticket": 1, "note": "17"}),
        (["ticket=1", "amount=12.5"], {"ticket": 1, "amount": 12.5}),
        (["ticket=1", "amount=12"], {"ticket": 1, "amount": 12}),
        (["ticket=1", "urgent=yes"], {"ticket": 1, "urgent": True}),
        (["ticket=1", "urgent=False"], {"ticket": 1, "urgent": False}),
        (["ticket=1", "kind=credit"], {"ticket": 1, "kind": "credit"}),
        (["ticket=1", "limit=null"], {"ticket": 1, "limit": None}),
        (["ticket=1", "limit=3"], {"ticket": 1, "limit": 3}),
        (["ticket=1", "reference=7"], {"ticket": 1, "reference": 7}),
        (["ticket=1", "reference=R-7"], {"ticket": 1, "reference": "R-7"}),
        (["ticket=1", "tags=a"], {"ticket": 1, "tags": ["a"]}),
        (["ticket=1", "tags=a", "tags=b"], {"ticket": 1, "tags": ["a", "b"]}),
        (["ticket=1", 'tags=["a","b"]'], {"ticket": 1, "tags": ["a", "b"]}),
        (["ticket=1", "parts=1", "parts=2"], {"ticket": 1, "parts": [1, 2]}),
        (["ticket=1", 'address={"city":"Rome"}'], {"ticket": 1, "address": {"city": "Rome"}}),
    ],
)
def test_words_are_read_as_the_schema_says(pairs: list[str], expected_arguments: dict[str, Any]) -> None:
    arguments = parse_arguments(SCHEMA, pairs, {})
    Order.model_validate(arguments)

    assert arguments == expected_arguments


@pytest.mark.parametrize(
    ("pairs", "expected_message"),
    [
        (["ticket=abc"], "--arg ticket=abc: 'ticket' is a whole number"),
        (["ticket=1.5"], "--arg ticket=1.5: 'ticket' is a whole number"),
        (["ticket=1", "amount=much"], "'amount' is a number"),
        (["ticket=1", "amount=inf"], "'amount' is a number"),
        (["ticket=1", "urgent=maybe"], "'urgent' is true or false"),
        (["ticket=1", "kind=gift"], "'kind' is refund or credit"),
        (["ticket=1", "limit=soon"], "'limit' is a whole number or null"),
        (["ticket=1", "parts=1", "parts=x"], "'parts' is a list, each a whole number"),
        (["ticket=1", "address=Rome"], "'address' is an object in JSON or null"),
        (["ticket=1", "ticket=2"], "--arg ticket=… is there 2 times, and 'ticket' is no list"),
        (["ticket"], "--arg ticket: write --arg name=value"),
        (["=1"], "--arg =1: write --arg name=value"),
        (["ticket=1", "nota=x"], "This tool takes no 'nota': did you mean 'note'?"),
        (["ticket=1", "q=x"], "This tool takes no 'q'. It takes: ticket, note, "),
        (["note=x"], "This tool also needs --arg ticket=…"),
    ],
)
def test_a_word_that_does_not_fit_is_reported_by_name(pairs: list[str], expected_message: str) -> None:
    with pytest.raises(UsageInvalid) as error_info:
        parse_arguments(SCHEMA, pairs, {})

    assert expected_message in str(error_info.value)


def test_a_word_has_its_way_over_the_document() -> None:
    assert parse_arguments(SCHEMA, ["ticket=2"], {"ticket": 1, "note": "n"}) == {"ticket": 2, "note": "n"}


def test_an_unknown_name_in_the_document_is_reported() -> None:
    with pytest.raises(UsageInvalid, match="takes no 'tickets'"):
        parse_arguments(SCHEMA, [], {"ticket": 1, "tickets": 1})


def test_a_tool_without_arguments_takes_none() -> None:
    empty = {"type": "object", "properties": {}}

    assert parse_arguments(empty, [], {}) == {}
    with pytest.raises(UsageInvalid, match="takes no arguments"):
        parse_arguments(empty, ["a=1"], {})


def test_a_tool_that_takes_any_name_gets_what_it_looks_like() -> None:
    anything = {"type": "object", "additionalProperties": True}

    assert parse_arguments(anything, ["a=1", "b=x", "c=[1]"], {}) == {"a": 1, "b": "x", "c": [1]}


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#/$defs/Loop"}, {"$ref": "#/nowhere"}, {}],
)
def test_a_schema_that_says_nothing_takes_json_or_text(schema: dict[str, Any]) -> None:
    root = {"$defs": {"Loop": {"$ref": "#/$defs/Loop"}}}

    assert describe_schema(schema, root) == "anything"
    assert parse_value("1", schema, root) == 1
    assert parse_value("one", schema, root) == "one"


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text()))
def test_what_is_written_comes_back_as_it_was(value: float | str) -> None:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    text = value if isinstance(value, str) else json.dumps(value)

    assert parse_value(text, {"type": kinds[type(value)]}, {}) == value
