"""The OAuth clients of the authorization server, registered by an administrator or by themselves (RFC 7591)."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Literal

from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl
from sqlalchemy import delete, func, update
from sqlmodel import col, select
from typing_extensions import override

from engine.db.database import Database, utc_now
from engine.db.tables import OAuthClientRow
from engine.errors import TooSoon
from gateway.authorization_server import redirect_uris
from gateway.authorization_server.registered_clients import RegisteredClients, TrustedBackend, read_backend

_NEVER_USED_RETENTION: Final = timedelta(days=1)
_LAST_USE_RETENTION: Final = timedelta(days=90)
_USE_RECORD_INTERVAL: Final = timedelta(days=1)


class ClientInformation(OAuthClientInformationFull):
    """An OAuth client. Its loopback redirect URIs may use any port (RFC 8252 section 7.3)."""

    known_by: Literal["itself", "administrator", "document"] = "itself"
    """Where the client's metadata came from: itself, an administrator, or the document at its client id."""
    backend: TrustedBackend | None = None

    @property
    def display_name(self) -> str:
        """The client's own name for itself, which is unverified unless an administrator registered the client."""
        return self.client_name or self.client_id

    def is_sole_receiver_at(self, redirect_uri: AnyUrl) -> bool:
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
            loopback_uris = [
                registered_uri
                for registered_uri in self.redirect_uris or ()
                if redirect_uris.is_loopback_uri(registered_uri)
            ]
            if (
                redirect_uri is None
                or not redirect_uris.is_loopback_uri(redirect_uri)
                or redirect_uris.strip_port(redirect_uri) not in map(redirect_uris.strip_port, loopback_uris)
            ):
                raise
            return redirect_uri


class OAuthClients:
    """The registered clients. Each may ask for every scope that exists today."""

    def __init__(
        self,
        database: Database,
        registered_clients: RegisteredClients,
        *,
        scope_names: Sequence[str],
        max_registrations_per_hour: int,
    ) -> None:
        self._database = database
        self._registered_clients = registered_clients
        self._scope_text = " ".join(scope_names)
        self._max_registrations_per_hour = max_registrations_per_hour

    async def find_client(self, client_id: str) -> ClientInformation | None:
        """The registered client with this id."""
        async with self._database.open_read_session() as db_session:
            client_row = await db_session.get(OAuthClientRow, client_id)
        if client_row is None:
            return None
        own_metadata: dict[str, Any] = {
            "client_secret": await self._registered_clients.open_secret(client_row),
            "backend": read_backend(client_row),
            "known_by": client_row.registered_by,
            # The scopes that the policy requires for tools may change after a client registered.
            "scope": self._scope_text,
        }
        return ClientInformation.model_validate({**client_row.metadata_, **own_metadata})

    async def register_client(self, oauth_client: OAuthClientInformationFull) -> None:
        """Store a client that registers itself, with every scope, and delete such clients that nobody uses.

        Raises RegistrationError where a redirect URI is not fit to carry a code, and TooSoon where as many clients
        registered within the hour as settings allow.
        """
        for redirect_uri in oauth_client.redirect_uris or ():
            uri_problem = redirect_uris.find_uri_problem(redirect_uri, oauth_client.application_type)
            if uri_problem is not None:
                raise RegistrationError("invalid_redirect_uri", f"{redirect_uri}: {uri_problem}")
        oauth_client.scope = self._scope_text
        registered_at = utc_now()
        self_registered = col(OAuthClientRow.registered_by) == "itself"
        never_used = col(OAuthClientRow.used_at).is_(None) & (
            col(OAuthClientRow.created_at) < registered_at - _NEVER_USED_RETENTION
        )
        long_unused = col(OAuthClientRow.used_at) < registered_at - _LAST_USE_RETENTION
        registered_recently = col(OAuthClientRow.created_at) > registered_at - timedelta(hours=1)
        client_metadata = oauth_client.model_dump(
            mode="json", exclude_none=True, exclude={"client_secret", "backend"}
        )
        client_row = await self._registered_clients.build_row(
            oauth_client.client_id, client_metadata, oauth_client.client_secret, registered_by="itself"
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(OAuthClientRow).where(self_registered, never_used | long_unused))
            count_statement = (
                select(func.count()).select_from(OAuthClientRow).where(self_registered, registered_recently)
            )
            if (await db_session.exec(count_statement)).one() >= self._max_registrations_per_hour:
                raise TooSoon(
                    f"{self._max_registrations_per_hour} clients registered within the hour. Try again later."
                )
            db_session.add(client_row)

    async def record_use(self, client_id: str) -> None:
        """Record that the client is in use, at most once a day."""
        outdated_use = col(OAuthClientRow.used_at).is_(None) | (
            col(OAuthClientRow.used_at) < utc_now() - _USE_RECORD_INTERVAL
        )
        update_statement = update(OAuthClientRow).where(
            col(OAuthClientRow.client_id) == client_id, outdated_use
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(update_statement.values(used_at=utc_now()))
