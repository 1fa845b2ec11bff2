"""Registers and removes OAuth clients for administrators. The command line uses it without a running gateway."""

import secrets
import uuid
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import AnyUrl, BaseModel, ConfigDict

from engine.audit.attribution import Administrator, attribute_event
from engine.audit.trail import AuditEvent, AuditTrail
from engine.errors import SettingsInvalid
from gateway.authorization_server import redirect_uris
from gateway.authorization_server.client_records import ClientRecords, TrustedBackend, read_backend

TOKEN_EXCHANGE_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT_BEARER_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"


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


class RegisteredClients:
    """Registers and removes clients for administrators, each with its line in the trail."""

    def __init__(self, client_records: ClientRecords, audit_trail: AuditTrail) -> None:
        self._client_records = client_records
        self._trail = audit_trail

    async def add_client(
        self,
        administrator: Administrator,
        client_name: str,
        redirect_uris: Sequence[str],
        *,
        is_confidential: bool,
        may_assert: bool,
    ) -> tuple[str, str | None]:
        """Register a client; returns its id, and its secret where it is confidential.

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
        await self._store_client(administrator, registered_client, client_secret)
        return registered_client.client_id, client_secret

    async def add_backend(
        self, administrator: Administrator, client_name: str, audiences: Sequence[str]
    ) -> tuple[str, str]:
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
        await self._store_client(administrator, registered_client, client_secret)
        return registered_client.client_id, client_secret

    async def list_clients(self) -> list[RegisteredClient]:
        """Return every client that an administrator registered, oldest first."""
        return [
            RegisteredClient.model_validate({**client_row.metadata_, "backend": read_backend(client_row)})
            for client_row in await self._client_records.list_clients_of_administrators()
        ]

    async def remove_client(self, administrator: Administrator, client_id: str) -> bool:
        """Delete a client that an administrator registered; False where there is none with this id."""
        audit_event = AuditEvent(kind="client.removed", object_id=client_id)
        async with self._trail.open_transaction() as transaction:
            is_removed = await self._client_records.remove_client_of_administrator(
                transaction.db_session, client_id
            )
            if is_removed:
                transaction.record(attribute_event(audit_event, administrator))
        return is_removed

    async def _store_client(
        self, administrator: Administrator, registered_client: RegisteredClient, client_secret: str | None
    ) -> None:
        client_metadata = registered_client.model_dump(mode="json", exclude_none=True, exclude={"backend"})
        grant_types = ", ".join(registered_client.grant_types)
        audit_event = AuditEvent(
            kind="client.registered",
            object_id=registered_client.client_id,
            message=f"'{registered_client.client_name}', for {grant_types}.",
        )
        async with self._trail.open_transaction() as transaction:
            await self._client_records.add_client(
                transaction.db_session,
                registered_client.client_id,
                client_metadata,
                client_secret,
                registered_by="administrator",
                trusted_backend=registered_client.backend,
            )
            transaction.record(attribute_event(audit_event, administrator))


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
