"""Finds a gateway's sign-in service by its metadata (RFC 9728, RFC 8414), and refuses metadata that does not fit.

It reads with the models and checks of the MCP SDK, not with those of `engine.oauth`: the command line knows a gateway
as any MCP client does, and loads nothing of the engine that it can do without.
"""

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

from gateway.client.command_errors import CommandFailed, GatewayUnreachable, UsageInvalid
from gateway.client.credentials_file import ClientRegistration
from gateway.client.gateway_client import API_PATH

CLIENT_NAME: Final = "Byline command line"
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class SignInService:
    """A gateway's authorization server, the scopes to request, and the gateway's resource identifier (RFC 8707)."""

    resource: str
    scope: str | None
    server_metadata: OAuthMetadata

    @property
    def issuer(self) -> str:
        """The issuer identifier of the authorization server."""
        return str(self.server_metadata.issuer)


def discover_sign_in_service(gateway_url: str, http_client: httpx2.Client) -> SignInService:
    """Return the sign-in service of a gateway.

    Raises GatewayUnreachable, UsageInvalid if the gateway names another address as its own, and CommandFailed if the
    metadata is missing or invalid.
    """
    resource_url = f"{gateway_url}{API_PATH}"
    resource_metadata = _fetch_first_document(
        http_client,
        build_protected_resource_metadata_discovery_urls(None, resource_url)[:1],
        ProtectedResourceMetadata,
    )
    if resource_metadata is None:
        raise CommandFailed(
            f"{gateway_url} does not say where to sign in. Is it the address of a Byline gateway?"
        )
    if str(resource_metadata.resource).rstrip("/") != resource_url:
        advertised_url = str(resource_metadata.resource).removesuffix(API_PATH)
        raise UsageInvalid(f"The gateway at {gateway_url} calls itself {advertised_url}: use that address.")
    issuer = str(resource_metadata.authorization_servers[0])
    metadata_urls = build_oauth_authorization_server_metadata_discovery_urls(issuer, gateway_url)
    server_metadata = _fetch_first_document(http_client, metadata_urls, OAuthMetadata)
    if server_metadata is None:
        raise CommandFailed(f"The sign-in service {issuer} does not describe itself (RFC 8414).")
    try:
        validate_metadata_issuer(server_metadata, issuer)
    except OAuthFlowError as error:
        raise CommandFailed(f"The sign-in service {issuer} gives another name in its metadata.") from error
    for endpoint_url in (server_metadata.authorization_endpoint, server_metadata.token_endpoint):
        if not is_safe_url(str(endpoint_url)):
            raise CommandFailed(
                f"The sign-in service {issuer} is asked over {endpoint_url}, which is not encrypted."
            )
    return SignInService(resource_url, _select_scope(resource_metadata, server_metadata), server_metadata)


def register_client(
    sign_in_service: SignInService, http_client: httpx2.Client, redirect_uri: str
) -> ClientRegistration:
    """Register this program as an OAuth client (RFC 7591). Raises UsageInvalid if the service takes none."""
    if sign_in_service.server_metadata.registration_endpoint is None:
        raise UsageInvalid(
            f"The sign-in service {sign_in_service.issuer} takes no registrations. Have this "
            "program registered there as a"
            f" public client with the redirect URI {redirect_uri}, and set BYLINE_CLIENT_ID."
        )
    client_metadata = OAuthClientMetadata(
        client_name=CLIENT_NAME,
        redirect_uris=[AnyUrl(redirect_uri)],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
        scope=sign_in_service.scope,
        application_type="native",
    )
    request_body = client_metadata.model_dump(mode="json", exclude_none=True)
    try:
        response = http_client.post(
            str(sign_in_service.server_metadata.registration_endpoint), json=request_body
        )
    except httpx2.HTTPError as error:
        raise GatewayUnreachable(f"The sign-in service {sign_in_service.issuer} does not answer.") from error
    try:
        registered_client = OAuthClientInformationFull.model_validate_json(response.content)
    except ValidationError as error:
        raise CommandFailed(
            f"The sign-in service {sign_in_service.issuer} did not register this program. Have "
            "it registered there, and set"
            " BYLINE_CLIENT_ID."
        ) from error
    return ClientRegistration(issuer=sign_in_service.issuer, client_id=registered_client.client_id)


def is_safe_url(url: str) -> bool:
    """Whether a credential may be sent to this URL: it is encrypted, or it does not leave this computer."""
    url_parts = urlsplit(url)
    return url_parts.scheme == "https" or (
        url_parts.scheme == "http" and url_parts.hostname in _LOOPBACK_HOSTS
    )


def _fetch_first_document(
    http_client: httpx2.Client, metadata_urls: list[str], document_type: type[M]
) -> M | None:
    """Return the first document of this type at one of the addresses, or None."""
    return next(_fetch_documents(http_client, metadata_urls, document_type), None)


def _fetch_documents(
    http_client: httpx2.Client, metadata_urls: list[str], document_type: type[M]
) -> Iterator[M]:
    for metadata_url in metadata_urls:
        try:
            response = http_client.get(metadata_url, headers={"Accept": "application/json"})
        except httpx2.HTTPError as error:
            raise GatewayUnreachable(f"{metadata_url} does not answer ({type(error).__name__}).") from error
        if response.status_code >= 500:
            raise GatewayUnreachable(f"{metadata_url} fails ({response.status_code}).")
        try:
            if response.is_success:
                yield document_type.model_validate_json(response.content)
        except ValidationError:
            continue


def _select_scope(resource_metadata: ProtectedResourceMetadata, server_metadata: OAuthMetadata) -> str | None:
    """Return the scopes that the gateway needs, with `offline_access` if the service offers it for refresh tokens."""
    scopes = list(resource_metadata.scopes_supported or [])
    offered_scopes = server_metadata.scopes_supported or []
    if not scopes and "openid" in offered_scopes:
        scopes.append("openid")
    if "offline_access" in offered_scopes:
        scopes.append("offline_access")
    return " ".join(scopes) or None
