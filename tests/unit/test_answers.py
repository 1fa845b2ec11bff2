"""Holds questions to forms that every client can show, and answers to what was asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, TypeAdapter

from engine.errors import AnswerInvalid
from engine.questions.answer_schemas import build_flat_schema, list_choices
from engine.questions.answer_validation import validate_answer
from engine.questions.ask_clients import validate_client_answer


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
    titled: str = Field(
        default="s",
        json_schema_extra={"oneOf": [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]},
    )
    legacy: Literal["a", "b"] = Field(default="a", json_schema_extra={"enumNames": ["First", "Second"]})
    several: list[Colour] = Field(default=[Colour.RED], min_length=1)
    titled_several: list[
        Annotated[str, Field(json_schema_extra={"anyOf": [{"const": "x", "title": "Ex"}]})]
    ] = []


class NestedAnswer(BaseModel):
    inner: Everything


class ListedAnswer(BaseModel):
    names: list[str]


class MistitledAnswer(BaseModel):
    which: Literal["a", "b"] = Field(json_schema_extra={"enumNames": ["First"]})


class NumberedAnswer(BaseModel):
    which: Literal[1, 2]


class NoAnswer(BaseModel):
    pass


@dataclass
class Plain:
    name: str
    size: int | str = 1


GOOD: dict[str, Any] = {"text": "abc", "number": 1.5, "yes": True}
SCHEMA = build_flat_schema(TypeAdapter(Everything), "Everything")


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
        "titled": "string",
        "legacy": "string",
        "several": "array",
        "titled_several": "array",
    }
    assert SCHEMA["required"] == ["text", "number", "yes"]
    assert fields["colour"]["enum"] == ["red", "blue"]
    assert fields["one"]["enum"] == ["only"]
    assert fields["day"]["format"] == "date"
    assert fields["legacy"]["enumNames"] == ["First", "Second"]
    assert fields["several"] == {
        "type": "array",
        "title": "Several",
        "default": ["red"],
        "minItems": 1,
        "items": {"type": "string", "enum": ["red", "blue"]},
    }
    assert fields["titled_several"]["items"] == {"anyOf": [{"const": "x", "title": "Ex"}]}
    assert not {"$ref", "$defs"} & set(json.dumps(SCHEMA).replace('"', " ").split())


def test_what_can_be_chosen_has_a_title_to_show() -> None:
    fields = SCHEMA["properties"]

    assert list_choices(fields["colour"]) == [("red", "red"), ("blue", "blue")]
    assert list_choices(fields["titled"]) == [("s", "Small"), ("l", "Large")]
    assert list_choices(fields["legacy"]) == [("a", "First"), ("b", "Second")]
    assert list_choices(fields["several"]) == [("red", "red"), ("blue", "blue")]
    assert list_choices(fields["titled_several"]) == [("x", "Ex")]
    assert list_choices(fields["text"]) == []


@pytest.mark.parametrize(
    "kind",
    [NestedAnswer, ListedAnswer, MistitledAnswer, NumberedAnswer, NoAnswer, Plain, str, dict[str, str]],
)
def test_a_type_that_no_form_can_show_is_a_mistake_in_the_tool(kind: Any) -> None:
    with pytest.raises(TypeError, match="No form can ask for Kind"):
        build_flat_schema(TypeAdapter(kind), "Kind")


def test_an_answer_that_fits_is_kept_without_what_was_left_empty() -> None:
    given_content: Mapping[str, Any] = {
        **GOOD,
        "whole": 2.0,
        "day": "2026-02-28",
        "code": None,
        "colour": "blue",
    }
    given_content = {**given_content, "titled": "l", "several": ["blue", "red"]}

    kept_content = validate_answer(SCHEMA, given_content)

    chosen_values = {"colour": "blue", "titled": "l", "several": ["blue", "red"]}
    assert kept_content == {**GOOD, "whole": 2, "day": "2026-02-28", **chosen_values}
    assert Everything.model_validate_json(json.dumps(kept_content)).day == date(2026, 2, 28)


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
        ("titled", "m"),
        ("legacy", "c"),
        ("several", "red"),
        ("several", []),
        ("several", ["red", "red"]),
        ("several", ["red", "green"]),
        ("several", [["red"]]),
        ("titled_several", ["y"]),
        ("day", "2026-02-30"),
        ("code", "A"),
        ("other", "x"),
        ("\ud800", "x"),
    ],
)
def test_what_does_not_fit_is_reported_by_field(field: str, value: object) -> None:
    with pytest.raises(AnswerInvalid) as error_info:
        validate_answer(SCHEMA, {**GOOD, field: value})

    assert field.encode(errors="replace").decode() in str(error_info.value)
    assert str(error_info.value).encode()


@given(
    st.dictionaries(
        st.sampled_from([*SCHEMA["properties"], "more"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.lists(st.sampled_from(["red", "blue", "x", "y"])),
    )
)
def test_whatever_is_accepted_fits_the_schema_and_the_type(content: dict[str, Any]) -> None:
    try:
        kept_content = validate_answer(SCHEMA, {**GOOD, **content})
    except AnswerInvalid:
        return
    Draft202012Validator(SCHEMA).validate(kept_content)
    Everything.model_validate_json(json.dumps(kept_content))


def test_of_what_a_clients_model_wrote_the_text_is_kept() -> None:
    completion = {"role": "assistant", "model": "m", "stopReason": "endTurn"}

    one = validate_client_answer("sampling", {**completion, "content": {"type": "text", "text": "Hello"}})
    blocks = [{"type": "text", "text": "Hel"}, {"type": "image", "data": "", "mimeType": "image/png"}]
    several = validate_client_answer(
        "sampling", {**completion, "content": [*blocks, {"type": "text", "text": "lo"}]}
    )

    assert one == several == {"text": "Hello"}


def test_of_a_clients_roots_names_and_addresses_are_kept() -> None:
    roots = [{"uri": "file:///work", "name": "Work", "_meta": {}}, {"uri": "file:///home"}]

    assert validate_client_answer("roots", {"roots": roots}) == {
        "roots": [{"uri": "file:///work", "name": "Work"}, {"uri": "file:///home"}]
    }


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("sampling", {}),
        ("sampling", {"role": "assistant", "model": "m", "content": {"type": "image", "data": "hidden"}}),
        ("sampling", {"role": "assistant", "model": "m", "content": {"type": "text", "text": "x" * 500_001}}),
        ("sampling", {"role": "assistant", "model": "m", "content": "hidden"}),
        ("roots", {"roots": [{"name": "hidden"}]}),
        ("roots", {"roots": "hidden"}),
    ],
)
def test_a_clients_answer_that_does_not_fit_is_refused_and_not_repeated(
    kind: Literal["sampling", "roots"], answer: dict[str, Any]
) -> None:
    with pytest.raises(AnswerInvalid) as error_info:
        validate_client_answer(kind, answer)

    assert "hidden" not in str(error_info.value)
