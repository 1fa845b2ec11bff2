"""The OAuth clients of the authorization server, registered by an administrator or by themselves (RFC 7591)."""

from datetime import timedelta
from typing import Any, Final, Literal

from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl
from sqlalchemy import delete, func, update
from sqlmodel import col, select
from typing_extensions import override

from engine.db.database import now
from engine.db.tables import OAuthClientRow
from engine.errors import TooSoon
from engine.services import Services
from gateway.authorization_server import redirects
from gateway.authorization_server.registered_clients import Backend, RegisteredClients, backend_of
from gateway.protected_resource import all_scopes

_FORGOTTEN_UNUSED: Final = timedelta(days=1)
_FORGOTTEN: Final = timedelta(days=90)
_A_DAY: Final = timedelta(days=1)


class Client(OAuthClientInformationFull):
    """An OAuth client. Its loopback redirect URIs may use any port (RFC 8252 section 7.3)."""

    known_by: Literal["itself", "administrator", "document"] = "itself"
    """Where the client's metadata came from: itself, an administrator, or the document at its client id."""
    backend: Backend | None = None

    @property
    def title(self) -> str:
        """The client's own name for itself, which is unverified unless an administrator registered the client."""
        return self.client_name or self.client_id

    def is_sure_at(self, redirect_uri: AnyUrl) -> bool:
        """Whether a code sent to this redirect URI reaches only this client (RFC 8252 section 8.6)."""
        return redirect_uri.scheme == "https" or self.client_secret is not None

    @override
    def validate_redirect_uri(self, redirect_uri: AnyUrl | None) -> AnyUrl:
        """Return the redirect URI to use; raises InvalidRedirectUriError for one that is not registered.

        The ports of loopback redirect URIs are not compared.
        """
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


class Clients:
    """The registered clients. Each may ask for every scope that exists today."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._registered = RegisteredClients(services)
        self._scopes = " ".join(all_scopes(services))
        self._an_hour_takes = services.settings.gateway.registrations_per_hour

    async def get(self, client_id: str) -> Client | None:
        """The registered client with this id."""
        async with self._database.reading() as session:
            row = await session.get(OAuthClientRow, client_id)
        if row is None:
            return None
        ours: dict[str, Any] = {
            "client_secret": await self._registered.secret_of(row),
            "backend": backend_of(row),
            "known_by": row.registered_by,
            # The scopes that the policy requires for tools may change after a client registered.
            "scope": self._scopes,
        }
        return Client.model_validate({**row.metadata_, **ours})

    async def register(self, client: OAuthClientInformationFull) -> None:
        """Store a client that registers itself, with every scope, and delete such clients that nobody uses.

        Raises RegistrationError where a redirect URI is not fit to carry a code, and TooSoon where as many clients
        registered within the hour as settings allow.
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
        said = client.model_dump(mode="json", exclude_none=True, exclude={"client_secret", "backend"})
        row = await self._registered.row(client.client_id, said, client.client_secret, registered_by="itself")
        async with self._database.writing() as session:
            await session.exec(delete(OAuthClientRow).where(by_itself, unused | left))
            count = select(func.count()).select_from(OAuthClientRow).where(by_itself, recent)
            if (await session.exec(count)).one() >= self._an_hour_takes:
                raise TooSoon(f"{self._an_hour_takes} clients registered within the hour. Try again later.")
            session.add(row)

    async def note_use(self, client_id: str) -> None:
        """Record that the client is in use, at most once a day."""
        stale = col(OAuthClientRow.used_at).is_(None) | (col(OAuthClientRow.used_at) < now() - _A_DAY)
        used = update(OAuthClientRow).where(col(OAuthClientRow.client_id) == client_id, stale)
        async with self._database.writing() as session:
            await session.exec(used.values(used_at=now()))
