"""Holds templates of URIs to what RFC 6570 says of level 1, read backwards."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tools.uri_template import parse_uri_template


def test_a_uri_without_variables_is_itself_alone() -> None:
    template = parse_uri_template("test://static-text")

    assert template.match_uri("test://static-text") == {}
    assert template.match_uri("test://static-text/") is None
    assert template.match_uri("testX//static-text") is None


def test_a_value_is_one_segment() -> None:
    template = parse_uri_template("crm://accounts/{account}/notes/{note}")

    assert template.variables == ("account", "note")
    assert template.match_uri("crm://accounts/A1/notes/caf%C3%A9") == {"account": "A1", "note": "café"}
    for other in ("crm://accounts/A/1/notes/2", "crm://accounts//notes/2", "crm://accounts/1/notes/2?x"):
        assert template.match_uri(other) is None
    assert template.match_uri("crm://accounts/%ff/notes/2") is None


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()))
def test_every_value_is_found_again(value: str) -> None:
    assert parse_uri_template("crm://{value}/x").match_uri(f"crm://{quote(value, safe='')}/x") == {
        "value": value
    }


@pytest.mark.parametrize(
    ("text", "expected_message"),
    [
        ("accounts/{id}", "begin with a scheme"),
        ("crm://{+path}", "no other expression"),
        ("crm://{id", "no other expression"),
        ("crm://a b", "no other expression"),
        ("crm://{id}/{id}", "twice"),
    ],
)
def test_what_is_no_such_template_is_reported(text: str, expected_message: str) -> None:
    with pytest.raises(ValueError, match=expected_message):
        parse_uri_template(text)
