"""`byline keys`: shows and changes the keys that sign identities, tokens and the trail. It is for administrators."""

from typing import Annotated

import typer
import uvloop

from engine.errors import SettingsInvalid
from engine.identity.signing import SigningKey
from gateway.commands.opened import services_here

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys() -> None:
    """Show the keys, newest first: the first one in force signs, all in force verify."""

    async def find() -> list[SigningKey]:
        async with services_here() as services:
            return await services.keys.all()

    for key in uvloop.run(find()):
        state = "in force" if key.retired_at is None else f"retired {key.retired_at:%Y-%m-%d %H:%M} UTC"
        typer.echo(f"{key.kid}  made {key.created_at:%Y-%m-%d %H:%M} UTC  {state}")


@app.command("rotate")
def rotate_key() -> None:
    """Sign with a new key from now on; earlier ones go on verifying."""

    async def rotate() -> str:
        async with services_here() as services:
            return await services.keys.rotate()

    typer.echo(f"Key {uvloop.run(rotate())} signs from now on.")


@app.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="the id of a key that does not sign any more")],
) -> None:
    """Refuse what this key signed, also in runs that are parked; every process does so within 30 seconds."""

    async def retire() -> bool:
        async with services_here() as services:
            return await services.keys.retire(kid)

    if not uvloop.run(retire()):
        raise SettingsInvalid(
            f"Key '{kid}' is not one that can be retired: it is unknown, retired already, or the one that signs."
        )
    typer.echo(f"What key {kid} signed is refused from now on.")
