"""Finds a provider's endpoints in its connection's declaration or in its issuer's metadata (RFC 8414)."""

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import BaseModel, HttpUrl, ValidationError

from engine.connections.connection import Connection, Provider
from engine.connections.protected_resource import ProtectedResources
from engine.errors import AddressRefused, ConnectionMisconfigured, UpstreamUnavailable
from engine.outgoing.client import Outgoing

_KEPT_SECONDS: Final = 3600.0
_OPENID, _OAUTH = "openid-configuration", "oauth-authorization-server"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The endpoints of a provider that Byline uses, None for those that it lacks, and its other metadata.

    `scopes` are those that a protected resource asks for. They are used if its connection declares none.
    """

    authorization: str
    token: str
    pushed_authorization_request: str | None
    revocation: str | None
    userinfo: str | None
    device_authorization: str | None
    issuer: str | None
    iss_required: bool
    registration: str | None = None
    takes_client_documents: bool = False
    auth_methods: tuple[str, ...] = ()
    resource: str | None = None
    scopes: tuple[str, ...] = ()


class _Metadata(BaseModel):
    """The members of an issuer's metadata that Byline reads (RFC 8414 section 2 and its registry)."""

    issuer: str
    authorization_endpoint: HttpUrl
    token_endpoint: HttpUrl
    pushed_authorization_request_endpoint: HttpUrl | None = None
    revocation_endpoint: HttpUrl | None = None
    userinfo_endpoint: HttpUrl | None = None
    device_authorization_endpoint: HttpUrl | None = None
    registration_endpoint: HttpUrl | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False
    client_id_metadata_document_supported: bool = False
    scopes_supported: tuple[str, ...] = ()


class Discovery:
    """Reads an issuer's metadata at most once an hour, with the HTTP client that calls no private network."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self._read: dict[str, tuple[float, _Metadata]] = {}
        self._resources = ProtectedResources(outgoing)

    async def endpoints(self, connection: Connection) -> Endpoints:
        """Return the endpoints of a connection. A declared endpoint takes precedence over a discovered one.

        Raises ConnectionMisconfigured if the metadata is missing or invalid, and UpstreamUnavailable if it cannot be
        fetched now.
        """
        declared = connection.provider
        if connection.mcp is not None:
            return await self._of_resource(connection, str(connection.mcp.url))
        if not declared.is_discovered:
            return _endpoints(declared, declared.model_dump())
        metadata = await self._metadata(connection.name, declared.issuer or "")
        _take_the_challenge(connection, metadata)
        return _endpoints(declared, metadata.model_dump())

    async def _of_resource(self, connection: Connection, url: str) -> Endpoints:
        """Return the endpoints of the authorization server that an MCP server names, with its resource and scopes."""
        resource = await self._resources.read(connection.name, url)
        issuer = resource.issuer(connection.name, connection.provider.issuer)
        metadata = await self._metadata(connection.name, issuer, is_told=True)
        if metadata.code_challenge_methods_supported is None:
            # MCP authorization: a server that does not advertise PKCE is taken not to support it, so clients stop here.
            raise ConnectionMisconfigured(
                f"{metadata.issuer} does not say that it takes PKCE, without which nobody is sent there."
            )
        _take_the_challenge(connection, metadata)
        offline = {"offline_access"} & set(metadata.scopes_supported)
        return replace(
            _endpoints(connection.provider, metadata.model_dump()),
            issuer=metadata.issuer,
            iss_required=metadata.authorization_response_iss_parameter_supported,
            registration=_text(metadata.registration_endpoint),
            takes_client_documents=metadata.client_id_metadata_document_supported,
            auth_methods=metadata.token_endpoint_auth_methods_supported,
            resource=resource.identifier,
            scopes=tuple(dict.fromkeys((*resource.scopes, *offline))),
        )

    async def _metadata(self, connection: str, issuer: str, *, is_told: bool = False) -> _Metadata:
        read_at, metadata = self._read.get(issuer, (float("-inf"), None))
        if metadata is None or time.monotonic() - read_at > _KEPT_SECONDS:
            metadata = await self._ask(connection, issuer, is_told=is_told)
            self._read[issuer] = (time.monotonic(), metadata)
        return metadata

    async def _ask(self, connection: str, issuer: str, *, is_told: bool) -> _Metadata:
        for address in well_known(issuer):
            try:
                answer = await self.outgoing.send("GET", address, headers={"Accept": "application/json"})
            except AddressRefused as error:
                raise ConnectionMisconfigured(
                    f"The issuer of connection '{connection}' cannot be asked: {error}"
                ) from None
            if answer.status == 200:
                return await self._allowed(
                    connection, _checked(connection, issuer, answer.body, is_told=is_told)
                )
            if answer.status >= 500:
                raise UpstreamUnavailable(
                    f"The issuer of connection '{connection}', {issuer}, failed ({answer.status}).",
                    status=answer.status,
                )
        raise ConnectionMisconfigured(
            f"{issuer} publishes no metadata: declare the endpoints of connection '{connection}' one by one."
        )

    async def _allowed(self, connection: str, metadata: _Metadata) -> _Metadata:
        """Return the metadata if every address in it may be called. Raises ConnectionMisconfigured otherwise.

        The author of an issuer's metadata is not trusted, and must not make Byline call addresses inside its own
        network.
        """
        for name, address in metadata:
            if isinstance(address, HttpUrl):
                try:
                    await self.outgoing.require_callable(str(address))
                except AddressRefused as error:
                    raise ConnectionMisconfigured(
                        f"The {name} that the issuer of connection '{connection}' publishes is not called: {error}"
                    ) from None
        return metadata


def well_known(issuer: str) -> list[str]:
    """Return the URLs of an issuer's possible metadata (OpenID Connect Discovery 1.0 section 4, RFC 8414 section 3)."""
    url = HttpUrl(issuer)
    path = (url.path or "").rstrip("/")
    origin = issuer.rstrip("/").removesuffix(path)
    found = [
        f"{origin}{path}/.well-known/{_OPENID}",
        f"{origin}/.well-known/{_OAUTH}{path}",
        f"{origin}/.well-known/{_OPENID}{path}",
    ]
    return list(dict.fromkeys(found))


