from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.interpolation import InterpolationFailed, collect_defaults, interpolate_variables


@pytest.mark.parametrize(
    ("text", "variables", "expected_text"),
    [
        ("${HOST}", {"HOST": "crm"}, "crm"),
        ("${HOST}", {"HOST": ""}, ""),
        ("http://${HOST}:${PORT}/", {"HOST": "crm", "PORT": "7301"}, "http://crm:7301/"),
        ("${HOST:-127.0.0.1}", {}, "127.0.0.1"),
        ("${HOST:-127.0.0.1}", {"HOST": ""}, "127.0.0.1"),
        ("${HOST:-127.0.0.1}", {"HOST": "crm"}, "crm"),
        ("${HOST:-}", {}, ""),
        ("${URL:-http://${HOST:-crm}:${PORT}}", {"PORT": "1"}, "http://crm:1"),
        ('${MODULES:-["workflows", "activities"]}', {}, '["workflows", "activities"]'),
        ("${SECRET:?make one}", {"SECRET": "s"}, "s"),
        ("$${HOST} costs $$5", {}, "${HOST} costs $5"),
        ("${A}", {"A": "${B}", "B": "b"}, "${B}"),
    ],
)
def test_a_variable_is_replaced_as_compose_does(
    text: str, variables: dict[str, str], expected_text: str
) -> None:
    assert interpolate_variables(text, variables) == expected_text


def test_only_strings_in_values_change() -> None:
    document: dict[str, Any] = {"${KEY}": ["${A}", 1, None, True, {"deep": "${A}"}]}

    assert interpolate_variables(document, {"A": "a"}) == {"${KEY}": ["a", 1, None, True, {"deep": "a"}]}


def test_a_missing_variable_is_an_error_that_says_where() -> None:
    with pytest.raises(
        InterpolationFailed, match=r"^crm\.secrets\[1\]: the variable SECRET is not set: set it"
    ):
        interpolate_variables({"crm": {"secrets": ["a", "${SECRET}"]}}, {})


@pytest.mark.parametrize("variables", [{}, {"SECRET": ""}])
def test_a_required_variable_gives_its_own_message(variables: dict[str, str]) -> None:
    with pytest.raises(InterpolationFailed, match="the variable SECRET is not set: run the setup first"):
        interpolate_variables("${SECRET:?run the setup first}", variables)


@pytest.mark.parametrize("text", ["$HOST", "${HOST", "${}", "${HOST-x}", "${HOST:+x}", "${1}", "5 $"])
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InterpolationFailed):
        interpolate_variables(text, {"HOST": "crm", "1": "one"})


def test_every_variable_is_listed_with_its_default() -> None:
    document = {
        "url": "${URL:-http://${HOST:-crm}:${PORT}}",
        "again": ["${PORT:-7301}", "${SECRET:?make one}"],
    }

    assert collect_defaults(document) == {
        "URL": "http://${HOST:-crm}:${PORT}",
        "HOST": "crm",
        "PORT": "7301",
        "SECRET": "",
    }


@given(st.text())
def test_any_text_survives_with_its_dollars_doubled(text: str) -> None:
    assert interpolate_variables(text.replace("$", "$$"), {}) == text
