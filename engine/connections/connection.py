"""What a connection declares: how one upstream is signed in to, `user` or `shared`; secrets stay references."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, model_validator

from engine.connections.known_providers import told_whole
from engine.errors import BylineError, ConnectionMisconfigured
from engine.settings import LONGEST_WAIT

SHARED: Final = "shared"
"""The holder of every service grant."""

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

TYPED: Final = frozenset({"api_key", "personal_access_token", "basic"})
"""The ways that know no authorization server: a person types what the upstream gave them."""

VOUCHED: Final = frozenset({"token_exchange", "identity_assertion"})
"""The ways by which people whose company vouches for them are not asked."""

_FOR: Final[Mapping[str, frozenset[str]]] = {
    "user": TYPED | VOUCHED | {"authorization_code"},
    "shared": TYPED | {"client_credentials", "jwt_bearer"},
}
_USUAL: Final = {"user": "authorization_code", "shared": "client_credentials"}
_NEEDS: Final = {"jwt_bearer": "assertion", "api_key": "key"}


class TokenPlace(NamedTuple):
    """Where a request carries its token or key, and what stands before it there."""

    header: str
    prefix: str


BEARER: Final = TokenPlace("Authorization", "Bearer ")


class Declaration(BaseModel):
    """A part of a connections file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretReference(Declaration):
    """Where a client's secret or key lies: an environment variable, a file or the vault, never the text itself."""

    env: str | None = None
    file: Path | None = None
    vault: Literal[True] | None = None
    _from_vault: SecretStr | BylineError | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if [self.env, self.file, self.vault].count(None) != 2:
            raise ValueError("name one of env, file and vault")
        return self

    def read(self, environment: Mapping[str, str]) -> str:
        """The secret; raises ConnectionMisconfigured where the place is empty, and what kept the vault from opening."""
        if self.vault:
            if isinstance(self._from_vault, BylineError):
                raise self._from_vault
            value = "" if self._from_vault is None else self._from_vault.get_secret_value()
            remedy = "set it with `byline connections secret set`"
        elif self.env is not None:
            value = environment.get(self.env, "")
            remedy = f"set {self.env}"
        else:
            value = self.file.read_text().strip() if self.file is not None and self.file.is_file() else ""
            remedy = f"write it into {self.file}"
        if not value:
            raise ConnectionMisconfigured(f"The client secret is not there: {remedy}.")
        return value

    def give(self, found: str | BylineError | None) -> None:
        """What the vault has for it, or why that does not open."""
        self._from_vault = SecretStr(found) if isinstance(found, str) else found


class KeyCheck(Declaration):
    """A request below the base URL that succeeds with a good key, and where its answer names the account."""

    path: str = Field(pattern="^/")
    account: str | None = None


class Key(Declaration):
    """What a key is: where requests carry it, where people make one, how it is checked.

    `secret` and, for `basic`, `username` are those of a shared connection; people type their own.
    """

    header: str = Field(default="Authorization", pattern="^[A-Za-z0-9-]+$")
    prefix: str = Field(default="", pattern="^[!-~]*(?: )?$")
    made_at: HttpUrl | None = None
    check: KeyCheck | None = None
    username: str | None = None
    secret: SecretReference | None = None


class Assertion(Declaration):
    """What a service signs to be let in (RFC 7523 section 2.1): its key, and the claims where they are not the usual.

    Usually the issuer and the subject are the client's id, and the audience is the token endpoint.
    """

    key: SecretReference
    issuer: str | None = None
    subject: str | None = None
    audience: str | None = None
    claims: dict[str, str] = Field(default_factory=dict)


class Provider(Declaration):
    """The OAuth 2.0 endpoints of an upstream, and where it names the account that consented.

    With `issuer`, a callback must carry the same `iss` (RFC 9207); without `iss_required`, one that carries none will
    do too. An issuer that publishes metadata needs no endpoints here (OpenID Connect Discovery, RFC 8414). With `dpop`,
    tokens are bound to a key of their grant's (RFC 9449). Without `device`, nobody is offered another one to sign in on
    (RFC 8628). `resource` is what tokens are asked to be good for (RFC 8707), and `audience` the same where tokens are
    exchanged (RFC 8693). `added_scopes` are asked for at every sign-in: for a refresh token, or to tell whose account
    it is. `token_response` says at which JSON Pointers (RFC 6901) the token endpoint answers, where it does not keep
    to RFC 6749. `refresh_token_life` is how long one lasts that is not used.
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
        """Whether the issuer's metadata says where the endpoints are."""
        return self.token_endpoint is None or (
            self.authorization_endpoint is None and self.issuer is not None
        )


class McpServer(Declaration):
    """An MCP server, of which its address is enough: its own metadata says who signs people in (RFC 9728)."""

    url: HttpUrl


