"""The declaration of a connection: how Byline signs in to one upstream system.

Its mode is `user` or `shared`. Secrets are references and never part of the declaration.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, model_validator

from engine.connections.known_providers import expand_known_provider
from engine.errors import BylineError, ConnectionMisconfigured
from engine.settings import MAX_WAIT

SHARED_HOLDER: Final = "shared"
"""The holder of every grant of the service itself."""

ScopeSeparator = Literal["space", "comma"]
SignInName = Literal[
    "authorization_code",
    "client_credentials",
    "jwt_bearer",
    "token_exchange",
    "identity_assertion",
    "api_key",
    "personal_access_token",
    "basic",
]

TYPED_KEY_METHODS: Final = frozenset({"api_key", "personal_access_token", "basic"})
"""The sign-in methods without an authorization server: a person types a key that the upstream gave them."""

IDP_ASSERTED_METHODS: Final = frozenset({"token_exchange", "identity_assertion"})
"""The sign-in methods that need no person to act if the identity provider asserts who the person is."""

_METHODS_BY_MODE: Final[Mapping[str, frozenset[str]]] = {
    "user": TYPED_KEY_METHODS | IDP_ASSERTED_METHODS | {"authorization_code"},
    "shared": TYPED_KEY_METHODS | {"client_credentials", "jwt_bearer"},
}
_DEFAULT_METHODS: Final = {"user": "authorization_code", "shared": "client_credentials"}
_REQUIRED_FIELDS: Final = {"jwt_bearer": "assertion", "api_key": "key"}


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
    _vault_result: SecretStr | BylineError | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if [self.env, self.file, self.vault].count(None) != 2:
            raise ValueError("name one of env, file and vault")
        return self

    def read_secret(self, environment: Mapping[str, str]) -> str:
        """Return the secret.

        Raises ConnectionMisconfigured if there is none, or the error that kept the vault from opening it.
        """
        if self.vault:
            if isinstance(self._vault_result, BylineError):
                raise self._vault_result
            secret_text = "" if self._vault_result is None else self._vault_result.get_secret_value()
            remedy = "set it with `byline connections secret set`"
        elif self.env is not None:
            secret_text = environment.get(self.env, "")
            remedy = f"set {self.env}"
        else:
            secret_text = (
                self.file.read_text().strip() if self.file is not None and self.file.is_file() else ""
            )
            remedy = f"write it into {self.file}"
        if not secret_text:
            raise ConnectionMisconfigured(f"The client secret is not there: {remedy}.")
        return secret_text

    def set_vault_result(self, vault_result: str | BylineError | None) -> None:
        """Set the secret from the vault, None if the vault has none, or the error that kept it from opening."""
        self._vault_result = SecretStr(vault_result) if isinstance(vault_result, str) else vault_result


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


class McpServer(Declaration):
    """An MCP server. Its metadata names the authorization server (RFC 9728), so its URL is enough."""

    url: HttpUrl


class Connection(Declaration):
    """One named way to sign in to one upstream system.

    `system` is the name of the upstream in the audit trail. `sign_in` is how Byline obtains tokens, by default
    `authorization_code` in mode `user` and `client_credentials` in mode `shared`. `client_key` is a private key, as PEM
    or JWK, with which Byline authenticates as the client (`private_key_jwt`, OpenID Connect Core 1.0 section 9).
    `idempotency_keys` says that the upstream honours the `Idempotency-Key` header, so an action of unknown outcome may
    be sent again. `scope_words` explains to people what a scope allows.
    """

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"]
    base_url: HttpUrl
    sign_in: SignInName = "authorization_code"
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

    @model_validator(mode="after")
    def _validate_sign_in(self) -> Self:
        if self.sign_in not in _METHODS_BY_MODE[self.mode]:
            raise ValueError(
                f"a {self.mode} connection has no sign_in {self.sign_in}: write "
                f"{_join_alternatives(_METHODS_BY_MODE[self.mode])}"
            )
        required_field = _REQUIRED_FIELDS.get(self.sign_in)
        if required_field is not None and getattr(self, required_field) is None:
            raise ValueError(f"sign_in {self.sign_in} needs {required_field}: write it")
        if self.sign_in in TYPED_KEY_METHODS:
            self._validate_typed_key()
        else:
            self._validate_oauth()
        return self

    def _validate_typed_key(self) -> None:
        if self.provider != ProviderDeclaration() or self.client_id or self.mcp is not None:
            raise ValueError(
                f"sign_in {self.sign_in} knows no provider, no client_id and no mcp: leave them out"
            )
        key_declaration = self.key or KeyDeclaration()
        is_secret_declared = key_declaration.secret is not None and (
            key_declaration.username is not None or self.sign_in != "basic"
        )
        if self.mode == "shared" and not is_secret_declared:
            raise ValueError(
                "a shared key is not typed by anybody: write key.secret, and key.username where sign_in is basic"
            )
        if self.mode == "user" and (key_declaration.secret, key_declaration.username) != (None, None):
            raise ValueError("people type their own key: leave key.secret and key.username out")

    def _validate_oauth(self) -> None:
        provider = self.provider
        is_client_id_optional = self.mcp is not None and self.mode == "user"
        if not self.client_id and not is_client_id_optional:
            raise ValueError("client_id is missing: write the id that the provider knows Byline by")
        if provider.is_discovered and provider.issuer is None and self.mcp is None:
            raise ValueError(
                "write authorization_endpoint and token_endpoint, or the issuer whose metadata tells them"
            )
        if self.sign_in == "identity_assertion" and self.mcp is not None and provider.issuer is None:
            # Otherwise the MCP server would choose who receives the identity assertion, without a person's consent.
            raise ValueError("write provider.issuer: to it alone the company vouches for people")
        if provider.issuer is not None and provider.is_discovered:
            HttpUrl(provider.issuer)
        sign_in_pages = (provider.authorization_endpoint, provider.device_authorization_endpoint)
        is_page_required = self.mode == "user" and self.sign_in != "token_exchange"
        if is_page_required and sign_in_pages == (None, None) and not provider.is_discovered:
            raise ValueError(
                "people sign in at an authorization_endpoint: write it, or declare the connection as shared"
            )
        if (provider.token_endpoint_auth_method == "private_key_jwt") != (self.client_key is not None):
            raise ValueError("client_key and the token_endpoint_auth_method private_key_jwt go together")

    @property
    def sign_in_host(self) -> str:
        """The host at which people sign in, as far as the declaration tells without discovery."""
        provider = self.provider
        known_url = (
            provider.authorization_endpoint or provider.issuer or provider.token_endpoint or self.base_url
        )
        return HttpUrl(str(known_url)).host or ""

    @property
    def token_place(self) -> TokenPlace:
        """The header in which requests to this upstream carry the token or key."""
        key_declaration = self.key or KeyDeclaration()
        match self.sign_in:
            case "api_key":
                return TokenPlace(key_declaration.header, key_declaration.prefix)
            case "personal_access_token":
                return TokenPlace(key_declaration.header, key_declaration.prefix or BEARER_PLACE.value_prefix)
            case "basic":
                return TokenPlace(key_declaration.header, "Basic ")
        token_header = self.provider.token_header
        return BEARER_PLACE if token_header is None else TokenPlace(token_header, "")

    @property
    def secret_references(self) -> tuple[SecretReference | None, ...]:
        """The references to the client's secret and key, None if not declared. The vault holds at most one of them."""
        return self.client_secret, self.client_key

    def resolve_holder(self, principal_id: str) -> str:
        """Return the holder of the grant that this principal's actions use: the principal, or the service itself."""
        return principal_id if self.mode == "user" else SHARED_HOLDER


def _join_alternatives(method_names: Collection[str]) -> str:
    *other_names, last_name = sorted(method_names)
    return f"{', '.join(other_names)} or {last_name}"
