"""`byline keys`: shows and changes the keys that sign identities, tokens and the trail. It is for administrators."""

from typing import Annotated

import typer
import uvloop

from engine.administration.signing_keys import retire_signing_key, rotate_signing_key
from engine.errors import SettingsInvalid
from engine.identity.signing import SigningKey
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys() -> None:
    """List the keys, newest first: the first key in force signs, and all keys in force verify."""

    async def find_signing_keys() -> list[SigningKey]:
        async with open_command_services() as services:
            return await services.signing_keys.list_keys()

    for signing_key in uvloop.run(find_signing_keys()):
        key_state = (
            "in force"
            if signing_key.retired_at is None
            else f"retired {signing_key.retired_at:%Y-%m-%d %H:%M} UTC"
        )
        typer.echo(f"{signing_key.kid}  made {signing_key.created_at:%Y-%m-%d %H:%M} UTC  {key_state}")


@app.command("rotate")
def rotate_key() -> None:
    """Create a key that signs from now on; earlier keys still verify."""

    async def make_signing_key() -> str:
        async with open_command_services() as services:
            return await rotate_signing_key(services, read_shell_user())

    typer.echo(f"Key {uvloop.run(make_signing_key())} signs from now on.")


@app.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="the id of a key that no longer signs")],
) -> None:
    """Retire a key: within 30 seconds, every process refuses what it signed, also in waiting runs."""

    async def refuse_signing_key() -> bool:
        async with open_command_services() as services:
            return await retire_signing_key(services, read_shell_user(), kid)

    if not uvloop.run(refuse_signing_key()):
        raise SettingsInvalid(
            f"Key '{kid}' is not one that can be retired: it is unknown, retired already, or the one that signs."
        )
    typer.echo(f"What key {kid} signed is refused from now on.")
