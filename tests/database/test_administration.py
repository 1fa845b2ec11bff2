"""Holds what administrators do to their lines: who did it is in the trail, in the transaction of the change itself."""

import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from engine.administration.connection_secrets import remove_connection_secret, store_connection_secret
from engine.administration.people import activate_principal, deactivate_principal
from engine.administration.roles import give_role, take_role
from engine.administration.services import add_service
from engine.administration.signing_keys import retire_signing_key, rotate_signing_key
from engine.administration.vault_keys import rewrap_data_keys, rotate_data_key
from engine.db.tables import ClientSecretRow, DataKeyRow, GrantRow, PrincipalRow, RoleRow, SigningKeyRow
from engine.identity.model import Principal
from engine.services import Services
from gateway.terminal.shell_user import read_shell_user
from tests.database.conftest import Opener
from tests.support.administration import SHELL, registered_clients_of
from tests.support.commands import Commands
from tests.support.samples import build_connection, build_tokens

TABLES = (ClientSecretRow, DataKeyRow, GrantRow, PrincipalRow, RoleRow, SigningKeyRow)


async def lines(services: Services, kind: str) -> list[dict[str, Any]]:
    return [line.event for line in await services.trail.find_lines(limit=None) if line.kind == kind]


async def contents(services: Services) -> list[str]:
    """Every row of what administrators change."""
    async with services.database.open_read_session() as session:
        rows = [row for table in TABLES for row in (await session.exec(select(table))).all()]
    return sorted(f"{row.model_dump()}" for row in rows)


async def granted(services: Services, principal: Principal) -> None:
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(
            session, build_connection(), principal.id, build_tokens(), "alice@acme.example"
        )


async def test_who_is_stopped_and_let_go_on_by_a_command_is_in_the_trail_with_who_did_it(
    services: Services, alice: Principal, commands: Commands
) -> None:
    for _ in range(2):
        await commands.read_output("people", "deactivate", alice.id)
    for _ in range(2):
        await commands.read_output("people", "activate", alice.id)

    user = read_shell_user()
    actor = {"kind": "shell", "id": user.id, "name": f"{user.username} at {user.hostname}"}
    for kind in ("principal.deactivated", "principal.activated"):
        (line,) = await lines(services, kind)
        assert (line["principal"]["id"], line["actor"], line.get("by")) == (alice.id, actor, None)


async def test_an_administrator_who_is_signed_in_is_named_by_their_lines(
    services: Services, alice: Principal, bob: Principal
) -> None:
    await give_role(services, bob, alice, "lead")
    await take_role(services, bob, alice, "lead")
    await deactivate_principal(services, bob, alice)
    await activate_principal(services, bob, alice)
    service = await add_service(services, bob, "nightly")

    kinds = ("role.given", "role.taken", "principal.deactivated", "principal.activated")
    for kind in kinds:
        (line,) = await lines(services, kind)
        assert (line["principal"]["id"], line["by"]["id"], line.get("actor")) == (alice.id, bob.id, None)
    (created,) = await lines(services, "service.created")
    assert (created["principal"]["id"], created["by"]["id"]) == (service.id, bob.id)


async def test_a_grant_is_removed_with_who_removed_it(
    services: Services, alice: Principal, bob: Principal
) -> None:
    billing = build_connection()
    quiet = billing.model_copy(
        update={"provider": billing.provider.model_copy(update={"revocation_endpoint": None})}
    )
    await granted(services, alice)
    assert await services.grant_removal.remove_own_grant(quiet, alice)
    for administrator in (SHELL, bob):
        await granted(services, alice)
        assert await services.grant_removal.remove_grant(administrator, quiet, alice)
    await granted(services, alice)
    await deactivate_principal(services, bob, alice)

    removed = await lines(services, "grant.removed")
    assert [(line.get("actor", {}).get("kind"), line.get("by", {}).get("id")) for line in removed] == [
        (None, None),
        ("shell", None),
        (None, bob.id),
        (None, bob.id),
    ]
    assert {line["principal"]["id"] for line in removed} == {alice.id}
    revoked = await lines(services, "grant.revoked")
    assert [line["grant_id"] for line in revoked] == [line["grant_id"] for line in removed]
    assert "has no way to be told" in revoked[0]["message"]
    assert revoked[-1]["error"] == "connection_unknown"


