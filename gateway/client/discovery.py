"""Finds a gateway's sign-in service by its metadata (RFC 9728, RFC 8414), and refuses metadata that does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx2
from mcp.client.auth import OAuthFlowError
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    validate_metadata_issuer,
)
from mcp.shared.auth import (
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    ProtectedResourceMetadata,
)
from pydantic import AnyUrl, BaseModel, ValidationError

from gateway.client.api import API_PATH
from gateway.client.failures import CommandFailed, GatewaySilent, WrongUse
from gateway.client.stored_tokens import Registration

CLIENT_NAME: Final = "Byline command line"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class SignInService:
    """A gateway's authorization server, the scopes to request, and the gateway's resource identifier (RFC 8707)."""

    resource: str
    scope: str | None
    metadata: OAuthMetadata

    @property
    def issuer(self) -> str:
        """The issuer identifier of the authorization server."""
        return str(self.metadata.issuer)


def discover(gateway: str, http: httpx2.Client) -> SignInService:
    """Return the sign-in service of a gateway.

    Raises GatewayUnreachable, UsageInvalid if the gateway names another address as its own, and CommandFailed if the
    metadata is missing or invalid.
    """
    resource = f"{gateway}{API_PATH}"
    described = _first(
        http, build_protected_resource_metadata_discovery_urls(None, resource)[:1], ProtectedResourceMetadata
    )
    if described is None:
        raise CommandFailed(
            f"{gateway} does not say where to sign in. Is it the address of a Byline gateway?"
        )
    if str(described.resource).rstrip("/") != resource:
        told = str(described.resource).removesuffix(API_PATH)
        raise WrongUse(f"The gateway at {gateway} calls itself {told}: use that address.")
    issuer = str(described.authorization_servers[0])
    places = build_oauth_authorization_server_metadata_discovery_urls(issuer, gateway)
    metadata = _first(http, places, OAuthMetadata)
    if metadata is None:
        raise CommandFailed(f"The sign-in service {issuer} does not describe itself (RFC 8414).")
    try:
        validate_metadata_issuer(metadata, issuer)
    except OAuthFlowError as error:
        raise CommandFailed(f"The sign-in service {issuer} gives another name in its metadata.") from error
    for endpoint in (metadata.authorization_endpoint, metadata.token_endpoint):
        if not is_safe(str(endpoint)):
            raise CommandFailed(
                f"The sign-in service {issuer} is asked over {endpoint}, which is not encrypted."
            )
    return SignInService(resource, _scope(described, metadata), metadata)


def register(service: SignInService, http: httpx2.Client, redirect_uri: str) -> Registration:
    """Register this program as an OAuth client (RFC 7591). Raises UsageInvalid if the service takes none."""
    if service.metadata.registration_endpoint is None:
        raise WrongUse(
            f"The sign-in service {service.issuer} takes no registrations. Have this program registered there as a"
            f" public client with the redirect URI {redirect_uri}, and set BYLINE_CLIENT_ID."
        )
    asked = OAuthClientMetadata(
        client_name=CLIENT_NAME,
        redirect_uris=[AnyUrl(redirect_uri)],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
        scope=service.scope,
        application_type="native",
    )
    body = asked.model_dump(mode="json", exclude_none=True)
    try:
        response = http.post(str(service.metadata.registration_endpoint), json=body)
    except httpx2.HTTPError as error:
        raise GatewaySilent(f"The sign-in service {service.issuer} does not answer.") from error
    try:
        client = OAuthClientInformationFull.model_validate_json(response.content)
    except ValidationError as error:
        raise CommandFailed(
            f"The sign-in service {service.issuer} did not register this program. Have it registered there, and set"
            " BYLINE_CLIENT_ID."
        ) from error
    return Registration(issuer=service.issuer, client_id=client.client_id)


def is_safe(url: str) -> bool:
    """Whether a credential may be sent to this URL: it is encrypted, or it does not leave this computer."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _first(http: httpx2.Client, addresses: list[str], kind: type[M]) -> M | None:
    """Return the first document of this type at one of the addresses, or None."""
    return next(_documents(http, addresses, kind), None)


def _documents(http: httpx2.Client, addresses: list[str], kind: type[M]) -> Iterator[M]:
    for address in addresses:
        try:
            response = http.get(address, headers={"Accept": "application/json"})
        except httpx2.HTTPError as error:
            raise GatewaySilent(f"{address} does not answer ({type(error).__name__}).") from error
        if response.status_code >= 500:
            raise GatewaySilent(f"{address} fails ({response.status_code}).")
        try:
            if response.is_success:
                yield kind.model_validate_json(response.content)
        except ValidationError:
            continue


def _scope(described: ProtectedResourceMetadata, metadata: OAuthMetadata) -> str | None:
    """Return the scopes that the gateway needs, with `offline_access` if the service offers it for refresh tokens."""
    scopes = list(described.scopes_supported or [])
    offered = metadata.scopes_supported or []
    if not scopes and "openid" in offered:
        scopes.append("openid")
    if "offline_access" in offered:
        scopes.append("offline_access")
    return " ".join(scopes) or None
