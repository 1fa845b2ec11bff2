"""The table of OAuth clients with their sealed secrets, and how an administrator registers and removes clients.

The command line uses this module without a running gateway.
"""

import secrets
import uuid
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import AnyUrl, BaseModel, ConfigDict
from sqlalchemy import delete
from sqlmodel import col, select

from engine.db.database import Database, utc_now
from engine.db.tables import OAuthClientRow
from engine.errors import SettingsInvalid
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from gateway.authorization_server import redirect_uris

TOKEN_EXCHANGE_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"

_SEALED_SECRET_KEY: Final = "byline_sealed_secret"
_BACKEND_KEY: Final = "byline_backend"


class TrustedBackend(BaseModel):
    """Makes a client a trusted back end, which an administrator registered for token exchange."""

    audiences: tuple[str, ...] = ()
    """Audiences of an external issuer's tokens that were issued to this back end."""


class RegisteredClient(BaseModel):
    """A client that an administrator registered, with the fields of RFC 7591 section 2, without its secret."""

    model_config = ConfigDict(url_preserve_empty_path=True)

    client_id: str
    client_name: str
    token_endpoint_auth_method: Literal["client_secret_basic", "none"]
    application_type: Literal["web", "native"] = "native"
    grant_types: list[str]
    response_types: list[str]
    redirect_uris: list[AnyUrl] | None = None
    backend: TrustedBackend | None = None


class _SealedSecretColumn(SealedColumn):
    """The sealed secret within a client's metadata."""

    def read_sealed(self, table_row: OAuthClientRow) -> bytes | None:
        """As SealedColumn says."""
        sealed_secret = table_row.metadata_.get(_SEALED_SECRET_KEY)
        return None if sealed_secret is None else b64decode(sealed_secret)

    def write_sealed(self, table_row: OAuthClientRow, sealed_value: bytes) -> None:
        """As SealedColumn says."""
        table_row.metadata_ = {**table_row.metadata_, _SEALED_SECRET_KEY: b64encode(sealed_value).decode()}


