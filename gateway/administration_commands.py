"""`byline keys`, `byline vault` and `byline people`: what an administrator does from a shell, each a few words and an answer."""

from typing import Annotated

import typer
import uvloop

from engine.errors import SettingsInvalid
from engine.services import open_services
from engine.settings import Settings
from gateway.people import People

keys = typer.Typer(help="The keys that sign identities, tokens and the trail.", no_args_is_help=True)
vault = typer.Typer(help="The master keys that seal every secret.", no_args_is_help=True)
people = typer.Typer(
    help="The people of the built-in sign-in, and everybody who has acted.", no_args_is_help=True
)


@keys.command("rotate")
def rotate_key() -> None:
    """Sign with a new key from now on; earlier ones go on verifying."""

    async def rotate() -> str:
        async with open_services(Settings()) as services:
            return await services.keys.rotate()

    typer.echo(f"Key {uvloop.run(rotate())} signs from now on.")


@keys.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="the id of a key that does not sign any more")],
) -> None:
    """Refuse what this key signed, also in runs that are parked; every process does so within 30 seconds."""

    async def retire() -> bool:
        async with open_services(Settings()) as services:
            return await services.keys.retire(kid)

    if not uvloop.run(retire()):
        msg = f"Key '{kid}' is not one that can be retired: it is unknown, retired already, or the one that signs."
        raise SettingsInvalid(msg)
    typer.echo(f"What key {kid} signed is refused from now on.")


@vault.command("rotate")
def rotate_vault() -> None:
    """Make a new master key and seal every secret with it, while everything runs; may be interrupted and repeated."""

    async def rotate() -> tuple[str, int]:
        async with open_services(Settings()) as services:
            key_id = services.keyring.rotate()
            return key_id, await services.grants.reseal() + await services.keys.reseal()

    key_id, count = uvloop.run(rotate())
    typer.echo(
        f"{count} secrets are sealed with master key {key_id} now. `byline vault retire` drops the older keys."
    )


@vault.command("retire")
def retire_vault() -> None:
    """Drop all master keys but the newest, once no secret needs them."""

    async def retire() -> list[str]:
        async with open_services(Settings()) as services:
            await services.grants.reseal()
            await services.keys.reseal()
            return services.keyring.retire()

    typer.echo(f"Dropped: {', '.join(uvloop.run(retire())) or 'none, there was only one'}.")


@people.command("add")
def add_person(
    username: str,
    name: Annotated[str, typer.Option(prompt=True)],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Add a person to the built-in sign-in."""

    async def add() -> bool:
        async with open_services(Settings()) as services:
            return await People(services.database).add(username, name, password)

    if not uvloop.run(add()):
        msg = f"There is a '{username}' already."
        raise SettingsInvalid(msg)
    typer.echo(f"{name} can sign in as {username}.")


@people.command("deactivate")
def deactivate_person(name: Annotated[str, typer.Argument(help="name or subject")]) -> None:
    """Stop somebody: their next action is refused, also in runs that are under way or parked."""
    _set_active(name, active=False)


@people.command("activate")
def activate_person(name: Annotated[str, typer.Argument(help="name or subject")]) -> None:
    """Let somebody act again."""
    _set_active(name, active=True)


def _set_active(name: str, *, active: bool) -> None:
    async def change() -> int:
        async with open_services(Settings()) as services:
            known = await services.principals.named(name)
            if len(known) == 1:
                await services.principals.set_active(known[0].id, active=active)
            return len(known)

    count = uvloop.run(change())
    if count != 1:
        msg = (
            f"{count} people are known as '{name}': give the subject of exactly one who has signed in before."
        )
        raise SettingsInvalid(msg)
    typer.echo(f"{name} is {'active' if active else 'not active'} now.")
