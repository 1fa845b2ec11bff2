"""Stores and removes connections' client secrets, for administrators. It runs where Byline runs, not over its API."""

import sys

import typer
import uvloop

from engine.audit.trail import AuditEvent
from engine.errors import SettingsInvalid
from gateway.commands.admin.connection_check import find_declared_connection
from gateway.terminal.services_context import open_command_services


def store_client_secret(connection_name: str) -> None:
    """Seal the secret of this connection's client, from standard input or a hidden prompt.

    Raises SettingsInvalid if it is empty, and ConnectionUnknown.
    """
    input_text = typer.prompt("Secret", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    client_secret = input_text.strip()
    if not client_secret:
        raise SettingsInvalid("There is no secret on standard input, so nothing was changed.")

    async def seal_secret() -> bool:
        async with open_command_services() as services:
            connection = await find_declared_connection(services, connection_name)
            record_event = await services.trail.make_recorder()
            audit_event = AuditEvent(kind="connection.secret_put", connection=connection_name)
            await services.client_secrets.store_secret(
                connection_name, client_secret, lambda db_session: record_event(db_session, audit_event)
            )
            return connection.has_vault_secret

    is_secret_used = uvloop.run(seal_secret())
    typer.echo(f"The secret of {connection_name} is in the vault; every process uses it within five seconds.")
    if not is_secret_used:
        typer.echo(
            f"Connection '{connection_name}' does not use it yet: write `client_secret: {{vault: true}}` there.",
            err=True,
        )


def remove_client_secret(connection_name: str) -> None:
    """Remove the secret of this connection's client from the vault. Raises SettingsInvalid if there is none."""

    async def remove_sealed_secret() -> bool:
        async with open_command_services() as services:
            record_event = await services.trail.make_recorder()
            audit_event = AuditEvent(kind="connection.secret_removed", connection=connection_name)
            return await services.client_secrets.delete_secret(
                connection_name, lambda db_session: record_event(db_session, audit_event)
            )

    if not uvloop.run(remove_sealed_secret()):
        raise SettingsInvalid(f"The vault has no secret of a connection '{connection_name}'.")
    typer.echo(f"The secret of {connection_name} is gone.")
