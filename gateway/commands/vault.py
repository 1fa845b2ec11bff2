"""`byline vault`: changes the keys that seal every secret, while everything runs. It is for administrators."""

import typer
import uvloop

from engine.services import Services
from engine.vault.resealing import reseal
from gateway.authorization_server.registered_clients import RegisteredClients
from gateway.commands.opened import services_here

app = typer.Typer(no_args_is_help=True)


@app.command("rotate")
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


@app.command("rewrap")
def rewrap_vault() -> None:
    """Wrap the data keys with the newest master key: after it was rotated where it lies, or for another provider."""

    async def rewrap() -> None:
        async with services_here() as services:
            async for key_id in services.data_keys.rewrap():
                typer.echo(f"Data key {key_id} is wrapped by {services.settings.vault.provider}.")

    uvloop.run(rewrap())


@app.command("retire")
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


@app.command("reseal")
def reseal_vault() -> None:
    """Seal every secret with the newest data key: after a rotation that was interrupted."""

    async def finish() -> int:
        async with services_here() as services:
            return await _resealed(services)

    typer.echo(f"{uvloop.run(finish())} secrets were still sealed with an older key.")


async def _resealed(services: Services) -> int:
    """Reseal the secrets of every table that has sealed ones, and return how many were resealed.

    It reports its progress on standard error.
    """
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
        RegisteredClients(services),
    )

    def told(what: str, count: int, of: int) -> None:
        typer.echo(f"{what}: {count} of {of}", err=True)

    return sum([await reseal(services.database, services.vault, each.sealed, told) for each in every])
