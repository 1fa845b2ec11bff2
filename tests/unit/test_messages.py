import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp_types import PARSE_ERROR
from pydantic_core import from_json

from gateway.mcp.transport.messages import MAX_JSON_DEPTH, MAX_JSON_VALUES, MessageRefused, read_message

JSON_PIECES = st.sampled_from(
    [
        *(
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            '"',
            "\\",
            "\\u",
            " ",
            "\n",
            "\x00",
            "\x7f",
            "\x0c",
            "\u00a0",
            "\ufeff",
        ),
        *("1", "-0", "0.5", "1e5", "1E999", "NaN", "-Infinity", "01", "9" * 309, "true", "null"),
        *('"a"', '"a":', '"\\u0061":', '"\\ud83d\\ude00"', '"\\ud83d"', '"\\uDE00"', '"\\\\ud83d"', '"é"'),
    ]
)


def as_params(value: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"value":' + value.encode() + b"}}"


@settings(max_examples=500, deadline=None)
@given(st.lists(JSON_PIECES, max_size=8).map("".join))
def test_a_body_that_is_admitted_says_the_same_to_every_parser_that_reads_it_later(value: str) -> None:
    request_body = as_params(value)
    try:
        message = read_message(request_body, None)
    except MessageRefused:
        return

    assert from_json(request_body)["params"] == message.params
    assert json.loads(request_body)["params"] == message.params


@pytest.mark.parametrize(
    "value",
    ["[" * levels + "]" * levels for levels in (MAX_JSON_DEPTH - 1, 900, 200_000)]
    + ['"\\ud800"', '{"\\uDC00": 1}', '"x', "NaN", "1e999", "9" * 400],
    ids=lambda value: value[:12],
)
def test_a_body_that_parsers_differ_on_is_no_json(value: str) -> None:
    with pytest.raises(MessageRefused, match="The body is not JSON") as refused:
        read_message(as_params(value), None)

    assert refused.value.json_rpc_code == PARSE_ERROR


def test_a_body_may_hold_many_brackets_and_many_values_side_by_side() -> None:
    flat_lists: list[list[int]] = [[]] * (MAX_JSON_DEPTH * 2)
    deepest = "[" * (MAX_JSON_DEPTH - 2) + "]" * (MAX_JSON_DEPTH - 2)

    assert read_message(as_params(json.dumps(flat_lists)), None).params == {"value": flat_lists}
    assert read_message(as_params(json.dumps("[{" * MAX_JSON_VALUES)), None).is_request
    assert read_message(as_params(deepest), None).is_request


def test_a_whole_surrogate_pair_and_an_escaped_backslash_are_text() -> None:
    assert read_message(as_params('"\\ud83d\\ude00 \\\\ud83d"'), None).params == {"value": "😀 \\ud83d"}


def test_a_message_that_is_a_request_and_a_response_at_once_is_refused() -> None:
    for member in (b'"result": {}', b'"error": {"code": 1, "message": "no"}'):
        request_body = b'{"jsonrpc": "2.0", "id": 1, "method": "ping", ' + member + b"}"
        with pytest.raises(MessageRefused, match="a request or a response"):
            read_message(request_body, None)
