"""Reads an MCP server's protected resource metadata (RFC 9728): its authorization servers and scopes."""

import json
import re
import time
from dataclasses import dataclass
from typing import Final

import httpx2
from pydantic import BaseModel, Field, ValidationError

from engine.errors import AddressRefused, ConnectionMisconfigured, RequestRejected, UpstreamUnavailable
from engine.outgoing.client import Answer, Outgoing

_KEPT_SECONDS: Final = 3600.0
_WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
_CHALLENGED: Final = re.compile(r'(resource_metadata|scope)="([^"]*)"')
_HELLO: Final = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "Byline", "version": "1"},
    },
}


class _Metadata(BaseModel):
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

    def issuer(self, connection: str, wanted: str | None) -> str:
        """Return the authorization server to use: the one that the connection declares, or the first.

        Raises ConnectionMisconfigured if the declared one is not among those that the resource names.
        """
        if wanted is None:
            return self.issuers[0]
        if wanted not in self.issuers:
            raise ConnectionMisconfigured(
                f"The server of connection '{connection}' takes no tokens of {wanted}: correct issuer."
            )
        return wanted


class ProtectedResources:
    """Reads each server's metadata at most once an hour, with the HTTP client that calls no private network."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._read: dict[str, tuple[float, ProtectedResource]] = {}

    async def read(self, connection: str, url: str) -> ProtectedResource:
        """Return the metadata of the server at this URL.

        Raises ConnectionMisconfigured if it is missing or invalid, and UpstreamUnavailable if the server fails.
        """
        read_at, resource = self._read.get(url, (float("-inf"), None))
        if resource is None or time.monotonic() - read_at > _KEPT_SECONDS:
            resource = await self._ask(connection, url)
            self._read[url] = (time.monotonic(), resource)
        return resource

    async def _ask(self, connection: str, url: str) -> ProtectedResource:
        challenge = await self._challenge(connection, url)
        for address in _places(url, challenge.get("resource_metadata")):
            answer = await self._send(connection, "GET", address)
            if answer.status == 200:
                metadata = _checked(connection, url, answer.body)
                scopes = tuple(challenge.get("scope", "").split()) or metadata.scopes_supported
                return ProtectedResource(metadata.resource, metadata.authorization_servers, scopes)
        raise ConnectionMisconfigured(
            f"{url} does not say who signs people in: connection '{connection}' needs a provider of its own."
        )

    async def _challenge(self, connection: str, url: str) -> dict[str, str]:
        """Return the parameters of the challenge that the server sends without a token (RFC 9728 section 5.1)."""
        answer = await self._send(connection, "POST", url, json.dumps(_HELLO).encode())
        if answer.status >= 500:
            raise UpstreamUnavailable(
                f"The server of connection '{connection}' failed ({answer.status}).", status=answer.status
            )
        if answer.status != 401:
            raise ConnectionMisconfigured(
                f"{url} asks nobody to sign in ({answer.status}): connection '{connection}' is not needed for it."
            )
        return dict(_CHALLENGED.findall(answer.headers.get("WWW-Authenticate", "")))

    async def _send(self, connection: str, method: str, address: str, content: bytes | None = None) -> Answer:
        headers = {"Accept": "application/json, text/event-stream"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            return await self._outgoing.send(method, address, headers=headers, content=content)
        except (AddressRefused, RequestRejected) as error:
            raise ConnectionMisconfigured(
                f"The server of connection '{connection}' cannot be asked who signs people in: {error}"
            ) from None


def _places(url: str, named: str | None) -> list[str]:
    """Return the URLs to try for metadata: the one in the challenge, the well-known path, the well-known root."""
    parsed = httpx2.URL(url)
    origin = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"
    found = (named, f"{origin}{_WELL_KNOWN}{parsed.path.rstrip('/')}", f"{origin}{_WELL_KNOWN}")
    return list(dict.fromkeys(address for address in found if address))


def _checked(connection: str, url: str, body: bytes) -> _Metadata:
    try:
        metadata = _Metadata.model_validate(json.loads(body))
        resource, own = httpx2.URL(metadata.resource), httpx2.URL(url)
    except (ValidationError, ValueError, RecursionError, httpx2.InvalidURL):
        raise ConnectionMisconfigured(
            f"What the server of connection '{connection}' publishes of itself cannot be read."
        ) from None
    within = f"{own.path.rstrip('/')}/".startswith(f"{resource.path.rstrip('/')}/")
    if (resource.scheme, resource.netloc) != (own.scheme, own.netloc) or not within:
        # Otherwise a server could obtain tokens that are valid at another resource (RFC 9728 section 3.3).
        raise ConnectionMisconfigured(
            f"The server of connection '{connection}' is another by its own name: write exactly its own address."
        )
    return metadata
