"""Stores and removes connections' client secrets, for administrators. It runs where Byline runs, not over its API."""

import sys

import typer
import uvloop

from engine.audit.trail import AuditEvent
from engine.errors import SettingsInvalid
from gateway.commands.connection_trial import declared
from gateway.commands.opened import services_here


def put_secret(name: str) -> None:
    """Seal the secret of this connection's client, from standard input or a hidden prompt.

    Raises SettingsInvalid if it is empty, and ConnectionUnknown.
    """
    typed = typer.prompt("Secret", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    secret = typed.strip()
    if not secret:
        raise SettingsInvalid("There is no secret on standard input, so nothing was changed.")

    async def put() -> bool:
        async with services_here() as services:
            connection = await declared(services, name)
            record = await services.trail.recorder()
            event = AuditEvent(kind="connection.secret_put", connection=name)
            await services.client_secrets.put(name, secret, lambda session: record(session, event))
            return any(each is not None and each.vault for each in connection.secrets)

    asked_for = uvloop.run(put())
    typer.echo(f"The secret of {name} is in the vault; every process uses it within five seconds.")
    if not asked_for:
        typer.echo(
            f"Connection '{name}' does not use it yet: write `client_secret: {{vault: true}}` there.",
            err=True,
        )


def remove_secret(name: str) -> None:
    """Remove the secret of this connection's client from the vault. Raises SettingsInvalid if there is none."""

    async def remove() -> bool:
        async with services_here() as services:
            record = await services.trail.recorder()
            event = AuditEvent(kind="connection.secret_removed", connection=name)
            return await services.client_secrets.remove(name, lambda session: record(session, event))

    if not uvloop.run(remove()):
        raise SettingsInvalid(f"The vault has no secret of a connection '{name}'.")
    typer.echo(f"The secret of {name} is gone.")