class RegisteredClients:
    """Owner of the table of registered clients."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def add_client(
        self, client_name: str, redirect_uris: Sequence[str], *, is_confidential: bool, may_assert: bool
    ) -> tuple[str, str | None]:
        """Register a client as an administrator; returns its id, and its secret where it is confidential.

        With `may_assert`, the client may send an enterprise's identity assertions. Raises SettingsInvalid for arguments
        that do not fit together and for an invalid redirect URI.
        """
        parsed_uris = [_parse_redirect_uri(redirect_uri) for redirect_uri in redirect_uris]
        if may_assert and not is_confidential:
            raise SettingsInvalid("A client that brings assertions has to be confidential: add --secret.")
        if not parsed_uris and not may_assert:
            raise SettingsInvalid(
                "Name at least one --redirect-uri, or --assertions for a client that brings nothing else."
            )
        registered_client = RegisteredClient(
            client_id=str(uuid.uuid4()),
            client_name=client_name,
            token_endpoint_auth_method="client_secret_basic" if is_confidential else "none",
            application_type="web"
            if parsed_uris and all(redirect_uri.scheme == "https" for redirect_uri in parsed_uris)
            else "native",
            grant_types=[
                *(["authorization_code", "refresh_token"] if parsed_uris else []),
                *([JWT_BEARER_GRANT_TYPE] if may_assert else []),
            ],
            response_types=["code"] if parsed_uris else [],
            redirect_uris=parsed_uris or None,
        )
        client_secret = secrets.token_urlsafe(32) if is_confidential else None
        await self._store_client(registered_client, client_secret)
        return registered_client.client_id, client_secret

    async def add_backend(self, client_name: str, audiences: Sequence[str]) -> tuple[str, str]:
        """Register a trusted back end; returns its id and its secret, which cannot be read again."""
        registered_client = RegisteredClient(
            client_id=str(uuid.uuid4()),
            client_name=client_name,
            token_endpoint_auth_method="client_secret_basic",
            grant_types=[TOKEN_EXCHANGE_GRANT_TYPE],
            response_types=[],
            backend=TrustedBackend(audiences=tuple(audiences)),
        )
        client_secret = secrets.token_urlsafe(32)
        await self._store_client(registered_client, client_secret)
        return registered_client.client_id, client_secret

    async def list_clients(self) -> list[RegisteredClient]:
        """Return every client that an administrator registered, oldest first."""
        statement = (
            select(OAuthClientRow)
            .where(OAuthClientRow.registered_by == "administrator")
            .order_by(col(OAuthClientRow.created_at), col(OAuthClientRow.client_id))
        )
        async with self._database.open_read_session() as db_session:
            client_rows = (await db_session.exec(statement)).all()
        return [
            RegisteredClient.model_validate({**client_row.metadata_, "backend": read_backend(client_row)})
            for client_row in client_rows
        ]

    async def remove_client(self, client_id: str) -> bool:
        """Delete a client that an administrator registered; False where there is none with this id."""
        delete_statement = (
            delete(OAuthClientRow)
            .where(
                col(OAuthClientRow.client_id) == client_id,
                col(OAuthClientRow.registered_by) == "administrator",
            )
            .returning(col(OAuthClientRow.client_id))
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(delete_statement)).first() is not None

    async def build_row(
        self,
        client_id: str,
        client_metadata: Mapping[str, Any],
        client_secret: str | None,
        *,
        registered_by: Literal["itself", "administrator"],
        trusted_backend: TrustedBackend | None = None,
    ) -> OAuthClientRow:
        """Return a client as a table row. Metadata from the client cannot set Byline's own keys."""
        row_metadata = {
            metadata_key: metadata_value
            for metadata_key, metadata_value in client_metadata.items()
            if metadata_key not in {_SEALED_SECRET_KEY, _BACKEND_KEY}
        }
        if trusted_backend is not None:
            row_metadata[_BACKEND_KEY] = trusted_backend.model_dump(mode="json")
        if client_secret is not None:
            sealed_secret = await self._vault.seal_secret(
                client_secret.encode(), _build_associated_data(client_id)
            )
            row_metadata[_SEALED_SECRET_KEY] = b64encode(sealed_secret).decode()
        return OAuthClientRow(
            client_id=client_id, metadata_=row_metadata, registered_by=registered_by, created_at=utc_now()
        )

    async def open_secret(self, client_row: OAuthClientRow) -> str | None:
        """Return the secret of a stored client, or None where it has none."""
        sealed_secret = client_row.metadata_.get(_SEALED_SECRET_KEY)
        if sealed_secret is None:
            return None
        return (
            await self._vault.open_secret(
                b64decode(sealed_secret), _build_associated_data(client_row.client_id)
            )
        ).decode()

    @property
    def sealed_column(self) -> SealedColumn:
        """The column in which this table keeps sealed secrets."""
        return _SealedSecretColumn(
            "clients",
            OAuthClientRow,
            "metadata_",
            lambda client_row: _build_associated_data(client_row.client_id),
        )

    async def _store_client(self, registered_client: RegisteredClient, client_secret: str | None) -> None:
        client_metadata = registered_client.model_dump(mode="json", exclude_none=True, exclude={"backend"})
        client_row = await self.build_row(
            registered_client.client_id,
            client_metadata,
            client_secret,
            registered_by="administrator",
            trusted_backend=registered_client.backend,
        )
        async with self._database.open_write_session() as db_session:
            db_session.add(client_row)


def read_backend(client_row: OAuthClientRow) -> dict[str, Any] | None:
    """Return what makes a stored client a trusted back end, or None where it is not one."""
    return client_row.metadata_.get(_BACKEND_KEY)


def _parse_redirect_uri(uri_text: str) -> AnyUrl:
    try:
        redirect_uri = AnyUrl(uri_text)
    except ValueError as error:
        raise SettingsInvalid(
            f"'{uri_text}' is no redirect URI: write it whole, as https://host/path."
        ) from error
    uri_problem = redirect_uris.find_uri_problem(redirect_uri)
    if uri_problem is not None:
        raise SettingsInvalid(f"'{uri_text}' cannot be a redirect URI: {uri_problem}.")
    return redirect_uri


def _build_associated_data(client_id: str) -> str:
    return f"oauth_client:{client_id}"
