"""OAuth clients that registered themselves (RFC 7591) or that an administrator registered; their secrets lie sealed."""

import secrets
import uuid
from base64 import b64decode, b64encode
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Literal

from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import JWT_BEARER_GRANT_TYPE, InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl, BaseModel
from sqlalchemy import delete, func, update
from sqlmodel import col, select
from typing_extensions import override

from engine.db.database import now
from engine.db.tables import OAuthClientRow
from engine.errors import SettingsInvalid, TooSoon
from engine.services import Services
from engine.vault.resealing import SealedColumn
from gateway.authorization_server import redirects
from gateway.protected_resource import all_scopes

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"

_SEALED_SECRET: Final = "byline_sealed_secret"
_BACKEND: Final = "byline_backend"
_FORGOTTEN_UNUSED: Final = timedelta(days=1)
_FORGOTTEN: Final = timedelta(days=90)
_A_DAY: Final = timedelta(days=1)


class Backend(BaseModel):
    """What makes a client a trusted back end: an administrator registered it, and with whose tokens it may come."""

    audiences: tuple[str, ...] = ()
    """Audiences of an external issuer's tokens that were issued to this back end."""


class Client(OAuthClientInformationFull):
    """A client; a program on the person's machine may listen on any port (RFC 8252 section 7.3)."""

    known_by: Literal["itself", "administrator", "document"] = "itself"
    """Who says what it is: it registered itself, an administrator did, or the document at its client id tells."""
    backend: Backend | None = None

    @property
    def title(self) -> str:
        """What the client calls itself, which nobody has checked unless an administrator registered it."""
        return self.client_name or self.client_id

    def is_sure_at(self, redirect_uri: AnyUrl) -> bool:
        """Whether a code that is sent there reaches nobody but this client (RFC 8252 section 8.6)."""
        return redirect_uri.scheme == "https" or self.client_secret is not None

    @override
    def validate_redirect_uri(self, redirect_uri: AnyUrl | None) -> AnyUrl:
        """The redirect URI to use: a registered one but for a loopback port; raises InvalidRedirectUriError."""
        try:
            return super().validate_redirect_uri(redirect_uri)
        except InvalidRedirectUriError:
            loopback = [uri for uri in self.redirect_uris or () if redirects.is_loopback(uri)]
            if (
                redirect_uri is None
                or not redirects.is_loopback(redirect_uri)
                or redirects.without_port(redirect_uri) not in map(redirects.without_port, loopback)
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
    """Owner of the table of registered clients."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._vault = services.vault
        self._scopes = " ".join(all_scopes(services))
        self._an_hour_takes = services.settings.gateway.registrations_per_hour

    async def get(self, client_id: str) -> Client | None:
        """The registered client with this id."""
        async with self._database.reading() as session:
            row = await session.get(OAuthClientRow, client_id)
        if row is None:
            return None
        sealed = row.metadata_.get(_SEALED_SECRET)
        secret = (
            None
            if sealed is None
            else (await self._vault.open(b64decode(sealed), _bound_to(client_id))).decode()
        )
        return self._client(row, secret)

    async def register(self, client: OAuthClientInformationFull) -> None:
        """Keep a client that registers itself, for every scope there is, and forget those that nobody uses.

        Raises RegistrationError where a redirect URI is not fit to carry a code, and TooSoon where many came before.
        """
        for uri in client.redirect_uris or ():
            problem = redirects.problem(uri, client.application_type)
            if problem is not None:
                raise RegistrationError("invalid_redirect_uri", f"{uri}: {problem}")
        client.scope = self._scopes
        at = now()
        by_itself = col(OAuthClientRow.registered_by) == "itself"
        unused = col(OAuthClientRow.used_at).is_(None) & (
            col(OAuthClientRow.created_at) < at - _FORGOTTEN_UNUSED
        )
        left = col(OAuthClientRow.used_at) < at - _FORGOTTEN
        recent = col(OAuthClientRow.created_at) > at - timedelta(hours=1)
        row = await self._row(client, None, "itself")
        async with self._database.writing() as session:
            await session.exec(delete(OAuthClientRow).where(by_itself, unused | left))
            count = select(func.count()).select_from(OAuthClientRow).where(by_itself, recent)
            if (await session.exec(count)).one() >= self._an_hour_takes:
                msg = f"{self._an_hour_takes} clients registered within the hour. Try again later."
                raise TooSoon(msg)
            session.add(row)

    async def add(
        self, name: str, redirect_uris: Sequence[str], *, confidential: bool, asserts: bool
    ) -> tuple[str, str | None]:
        """Register a client as an administrator; returns its id, and its secret where it is to have one.

        Where it `asserts`, it may bring an enterprise's assertions. Raises SettingsInvalid for what does not fit.
        """
        uris = [_redirect_uri(uri) for uri in redirect_uris]
        if asserts and not confidential:
            raise SettingsInvalid("A client that brings assertions has to be confidential: add --secret.")
        if not uris and not asserts:
            msg = "Name at least one --redirect-uri, or --assertions for a client that brings nothing else."
            raise SettingsInvalid(msg)
        client = OAuthClientInformationFull(
            client_id=str(uuid.uuid4()),
            client_secret=secrets.token_urlsafe(32) if confidential else None,
            client_name=name,
            token_endpoint_auth_method="client_secret_basic" if confidential else "none",
            application_type="web" if uris and all(uri.scheme == "https" for uri in uris) else "native",
            grant_types=[
                *(["authorization_code", "refresh_token"] if uris else []),
                *([JWT_BEARER_GRANT_TYPE] if asserts else []),
            ],
            response_types=["code"] if uris else [],
            redirect_uris=uris or None,
        )
        await self._keep(await self._row(client, None, "administrator"))
        return client.client_id, client.client_secret

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
        await self._keep(await self._row(client, Backend(audiences=tuple(audiences)), "administrator"))
        return client_id, secret

    async def administered(self) -> list[Client]:
        """Every client that an administrator registered, the oldest first, without its secret."""
        query = (
            select(OAuthClientRow)
            .where(OAuthClientRow.registered_by == "administrator")
            .order_by(col(OAuthClientRow.created_at), col(OAuthClientRow.client_id))
        )
        async with self._database.reading() as session:
            return [self._client(row, None) for row in (await session.exec(query)).all()]

    async def remove(self, client_id: str) -> bool:
        """Forget a client that an administrator registered; False where there is none with this id."""
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

    async def note_use(self, client_id: str) -> None:
        """Remember that the client is in use, as of today."""
        stale = col(OAuthClientRow.used_at).is_(None) | (col(OAuthClientRow.used_at) < now() - _A_DAY)
        used = update(OAuthClientRow).where(col(OAuthClientRow.client_id) == client_id, stale)
        async with self._database.writing() as session:
            await session.exec(used.values(used_at=now()))

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return _SealedSecret("clients", OAuthClientRow, "metadata_", lambda row: _bound_to(row.client_id))

    async def _keep(self, row: OAuthClientRow) -> None:
        async with self._database.writing() as session:
            session.add(row)

    async def _row(
        self, client: OAuthClientInformationFull, backend: Backend | None, registered_by: str
    ) -> OAuthClientRow:
        """A client as stored; what it says of itself reaches none of our own keys, whatever they are called."""
        metadata = client.model_dump(mode="json", exclude_none=True, exclude={"client_secret", "backend"})
        metadata = {key: value for key, value in metadata.items() if key not in {_SEALED_SECRET, _BACKEND}}
        if backend is not None:
            metadata[_BACKEND] = backend.model_dump(mode="json")
        if client.client_secret is not None:
            sealed = await self._vault.seal(client.client_secret.encode(), _bound_to(client.client_id))
            metadata[_SEALED_SECRET] = b64encode(sealed).decode()
        return OAuthClientRow(
            client_id=client.client_id, metadata_=metadata, registered_by=registered_by, created_at=now()
        )

    def _client(self, row: OAuthClientRow, secret: str | None) -> Client:
        ours: dict[str, Any] = {
            "client_secret": secret,
            "backend": row.metadata_.get(_BACKEND),
            "known_by": row.registered_by,
            # What the policy asks for with a tool may change after a client registered.
            "scope": self._scopes,
        }
        return Client.model_validate({**row.metadata_, **ours})


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
