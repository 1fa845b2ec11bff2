"""Every table, one class each. Each class names the module that owns the table, and no other module queries it."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Index, LargeBinary, TypeDecorator, text
from sqlalchemy.engine import Dialect
from sqlmodel import Field, SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """An instant, stored with its zone where the database has zones, and always read back as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse instants without a zone."""
        if value is not None and value.tzinfo is None:
            raise ValueError("an instant needs a time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Give SQLite's naive instants their zone back."""
        return (
            None
            if value is None
            else value.replace(tzinfo=UTC)
            if value.tzinfo is None
            else value.astimezone(UTC)
        )


def _make_instant_column(*, nullable: bool = False) -> Any:
    return Field(default=None, sa_column=Column(UtcDateTime(), nullable=nullable))


class PrincipalRow(SQLModel, table=True):
    """A person or a service known by issuer and subject. Owner: engine.identity.principals."""

    __tablename__ = "principal"
    __table_args__ = (Index("principal_issuer_subject", "issuer", "subject", unique=True),)

    id: str = Field(primary_key=True)
    issuer: str
    subject: str
    name: str
    kind: str = Field(default="person", sa_column_kwargs={"server_default": "person"})
    active: bool = True
    created_at: datetime = _make_instant_column()


class RoleRow(SQLModel, table=True):
    """A role that a principal has. Owner: engine.identity.roles."""

    __tablename__ = "principal_role"
    __table_args__ = (Index("principal_role_role", "role"),)

    principal_id: str = Field(primary_key=True, foreign_key="principal.id")
    role: str = Field(primary_key=True)


class PersonRow(SQLModel, table=True):
    """A person of the built-in sign-in. Owner: gateway.sign_in.built_in_people."""

    __tablename__ = "person"

    username: str = Field(primary_key=True)
    subject: str = Field(unique=True)
    name: str
    password_hash: str


class SigningKeyRow(SQLModel, table=True):
    """An Ed25519 key that signs identities, tokens and the trail. Owner: engine.identity.signing."""

    __tablename__ = "signing_key"

    kid: str = Field(primary_key=True)
    public_key: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    sealed_private_key: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = _make_instant_column()
    retired_at: datetime | None = _make_instant_column(nullable=True)


class DataKeyRow(SQLModel, table=True):
    """A data key, wrapped by the master key of the provider `wrapped_by`. Owner: engine.vault.data_keys."""

    __tablename__ = "data_key"

    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    wrapped: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    wrapped_by: str
    created_at: datetime = _make_instant_column()


