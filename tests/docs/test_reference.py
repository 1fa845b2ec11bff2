import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import get_args

import pytest
from pydantic import BaseModel

import byline
from engine import errors, wire
from engine.actions.upstream import Upstream
from engine.audit.trail import AuditEvent, AuditEventKind, UpstreamVerdict
from engine.connections.connection import (
    AssertionDeclaration,
    Connection,
    KeyDeclaration,
    ProviderDeclaration,
)
from engine.identity.model import Actor, Identity
from examples.sandbox.__main__ import SYSTEMS
from gateway.error_codes import to_http_status, to_mcp_code
from gateway.sign_in.demo_people import DEMO_PEOPLE
from tests.docs.command_line import COMMANDS
from tests.docs.markdown import ROOT, list_code, read_table
from tests.docs.variables import VARIABLES

REFERENCE = ROOT / "docs" / "reference"
SOURCES = [path.read_text() for room in ("engine", "gateway") for path in (ROOT / room).rglob("*.py")]


def walk_tree(kind: type[errors.BylineError] = errors.BylineError) -> Iterator[type[errors.BylineError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from walk_tree(below)


def test_every_setting_is_documented_with_its_default() -> None:
    table_rows = read_table(REFERENCE / "settings.md", "variable")

    assert {name: cells[0] for name, cells in table_rows.items()} == VARIABLES


@pytest.mark.parametrize(
    ("section", "model"),
    [
        ("Connection", Connection),
        ("Key", KeyDeclaration),
        ("Assertion", AssertionDeclaration),
        ("Provider", ProviderDeclaration),
    ],
)
def test_every_key_of_a_declaration_is_documented_with_whether_it_is_required(
    section: str, model: type[BaseModel]
) -> None:
    page = (REFERENCE / "connections.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (yes|no) \|", page.split(f"## {section}\n")[1].split("\n## ")[0], re.MULTILINE
    )
    is_required_by_key = {
        name: field.is_required() for name, field in model.model_fields.items() if name != "name"
    }

    assert {name: required_text == "yes" for name, required_text in rows} == is_required_by_key


def test_every_command_is_documented_with_its_help_text() -> None:
    table_rows = read_table(REFERENCE / "command-line.md", "command")
    help_lines = {
        name: inspect.cleandoc(command.help or "").splitlines()[0] for name, command in COMMANDS.items()
    }

    assert {name: f"{cells[0]}." for name, cells in table_rows.items()} == help_lines


def test_every_option_of_the_audit_command_is_documented_with_its_help_text() -> None:
    table_rows = read_table(REFERENCE / "command-line.md", "option")
    options = [option for option in COMMANDS["byline audit"].params if option.param_type_name == "option"]

    assert {name: cells[0] for name, cells in table_rows.items()} == {
        option.opts[0]: getattr(option, "help", None) for option in options
    }


def test_the_whole_sdk_is_documented() -> None:
    assert set(read_table(REFERENCE / "sdk.md", "name")) == set(byline.__all__)


def test_every_method_and_parameter_of_an_upstream_is_documented() -> None:
    table_rows = read_table(REFERENCE / "sdk.md", "method")
    methods = {
        name: [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
        for name, method in inspect.getmembers(Upstream, inspect.isfunction)
        if not name.startswith("_")
    }

    assert {
        name.partition("(")[0]: re.findall(r"\w+", name.partition("(")[2]) for name in table_rows
    } == methods


def test_every_kind_of_audit_event_is_documented() -> None:
    assert set(read_table(REFERENCE / "audit.md", "kind")) == set(get_args(AuditEventKind))


def test_every_field_of_an_audit_event_is_documented() -> None:
    actor = Actor(kind="schedule", id="a", name="a")
    identity = Identity("p", "i", "s", "n", actor, "schedule", run_id="r", tool_name="t", call_digest="c")
    names = AuditEvent(kind="tool.called", identity=identity).to_document().keys()
    own = {field.name for field in fields(AuditEvent)} - {"kind", "identity"}

    assert set(read_table(REFERENCE / "audit.md", "field")) == {*names, *own}


def test_every_verdict_is_documented() -> None:
    assert set(read_table(REFERENCE / "audit.md", "verdict")) == set(get_args(UpstreamVerdict))


def test_every_wire_name_is_documented() -> None:
    table_rows = read_table(REFERENCE / "wire-names.md", "constant")

    assert {name: list_code(cells[0])[0] for name, cells in table_rows.items()} == {
        name: str(value) for name, value in vars(wire).items() if name.isupper()
    }


def test_every_error_is_documented_as_every_edge_reports_it() -> None:
    table_rows = read_table(REFERENCE / "errors.md", "code")
    rows = {}
    for kind in walk_tree():
        error = kind.__new__(kind)
        answer = to_mcp_code(error)
        meaning = (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
        retryable_text = "yes" if kind.is_retryable else "no"
        rows[kind.code] = [
            meaning,
            retryable_text,
            str(to_http_status(error)),
            "result" if answer is None else str(answer),
        ]

    assert table_rows == rows


def test_every_end_of_a_run_that_is_no_error_of_ours_is_documented() -> None:
    page = (REFERENCE / "errors.md").read_text().split("## How a run can end besides\n")[1]
    ends = re.findall(r'"(run_[a-z_]+)"', (ROOT / "engine/runs/outcome.py").read_text())

    assert set(ends) == set(re.findall(r"^\| `(run_\w+)` \|", page, re.MULTILINE))


def test_the_tutorial_lists_the_accounts_that_the_sandbox_has() -> None:
    table_rows = read_table(ROOT / "docs" / "tutorial.md", "system")
    accounts = {
        name: [
            word for person in system.people if person.password for word in (person.username, person.password)
        ]
        for name, system in SYSTEMS.items()
    }

    assert {name.lower(): list_code(" ".join(cells)) for name, cells in table_rows.items()} == accounts


def test_the_tutorial_lists_the_people_who_can_sign_in() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text()

    assert f"`{DEMO_PEOPLE[0].username}` with the password `{DEMO_PEOPLE[0].password}`" in page
