"""Finds a provider's endpoints in its connection's declaration or in its issuer's metadata (RFC 8414)."""

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from cachetools import TTLCache
from pydantic import HttpUrl

from engine.connections.connection import Connection, ProviderDeclaration
from engine.errors import AddressRefused, ConnectionMisconfigured, UpstreamUnavailable
from engine.oauth.issuer_metadata import (
    AuthorizationServerMetadata,
    IssuerMismatched,
    list_metadata_urls,
    validate_metadata,
)
from engine.oauth.protected_resource import ProtectedResources
from engine.outgoing.client import OutgoingClient

_METADATA_CACHE_SECONDS: Final = 3600.0
_MAX_CACHED_ISSUERS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ProviderEndpoints:
    """The endpoints of a provider that Byline uses, None for those that it lacks, and its other metadata.

    `scopes` are those that a protected resource asks for. They are used if its connection declares none.
    """

    authorization_endpoint: str
    token_endpoint: str
    pushed_authorization_request_endpoint: str | None
    revocation_endpoint: str | None
    userinfo_endpoint: str | None
    device_authorization_endpoint: str | None
    issuer: str | None
    is_iss_required: bool
    registration_endpoint: str | None = None
    is_client_document_supported: bool = False
    auth_methods: tuple[str, ...] = ()
    resource: str | None = None
    scopes: tuple[str, ...] = ()


class Discovery:
    """Reads an issuer's metadata at most once an hour, with the HTTP client that calls no private network."""

    def __init__(self, outgoing: OutgoingClient) -> None:
        self.outgoing = outgoing
        self._metadata_by_issuer = TTLCache[str, AuthorizationServerMetadata](
            _MAX_CACHED_ISSUERS, _METADATA_CACHE_SECONDS
        )
        self._protected_resources = ProtectedResources(outgoing)

    async def find_endpoints(self, connection: Connection) -> ProviderEndpoints:
        """Return the endpoints of a connection. A declared endpoint takes precedence over a discovered one.

        Raises ConnectionMisconfigured if the metadata is missing or invalid, and UpstreamUnavailable if it cannot be
        fetched now.
        """
        provider = connection.provider
        if connection.mcp is not None:
            return await self._find_resource_endpoints(connection, str(connection.mcp.url))
        if not provider.is_discovered:
            return _merge_endpoints(provider, provider.model_dump())
        metadata = await self._find_metadata(connection.name, provider.issuer or "")
        _require_pkce_support(connection, metadata)
        return _merge_endpoints(provider, metadata.model_dump())

    async def _find_resource_endpoints(self, connection: Connection, server_url: str) -> ProviderEndpoints:
        """Return the endpoints of the authorization server that an MCP server names, with its resource and scopes."""
        protected_resource = await self._protected_resources.find_resource(connection.name, server_url)
        issuer = protected_resource.select_issuer(connection.name, connection.provider.issuer)
        metadata = await self._find_metadata(connection.name, issuer, is_issuer_discovered=True)
        if metadata.code_challenge_methods_supported is None:
            # MCP authorization: a server that does not advertise PKCE is taken not to support it, so clients stop here.
            raise ConnectionMisconfigured(
                f"{metadata.issuer} does not say that it takes PKCE, without which nobody is sent there."
            )
        _require_pkce_support(connection, metadata)
        offline_scopes = {"offline_access"} & set(metadata.scopes_supported)
        return replace(
            _merge_endpoints(connection.provider, metadata.model_dump()),
            issuer=metadata.issuer,
            is_iss_required=metadata.authorization_response_iss_parameter_supported,
            registration_endpoint=_format_url(metadata.registration_endpoint),
            is_client_document_supported=metadata.client_id_metadata_document_supported,
            auth_methods=metadata.token_endpoint_auth_methods_supported,
            resource=protected_resource.identifier,
            scopes=tuple(dict.fromkeys((*protected_resource.scopes, *offline_scopes))),
        )

    async def _find_metadata(
        self, connection_name: str, issuer: str, *, is_issuer_discovered: bool = False
    ) -> AuthorizationServerMetadata:
        metadata = self._metadata_by_issuer.get(issuer)
        if metadata is None:
            metadata = await self._fetch_metadata(
                connection_name, issuer, is_issuer_discovered=is_issuer_discovered
            )
            self._metadata_by_issuer[issuer] = metadata
        return metadata

    async def _fetch_metadata(
        self, connection_name: str, issuer: str, *, is_issuer_discovered: bool
    ) -> AuthorizationServerMetadata:
        for metadata_url in list_metadata_urls(issuer):
            try:
                http_response = await self.outgoing.send_request(
                    "GET", metadata_url, headers={"Accept": "application/json"}
                )
            except AddressRefused as error:
                raise ConnectionMisconfigured(
                    f"The issuer of connection '{connection_name}' cannot be asked: {error}"
                ) from None
            if http_response.status_code == 200:
                return await self._require_callable_endpoints(
                    connection_name,
                    _read_metadata(
                        connection_name, issuer, http_response.body, is_issuer_discovered=is_issuer_discovered
                    ),
                )
            if http_response.status_code >= 500:
                raise UpstreamUnavailable(
                    f"The issuer of connection '{connection_name}', {issuer}, failed ({http_response.status_code}).",
                    status_code=http_response.status_code,
                )
        raise ConnectionMisconfigured(
            f"{issuer} publishes no metadata: declare the endpoints of connection '{connection_name}' one by one."
        )

    async def _require_callable_endpoints(
        self, connection_name: str, metadata: AuthorizationServerMetadata
    ) -> AuthorizationServerMetadata:
        """Return the metadata if every address in it may be called. Raises ConnectionMisconfigured otherwise.

        The author of an issuer's metadata is not trusted, and must not make Byline call addresses inside its own
        network.
        """
        for member_name, endpoint_url in metadata:
            if isinstance(endpoint_url, HttpUrl):
                try:
                    await self.outgoing.require_callable_url(str(endpoint_url))
                except AddressRefused as error:
                    raise ConnectionMisconfigured(
                        f"The {member_name} that the issuer of connection '{connection_name}' "
                        f"publishes is not called: {error}"
                    ) from None
        return metadata


