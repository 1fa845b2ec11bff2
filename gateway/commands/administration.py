"""What an administrator does from a shell: keys, vault and grants, each command a few words and an answer."""

from typing import Annotated

import typer
import uvloop

from engine.connections.connection import SHARED
from engine.connections.grants import Grant
from engine.errors import AccountUnclear, BylineError, SettingsInvalid
from engine.identity.signing import SigningKey
from engine.services import Services
from engine.vault.resealing import reseal
from gateway.authorization_server.clients import Clients
from gateway.commands.opened import services_here
from gateway.commands.people import one_person
from gateway.commands.plain import plain
from gateway.grants import remove_grant

keys = typer.Typer(help="The keys that sign identities, tokens and the trail.", no_args_is_help=True)
vault = typer.Typer(help="The master keys that seal every secret.", no_args_is_help=True)
grants = typer.Typer(help="What people granted, and its removal.", no_args_is_help=True)


@keys.command("list")
def list_keys() -> None:
    """Show the keys, newest first: the first one in force signs, all in force verify."""

    async def find() -> list[SigningKey]:
        async with services_here() as services:
            return await services.keys.all()

    for key in uvloop.run(find()):
        state = "in force" if key.retired_at is None else f"retired {key.retired_at:%Y-%m-%d %H:%M} UTC"
        typer.echo(f"{key.kid}  made {key.created_at:%Y-%m-%d %H:%M} UTC  {state}")


@keys.command("rotate")
def rotate_key() -> None:
    """Sign with a new key from now on; earlier ones go on verifying."""

    async def rotate() -> str:
        async with services_here() as services:
            return await services.keys.rotate()

    typer.echo(f"Key {uvloop.run(rotate())} signs from now on.")


@keys.command("retire")
def retire_key(
    kid: Annotated[str, typer.Argument(help="the id of a key that does not sign any more")],
) -> None:
    """Refuse what this key signed, also in runs that are parked; every process does so within 30 seconds."""

    async def retire() -> bool:
        async with services_here() as services:
            return await services.keys.retire(kid)

    if not uvloop.run(retire()):
        msg = f"Key '{kid}' is not one that can be retired: it is unknown, retired already, or the one that signs."
        raise SettingsInvalid(msg)
    typer.echo(f"What key {kid} signed is refused from now on.")


@vault.command("rotate")
def rotate_vault() -> None:
    """Make new keys and seal every secret anew, while everything runs; if interrupted, `reseal` goes on."""

    async def rotate() -> tuple[str, int]:
        async with services_here() as services:
            if (
                services.settings.vault.provider == "keyring"
                and services.keyring
                and services.keyring.is_file
            ):
                services.keyring.rotate()
            async for _ in services.data_keys.rewrap():
                pass
            return await services.data_keys.rotate(), await _resealed(services)

    key_id, count = uvloop.run(rotate())
    typer.echo(
        f"{count} secrets are sealed with data key {key_id} now. `byline vault retire` drops the older keys."
    )


@vault.command("rewrap")
def rewrap_vault() -> None:
    """Wrap the data keys with the newest master key: after it was rotated where it lies, or for another provider."""

    async def rewrap() -> None:
        async with services_here() as services:
            async for key_id in services.data_keys.rewrap():
                typer.echo(f"Data key {key_id} is wrapped by {services.settings.vault.provider}.")

    uvloop.run(rewrap())


@vault.command("retire")
def retire_vault() -> None:
    """Drop all keys but the newest, once no secret needs them."""

    async def retire() -> list[str]:
        async with services_here() as services:
            await _resealed(services)
            dropped = [f"data key {key_id}" for key_id in await services.data_keys.retire()]
            async for _ in services.data_keys.rewrap():
                pass
            if services.keyring is None or not services.keyring.is_file:
                return dropped
            return dropped + [f"master key {key_id}" for key_id in services.keyring.retire()]

    typer.echo(f"Dropped: {', '.join(uvloop.run(retire())) or 'none, there was only one'}.")


@vault.command("reseal")
def reseal_vault() -> None:
    """Seal every secret with the newest data key: after a rotation that was interrupted."""

    async def reseal() -> int:
        async with services_here() as services:
            return await _resealed(services)

    typer.echo(f"{uvloop.run(reseal())} secrets were still sealed with an older key.")


async def _resealed(services: Services) -> int:
    """Whatever the vault seals, in every table that keeps sealed secrets; tells on standard error how far it is."""
    every = (
        services.keys,
        services.client_secrets,
        services.grants,
        services.revocations,
        services.consent,
        services.devices,
        services.registrations,
        services.company_sign_ins,
        services.channels,
        services.webhooks,
        Clients(services),
    )

    def told(what: str, count: int, of: int) -> None:
        typer.echo(f"{what}: {count} of {of}", err=True)

    return sum([await reseal(services.database, services.vault, each.sealed, told) for each in every])


@grants.command("list")
def list_grants(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
) -> None:
    """Show what somebody granted: connection, upstream account and scopes, never a token."""

    async def find() -> list[Grant]:
        async with services_here() as services:
            holder = name if name == SHARED else (await one_person(services, name)).id
            return await services.grants.of(holder)

    found = uvloop.run(find())
    for grant in found:
        typer.echo(
            f"{grant.connection}  {plain(grant.account)}  {plain(' '.join(grant.scopes))}  "
            f"since {grant.created_at:%Y-%m-%d}{', has lapsed' if grant.has_lapsed else ''}"
        )
    if not found:
        typer.echo(f"{name} has granted nothing.")


@grants.command("remove")
def forget_grant(
    name: Annotated[str, typer.Argument(help="a person's name, subject or id, or `shared`")],
    connection: str,
    account: Annotated[str | None, typer.Option(help="the account, where there are several")] = None,
) -> None:
    """Forget a grant and revoke it upstream; the next action that needs it asks again."""

    async def remove() -> str | None:
        async with services_here() as services:
            declared = await services.catalogue.get(connection)
            if (declared.mode == "shared") != (name == SHARED):
                whose = "a person" if name == SHARED else "`shared`"
                msg = f"Connection '{connection}' is {declared.mode}: name {whose}."
                raise SettingsInvalid(msg)
            person = None if name == SHARED else await one_person(services, name)
            try:
                return "" if await remove_grant(services, declared, person, account) else None
            except AccountUnclear:
                raise
            except BylineError as error:
                return f" Its upstream is to be told yet, which Byline goes on trying: {error}"

    untold = uvloop.run(remove())
    if untold is None:
        msg = f"{name} has no grant on connection '{connection}'."
        raise SettingsInvalid(msg)
    typer.echo(f"The grant of {name} on {connection} is gone.{untold}")