class RunRow(SQLModel, table=True):
    """A run: the root workflow that an identity is bound to. Owner: engine.runs.records.

    `parked_at` is when it first waited for a person. `answered_at` is when its caller received the outcome.
    """

    __tablename__ = "run"
    __table_args__ = (
        Index("run_newest", "principal_id", "started_at", "id"),
        Index("run_idempotency", "principal_id", "idempotency_key", unique=True),
        Index(
            "run_unanswered",
            "principal_id",
            "call",
            sqlite_where=text("answered_at IS NULL"),
            postgresql_where=text("answered_at IS NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    first_run_id: str | None = None
    principal_id: str = Field(foreign_key="principal.id")
    tool: str
    call: str
    trigger: str
    actor: str
    idempotency_key: str | None = None
    retry_of: str | None = None
    started_at: datetime = _make_instant_column()
    parked_at: datetime | None = _make_instant_column(nullable=True)
    answered_at: datetime | None = _make_instant_column(nullable=True)


class ConnectionRow(SQLModel, table=True):
    """A declared connection, without its client secret. Owner: engine.connections.catalogue."""

    __tablename__ = "connection"

    name: str = Field(primary_key=True)
    declaration: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    updated_at: datetime = _make_instant_column()


class ClientSecretRow(SQLModel, table=True):
    """The secret or key of a connection's client. Owner: engine.connections.client_secrets."""

    __tablename__ = "client_secret"

    connection: str = Field(primary_key=True)
    sealed_secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    updated_at: datetime = _make_instant_column()


class GrantRow(SQLModel, table=True):
    """What a holder consented to on a connection, with one upstream account. Owner: engine.grants.grant_records.

    `holder` is a principal's id, or `shared` for a service grant, of which there is one. A grant that the upstream
    revoked has lapsed: it cannot be used, and it stays its holder's until they sign in again or remove it. `given_up`
    is true where somebody revoked it here.
    """

    __tablename__ = "grant"
    __table_args__ = (
        Index(
            "grant_of_account",
            "holder",
            "connection",
            "account",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
        Index(
            "grant_shared",
            "connection",
            unique=True,
            sqlite_where=text("holder = 'shared' AND revoked_at IS NULL"),
            postgresql_where=text("holder = 'shared' AND revoked_at IS NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    holder: str
    connection: str
    account: str
    scopes: str
    fingerprint: str
    sealed_tokens: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    version: int = 1
    expires_at: datetime | None = _make_instant_column(nullable=True)
    refreshing_until: datetime | None = _make_instant_column(nullable=True)
    created_at: datetime = _make_instant_column()
    renewed_at: datetime = _make_instant_column()
    lapsed_at: datetime | None = _make_instant_column(nullable=True)
    revoked_at: datetime | None = _make_instant_column(nullable=True)
    given_up: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})


class RevocationRow(SQLModel, table=True):
    """A grant that ended and must still be revoked at its upstream. Owner: engine.grants.revocations."""

    __tablename__ = "revocation"
    __table_args__ = (Index("revocation_due", "due_at"),)

    grant_id: str = Field(primary_key=True)
    holder: str
    connection: str
    sealed_tokens: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = _make_instant_column()
    due_at: datetime = _make_instant_column()


class AccountChoiceRow(SQLModel, table=True):
    """Which account on a connection a principal's actions use. Owner: engine.grants.accounts.

    It applies to the run or the tool that it names, or to every tool where it names neither. A run's choice lasts as
    long as Temporal keeps the run. Upkeep looks for the run at `due_at`, and notes the `namespace` that kept it.
    """

    __tablename__ = "account_choice"
    __table_args__ = (
        Index(
            "account_choice_due",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )

    principal_id: str = Field(primary_key=True, foreign_key="principal.id")
    run_id: str = Field(default="", primary_key=True)
    connection: str = Field(primary_key=True)
    tool: str = Field(default="", primary_key=True)
    account: str
    chosen_at: datetime = _make_instant_column()
    due_at: datetime | None = _make_instant_column(nullable=True)
    namespace: str | None = None


class AuthorizationRequestRow(SQLModel, table=True):
    """An open or answered question to one principal. Owner: engine.authorization.requests.

    `asks` says what for: a sign-in to any account, a sign-in to the account in `about`, or the choice of the account
    that the tool in `about` shall use. For a sign-in to any account, `about` is the tool that it was requested for
    ahead of a call, if any.
    """

    __tablename__ = "authorization_request"
    __table_args__ = (
        Index(
            "authorization_request_open",
            "principal_id",
            "connection",
            "scopes",
            "asks",
            "about",
            unique=True,
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
    )

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    connection: str
    scopes: str
    asks: str = Field(default="any_account", sa_column_kwargs={"server_default": "any_account"})
    about: str = Field(default="", sa_column_kwargs={"server_default": ""})
    state: str = "open"
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()
    answered_at: datetime | None = _make_instant_column(nullable=True)


class DeviceSignInRow(SQLModel, table=True):
    """The device code by which a request is answered elsewhere. Owner: engine.sign_in.pending_device_codes.

    `tool` is the tool that shall use the account, or empty where the account is for every tool.
    """

    __tablename__ = "device_sign_in"

    request_id: str = Field(primary_key=True, foreign_key="authorization_request.id")
    tool: str = Field(default="", sa_column_kwargs={"server_default": ""})
    sealed_code: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    interval_seconds: int
    poll_after: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()


class UpstreamClientRow(SQLModel, table=True):
    """Byline's registration as a client of an issuer. Owner: engine.oauth.registration."""

    __tablename__ = "upstream_client"

    issuer: str = Field(primary_key=True)
    redirect_uri: str
    client_id: str
    sealed_registration: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = _make_instant_column()
    expires_at: datetime | None = _make_instant_column(nullable=True)


class IdpSessionRow(SQLModel, table=True):
    """A person's latest session at the external identity provider, with its tokens.

    The provider issues assertions about the person with these tokens. Owner: engine.sign_in.idp_sessions.
    """

    __tablename__ = "company_sign_in"

    principal_id: str = Field(primary_key=True, foreign_key="principal.id")
    sealed_tokens: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    version: int = 1
    expires_at: datetime = _make_instant_column()
    refreshing_until: datetime | None = _make_instant_column(nullable=True)


class QuestionRow(SQLModel, table=True):
    """What a run asks a person, anybody with a role, or its client, and the answer. Owner: engine.questions.questions.

    `principal_id` is the principal whose run asks. Without `role` they answer themselves. With `role`, somebody else
    who has that role answers. A question of another `kind` than `form` is answered by the client that called the run,
    and has `parameters` for that client.
    """

    __tablename__ = "question"
    __table_args__ = (
        Index("question_run", "run_id"),
        Index(
            "question_open",
            "principal_id",
            "role",
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
    )

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    role: str | None = None
    run_id: str
    message: str
    answer_schema: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    kind: str = Field(default="form", sa_column_kwargs={"server_default": "form"})
    parameters: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    name: str | None = None
    state: str = "open"
    answer: dict[str, Any] | None = Field(
        default=None, sa_column=Column(JSON(none_as_null=True), nullable=True)
    )
    answered_by: str | None = None
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()
    answered_at: datetime | None = _make_instant_column(nullable=True)


class WaiterRow(SQLModel, table=True):
    """A parked action, and the wake-up that is due to it (the outbox). Owner: engine.waiting.waiters.

    `awaits` is the id of the authorization request or of the question that it waits for.
    """

    __tablename__ = "waiter"
    __table_args__ = (
        Index("waiter_awaits", "awaits", "outcome"),
        Index("waiter_run", "run_id", "outcome"),
        Index(
            "waiter_over",
            "expires_at",
            sqlite_where=text("due_at IS NULL"),
            postgresql_where=text("due_at IS NULL"),
        ),
        Index(
            "waiter_due",
            "due_at",
            sqlite_where=text("due_at IS NOT NULL"),
            postgresql_where=text("due_at IS NOT NULL"),
        ),
    )

    id: str = Field(primary_key=True)
    awaits: str
    principal_id: str
    run_id: str
    workflow_id: str
    workflow_run_id: str
    outcome: str = "waiting"
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()
    due_at: datetime | None = _make_instant_column(nullable=True)
    taken_at: datetime | None = _make_instant_column(nullable=True)


class AuthorizationAttemptRow(SQLModel, table=True):
    """A trip to a provider's consent page, by the hash of its `state`. Owner: engine.sign_in.authorization_attempts.

    `tool` is the tool that shall use the account, or empty where the account is for every tool.
    """

    __tablename__ = "authorization_attempt"

    state_hash: str = Field(primary_key=True)
    request_id: str
    principal_id: str
    tool: str = Field(default="", sa_column_kwargs={"server_default": ""})
    session_hash: str
    sealed_verifier: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()
    used_at: datetime | None = _make_instant_column(nullable=True)


class AuditEventRow(SQLModel, table=True):
    """One line of the trail. Owner: engine.audit.trail."""

    __tablename__ = "audit_event"
    __table_args__ = (
        Index("audit_event_record", "system", "record_id"),
        Index("audit_event_principal", "principal_id", "time"),
        Index("audit_event_run", "run_id"),
        Index("audit_event_time", "time"),
    )

    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    time: datetime = _make_instant_column()
    kind: str
    principal_id: str | None = None
    run_id: str | None = None
    system: str | None = None
    record_id: str | None = None
    event: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    previous_hash: str
    hash: str
    kid: str
    signature: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class AuditHeadRow(SQLModel, table=True):
    """The trail's last line, and the lock that orders its writers. Owner: engine.audit.trail."""

    __tablename__ = "audit_head"

    id: int = Field(primary_key=True)
    seq: int
    hash: str


class OAuthClientRow(SQLModel, table=True):
    """A client registered at the built-in authorization server. Owner: gateway.authorization_server.registered_clients.

    `registered_by` is `administrator`, or `itself` for dynamic client registration (RFC 7591).
    """

    __tablename__ = "oauth_client"
    __table_args__ = (Index("oauth_client_registered", "registered_by", "created_at"),)

    client_id: str = Field(primary_key=True)
    metadata_: dict[str, Any] = Field(sa_column=Column("metadata", JSON, nullable=False))
    registered_by: str = Field(default="itself", sa_column_kwargs={"server_default": "itself"})
    created_at: datetime = _make_instant_column()
    used_at: datetime | None = _make_instant_column(nullable=True)


class OAuthCodeRow(SQLModel, table=True):
    """A person's answer to an authorization request at the built-in server: the hash of a code, or None for a refusal.

    Owner: gateway.authorization_server.authorization_codes.
    """

    __tablename__ = "oauth_code"

    id: str = Field(primary_key=True)
    code_hash: str | None = Field(default=None, unique=True)
    client_id: str
    principal_id: str | None = None
    parameters: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    expires_at: datetime = _make_instant_column()
    used_at: datetime | None = _make_instant_column(nullable=True)


class ClientConsentRow(SQLModel, table=True):
    """A person's consent that a client acts for them. Without this row, no token of the built-in server is valid.

    Owner: gateway.authorization_server.consents. `goes_to` is the address where the person let the browser be sent.
    `asserted_by` is the issuer that asserted the consent in their place.
    """

    __tablename__ = "client_consent"
    __table_args__ = (Index("client_consent_person", "principal_id", "client_id"),)

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    client_id: str = Field(index=True)
    client_name: str
    goes_to: str | None = None
    asserted_by: str | None = None
    resource: str
    scopes: str
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()


class RefreshTokenRow(SQLModel, table=True):
    """A refresh token of the built-in server, by hash; `family` is the consent that it comes from.

    Owner: gateway.authorization_server.tokens.
    """

    __tablename__ = "refresh_token"
    __table_args__ = (Index("refresh_token_family", "family"),)

    token_hash: str = Field(primary_key=True)
    family: str
    client_id: str
    principal_id: str
    scopes: str
    resource: str | None = None
    expires_at: datetime = _make_instant_column()
    used_at: datetime | None = _make_instant_column(nullable=True)


class UsedAssertionRow(SQLModel, table=True):
    """An assertion that is valid once and was used, by the hash of its issuer and `jti` (RFC 7519).

    Owner: gateway.authorization_server.identity_assertions.
    """

    __tablename__ = "used_assertion"

    id_hash: str = Field(primary_key=True)
    expires_at: datetime = _make_instant_column()


class BrowserSessionRow(SQLModel, table=True):
    """A signed-in browser, by the hash of its cookie; `visit` is what began it. Owner: gateway.browser.sessions."""

    __tablename__ = "browser_session"
    __table_args__ = (Index("browser_session_visit", "visit"),)

    id_hash: str = Field(primary_key=True)
    principal_id: str
    csrf_token: str
    visit: str = ""
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()


class ApiTokenRow(SQLModel, table=True):
    """A token that acts as its owner, by hash. Owner: engine.callers.api_tokens.

    `tools` is None where it may call every tool that its owner may.
    """

    __tablename__ = "api_token"
    __table_args__ = (Index("api_token_owner", "principal_id", "created_at"),)

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    name: str
    secret_hash: str = Field(unique=True)
    tools: list[str] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))
    created_at: datetime = _make_instant_column()
    expires_at: datetime = _make_instant_column()
    last_used_at: datetime | None = _make_instant_column(nullable=True)
    revoked_at: datetime | None = _make_instant_column(nullable=True)


class ScheduleRow(SQLModel, table=True):
    """A tool call that is made by the clock: owner, tool and arguments. Owner: engine.schedules.schedule_records.

    Temporal decides when it fires. The row's id is the id of the Temporal schedule. `offered_to` is the principal who
    may take it over by consenting.
    """

    __tablename__ = "schedule"
    __table_args__ = (
        Index("schedule_owner", "principal_id", "created_at"),
        Index("schedule_offered", "offered_to", "created_at"),
    )

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    name: str
    tool: str
    arguments: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    timing: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    paused_because: str | None = None
    offered_to: str | None = None
    triggered_at: datetime | None = _make_instant_column(nullable=True)
    version: int = 1
    created_at: datetime = _make_instant_column()
    updated_at: datetime = _make_instant_column()


class WebhookRow(SQLModel, table=True):
    """An inbound endpoint that calls one tool as one principal. Owner: engine.webhooks.webhooks."""

    __tablename__ = "webhook"
    __table_args__ = (Index("webhook_principal", "principal_id", "created_at"),)

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    name: str
    tool: str
    scheme: str
    sealed_secret: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    mapping: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    tolerance_seconds: int = 300
    active: bool = True
    version: int = 1
    created_at: datetime = _make_instant_column()
    updated_at: datetime = _make_instant_column()


class NotificationChannelRow(SQLModel, table=True):
    """A channel on which a person receives notes of some events. Owner: engine.notifications.channels."""

    __tablename__ = "notification_channel"
    __table_args__ = (Index("notification_channel_principal", "principal_id"),)

    id: str = Field(primary_key=True)
    principal_id: str = Field(foreign_key="principal.id")
    kind: str
    label: str
    sealed_address: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    events: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = _make_instant_column()


class NotificationRow(SQLModel, table=True):
    """A claimed note, so that it is sent once. Owner: engine.notifications.channels.

    `owed_by` is the first claimant. A second claim by the same claimant succeeds, and one by any other fails.
    """

    __tablename__ = "notification"
    __table_args__ = (Index("notification_owed", "created_at"),)

    id: str = Field(primary_key=True)
    owed_by: str
    created_at: datetime = _make_instant_column()


class ResourceChangeRow(SQLModel, table=True):
    """When a resource changed last. It is kept while a listener may need it. Owner: engine.tools.resource_changes."""

    __tablename__ = "resource_change"
    __table_args__ = (Index("resource_change_time", "changed_at"),)

    uri: str = Field(primary_key=True)
    changed_at: datetime = _make_instant_column()
