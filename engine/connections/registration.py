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

from engine.connections.discovery import Endpoints
from engine.db.database import Database, now
from engine.db.tables import UpstreamClientRow
from engine.errors import AddressRefused, ConnectionMisconfigured, RequestRejected, UpstreamUnavailable
from engine.outgoing.client import Outgoing
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

DOCUMENT_PATH: Final = "/oauth/client.json"
_METHODS: Final = ("client_secret_basic", "client_secret_post", "none")


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Byline's client identity. `is_registered` says that it comes from dynamic client registration."""

    client_id: str
    method: str
    secret: str | None = field(default=None, repr=False)
    is_registered: bool = False


class _Registered(BaseModel):
    """A client information response (RFC 7591 section 3.2.1)."""

    model_config = ConfigDict(strict=True)

    client_id: str = Field(min_length=1)
    client_secret: str | None = None
    client_secret_expires_at: int = 0
    token_endpoint_auth_method: str | None = None


class Registrations:
    """Owns the table of upstream clients. Each issuer has its own client, so none receives another's credentials."""

    def __init__(self, database: Database, vault: Vault, outgoing: Outgoing, public_url: str) -> None:
        self._database = database
        self._vault = vault
        self._outgoing = outgoing
        self._public_url = public_url
        self._redirect_uri = f"{public_url}/oauth/callback"

    def document(self) -> dict[str, Any]:
        """Return the client ID metadata document, which is served at the URL that is its `client_id`."""
        return {"client_id": f"{self._public_url}{DOCUMENT_PATH}", **self._metadata("none")}

    async def of(self, connection: str, endpoints: Endpoints) -> ClientIdentity:
        """Return Byline's client identity at these endpoints, and register it first if that is necessary.

        Raises ConnectionMisconfigured if the server supports neither a metadata document nor registration.
        """
        if endpoints.takes_client_documents and self._public_url.startswith("https://"):
            return ClientIdentity(f"{self._public_url}{DOCUMENT_PATH}", "none")
        issuer = endpoints.issuer or ""
        known = await self._known(issuer)
        if known is not None:
            return known
        if endpoints.registration is None:
            raise ConnectionMisconfigured(
                f"{issuer} registers no clients by itself: register Byline there with the redirect URI "
                f"{self._redirect_uri}, and write client_id into connection '{connection}'."
            )
        registered = await self._register(connection, endpoints, endpoints.registration)
        row = await self._row(issuer, registered)
        try:
            async with self._database.writing() as session:
                session.add(row)
        except IntegrityError:
            # Another process registered Byline meanwhile, and people may already be signing in with its client id.
            return await self._known(issuer) or _identity(registered)
        return _identity(registered)

    async def forget(self, issuer: str) -> None:
        """Delete the registration of a client that the issuer no longer knows, so that Byline registers again."""
        async with self._database.writing() as session:
            await session.exec(delete(UpstreamClientRow).where(col(UpstreamClientRow.issuer) == issuer))

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "clients at other issuers",
            UpstreamClientRow,
            "sealed_registration",
            lambda row: _bound_to(row.issuer),
        )

    async def _known(self, issuer: str) -> ClientIdentity | None:
        async with self._database.reading() as session:
            row = await session.get(UpstreamClientRow, issuer)
        if row is None:
            return None
        if row.redirect_uri != self._redirect_uri or (row.expires_at is not None and row.expires_at <= now()):
            await self.forget(issuer)
            return None
        opened = await self._vault.open(row.sealed_registration, _bound_to(issuer))
        return _identity(_Registered.model_validate_json(opened))

    async def _register(self, connection: str, endpoints: Endpoints, address: str) -> _Registered:
        method = next((each for each in _METHODS if each in endpoints.auth_methods), "none")
        told = f"{endpoints.issuer}, where connection '{connection}' signs in,"
        try:
            answer = await self._outgoing.send(
                "POST",
                address,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                content=json.dumps(self._metadata(method)).encode(),
            )
        except (AddressRefused, RequestRejected) as error:
            raise ConnectionMisconfigured(f"{told} cannot be asked to register Byline: {error}") from None
        if answer.status >= 500 or answer.status == 429:
            raise UpstreamUnavailable(f"{told} does not register clients now.", status=answer.status)
        try:
            registered = _Registered.model_validate_json(answer.body)
        except ValidationError:
            raise ConnectionMisconfigured(
                f"{told} does not register Byline ({answer.status}): register it there, and write client_id."
            ) from None
        return registered.model_copy(
            update={"token_endpoint_auth_method": registered.token_endpoint_auth_method or method}
        )

    def _metadata(self, method: str) -> dict[str, Any]:
        return {
            "client_name": "Byline",
            "client_uri": self._public_url,
            "redirect_uris": [self._redirect_uri],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": method,
            "application_type": "web" if self._public_url.startswith("https://") else "native",
        }

    async def _row(self, issuer: str, registered: _Registered) -> UpstreamClientRow:
        ends = registered.client_secret_expires_at
        return UpstreamClientRow(
            issuer=issuer,
            redirect_uri=self._redirect_uri,
            client_id=registered.client_id,
            sealed_registration=await self._vault.seal(
                registered.model_dump_json().encode(), _bound_to(issuer)
            ),
            created_at=now(),
            expires_at=datetime.fromtimestamp(ends, UTC) if ends else None,
        )


def _identity(registered: _Registered) -> ClientIdentity:
    method = registered.token_endpoint_auth_method or "none"
    secret = None if method == "none" else registered.client_secret
    return ClientIdentity(registered.client_id, method, secret, is_registered=True)


def _bound_to(issuer: str) -> str:
    return f"upstream_client:{issuer}"