async def test_every_change_of_a_key_has_its_line(
    services: Services, commands: Commands, another_process: Opener
) -> None:
    made = re.findall(r"Key (\w+) signs", await commands.read_output("keys", "rotate"))
    older = (await services.signing_keys.list_keys())[-1].kid
    await commands.read_output("keys", "retire", older)
    await commands.read_output("vault", "rotate")
    fresh = await another_process()
    async with fresh.database.open_write_session() as session:
        for row in (await session.exec(select(DataKeyRow))).all():
            row.created_at = row.created_at.replace(year=2020)
            session.add(row)
    keyring = fresh.settings.vault.keyring_file
    assert keyring is not None
    os.utime(keyring, (0, 0))
    dropped = await commands.read_output("vault", "retire")

    assert [line["object_id"] for line in await lines(services, "key.rotated")] == made
    assert [line["object_id"] for line in await lines(services, "key.retired")] == [older]
    rotated = await lines(services, "vault.key_rotated")
    assert [line["message"] for line in rotated] == ["It is a master key.", "It is a data key."]
    retired = await lines(services, "vault.key_retired")
    assert [line["object_id"] for line in retired] == re.findall(r"key (\w+)", dropped)
    assert await lines(services, "vault.key_rewrapped")
    written = [
        *rotated,
        *retired,
        *await lines(services, "key.rotated"),
        *await lines(services, "key.retired"),
    ]
    assert {line["actor"]["id"] for line in written} == {read_shell_user().id}


async def test_a_client_that_an_administrator_registers_or_removes_has_its_lines(services: Services) -> None:
    clients = registered_clients_of(services)
    client_id, _ = await clients.add_backend(SHELL, "Portal", ())
    assert await clients.remove_client(SHELL, client_id)
    assert not await clients.remove_client(SHELL, client_id)

    for kind in ("client.registered", "client.removed"):
        (line,) = await lines(services, kind)
        assert (line["object_id"], line["actor"]["id"]) == (client_id, SHELL.id)


async def rename(services: Services, table: str, name: str) -> None:
    async with services.database.open_write_session() as session:
        await (await session.connection()).execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


async def rewrap(services: Services) -> None:
    async for _ in rewrap_data_keys(services, SHELL):
        pass


async def retire_oldest_key(services: Services) -> None:
    *_, oldest = await services.signing_keys.list_keys()
    await retire_signing_key(services, SHELL, oldest.kid)


async def remove_grants(services: Services, alice: Principal) -> None:
    await services.grant_removal.remove_all_grants(alice, SHELL)


Change = Callable[[Services, Principal], Awaitable[object]]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda services, alice: deactivate_principal(services, SHELL, alice), id="deactivate"),
        pytest.param(lambda services, alice: give_role(services, SHELL, alice, "auditor"), id="give role"),
        pytest.param(lambda services, alice: take_role(services, SHELL, alice, "lead"), id="take role"),
        pytest.param(lambda services, _: add_service(services, SHELL, "nightly"), id="add service"),
        pytest.param(
            lambda services, _: store_connection_secret(services, SHELL, "crm", "secret"), id="put secret"
        ),
        pytest.param(
            lambda services, _: remove_connection_secret(services, SHELL, "billing"), id="remove secret"
        ),
        pytest.param(lambda services, _: rotate_signing_key(services, SHELL), id="rotate signing key"),
        pytest.param(lambda services, _: retire_oldest_key(services), id="retire signing key"),
        pytest.param(lambda services, _: rotate_data_key(services, SHELL), id="rotate data key"),
        pytest.param(lambda services, _: rewrap(services), id="rewrap data keys"),
        pytest.param(remove_grants, id="remove grants"),
    ],
)
async def test_what_cannot_be_recorded_does_not_happen(
    services: Services, alice: Principal, change: Change
) -> None:
    await granted(services, alice)
    await give_role(services, SHELL, alice, "lead")
    await store_connection_secret(services, SHELL, "billing", "secret")
    await rotate_signing_key(services, SHELL)
    before = await contents(services)

    await rename(services, "audit_event", "unreachable")
    try:
        with pytest.raises(DBAPIError):
            await change(services, alice)
    finally:
        await rename(services, "unreachable", "audit_event")

    assert await contents(services) == before
