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

from engine.db.database import now
from engine.db.tables import OAuthClientRow
from engine.errors import SettingsInvalid
from engine.services import Services
from engine.vault.resealing import SealedColumn
from gateway.authorization_server import redirects

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"

_SEALED_SECRET: Final = "byline_sealed_secret"
_BACKEND: Final = "byline_backend"


class Backend(BaseModel):
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
    backend: Backend | None = None


class _SealedSecret(SealedColumn):
    """The sealed secret within a client's metadata."""

    def read(self, row: OAuthClientRow) -> bytes | None:
        """As SealedColumn says."""
        sealed = row.metadata_.get(_SEALED_SECRET)
        return None if sealed is None else b64decode(sealed)

    def write(self, row: OAuthClientRow, sealed: bytes) -> None:
        """As SealedColumn says."""
        row.metadata_ = {**row.metadata_, _SEALED_SECRET: b64encode(sealed).decode()}


class RegisteredClients:
    """Owner of the table of registered clients."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._vault = services.vault

    async def add(
        self, name: str, redirect_uris: Sequence[str], *, confidential: bool, asserts: bool
    ) -> tuple[str, str | None]:
        """Register a client as an administrator; returns its id, and its secret where it is confidential.

        With `may_assert`, the client may send an enterprise's identity assertions. Raises SettingsInvalid for arguments
        that do not fit together and for an invalid redirect URI.
        """
        uris = [_redirect_uri(uri) for uri in redirect_uris]
        if asserts and not confidential:
            raise SettingsInvalid("A client that brings assertions has to be confidential: add --secret.")
        if not uris and not asserts:
            raise SettingsInvalid(
                "Name at least one --redirect-uri, or --assertions for a client that brings nothing else."
            )
        client = RegisteredClient(
            client_id=str(uuid.uuid4()),
            client_name=name,
            token_endpoint_auth_method="client_secret_basic" if confidential else "none",
            application_type="web" if uris and all(uri.scheme == "https" for uri in uris) else "native",
            grant_types=[
                *(["authorization_code", "refresh_token"] if uris else []),
                *([JWT_BEARER] if asserts else []),
            ],
            response_types=["code"] if uris else [],
            redirect_uris=uris or None,
        )
        secret = secrets.token_urlsafe(32) if confidential else None
        await self._keep(client, secret)
        return client.client_id, secret

    async def add_backend(self, name: str, audiences: Sequence[str]) -> tuple[str, str]:
        """Register a trusted back end; returns its id and its secret, which cannot be read again."""
        client = RegisteredClient(
            client_id=str(uuid.uuid4()),
            client_name=name,
            token_endpoint_auth_method="client_secret_basic",
            grant_types=[TOKEN_EXCHANGE],
            response_types=[],
            backend=Backend(audiences=tuple(audiences)),
        )
        secret = secrets.token_urlsafe(32)
        await self._keep(client, secret)
        return client.client_id, secret

    async def all(self) -> list[RegisteredClient]:
        """Return every client that an administrator registered, oldest first."""
        query = (
            select(OAuthClientRow)
            .where(OAuthClientRow.registered_by == "administrator")
            .order_by(col(OAuthClientRow.created_at), col(OAuthClientRow.client_id))
        )
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return [
            RegisteredClient.model_validate({**row.metadata_, "backend": backend_of(row)}) for row in rows
        ]

    async def remove(self, client_id: str) -> bool:
        """Delete a client that an administrator registered; False where there is none with this id."""
        forget = (
            delete(OAuthClientRow)
            .where(
                col(OAuthClientRow.client_id) == client_id,
                col(OAuthClientRow.registered_by) == "administrator",
            )
            .returning(col(OAuthClientRow.client_id))
        )
        async with self._database.writing() as session:
            return (await session.exec(forget)).first() is not None

    async def row(
        self,
        client_id: str,
        metadata: Mapping[str, Any],
        secret: str | None,
        *,
        registered_by: Literal["itself", "administrator"],
        backend: Backend | None = None,
    ) -> OAuthClientRow:
        """Return a client as a table row. Metadata from the client cannot set Byline's own keys."""
        kept = {key: value for key, value in metadata.items() if key not in {_SEALED_SECRET, _BACKEND}}
        if backend is not None:
            kept[_BACKEND] = backend.model_dump(mode="json")
        if secret is not None:
            sealed = await self._vault.seal(secret.encode(), _bound_to(client_id))
            kept[_SEALED_SECRET] = b64encode(sealed).decode()
        return OAuthClientRow(
            client_id=client_id, metadata_=kept, registered_by=registered_by, created_at=now()
        )

    async def secret_of(self, row: OAuthClientRow) -> str | None:
        """Return the secret of a stored client, or None where it has none."""
        sealed = row.metadata_.get(_SEALED_SECRET)
        if sealed is None:
            return None
        return (await self._vault.open(b64decode(sealed), _bound_to(row.client_id))).decode()

    @property
    def sealed(self) -> SealedColumn:
        """The column in which this table keeps sealed secrets."""
        return _SealedSecret("clients", OAuthClientRow, "metadata_", lambda row: _bound_to(row.client_id))

    async def _keep(self, client: RegisteredClient, secret: str | None) -> None:
        metadata = client.model_dump(mode="json", exclude_none=True, exclude={"backend"})
        row = await self.row(
            client.client_id, metadata, secret, registered_by="administrator", backend=client.backend
        )
        async with self._database.writing() as session:
            session.add(row)


def backend_of(row: OAuthClientRow) -> dict[str, Any] | None:
    """Return what makes a stored client a trusted back end, or None where it is not one."""
    return row.metadata_.get(_BACKEND)


def _redirect_uri(text: str) -> AnyUrl:
    try:
        uri = AnyUrl(text)
    except ValueError as error:
        raise SettingsInvalid(
            f"'{text}' is no redirect URI: write it whole, as https://host/path."
        ) from error
    problem = redirects.problem(uri)
    if problem is not None:
        raise SettingsInvalid(f"'{text}' cannot be a redirect URI: {problem}.")
    return uri


def _bound_to(client_id: str) -> str:
    return f"oauth_client:{client_id}"
