"""All settings. `main()` reads them once from the environment and passes them down. No secret has a default."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_WAIT: Final = timedelta(days=366)


def _read_seconds(raw_value: object) -> object:
    if not isinstance(raw_value, str):
        return raw_value
    try:
        return float(raw_value)
    except ValueError:
        return raw_value


Duration = Annotated[timedelta, BeforeValidator(_read_seconds)]
"""A number of seconds, or an ISO 8601 duration."""


class SettingsGroup(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabaseSettings(SettingsGroup):
    """The database of application data: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://…`."""

    url: str = "sqlite+aiosqlite:///.byline/byline.db"
    pool_size: int = 10


class TemporalSettings(SettingsGroup):
    """The Temporal cluster and the capacity of this worker."""

    address: str = "127.0.0.1:7233"
    namespace: str = "byline"
    task_queue: str = "byline"
    tls: bool = False
    api_key: SecretStr | None = None
    workflow_sandbox: bool = True
    max_cached_workflows: int = 1000
    max_concurrent_activities: int = 100
    sticky_timeout: Duration = timedelta(seconds=1)
    graceful_shutdown: Duration = timedelta(seconds=10)
    deployment_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    build_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")

    @model_validator(mode="after")
    def _check_version(self) -> "TemporalSettings":
        if (self.deployment_name is None) != (self.build_id is None):
            raise ValueError(
                "set both BYLINE_TEMPORAL__DEPLOYMENT_NAME and BYLINE_TEMPORAL__BUILD_ID, which name this worker's "
                "version together, or neither"
            )
        return self


class AppRoleSettings(SettingsGroup):
    """A login at HashiCorp Vault by its AppRole method."""

    role_id: str
    secret_id: SecretStr
    mount: str = "approle"


class KubernetesSettings(SettingsGroup):
    """A login at HashiCorp Vault by its Kubernetes method. Each login reads the file again, as Kubernetes renews it."""

    role: str
    jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    mount: str = "kubernetes"


class TransitSettings(SettingsGroup):
    """A key of HashiCorp Vault's transit engine, and one way to sign in to Vault.

    The way is a token, the file in which an agent stores one, or a login that is repeated before its lease ends.
    """

    address: str
    key: str
    mount: str = "transit"
    namespace: str | None = None
    token: SecretStr | None = None
    token_file: Path | None = None
    approle: AppRoleSettings | None = None
    kubernetes: KubernetesSettings | None = None

    @model_validator(mode="after")
    def _check_one_login(self) -> "TransitSettings":
        login_fields = ("token", "token_file", "approle", "kubernetes")
        configured_fields = [
            field_name for field_name in login_fields if getattr(self, field_name) is not None
        ]
        if len(configured_fields) != 1:
            variable_names = ", ".join(
                f"BYLINE_VAULT__TRANSIT__{field_name.upper()}"
                for field_name in configured_fields or login_fields
            )
            raise ValueError(
                f"set only one of {variable_names}"
                if configured_fields
                else f"sign in to Vault by one of {variable_names}"
            )
        return self

    @property
    def vault_login(self) -> AppRoleSettings | KubernetesSettings | None:
        """The login that Byline performs itself, or None if something else keeps the token alive."""
        return self.approle or self.kubernetes


class AwsKmsSettings(SettingsGroup):
    """A symmetric key of AWS KMS: its id, ARN or alias."""

    key_id: str
    region: str | None = None
    endpoint: str | None = None


class VaultSettings(SettingsGroup):
    """The provider of the master key that wraps the data keys.

    An unwrapped data key stays in memory for `data_key_life`. The keyring is a file (mode 0600, made on first start),
    or the same JSON in the environment. A data key that another provider than `provider` wrapped is unwrapped by that
    provider as long as it is configured here.
    """

    provider: Literal["keyring", "transit", "aws_kms"] = "keyring"
    keyring_file: Path | None = Path(".byline/keyring.json")
    keyring: SecretStr | None = None
    transit: TransitSettings | None = None
    aws_kms: AwsKmsSettings | None = None
    data_key_life: Duration = Field(default=timedelta(minutes=5), ge=timedelta(seconds=1))

    @model_validator(mode="after")
    def _check_provider(self) -> "VaultSettings":
        if self.provider == "keyring" and self.keyring is None and self.keyring_file is None:
            raise ValueError(
                "set BYLINE_VAULT__KEYRING_FILE to a path, or BYLINE_VAULT__KEYRING to the keyring's JSON"
            )
        if self.provider != "keyring" and getattr(self, self.provider) is None:
            raise ValueError(
                f"BYLINE_VAULT__PROVIDER is {self.provider}: set BYLINE_VAULT__{self.provider.upper()} as well"
            )
        return self

    @property
    def has_keyring(self) -> bool:
        """Whether a keyring exists already."""
        return self.keyring is not None or (self.keyring_file is not None and self.keyring_file.exists())


