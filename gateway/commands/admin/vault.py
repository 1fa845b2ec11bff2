"""`byline vault`: changes the keys that seal every secret, while everything runs. It is for administrators."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import typer
import uvloop

from engine.administration.vault_keys import (
    reseal_secrets,
    retire_vault_keys,
    rewrap_data_keys,
    rotate_vault_keys,
)
from engine.services import Services
from gateway.authorization_server.client_records import ClientRecords
from gateway.terminal.services_context import open_command_services
from gateway.terminal.shell_user import read_shell_user

app = typer.Typer(no_args_is_help=True)


@app.command("rotate")
def rotate_vault() -> None:
    """Create new keys and reseal every secret while Byline runs; after an interruption, run `reseal`."""

    async def rotate_keys() -> tuple[str, int]:
        async with _open_vault_services() as services:
            return await rotate_vault_keys(services, read_shell_user(), _report_progress)

    key_id, secret_count = uvloop.run(rotate_keys())
    typer.echo(
        f"{secret_count} secrets are sealed with data key {key_id} now. `byline vault retire` drops the older keys."
    )


@app.command("rewrap")
def rewrap_vault() -> None:
    """Wrap the data keys with the newest master key, after the key service rotated it or the provider changed."""

    async def rewrap_keys() -> None:
        async with open_command_services() as services:
            async for key_id in rewrap_data_keys(services, read_shell_user()):
                typer.echo(f"Data key {key_id} is wrapped by {services.settings.vault.provider}.")

    uvloop.run(rewrap_keys())


@app.command("retire")
def retire_vault() -> None:
    """Delete all keys except the newest, once no secret needs them."""

    async def retire_keys() -> list[str]:
        async with _open_vault_services() as services:
            return await retire_vault_keys(services, read_shell_user(), _report_progress)

    typer.echo(f"Dropped: {', '.join(uvloop.run(retire_keys())) or 'none, there was only one'}.")


@app.command("reseal")
def reseal_vault() -> None:
    """Reseal every secret with the newest data key, after an interrupted rotation."""

    async def finish_resealing() -> int:
        async with _open_vault_services() as services:
            return await reseal_secrets(services, _report_progress)

    typer.echo(f"{uvloop.run(finish_resealing())} secrets were still sealed with an older key.")


@asynccontextmanager
async def _open_vault_services() -> AsyncIterator[Services]:
    """Open the services with every owner of sealed columns, including those of the gateway."""
    async with open_command_services() as services:
        ClientRecords(services.database, services.vault)
        yield services


def _report_progress(table_name: str, done_rows: int, total_rows: int) -> None:
    typer.echo(f"{table_name}: {done_rows} of {total_rows}", err=True)
