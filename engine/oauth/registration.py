"""Byline's client identity at authorization servers where nobody registered it by hand.

The identity is a client ID metadata document or a dynamic client registration (RFC 7591).
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from engine.db.database import Database, utc_now
from engine.db.tables import UpstreamClientRow
from engine.errors import AddressRefused, ConnectionMisconfigured, RequestRejected, UpstreamUnavailable
from engine.oauth.discovery import ProviderEndpoints
from engine.outgoing.client import OutgoingClient
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import UPSTREAM_CLIENT_SEAL

CALLBACK_PATH: Final = "/oauth/callback"
CLIENT_DOCUMENT_PATH: Final = "/oauth/client.json"
_AUTH_METHODS: Final = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Byline's client identity. `is_registered` says that it comes from dynamic client registration."""

    client_id: str
    auth_method: str
    client_secret: str | None = field(default=None, repr=False)
    is_registered: bool = False


class _ClientInformationResponse(BaseModel):
    """A client information response (RFC 7591 section 3.2.1)."""

    model_config = ConfigDict(strict=True)

    client_id: str = Field(min_length=1)
    client_secret: str | None = None
    client_secret_expires_at: int = 0
    token_endpoint_auth_method: str | None = None


class ClientRegistrations:
    """Owns the table of upstream clients. Each issuer has its own client, so none receives another's credentials."""

    def __init__(self, database: Database, vault: Vault, outgoing: OutgoingClient, public_url: str) -> None:
        self._database = database
        self._vault = vault
        self._outgoing = outgoing
        self._public_url = public_url
        self.redirect_uri = f"{public_url}{CALLBACK_PATH}"

    def build_client_document(self) -> dict[str, Any]:
        """Return the client ID metadata document, which is served at the URL that is its `client_id`."""
        return {
            "client_id": f"{self._public_url}{CLIENT_DOCUMENT_PATH}",
            **self._build_client_metadata("none"),
        }

    async def find_identity(self, connection_name: str, endpoints: ProviderEndpoints) -> ClientIdentity:
        """Return Byline's client identity at these endpoints, and register it first if that is necessary.

        Raises ConnectionMisconfigured if the server supports neither a metadata document nor registration.
        """
        if endpoints.is_client_document_supported and self._public_url.startswith("https://"):
            return ClientIdentity(f"{self._public_url}{CLIENT_DOCUMENT_PATH}", "none")
        issuer = endpoints.issuer or ""
        registered_identity = await self._find_registered_identity(issuer)
        if registered_identity is not None:
            return registered_identity
        if endpoints.registration_endpoint is None:
            raise ConnectionMisconfigured(
                f"{issuer} registers no clients by itself: register Byline there with the redirect URI "
                f"{self.redirect_uri}, and write client_id into connection '{connection_name}'."
            )
        client_information = await self._register_client(
            connection_name, endpoints, endpoints.registration_endpoint
        )
        client_row = await self._build_client_row(issuer, client_information)
        try:
            async with self._database.open_write_session() as db_session:
                db_session.add(client_row)
        except IntegrityError:
            # Another process registered Byline meanwhile, and people may already be signing in with its client id.
            return await self._find_registered_identity(issuer) or _to_client_identity(client_information)
        return _to_client_identity(client_information)

    async def delete_registration(self, issuer: str) -> None:
        """Delete the registration of a client that the issuer no longer knows, so that Byline registers again."""
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(UpstreamClientRow).where(col(UpstreamClientRow.issuer) == issuer))

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "clients at other issuers",
            UpstreamClientRow,
            "sealed_registration",
            lambda client_row: _build_associated_data(client_row.issuer),
        )

    async def _find_registered_identity(self, issuer: str) -> ClientIdentity | None:
        async with self._database.open_read_session() as db_session:
            client_row = await db_session.get(UpstreamClientRow, issuer)
        if client_row is None:
            return None
        if client_row.redirect_uri != self.redirect_uri or (
            client_row.expires_at is not None and client_row.expires_at <= utc_now()
        ):
            await self.delete_registration(issuer)
            return None
        opened_registration = await self._vault.open_secret(
            client_row.sealed_registration, _build_associated_data(issuer)
        )
        return _to_client_identity(_ClientInformationResponse.model_validate_json(opened_registration))

    async def _register_client(
        self, connection_name: str, endpoints: ProviderEndpoints, registration_url: str
    ) -> _ClientInformationResponse:
        auth_method = next(
            (
                supported_method
                for supported_method in _AUTH_METHODS
                if supported_method in endpoints.auth_methods
            ),
            "none",
        )
        issuer_label = f"{endpoints.issuer}, where connection '{connection_name}' signs in,"
        try:
            http_response = await self._outgoing.send_request(
                "POST",
                registration_url,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                content=json.dumps(self._build_client_metadata(auth_method)).encode(),
            )
        except (AddressRefused, RequestRejected) as error:
            raise ConnectionMisconfigured(
                f"{issuer_label} cannot be asked to register Byline: {error}"
            ) from None
        if http_response.status_code >= 500 or http_response.status_code == 429:
            raise UpstreamUnavailable(
                f"{issuer_label} does not register clients now.", status_code=http_response.status_code
            )
        try:
            client_information = _ClientInformationResponse.model_validate_json(http_response.body)
        except ValidationError:
            raise ConnectionMisconfigured(
                f"{issuer_label} does not register Byline ({http_response.status_code}): "
                "register it there, and write client_id."
            ) from None
        return client_information.model_copy(
            update={
                "token_endpoint_auth_method": client_information.token_endpoint_auth_method or auth_method
            }
        )

    def _build_client_metadata(self, auth_method: str) -> dict[str, Any]:
        return {
            "client_name": "Byline",
            "client_uri": self._public_url,
            "redirect_uris": [self.redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": auth_method,
            "application_type": "web" if self._public_url.startswith("https://") else "native",
        }

    async def _build_client_row(
        self, issuer: str, client_information: _ClientInformationResponse
    ) -> UpstreamClientRow:
        expires_at_seconds = client_information.client_secret_expires_at
        return UpstreamClientRow(
            issuer=issuer,
            redirect_uri=self.redirect_uri,
            client_id=client_information.client_id,
            sealed_registration=await self._vault.seal_secret(
                client_information.model_dump_json().encode(), _build_associated_data(issuer)
            ),
            created_at=utc_now(),
            expires_at=datetime.fromtimestamp(expires_at_seconds, UTC) if expires_at_seconds else None,
        )


def _to_client_identity(client_information: _ClientInformationResponse) -> ClientIdentity:
    auth_method = client_information.token_endpoint_auth_method or "none"
    client_secret = None if auth_method == "none" else client_information.client_secret
    return ClientIdentity(client_information.client_id, auth_method, client_secret, is_registered=True)


def _build_associated_data(issuer: str) -> str:
    return UPSTREAM_CLIENT_SEAL.format(issuer=issuer)
