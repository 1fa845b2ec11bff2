"""Holds a mapping to saying beforehand what cannot work, and at a delivery what is missing, by its pointer."""

from typing import Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from engine.errors import DeliveryUnfit, WebhookInvalid
from engine.tools.registry import Registry
from engine.webhooks.mapping import DeliveryMapping, parse_delivery_body, read_event_id
from gateway.api.webhooks import NewWebhook
from tests.docs.markdown import ROOT, read_blocks


class Refund(BaseModel):
    charge: str = Field(pattern="^ch_")
    amount: int = Field(ge=1)
    note: str = ""


INPUT = TypeAdapter(Refund)
BODY = {
    "type": "charge.disputed",
    "data": {"object": {"charge": "ch_1", "amount": 12, "a/b": "slash", "m~n": "tilde", "none": None}},
    "lines": [{"id": 7}],
}


def mapping(conditions: Any = (), event_id: Any = None, **arguments: Any) -> DeliveryMapping:
    return DeliveryMapping.model_validate(
        {"arguments": arguments, "conditions": list(conditions), "event_id": event_id}
    )


def build_pointer(pointer: str, **default: Any) -> dict[str, Any]:
    return {"pointer": pointer, **default}


CHARGE, AMOUNT = build_pointer("/data/object/charge"), build_pointer("/data/object/amount")


def test_arguments_come_from_the_body_from_defaults_and_from_constants() -> None:
    delivery_mapping = mapping(
        charge=CHARGE, amount=build_pointer("/nowhere", default=5), note={"constant": "by a webhook"}
    )
    delivery_mapping.require_tool_fit(INPUT.json_schema(), INPUT)

    assert delivery_mapping.build_arguments(BODY) == {"charge": "ch_1", "amount": 5, "note": "by a webhook"}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/data/object/a~1b", "slash"),
        ("/data/object/m~0n", "tilde"),
        ("/lines/0/id", 7),
        ("/data/object/none", None),
        ("", BODY),
    ],
)
def test_a_pointer_finds_what_rfc_6901_says(pointer: str, value: object) -> None:
    assert mapping(note=build_pointer(pointer, default="default")).build_arguments(BODY) == {"note": value}


@pytest.mark.parametrize(
    "pointer", ["/data/nothing", "/lines/1", "/lines/-", "/lines/01", "/type/0", "/data/object/none/x"]
)
def test_a_pointer_that_finds_nothing_is_named(pointer: str) -> None:
    delivery_mapping = mapping(charge=build_pointer(pointer), amount=build_pointer("/no/amount"), note=CHARGE)

    with pytest.raises(DeliveryUnfit) as error_info:
        delivery_mapping.build_arguments(BODY)

    assert f"nothing at {pointer} for 'charge'; nothing at /no/amount for 'amount'." in str(error_info.value)
    assert "ch_1" not in str(error_info.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"charge": CHARGE}, "the argument 'amount' comes from nowhere"),
        ({"charge": CHARGE, "amount": AMOUNT, "sum": AMOUNT}, "the tool has no argument 'sum'"),
        ({"charge": CHARGE, "amount": {"constant": 0}}, "amount: Input should be greater than"),
        ({"charge": CHARGE, "amount": {"constant": "12"}}, "amount: Input should be a valid integer"),
        (
            {"charge": build_pointer("/x", default=None), "amount": AMOUNT},
            "charge: Input should be a valid string",
        ),
    ],
)
def test_a_mapping_that_cannot_fit_its_tool_is_refused_with_the_reason(
    arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(WebhookInvalid, match=reason):
        mapping(**arguments).require_tool_fit(INPUT.json_schema(), INPUT)


def test_a_tool_without_arguments_takes_none() -> None:
    nothing: dict[str, Any] = {"type": "object", "properties": {}}
    mapping().require_tool_fit(nothing, None)

    with pytest.raises(WebhookInvalid, match="the tool has no argument 'charge'"):
        mapping(charge=CHARGE).require_tool_fit(nothing, None)


@pytest.mark.parametrize(
    "argument",
    [
        build_pointer("data/object"),
        build_pointer("/bad~escape"),
        build_pointer("/\ud800"),
        {"constant": float("nan")},
        {"constant": ["\ud800"]},
        {"pointer": "/x", "constant": 1},
        {"pointer": "/x", "fallback": 1},
        {},
    ],
)
def test_what_is_no_declaration_is_refused_when_it_is_made(argument: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mapping(charge=argument)


@pytest.mark.parametrize(
    ("conditions", "is_meant"),
    [
        ([], True),
        ([("/type", ["charge.refunded", "charge.disputed"])], True),
        ([("/type", ["charge.refunded"])], False),
        ([("/type", ["charge.disputed"]), ("/lines/0/id", [8])], False),
        ([("/not/there", [None])], False),
        ([("/data/object/none", [None])], True),
        ([("/lines/0/id", [True])], False),
    ],
)
def test_a_delivery_is_meant_where_every_condition_holds(
    conditions: list[tuple[str, list[object]]], *, is_meant: bool
) -> None:
    delivery_mapping = mapping([{"pointer": pointer, "equals": values} for pointer, values in conditions])

    assert delivery_mapping.is_matched_by(BODY) == is_meant


def test_a_declaration_reads_back_as_it_was_stored() -> None:
    delivery_mapping = mapping(
        [{"pointer": "/type", "equals": ["a"]}],
        "/id",
        charge=CHARGE,
        amount=build_pointer("/x", default=None),
        note={"constant": None},
    )

    assert DeliveryMapping.model_validate(delivery_mapping.model_dump(mode="json")) == delivery_mapping


def test_the_declaration_that_the_documentation_shows_fits_the_tool_that_it_names() -> None:
    (documented_block,) = [
        block for block in read_blocks(ROOT / "docs/how-to/webhooks.md") if block.language == "json"
    ]
    new = NewWebhook.model_validate_json(documented_block.text)
    tool = Registry(("workflows",)).find_tool(new.tool)

    new.mapping.require_tool_fit(tool.input_schema, tool.input_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b'"text"',
        b"12",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(DeliveryUnfit, match="not a JSON object"):
        parse_delivery_body(body)


@pytest.mark.parametrize(("body", "name"), [({"id": "evt_1"}, "evt_1"), ({"id": 12}, "12")])
def test_an_event_is_known_by_a_text_or_a_number(body: object, name: str) -> None:
    assert read_event_id(body, "/id") == name


@pytest.mark.parametrize("event_value", [None, True, "", "a\0b", "x" * 256, {}, 1.5])
def test_what_names_no_event_is_refused(event_value: object) -> None:
    with pytest.raises(DeliveryUnfit):
        read_event_id({"id": event_value}, "/id")
