"""Registered MCP clients (RFC 7591) and trusted back ends: secrets lie sealed, no redirect URI could run code."""

import secrets
import uuid
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl, BaseModel
from sqlmodel import col, select
from typing_extensions import override

from engine.db.database import now
from engine.db.tables import OAuthClientRow
from engine.services import Services
from engine.vault.resealing import SealedColumn

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"

_LOOPBACK = frozenset({"127.0.0.1", "[::1]", "localhost"})
_NO_APPLICATION = frozenset({"javascript", "data", "file", "vbscript", "blob", "about", "ftp", "ws", "wss"})
_SEALED_SECRET = "byline_sealed_secret"
_BACKEND = "byline_backend"


class Backend(BaseModel):
    """What makes a client a trusted back end: an administrator registered it, and with whose tokens it may come."""

    audiences: tuple[str, ...] = ()
    """Audiences of an external issuer's tokens that were issued to this back end."""


class Client(OAuthClientInformationFull):
    """A client as registered; a program on the person's machine may listen on any port (RFC 8252 section 7.3)."""

    backend: Backend | None = None

    @property
    def title(self) -> str:
        """What the client calls itself, which nobody has checked."""
        return self.client_name or self.client_id

    @override
    def validate_redirect_uri(self, redirect_uri: AnyUrl | None) -> AnyUrl:
        """The redirect URI to use: a registered one but for a loopback port; raises InvalidRedirectUriError."""
        try:
            return super().validate_redirect_uri(redirect_uri)
        except InvalidRedirectUriError:
            registered = [_without_port(uri) for uri in self.redirect_uris or () if _is_loopback(uri)]
            if (
                redirect_uri is None
                or not _is_loopback(redirect_uri)
                or _without_port(redirect_uri) not in registered
            ):
                raise
            return redirect_uri


class _SealedSecret(SealedColumn):
    """The secret among a client's metadata."""

    def read(self, row: OAuthClientRow) -> bytes | None:
        """As SealedColumn says."""
        sealed = row.metadata_.get(_SEALED_SECRET)
        return None if sealed is None else b64decode(sealed)

    def write(self, row: OAuthClientRow, sealed: bytes) -> None:
        """As SealedColumn says."""
        row.metadata_ = {**row.metadata_, _SEALED_SECRET: b64encode(sealed).decode()}


class Clients:
    """Owner of the table of clients."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._vault = services.vault

    async def get(self, client_id: str) -> Client | None:
        """The client with this id."""
        async with self._database.reading() as session:
            row = await session.get(OAuthClientRow, client_id)
        if row is None:
            return None
        metadata = dict(row.metadata_)
        backend = metadata.pop(_BACKEND, None)
        sealed = metadata.pop(_SEALED_SECRET, None)
        secret = (
            None
            if sealed is None
            else (await self._vault.open(b64decode(sealed), _bound_to(client_id))).decode()
        )
        return Client.model_validate({**metadata, "client_secret": secret, "backend": backend})

    async def register(self, client: OAuthClientInformationFull) -> None:
        """Keep a new client; raises RegistrationError where a redirect URI is not fit to carry a code."""
        for uri in client.redirect_uris or ():
            problem = _problem(uri)
            if problem is not None:
                raise RegistrationError("invalid_redirect_uri", f"{uri}: {problem}")
        await self._keep(client, None)

    async def add_backend(self, name: str, audiences: Sequence[str]) -> tuple[str, str]:
        """Register a trusted back end; returns its id and its secret, of which the secret is not to be had again."""
        client_id, secret = str(uuid.uuid4()), secrets.token_urlsafe(32)
        client = OAuthClientInformationFull(
            client_id=client_id,
            client_secret=secret,
            client_name=name,
            token_endpoint_auth_method="client_secret_basic",
            grant_types=[TOKEN_EXCHANGE],
            response_types=[],
            redirect_uris=None,
        )
        await self._keep(client, Backend(audiences=tuple(audiences)))
        return client_id, secret

    async def backends(self) -> list[Client]:
        """Every trusted back end, the oldest first, without its secret."""
        query = select(OAuthClientRow).order_by(col(OAuthClientRow.created_at), col(OAuthClientRow.client_id))
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return [
            Client.model_validate({**row.metadata_, "backend": row.metadata_[_BACKEND]})
            for row in rows
            if _BACKEND in row.metadata_
        ]

    async def remove_backend(self, client_id: str) -> bool:
        """Forget a back end, and with it every token that it got; False where there is none with this id."""
        async with self._database.writing() as session:
            row = await session.get(OAuthClientRow, client_id)
            if row is None or _BACKEND not in row.metadata_:
                return False
            await session.delete(row)
        return True

    async def _keep(self, client: OAuthClientInformationFull, backend: Backend | None) -> None:
        """Keep a client; what it says of itself reaches none of our own keys, whatever they are called."""
        metadata = client.model_dump(mode="json", exclude_none=True, exclude={"client_secret", "backend"})
        metadata = {key: value for key, value in metadata.items() if key not in {_SEALED_SECRET, _BACKEND}}
        if backend is not None:
            metadata[_BACKEND] = backend.model_dump(mode="json")
        if client.client_secret is not None:
            sealed = await self._vault.seal(client.client_secret.encode(), _bound_to(client.client_id))
            metadata[_SEALED_SECRET] = b64encode(sealed).decode()
        async with self._database.writing() as session:
            session.add(OAuthClientRow(client_id=client.client_id, metadata_=metadata, created_at=now()))

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return _SealedSecret("clients", OAuthClientRow, "metadata_", lambda row: _bound_to(row.client_id))


def _problem(uri: AnyUrl) -> str | None:
    if uri.scheme in _NO_APPLICATION:
        return "this scheme leads to no application"
    if uri.fragment is not None:
        return "a redirect URI has no fragment"
    if uri.username is not None or uri.password is not None:
        return "a redirect URI holds no credentials"
    if uri.scheme == "http" and not _is_loopback(uri):
        return "use https, or a loopback address"
    return None


def _is_loopback(uri: AnyUrl) -> bool:
    return uri.scheme == "http" and uri.host in _LOOPBACK


def _without_port(uri: AnyUrl) -> tuple[str | None, str, str]:
    parts = urlsplit(str(uri))
    return uri.host, parts.path or "/", parts.query


def _bound_to(client_id: str) -> str:
    return f"oauth_client:{client_id}"
