"""Reads an MCP server's protected resource metadata (RFC 9728): its authorization servers and scopes."""

import json
import re
from dataclasses import dataclass
from typing import Final

import httpx2
from cachetools import TTLCache
from pydantic import BaseModel, Field, ValidationError

from engine.errors import AddressRefused, ConnectionMisconfigured, RequestRejected, UpstreamUnavailable
from engine.outgoing.client import OutgoingClient, OutgoingResponse

_METADATA_CACHE_SECONDS: Final = 3600.0
_MAX_CACHED_RESOURCES: Final = 1_000
_WELL_KNOWN_PATH: Final = "/.well-known/oauth-protected-resource"
_CHALLENGE_PATTERN: Final = re.compile(r'(resource_metadata|scope)="([^"]*)"')
_INITIALIZE_REQUEST: Final = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "Byline", "version": "1"},
    },
}


class _ResourceMetadata(BaseModel):
    """The members of a protected resource's metadata that Byline reads (RFC 9728 section 2)."""

    resource: str
    authorization_servers: tuple[str, ...] = Field(min_length=1)
    scopes_supported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """A protected resource: its identifier (RFC 8707), its authorization servers, and the scopes to request."""

    identifier: str
    issuers: tuple[str, ...]
    scopes: tuple[str, ...]

    def select_issuer(self, connection_name: str, declared_issuer: str | None) -> str:
        """Return the authorization server to use: the one that the connection declares, or the first.

        Raises ConnectionMisconfigured if the declared one is not among those that the resource names.
        """
        if declared_issuer is None:
            return self.issuers[0]
        if declared_issuer not in self.issuers:
            raise ConnectionMisconfigured(
                f"The server of connection '{connection_name}' takes no tokens of {declared_issuer}: correct issuer."
            )
        return declared_issuer


class ProtectedResources:
    """Reads each server's metadata at most once an hour, with the HTTP client that calls no private network."""

    def __init__(self, outgoing: OutgoingClient) -> None:
        self._outgoing = outgoing
        self._resources_by_url = TTLCache[str, ProtectedResource](
            _MAX_CACHED_RESOURCES, _METADATA_CACHE_SECONDS
        )

    async def find_resource(self, connection_name: str, server_url: str) -> ProtectedResource:
        """Return the metadata of the server at this URL.

        Raises ConnectionMisconfigured if it is missing or invalid, and UpstreamUnavailable if the server fails.
        """
        protected_resource = self._resources_by_url.get(server_url)
        if protected_resource is None:
            protected_resource = await self._fetch_resource(connection_name, server_url)
            self._resources_by_url[server_url] = protected_resource
        return protected_resource

    async def _fetch_resource(self, connection_name: str, server_url: str) -> ProtectedResource:
        challenge = await self._fetch_challenge(connection_name, server_url)
        for metadata_url in _list_metadata_urls(server_url, challenge.get("resource_metadata")):
            http_response = await self._send_request(connection_name, "GET", metadata_url)
            if http_response.status_code == 200:
                metadata = _validate_metadata(connection_name, server_url, http_response.body)
                scopes = tuple(challenge.get("scope", "").split()) or metadata.scopes_supported
                return ProtectedResource(metadata.resource, metadata.authorization_servers, scopes)
        raise ConnectionMisconfigured(
            f"{server_url} does not say who signs people in: connection '{connection_name}' "
            "needs a provider of its own."
        )

    async def _fetch_challenge(self, connection_name: str, server_url: str) -> dict[str, str]:
        """Return the parameters of the challenge that the server sends without a token (RFC 9728 section 5.1)."""
        http_response = await self._send_request(
            connection_name, "POST", server_url, json.dumps(_INITIALIZE_REQUEST).encode()
        )
        if http_response.status_code >= 500:
            raise UpstreamUnavailable(
                f"The server of connection '{connection_name}' failed ({http_response.status_code}).",
                status_code=http_response.status_code,
            )
        if http_response.status_code != 401:
            raise ConnectionMisconfigured(
                f"{server_url} asks nobody to sign in ({http_response.status_code}): "
                f"connection '{connection_name}' is not needed for it."
            )
        return dict(_CHALLENGE_PATTERN.findall(http_response.headers.get("WWW-Authenticate", "")))

    async def _send_request(
        self, connection_name: str, http_method: str, target_url: str, request_body: bytes | None = None
    ) -> OutgoingResponse:
        headers = {"Accept": "application/json, text/event-stream"}
        if request_body is not None:
            headers["Content-Type"] = "application/json"
        try:
            return await self._outgoing.send_request(
                http_method, target_url, headers=headers, content=request_body
            )
        except (AddressRefused, RequestRejected) as error:
            raise ConnectionMisconfigured(
                f"The server of connection '{connection_name}' cannot be asked who signs people in: {error}"
            ) from None


def _list_metadata_urls(server_url: str, challenge_url: str | None) -> list[str]:
    """Return the URLs to try for metadata: the one in the challenge, the well-known path, the well-known root."""
    parsed_url = httpx2.URL(server_url)
    origin = f"{parsed_url.scheme}://{parsed_url.netloc.decode('ascii')}"
    candidate_urls = (
        challenge_url,
        f"{origin}{_WELL_KNOWN_PATH}{parsed_url.path.rstrip('/')}",
        f"{origin}{_WELL_KNOWN_PATH}",
    )
    return list(dict.fromkeys(candidate_url for candidate_url in candidate_urls if candidate_url))


def _validate_metadata(connection_name: str, server_url: str, response_body: bytes) -> _ResourceMetadata:
    try:
        metadata = _ResourceMetadata.model_validate(json.loads(response_body))
        resource_url, parsed_server_url = httpx2.URL(metadata.resource), httpx2.URL(server_url)
    except (ValidationError, ValueError, RecursionError, httpx2.InvalidURL):
        raise ConnectionMisconfigured(
            f"What the server of connection '{connection_name}' publishes of itself cannot be read."
        ) from None
    is_within_resource = f"{parsed_server_url.path.rstrip('/')}/".startswith(
        f"{resource_url.path.rstrip('/')}/"
    )
    if (resource_url.scheme, resource_url.netloc) != (
        parsed_server_url.scheme,
        parsed_server_url.netloc,
    ) or not is_within_resource:
        # Otherwise a server could obtain tokens that are valid at another resource (RFC 9728 section 3.3).
        raise ConnectionMisconfigured(
            f"The server of connection '{connection_name}' is another by its own name: write exactly its own address."
        )
    return metadata