class IssuerSettings(SettingsGroup):
    """An external OpenID Connect issuer that signs people in instead of the built-in one.

    With `vouches`, Byline stores the tokens of each sign-in, sealed. It presents them to the issuer again to obtain
    identity assertions for connections that sign in by them.
    """

    issuer: str
    audience: str
    client_id: str
    client_secret: SecretStr | None = None
    jwks_uri: str | None = None
    scopes: tuple[str, ...] = ()
    sign_in_scope: str = "openid profile"
    vouches: bool = False


class AssertionIssuerSettings(SettingsGroup):
    """An enterprise's identity provider. Clients of its people may present its identity assertions (ID-JAG)."""

    issuer: str
    jwks_uri: str | None = None


class LimitSettings(SettingsGroup):
    """The limits of one gateway: sizes in bytes, durations, and all others as concurrent counts."""

    connections: int = Field(default=5000, gt=0)
    body: int = Field(default=2 * 1024 * 1024, gt=0)
    arrival: Duration = Field(default=timedelta(seconds=30), gt=timedelta())
    requests_per_principal: int = Field(default=100, gt=0)
    sessions: int = Field(default=2000, gt=0)
    sessions_per_principal: int = Field(default=50, gt=0)
    session_idle: Duration = Field(default=timedelta(minutes=30), gt=timedelta())


class GatewaySettings(SettingsGroup):
    """The settings of the HTTP edge.

    `answer_within` limits one request of a call at MCP 2026-07-28, whose clients send the next request by themselves.
    `hold_within` limits a whole call at earlier protocol versions, whose clients mostly time out after a minute.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str | None = None
    issuer: IssuerSettings | None = None
    assertion_issuers: tuple[AssertionIssuerSettings, ...] = ()
    open_registration: bool = True
    registrations_per_hour: int = Field(default=100, gt=0)
    demo_people: bool = False
    access_token_life: Duration = timedelta(hours=1)
    session_life: Duration = timedelta(hours=12)
    answer_within: Duration = timedelta(seconds=20)
    hold_within: Duration = timedelta(seconds=50)
    longest_api_token_life: Duration = Field(default=timedelta(days=365), gt=timedelta())
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _check_assertion_issuers(self) -> "GatewaySettings":
        if self.issuer is not None and self.assertion_issuers:
            raise ValueError(
                "BYLINE_GATEWAY__ASSERTION_ISSUERS is for the built-in authorization server: with "
                "BYLINE_GATEWAY__ISSUER__ISSUER, have that issuer take the assertions"
            )
        return self


class NotificationSettings(SettingsGroup):
    """The mail server that sends notes. Without a host, email is not available as a channel."""

    smtp_host: str | None = None
    smtp_port: int = 587
    smtp_tls: Literal["starttls", "tls", "none"] = "starttls"
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    sender: str | None = None

    @model_validator(mode="after")
    def _check_sender(self) -> "NotificationSettings":
        if self.smtp_host is not None and self.sender is None:
            raise ValueError(
                "BYLINE_NOTIFICATIONS__SMTP_HOST needs BYLINE_NOTIFICATIONS__SENDER, the address that notes come from"
            )
        return self


class OutgoingSettings(SettingsGroup):
    """The addresses that Byline may call when people enter them: by default the public Internet, over HTTPS.

    `private_hosts` may be called at any address, such as a provider of one's own. `allow_private` allows all private
    addresses.
    """

    allow_http: bool = False
    allow_private: bool = False
    private_hosts: tuple[str, ...] = ()


class Settings(BaseSettings):
    """Byline's settings, from variables such as `BYLINE_DATABASE__URL` and `BYLINE_TEMPORAL__ADDRESS`."""

    model_config = SettingsConfigDict(
        env_prefix="BYLINE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    database: DatabaseSettings = DatabaseSettings()
    temporal: TemporalSettings = TemporalSettings()
    vault: VaultSettings = VaultSettings()
    gateway: GatewaySettings = GatewaySettings()
    notifications: NotificationSettings = NotificationSettings()
    outgoing: OutgoingSettings = OutgoingSettings()
    modules: tuple[str, ...] = ()
    connections_file: Path | None = None
    policy_file: Path | None = None
    toolsets_file: Path | None = None
    wait_limit: Duration = Field(default=timedelta(days=7), le=MAX_WAIT)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def public_url(self) -> str:
        """The origin at which people and clients reach the gateway, without a trailing slash."""
        origin_url = self.gateway.public_url or f"http://{self.gateway.host}:{self.gateway.port}"
        return origin_url.rstrip("/")
