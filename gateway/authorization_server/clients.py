"""The OAuth clients of the authorization server, registered by an administrator or by themselves (RFC 7591)."""

from collections.abc import Sequence
from typing import Any, Literal

from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl
from typing_extensions import override

from gateway.authorization_server import redirect_uris
from gateway.authorization_server.client_records import ClientRecords, TrustedBackend, read_backend


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
        client_records: ClientRecords,
        *,
        scope_names: Sequence[str],
        max_registrations_per_hour: int,
    ) -> None:
        self._client_records = client_records
        self._scope_text = " ".join(scope_names)
        self._max_registrations_per_hour = max_registrations_per_hour

    async def find_client(self, client_id: str) -> ClientInformation | None:
        """The registered client with this id."""
        client_row = await self._client_records.find_client(client_id)
        if client_row is None:
            return None
        own_metadata: dict[str, Any] = {
            "client_secret": await self._client_records.open_secret(client_row),
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
        client_metadata = oauth_client.model_dump(
            mode="json", exclude_none=True, exclude={"client_secret", "backend"}
        )
        await self._client_records.add_self_registered_client(
            oauth_client.client_id,
            client_metadata,
            oauth_client.client_secret,
            self._max_registrations_per_hour,
        )

    async def record_use(self, client_id: str) -> None:
        """Record that the client is in use, at most once a day."""
        await self._client_records.record_use(client_id)