def _merge_endpoints(provider: ProviderDeclaration, discovered_members: dict[str, Any]) -> ProviderEndpoints:
    def find_endpoint(member_name: str) -> str | None:
        endpoint_url = getattr(provider, member_name) or discovered_members.get(member_name)
        return None if endpoint_url is None else str(endpoint_url)

    return ProviderEndpoints(
        authorization_endpoint=find_endpoint("authorization_endpoint") or "",
        token_endpoint=find_endpoint("token_endpoint") or "",
        pushed_authorization_request_endpoint=find_endpoint("pushed_authorization_request_endpoint"),
        revocation_endpoint=find_endpoint("revocation_endpoint"),
        userinfo_endpoint=find_endpoint("userinfo_endpoint"),
        device_authorization_endpoint=find_endpoint("device_authorization_endpoint")
        if provider.device
        else None,
        issuer=provider.issuer,
        is_iss_required=provider.iss_required,
        auth_methods=tuple(discovered_members.get("token_endpoint_auth_methods_supported", ())),
        resource=provider.resource,
    )


def _format_url(endpoint_url: HttpUrl | None) -> str | None:
    return None if endpoint_url is None else str(endpoint_url)


def _read_metadata(
    connection_name: str, issuer: str, response_body: bytes, *, is_issuer_discovered: bool
) -> AuthorizationServerMetadata:
    try:
        return validate_metadata(
            AuthorizationServerMetadata,
            issuer,
            json.loads(response_body),
            is_issuer_discovered=is_issuer_discovered,
        )
    except IssuerMismatched:
        raise ConnectionMisconfigured(
            f"The issuer of connection '{connection_name}' is not '{issuer}' by its own name: write exactly that."
        ) from None
    except (ValueError, RecursionError):
        raise ConnectionMisconfigured(
            f"What {issuer} publishes is no metadata: declare the endpoints of connection "
            f"'{connection_name}' one by one."
        ) from None


def _require_pkce_support(connection: Connection, metadata: AuthorizationServerMetadata) -> None:
    challenge_methods = metadata.code_challenge_methods_supported
    if connection.provider.pkce and challenge_methods is not None and "S256" not in challenge_methods:
        raise ConnectionMisconfigured(
            f"{metadata.issuer} takes no PKCE challenge of method S256, which connection '{connection.name}' needs."
        )