class Connection(Declaration):
    """One named way to sign in to one upstream system.

    `system` is what the trail calls the upstream. `sign_in` is how tokens come about: by default `authorization_code`
    where the mode is `user`, and `client_credentials` where it is `shared`. `client_key` is a private key, as PEM or
    JWK, by which Byline shows that it is the client (`private_key_jwt`, OpenID Connect Core 1.0 section 9).
    `idempotency_keys` says that it honours the `Idempotency-Key` header, so that an action of unknown outcome may be
    sent again. `scope_words` tells people what a scope allows.
    """

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"]
    base_url: HttpUrl
    sign_in: SignInName = "authorization_code"
    key: Key | None = None
    assertion: Assertion | None = None
    mcp: McpServer | None = None
    provider: Provider = Provider()
    scopes: tuple[str, ...] = ()
    scope_words: dict[str, str] = Field(default_factory=dict)
    client_id: str = ""
    client_secret: SecretReference | None = None
    client_key: SecretReference | None = None
    idempotency_keys: bool = False
    wait_limit: timedelta | None = Field(default=None, gt=timedelta(0), le=LONGEST_WAIT)

    @model_validator(mode="before")
    @classmethod
    def _told_whole(cls, declared: Any) -> Any:
        whole = told_whole(declared)
        if not isinstance(whole, dict):
            return whole
        usual = {"sign_in": _USUAL.get(str(whole.get("mode")), "authorization_code")}
        if isinstance(whole.get("mcp"), dict):
            usual["base_url"] = whole["mcp"].get("url")
        return {**usual, **whole}

    @model_validator(mode="after")
    def _signed_in_to(self) -> Self:
        if self.sign_in not in _FOR[self.mode]:
            raise ValueError(
                f"a {self.mode} connection has no sign_in {self.sign_in}: write {_either(_FOR[self.mode])}"
            )
        needed = _NEEDS.get(self.sign_in)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"sign_in {self.sign_in} needs {needed}: write it")
        if self.sign_in in TYPED:
            self._check_typed()
        else:
            self._check_oauth()
        return self

    def _check_typed(self) -> None:
        if self.provider != Provider() or self.client_id or self.mcp is not None:
            raise ValueError(
                f"sign_in {self.sign_in} knows no provider, no client_id and no mcp: leave them out"
            )
        key = self.key or Key()
        is_set = key.secret is not None and (key.username is not None or self.sign_in != "basic")
        if self.mode == "shared" and not is_set:
            raise ValueError(
                "a shared key is not typed by anybody: write key.secret, and key.username where sign_in is basic"
            )
        if self.mode == "user" and (key.secret, key.username) != (None, None):
            raise ValueError("people type their own key: leave key.secret and key.username out")

    def _check_oauth(self) -> None:
        provider = self.provider
        is_registered = self.mcp is not None and self.mode == "user"
        if not self.client_id and not is_registered:
            raise ValueError("client_id is missing: write the id that the provider knows Byline by")
        if provider.is_discovered and provider.issuer is None and self.mcp is None:
            raise ValueError(
                "write authorization_endpoint and token_endpoint, or the issuer whose metadata tells them"
            )
        if self.sign_in == "identity_assertion" and self.mcp is not None and provider.issuer is None:
            # Otherwise the MCP server would choose whom the company vouches to, and nobody would be asked.
            raise ValueError("write provider.issuer: to it alone the company vouches for people")
        if provider.issuer is not None and provider.is_discovered:
            HttpUrl(provider.issuer)
        pages = (provider.authorization_endpoint, provider.device_authorization_endpoint)
        is_asked = self.mode == "user" and self.sign_in != "token_exchange"
        if is_asked and pages == (None, None) and not provider.is_discovered:
            raise ValueError(
                "people sign in at an authorization_endpoint: write it, or declare the connection as shared"
            )
        if (provider.token_endpoint_auth_method == "private_key_jwt") != (self.client_key is not None):
            raise ValueError("client_key and the token_endpoint_auth_method private_key_jwt go together")

    @property
    def host(self) -> str:
        """The host that people sign in at, as far as it is known without asking."""
        provider = self.provider
        known = provider.authorization_endpoint or provider.issuer or provider.token_endpoint or self.base_url
        return HttpUrl(str(known)).host or ""

    @property
    def token_place(self) -> TokenPlace:
        """Where requests to this upstream carry the token or key."""
        key = self.key or Key()
        match self.sign_in:
            case "api_key":
                return TokenPlace(key.header, key.prefix)
            case "personal_access_token":
                return TokenPlace(key.header, key.prefix or BEARER.prefix)
            case "basic":
                return TokenPlace(key.header, "Basic ")
        header = self.provider.token_header
        return BEARER if header is None else TokenPlace(header, "")

    @property
    def secrets(self) -> tuple[SecretReference | None, ...]:
        """Where its client's secret and key lie, as far as it has them; the vault keeps one for a connection."""
        return self.client_secret, self.client_key

    def holder(self, principal_id: str) -> str:
        """Who holds the grant that this principal's actions use: the principal, or the service itself."""
        return principal_id if self.mode == "user" else SHARED


def _either(names: Collection[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"
