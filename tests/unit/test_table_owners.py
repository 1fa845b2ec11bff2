"""Holds every table to its owner: the one module that writes it, which the table's class names."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from engine.db import tables

ROOT = Path(__file__).parents[2]
WRITING_STATEMENTS = {"insert", "update", "delete"}
WRITING_METHODS = {"add", "add_all", "merge", "delete"}
# The vault seals rows again for their owners, through the column that each of them registered.
RESEALING = "engine.vault.resealing"

ROW_CLASSES: dict[str, type[SQLModel]] = {
    name: value
    for name, value in vars(tables).items()
    if inspect.isclass(value) and issubclass(value, SQLModel) and value is not SQLModel
}


def owner_of(row_class: str) -> str:
    (owner,) = re.findall(r"Owner: ([\w.]+)\.(?=\s|$)", ROW_CLASSES[row_class].__doc__ or "")
    return str(owner)


def mentioned(node: ast.AST, aliases: dict[str, str] | None = None) -> set[str]:
    """The row classes that a piece of code names, itself or by a variable that stands for rows."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return (names & set(ROW_CLASSES)) | {aliases[name] for name in names if aliases and name in aliases}


def returned_rows(tree: ast.Module) -> dict[str, str]:
    """The functions of a module that say they return rows, and of which class."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    found = {node.name: mentioned(node.returns) for node in functions if node.returns is not None}
    return {name: next(iter(classes)) for name, classes in found.items() if len(classes) == 1}


def row_variables(
    function: ast.FunctionDef | ast.AsyncFunctionDef, returning: dict[str, str]
) -> dict[str, str]:
    """The names in a function that stand for rows, by what they were taken from."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    found = {
        argument.arg: classes.pop()
        for argument in arguments
        if argument.annotation is not None and len(classes := mentioned(argument.annotation)) == 1
    }
    for _ in range(3):  # a variable may be taken from another, and that from a third
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                targets, value = node.targets, node.value
            elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                targets, value = [node.target], node.iter
            else:
                continue
            called = {part.attr for part in ast.walk(value) if isinstance(part, ast.Attribute)}
            called |= {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
            classes = mentioned(value, found) | {returning[name] for name in called & set(returning)}
            if len(classes) == 1:
                names = {
                    part.id
                    for target in targets
                    for part in ast.walk(target)
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                }
                found |= dict.fromkeys(names, next(iter(classes)))
    return found


def written(source: str) -> Iterator[str]:
    """The row classes whose rows a module makes, changes or deletes."""
    tree = ast.parse(source)
    returning = returned_rows(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            yield from {name} & set(ROW_CLASSES)
            if name in WRITING_STATEMENTS:
                yield from mentioned(node.args[0])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from written_rows(node, row_variables(node, returning))


def written_rows(
    function: ast.FunctionDef | ast.AsyncFunctionDef, variables: dict[str, str]
) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from mentioned(node.value, variables)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in WRITING_METHODS
            and "session" in ast.unparse(node.func.value)
        ):
            yield from (row_class for argument in node.args for row_class in mentioned(argument, variables))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            yield from mentioned(node.args[0], variables)


def modules() -> Iterator[tuple[str, str]]:
    for room in ("engine", "gateway", "activities", "workflows"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path.read_text()


def test_a_table_is_written_by_its_owner_alone() -> None:
    writers: dict[str, set[str]] = {row_class: set() for row_class in ROW_CLASSES}
    for name, source in modules():
        if name not in {RESEALING, "engine.db.tables"} and "Row" in source:
            for row_class in written(source):
                writers[row_class].add(name)

    strangers = {row_class: names ^ {owner_of(row_class)} for row_class, names in writers.items()}
    assert {row_class: names for row_class, names in strangers.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "session.add(RoleRow(principal_id='', role=''))",
        "await session.exec(delete(RoleRow).where(RoleRow.role == ''))",
        "row = await session.get(RoleRow, '')\n    row.role = 'lead'",
        "rows = (await session.exec(select(RoleRow))).all()\n    for row in rows:\n        await session.delete(row)",
        "row = await fetch()\n    row.role = 'lead'",
        "setattr(await session.get(RoleRow, ''), 'role', 'lead')",
    ],
)
def test_a_write_is_noticed_however_it_is_written(line: str) -> None:
    source = f"async def fetch() -> RoleRow | None: ...\n\nasync def planted(session):\n    {line}\n"

    assert "RoleRow" in set(written(source))


def test_a_query_is_no_write() -> None:
    source = "async def planted(session):\n    return (await session.exec(select(RoleRow))).all()\n"

    assert not list(written(source))


# What changes rights, and who may call it: the use cases, which record who did it in the same transaction.
USE_CASES = {
    "set_active": {"engine.administration.people"},
    "assign_role": {"engine.administration.roles"},
    "remove_role": {"engine.administration.roles"},
    "add_principal": {"engine.administration.services", "engine.identity.principals"},
    "store_secret": {"engine.administration.connection_secrets"},
    "delete_secret": {"engine.administration.connection_secrets"},
    "add_key": {
        "engine.administration.signing_keys",
        "engine.administration.vault_keys",
        "engine.identity.signing",
        "engine.vault.data_keys",
    },
    "retire_key": {"engine.administration.signing_keys"},
    "retire_keys": {"engine.administration.vault_keys"},
    "rotate_key": {"engine.administration.vault_keys"},
    "store_wrapped": {"engine.administration.vault_keys"},
    "revoke_grant": {"engine.grants.grants", "engine.grants.removal"},
    "remove_client_of_administrator": {"gateway.authorization_server.registered_clients"},
}


def test_rights_are_changed_by_use_cases_that_record_it() -> None:
    callers: dict[str, set[str]] = {method: set() for method in USE_CASES}
    for name, source in modules():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                callers.get(node.func.attr, set()).add(name)

    assert callers == USE_CASES
