"""`byline vault`: changes the keys that seal every secret, while everything runs. It is for administrators."""

import typer
import uvloop

from engine.services import Services
from engine.vault.resealing import reseal_column
from gateway.authorization_server.registered_clients import RegisteredClients
from gateway.terminal.services_context import open_command_services

app = typer.Typer(no_args_is_help=True)


@app.command("rotate")
def rotate_vault() -> None:
    """Create new keys and reseal every secret while Byline runs; after an interruption, run `reseal`."""

    async def rotate_keys() -> tuple[str, int]:
        async with open_command_services() as services:
            if (
                services.settings.vault.provider == "keyring"
                and services.keyring
                and services.keyring.is_file_based
            ):
                services.keyring.rotate_key()
            async for _ in services.data_keys.rewrap_keys():
                pass
            return await services.data_keys.rotate_key(), await _reseal_secrets(services)

    key_id, secret_count = uvloop.run(rotate_keys())
    typer.echo(
        f"{secret_count} secrets are sealed with data key {key_id} now. `byline vault retire` drops the older keys."
    )


@app.command("rewrap")
def rewrap_vault() -> None:
    """Wrap the data keys with the newest master key, after the key service rotated it or the provider changed."""

    async def rewrap_keys() -> None:
        async with open_command_services() as services:
            async for key_id in services.data_keys.rewrap_keys():
                typer.echo(f"Data key {key_id} is wrapped by {services.settings.vault.provider}.")

    uvloop.run(rewrap_keys())


@app.command("retire")
def retire_vault() -> None:
    """Delete all keys except the newest, once no secret needs them."""

    async def retire_keys() -> list[str]:
        async with open_command_services() as services:
            await _reseal_secrets(services)
            dropped_keys = [f"data key {key_id}" for key_id in await services.data_keys.retire_keys()]
            async for _ in services.data_keys.rewrap_keys():
                pass
            if services.keyring is None or not services.keyring.is_file_based:
                return dropped_keys
            return dropped_keys + [f"master key {key_id}" for key_id in services.keyring.retire_keys()]

    typer.echo(f"Dropped: {', '.join(uvloop.run(retire_keys())) or 'none, there was only one'}.")


@app.command("reseal")
def reseal_vault() -> None:
    """Reseal every secret with the newest data key, after an interrupted rotation."""

    async def finish_resealing() -> int:
        async with open_command_services() as services:
            return await _reseal_secrets(services)

    typer.echo(f"{uvloop.run(finish_resealing())} secrets were still sealed with an older key.")


async def _reseal_secrets(services: Services) -> int:
    """Reseal the secrets of every table that has sealed ones, and return how many were resealed.

    It reports its progress on standard error.
    """
    secret_owners = (
        services.signing_keys,
        services.client_secrets,
        services.grants,
        services.revocations,
        services.authorization_attempts,
        services.pending_device_codes,
        services.registrations,
        services.idp_sessions,
        services.notification_channels,
        services.webhooks,
        RegisteredClients(services.database, services.vault),
    )

    def report_progress(table_name: str, done_rows: int, total_rows: int) -> None:
        typer.echo(f"{table_name}: {done_rows} of {total_rows}", err=True)

    return sum(
        [
            await reseal_column(
                services.database, services.vault, secret_owner.sealed_column, report_progress
            )
            for secret_owner in secret_owners
        ]
    )
