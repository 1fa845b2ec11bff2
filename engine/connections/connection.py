"""The declaration of a connection: how Byline signs in to one upstream system.

Its mode is `user` or `shared`. Secrets are references and never part of the declaration.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from engine.connections.known_providers import expand_known_provider
from engine.settings import MAX_WAIT

SHARED_HOLDER: Final = "shared"
"""The holder of every grant of the service itself."""

ScopeSeparator = Literal["space", "comma"]
_DEFAULT_METHODS: Final = {"user": "authorization_code", "shared": "client_credentials"}


class TokenPlace(NamedTuple):
    """The header in which a request carries its token or key, and the prefix of its value."""

    header_name: str
    value_prefix: str


BEARER_PLACE: Final = TokenPlace("Authorization", "Bearer ")


class Declaration(BaseModel):
    """A part of a connections file. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretReference(Declaration):
    """A reference to a client's secret or key in an environment variable, a file or the vault, never its text."""

    env: str | None = None
    file: Path | None = None
    vault: Literal[True] | None = None

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if [self.env, self.file, self.vault].count(None) != 2:
            raise ValueError("name one of env, file and vault")
        return self


class KeyCheck(Declaration):
    """A request below the base URL that succeeds with a valid key, and where its response names the account."""

    path: str = Field(pattern="^/")
    account: str | None = None


class KeyDeclaration(Declaration):
    """How a key is used: where requests carry it, where people create one, and how it is checked.

    `secret` and, for `basic`, `username` are those of a shared connection. On a `user` connection people type their
    own.
    """

    header: str = Field(default="Authorization", pattern="^[A-Za-z0-9-]+$")
    prefix: str = Field(default="", pattern="^[!-~]*(?: )?$")
    made_at: HttpUrl | None = None
    check: KeyCheck | None = None
    username: str | None = None
    secret: SecretReference | None = None


class AssertionDeclaration(Declaration):
    """The JWT with which a service signs in (RFC 7523 section 2.1): its signing key and its claims.

    By default the issuer and the subject are the client id, and the audience is the token endpoint.
    """

    key: SecretReference
    issuer: str | None = None
    subject: str | None = None
    audience: str | None = None
    claims: dict[str, str] = Field(default_factory=dict)


class ProviderDeclaration(Declaration):
    """The OAuth 2.0 endpoints of an upstream, and where it names the account that consented.

    With `issuer`, a callback must carry the same `iss` (RFC 9207). With `iss_required` set to false, a callback without
    `iss` is accepted too. An issuer that publishes metadata needs no endpoints here (OpenID Connect Discovery, RFC
    8414). With `dpop`, tokens are bound to a key of their grant (RFC 9449). With `device` set to false, nobody is
    offered to sign in on another device (RFC 8628). `resource` is the resource that tokens are requested for (RFC
    8707), and `audience` is the same for token exchange (RFC 8693). `added_scopes` are requested at every sign-in, for
    a refresh token or to learn whose account it is. `token_response` gives the JSON Pointers (RFC 6901) of the members
    of a token response that does not follow RFC 6749. `refresh_token_life` is how long an unused refresh token lasts.
    """

    issuer: str | None = None
    iss_required: bool = True
    authorization_endpoint: HttpUrl | None = None
    token_endpoint: HttpUrl | None = None
    pushed_authorization_request_endpoint: HttpUrl | None = None
    revocation_endpoint: HttpUrl | None = None
    userinfo_endpoint: HttpUrl | None = None
    device_authorization_endpoint: HttpUrl | None = None
    device: bool = True
    resource: str | None = None
    audience: str | None = None
    account_from: Literal["userinfo", "token_response", "id_token"] = "userinfo"
    account_claim: str = "preferred_username"
    scope_separator: ScopeSeparator = "space"
    granted_scope_separator: ScopeSeparator | None = None
    scope_parameter: str = "scope"
    added_scopes: tuple[str, ...] = ()
    authorization_parameters: dict[str, str] = Field(default_factory=dict)
    token_endpoint_auth_method: Literal[
        "client_secret_basic", "client_secret_post", "private_key_jwt", "none"
    ] = "client_secret_basic"
    token_request: Literal["form", "json"] = "form"
    token_response: dict[
        Literal["access_token", "refresh_token", "expires_in", "scope"], Annotated[str, Field(pattern="^/")]
    ] = Field(default_factory=dict)
    token_header: str | None = Field(default=None, pattern="^[A-Za-z-]+$")
    pkce: bool = True
    dpop: bool = False
    refresh_token_life: timedelta | None = Field(default=None, gt=timedelta(0))

    @property
    def is_discovered(self) -> bool:
        """Whether the endpoints come from the issuer's metadata."""
        return self.token_endpoint is None or (
            self.authorization_endpoint is None and self.issuer is not None
        )

    @property
    def token_place(self) -> TokenPlace:
        """The header in which requests carry the token."""
        return BEARER_PLACE if self.token_header is None else TokenPlace(self.token_header, "")


class McpServer(Declaration):
    """An MCP server. Its metadata names the authorization server (RFC 9728), so its URL is enough."""

    url: HttpUrl


class Connection(Declaration):
    """One named way to sign in to one upstream system.

    `system` is the name of the upstream in the audit trail. `sign_in` names the way in which Byline obtains tokens, by
    default `authorization_code` in mode `user` and `client_credentials` in mode `shared`. What a way needs is checked
    where declarations are read. `client_key` is a private key, as PEM or JWK, with which Byline authenticates as the
    client (`private_key_jwt`, OpenID Connect Core 1.0 section 9).
    `idempotency_keys` says that the upstream honours the `Idempotency-Key` header, so an action of unknown outcome may
    be sent again. `scope_words` explains to people what a scope allows.
    """

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"]
    base_url: HttpUrl
    sign_in: str = "authorization_code"
    key: KeyDeclaration | None = None
    assertion: AssertionDeclaration | None = None
    mcp: McpServer | None = None
    provider: ProviderDeclaration = ProviderDeclaration()
    scopes: tuple[str, ...] = ()
    scope_words: dict[str, str] = Field(default_factory=dict)
    client_id: str = ""
    client_secret: SecretReference | None = None
    client_key: SecretReference | None = None
    idempotency_keys: bool = False
    wait_limit: timedelta | None = Field(default=None, gt=timedelta(0), le=MAX_WAIT)

    @model_validator(mode="before")
    @classmethod
    def _complete_declaration(cls, declaration: Any) -> Any:
        expanded_declaration = expand_known_provider(declaration)
        if not isinstance(expanded_declaration, dict):
            return expanded_declaration
        default_values = {
            "sign_in": _DEFAULT_METHODS.get(str(expanded_declaration.get("mode")), "authorization_code")
        }
        if isinstance(expanded_declaration.get("mcp"), dict):
            default_values["base_url"] = expanded_declaration["mcp"].get("url")
        return {**default_values, **expanded_declaration}

    @property
    def sign_in_host(self) -> str:
        """The host at which people sign in, as far as the declaration tells without discovery."""
        provider = self.provider
        known_url = (
            provider.authorization_endpoint or provider.issuer or provider.token_endpoint or self.base_url
        )
        return HttpUrl(str(known_url)).host or ""

    @property
    def has_vault_secret(self) -> bool:
        """Whether the secret or the key of the client lies in the vault, which holds at most one of them."""
        references = (self.client_secret, self.client_key)
        return any(reference is not None and reference.vault for reference in references)

    def resolve_holder(self, principal_id: str) -> str:
        """Return the holder of the grant that this principal's actions use: the principal, or the service itself."""
        return principal_id if self.mode == "user" else SHARED_HOLDER
