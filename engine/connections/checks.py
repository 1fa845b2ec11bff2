"""Checks a connection's sign-in against its provider and reports what is wrong.

No token is stored, and no person has to act.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from engine.connections.connection import SHARED, TYPED, Connection, Key
from engine.connections.discovery import Discovery
from engine.connections.oauth import OAuthClient, TokenRefused
from engine.connections.registration import Registrations
from engine.connections.sign_in.methods import SignIns
from engine.errors import (
    AddressRefused,
    BylineError,
    ConnectionMisconfigured,
    KeyRefused,
    RequestRejected,
    UpstreamFailed,
)
from engine.outgoing.client import Outgoing

_GONE = frozenset({404, 410})
_REQUEST: Final = "the scopes, and that the redirect URI is registered"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one part of a check. `unclear` means that only a person's sign-in can tell."""

    part: str
    state: Literal["ok", "unclear", "wrong"]
    told: str


class Trial:
    """Checks one connection from the outside: its secrets, its addresses, and whether the provider knows its client."""

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        outgoing: Outgoing,
        redirect_uri: str,
        registrations: Registrations | None = None,
    ) -> None:
        self._connection = connection
        self._environment = environment
        self._outgoing = outgoing
        self._discovery = Discovery(outgoing)
        self._sign_ins = SignIns(environment, self._discovery, outgoing, registrations)
        self._redirect_uri = redirect_uri

    async def findings(self) -> list[Finding]:
        """Check every possible part and return the results. Parts that depend on a wrong part are skipped."""
        return [*await self._signing_in(), await self._upstream()]

    async def _signing_in(self) -> list[Finding]:
        if self._connection.sign_in in TYPED:
            return await self._key()
        try:
            client = self._sign_ins.client(self._connection)
        except ConnectionMisconfigured as error:
            return [Finding("secret", "wrong", str(error))]
        found = [Finding("secret", "ok", self._known_by())]
        try:
            endpoints = await self._discovery.endpoints(self._connection)
        except BylineError as error:
            return [*found, Finding("endpoints", "wrong", str(error))]
        found.append(Finding("endpoints", "ok", self._told_by(endpoints.token)))
        if self._connection.mode == "shared":
            return [*found, await self._signed_in(client)]
        return [
            *found,
            await self._consent_page(client),
            await self._made_up_code(client),
            Finding("redirect URI", "ok", f"register {self._redirect_uri} with the provider"),
        ]

    async def _upstream(self) -> Finding:
        part, address = "upstream", str(self._connection.base_url)
        try:
            await self._outgoing.require_callable(address)
        except BylineError as error:
            return Finding(part, "wrong", f"{error} Check base_url.")
        return Finding(part, "ok", f"actions may call {address}")

    async def _key(self) -> list[Finding]:
        """Check the administrator's key of a shared connection, or an invalid key where people type their own."""
        found, key = [], self._connection.key or Key()
        is_shared = self._connection.mode == "shared"
        if is_shared:
            try:
                await self._sign_ins.of(self._connection).unasked(SHARED, ())
            except ConnectionMisconfigured as error:
                return [Finding("secret", "wrong", str(error))]
            found.append(Finding("secret", "ok", "there is one"))
        if key.check is None:
            told = "the connection declares none, so that a wrong key is found out when it is first used"
            return [*found, Finding("check", "unclear", told)]
        if is_shared and key.secret is not None:
            secret, username = key.secret.read(self._environment), key.username or ""
        else:
            secret, username = secrets.token_urlsafe(24), "nobody"
        return [*found, await self._checked(secret, username, is_made_up=not is_shared)]

    async def _checked(self, secret: str, username: str, *, is_made_up: bool) -> Finding:
        part = "check"
        try:
            tokens = await self._sign_ins.typed(self._connection).typed(secret, username, ())
        except KeyRefused as error:
            if is_made_up:
                return Finding(part, "ok", "the upstream refuses a key that nobody issued")
            return Finding(part, "wrong", str(error))
        except BylineError as error:
            return Finding(part, "wrong", f"{error} Check base_url and key.check.path.")
        if is_made_up:
            return Finding(part, "wrong", "it succeeds with a key that nobody issued: name another path")
        return Finding(
            part, "ok", f"the upstream takes the key, which is {tokens.account or 'nobody in particular'}'s"
        )

    def _known_by(self) -> str:
        if self._connection.client_key is not None or self._connection.assertion is not None:
            return "the private key is there"
        if not self._connection.client_id:
            return "none: Byline makes itself known there"
        return "there is one" if self._connection.client_secret is not None else "none: the client is public"

    def _told_by(self, token_endpoint: str) -> str:
        provider, mcp = self._connection.provider, self._connection.mcp
        if mcp is not None:
            return f"as {mcp.url} says: {token_endpoint}"
        return f"as {provider.issuer} publishes" if provider.is_discovered else f"declared: {token_endpoint}"

    async def _consent_page(self, client: OAuthClient) -> Finding:
        part = "consent page"
        try:
            address = await client.authorization_url(
                redirect_uri=self._redirect_uri,
                state=secrets.token_urlsafe(32),
                code_verifier=secrets.token_urlsafe(48),
                scopes=self._connection.scopes,
            )
            status = (await self._outgoing.send("GET", address, headers={"Accept": "text/html"})).status
        except TokenRefused as error:
            return _not_pushed(part, error)
        except AddressRefused as error:
            return Finding(part, "unclear", str(error))
        except RequestRejected:
            return Finding(part, "ok", "it answers")
        except BylineError as error:
            return Finding(part, "wrong", str(error))
        return _answered(part, status)

    async def _made_up_code(self, client: OAuthClient) -> Finding:
        """Check the client with an authorization code that nobody issued.

        A token endpoint that knows the client refuses the code (`invalid_grant`) and not the client.
        """
        part = "client"
        try:
            await client.exchange(
                code=secrets.token_urlsafe(24),
                redirect_uri=self._redirect_uri,
                code_verifier=secrets.token_urlsafe(48),
                asked=(),
            )
        except TokenRefused as error:
            if error.error == "invalid_grant":
                return Finding(
                    part, "ok", "the token endpoint knows it, and refuses a code that nobody issued"
                )
            return _refused(part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return Finding(part, "wrong", f"{error} Check token_endpoint.")
        return Finding(part, "wrong", "the token endpoint gives tokens for a code that nobody issued")

    async def _signed_in(self, client: OAuthClient) -> Finding:
        part = "client"
        try:
            await client.unasked(SHARED, self._connection.scopes)
        except TokenRefused as error:
            return _refused(part, error)
        except (UpstreamFailed, ConnectionMisconfigured) as error:
            return Finding(part, "wrong", f"{error} Check token_endpoint.")
        return Finding(part, "ok", "the token endpoint gives it tokens")


def _answered(part: str, status: int) -> Finding:
    if status in _GONE or status >= 500:
        return Finding(part, "wrong", f"it answers {status}: check authorization_endpoint and client_id")
    if status >= 400:
        told = f"it answers {status}: check client_id, {_REQUEST}"
        return Finding(part, "unclear", told)
    return Finding(part, "ok", "it answers")


def _not_pushed(part: str, error: TokenRefused) -> Finding:
    if "client" in error.error:
        return _refused(part, error)
    told = f"the provider refuses the request for it ({error.error}): check {_REQUEST}"
    return Finding(part, "wrong", told)


def _refused(part: str, error: TokenRefused) -> Finding:
    """Judge a refusal by its error code: most providers' own codes contain `client` if they refuse the client."""
    if "client" in error.error:
        check = "check client_id, its secret and token_endpoint_auth_method"
        return Finding(part, "wrong", f"the provider does not accept it ({error.error}): {check}")
    if error.error in {"invalid_scope", "unsupported_grant_type"}:
        return Finding(part, "wrong", f"the provider refuses what is asked for ({error.error})")
    return Finding(part, "unclear", f"the provider answers {error.error}, which says nothing of the client")
