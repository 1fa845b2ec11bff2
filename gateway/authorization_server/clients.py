"""OAuth clients as the authorization server meets them: registered by an administrator or, RFC 7591, by themselves."""

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


class Clients:
    """The registered clients, each for whatever scopes there are today."""

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
            # What the policy asks for with a tool may change after a client registered.
            "scope": self._scopes,
        }
        return Client.model_validate({**row.metadata_, **ours})

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
        said = client.model_dump(mode="json", exclude_none=True, exclude={"client_secret", "backend"})
        row = await self._registered.row(client.client_id, said, client.client_secret, registered_by="itself")
        async with self._database.writing() as session:
            await session.exec(delete(OAuthClientRow).where(by_itself, unused | left))
            count = select(func.count()).select_from(OAuthClientRow).where(by_itself, recent)
            if (await session.exec(count)).one() >= self._an_hour_takes:
                raise TooSoon(f"{self._an_hour_takes} clients registered within the hour. Try again later.")
            session.add(row)

    async def note_use(self, client_id: str) -> None:
        """Remember that the client is in use, as of today."""
        stale = col(OAuthClientRow.used_at).is_(None) | (col(OAuthClientRow.used_at) < now() - _A_DAY)
        used = update(OAuthClientRow).where(col(OAuthClientRow.client_id) == client_id, stale)
        async with self._database.writing() as session:
            await session.exec(used.values(used_at=now()))
