"""Holds an identity to saying the same after every journey, and garbage to being told from a statement."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.identity.model import Actor, Identity, digest_call

ALICE = Identity(
    principal_id="p-1",
    issuer="https://id.example",
    subject="alice",
    name="Alice Liddell",
    actor=Actor("mcp_client", "chat", "Chat"),
    trigger="mcp",
    run_id="run-1",
    tool_name="read_once",
    call_digest="c-1",
)


def token(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.e30"


def test_an_identity_comes_back_from_its_claims_as_it_was() -> None:
    assert Identity.from_claims(json.loads(json.dumps(ALICE.to_claims()))) == ALICE


def test_the_label_of_a_token_can_be_read_without_verification() -> None:
    assert Identity.parse_unverified(token(ALICE.to_claims())) == ALICE


@pytest.mark.parametrize("left_out", sorted(ALICE.to_claims()))
def test_a_statement_that_lacks_a_part_is_none(left_out: str) -> None:
    claims = {name: value for name, value in ALICE.to_claims().items() if name != left_out}

    assert Identity.parse_unverified(token(claims)) is None


@given(st.text() | st.text().map(lambda text: f"e30.{text}.e30"))
def test_other_text_is_no_identity(text: str) -> None:
    assert Identity.parse_unverified(text) is None


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_other_json_is_no_identity(value: object) -> None:
    assert Identity.parse_unverified(token(value)) is None


def test_a_statement_nested_without_end_is_no_identity() -> None:
    assert Identity.parse_unverified(f"e30.{base64.urlsafe_b64encode(b'[' * 3000).decode()}.e30") is None


def test_a_call_is_known_again_by_what_it_says_and_not_by_how() -> None:
    assert digest_call("read", {"a": 1, "b": "ü"}) == digest_call("read", {"b": "ü", "a": 1})


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("write", {"a": 1}), ("read", {"a": "1"}), ("read", {"a": 1, "b": None}), ("read", {})],
)
def test_another_tool_or_another_argument_is_another_call(tool: str, arguments: dict[str, object]) -> None:
    assert digest_call(tool, arguments) != digest_call("read", {"a": 1})