def _endpoints(declared: Provider, known: dict[str, Any]) -> Endpoints:
    def address(name: str) -> str | None:
        found = getattr(declared, name) or known.get(name)
        return None if found is None else str(found)

    return Endpoints(
        authorization=address("authorization_endpoint") or "",
        token=address("token_endpoint") or "",
        pushed_authorization_request=address("pushed_authorization_request_endpoint"),
        revocation=address("revocation_endpoint"),
        userinfo=address("userinfo_endpoint"),
        device_authorization=address("device_authorization_endpoint") if declared.device else None,
        issuer=declared.issuer,
        iss_required=declared.iss_required,
        auth_methods=tuple(known.get("token_endpoint_auth_methods_supported", ())),
        resource=declared.resource,
    )


def _is_same_origin(one: str, other: str) -> bool:
    """Return whether two issuers without a path are equal apart from a trailing slash.

    Libraries add that slash when they serialise a URL.
    """
    return one.rstrip("/") == other.rstrip("/") and one.count("/") <= 3


def _text(address: HttpUrl | None) -> str | None:
    return None if address is None else str(address)


def _checked(connection: str, issuer: str, body: bytes, *, is_told: bool) -> _Metadata:
    try:
        metadata = _Metadata.model_validate(json.loads(body))
    except (ValidationError, ValueError, RecursionError):
        raise ConnectionMisconfigured(
            f"What {issuer} publishes is no metadata: declare the endpoints of connection '{connection}' one by one."
        ) from None
    # Anybody can publish metadata that names the endpoints of another issuer (RFC 8414 section 3.3).
    if metadata.issuer != issuer and not (is_told and _is_same_origin(metadata.issuer, issuer)):
        raise ConnectionMisconfigured(
            f"The issuer of connection '{connection}' is not '{issuer}' by its own name: write exactly that."
        )
    return metadata


def _take_the_challenge(connection: Connection, metadata: _Metadata) -> None:
    methods = metadata.code_challenge_methods_supported
    if connection.provider.pkce and methods is not None and "S256" not in methods:
        raise ConnectionMisconfigured(
            f"{metadata.issuer} takes no PKCE challenge of method S256, which connection '{connection.name}' needs."
        )
