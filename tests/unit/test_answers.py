"""Holds questions to forms that every client can show, and answers to what was asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter

from engine.errors import AnswerInvalid
from engine.questions.answers import fitting
from engine.questions.schemas import flat_schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Everything(BaseModel):
    text: str = Field(min_length=2, max_length=5, description="Some text")
    number: float = Field(gt=0, lt=10)
    whole: int = Field(default=1, ge=1, le=3)
    yes: bool
    colour: Colour = Colour.RED
    one: Literal["only"] = "only"
    day: date | None = None
    code: str | None = Field(default=None, pattern="^[a-z]+$")


class Nested(BaseModel):
    inner: Everything


class Listed(BaseModel):
    names: list[str]


class Numbered(BaseModel):
    which: Literal[1, 2]


class Nothing(BaseModel):
    pass


@dataclass
class Plain:
    name: str
    size: int | str = 1


GOOD: dict[str, Any] = {"text": "abc", "number": 1.5, "yes": True}
SCHEMA = flat_schema(TypeAdapter(Everything), "Everything")


def test_a_flat_type_becomes_a_schema_of_forms_alone() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    fields = SCHEMA["properties"]

    assert {name: field["type"] for name, field in fields.items()} == {
        "text": "string",
        "number": "number",
        "whole": "integer",
        "yes": "boolean",
        "colour": "string",
        "one": "string",
        "day": "string",
        "code": "string",
    }
    assert SCHEMA["required"] == ["text", "number", "yes"]
    assert fields["colour"]["enum"] == ["red", "blue"]
    assert fields["one"]["enum"] == ["only"]
    assert fields["day"]["format"] == "date"
    assert not {"$ref", "$defs", "anyOf", "const"} & set(json.dumps(SCHEMA).replace('"', " ").split())


@pytest.mark.parametrize("kind", [Nested, Listed, Numbered, Nothing, Plain, str, dict[str, str]])
def test_a_type_that_no_form_can_show_is_a_mistake_in_the_tool(kind: Any) -> None:
    with pytest.raises(TypeError, match="No form can ask for Kind"):
        flat_schema(TypeAdapter(kind), "Kind")


def test_an_answer_that_fits_is_kept_without_what_was_left_empty() -> None:
    given_: Mapping[str, Any] = {**GOOD, "whole": 2.0, "day": "2026-02-28", "code": None, "colour": "blue"}

    kept = fitting(SCHEMA, given_)

    assert kept == {**GOOD, "whole": 2, "day": "2026-02-28", "colour": "blue"}
    assert Everything.model_validate_json(json.dumps(kept)).day == date(2026, 2, 28)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "a"),
        ("text", "abcdef"),
        ("text", 1),
        ("text", "a\0c"),
        ("text", "a\ud800c"),
        ("number", 0),
        ("number", 10),
        ("number", "1"),
        ("number", True),
        ("number", float("nan")),
        ("number", float("inf")),
        ("whole", 10**400),
        ("whole", 1.5),
        ("whole", 4),
        ("yes", "true"),
        ("yes", 1),
        ("colour", "green"),
        ("day", "2026-02-30"),
        ("code", "A"),
        ("other", "x"),
        ("\ud800", "x"),
    ],
)
def test_what_does_not_fit_is_told_by_field(field: str, value: object) -> None:
    with pytest.raises(AnswerInvalid) as refused:
        fitting(SCHEMA, {**GOOD, field: value})

    assert field.encode(errors="replace").decode() in str(refused.value)
    assert str(refused.value).encode()


@given(
    st.dictionaries(
        st.sampled_from([*SCHEMA["properties"], "more"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    )
)
def test_whatever_is_accepted_fits_the_schema_and_the_type(content: dict[str, Any]) -> None:
    try:
        kept = fitting(SCHEMA, {**GOOD, **content})
    except AnswerInvalid:
        return
    Draft202012Validator(SCHEMA).validate(kept)
    Everything.model_validate_json(json.dumps(kept))
