"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_event",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("time", _INSTANT, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=True),
        sa.Column("system", sa.String(), nullable=True),
        sa.Column("record_id", sa.String(), nullable=True),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("previous_hash", sa.String(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("audit_event_principal", "audit_event", ["principal_id", "time"], unique=False)
    op.create_index("audit_event_record", "audit_event", ["system", "record_id"], unique=False)
    op.create_index("audit_event_run", "audit_event", ["run_id"], unique=False)
    op.create_index("audit_event_time", "audit_event", ["time"], unique=False)
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "authorization_attempt",
        sa.Column("state_hash", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("session_hash", sa.String(), nullable=False),
        sa.Column("sealed_verifier", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("used_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("state_hash"),
    )
    op.create_table(
        "browser_session",
        sa.Column("id_hash", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=True),
        sa.Column("csrf_token", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id_hash"),
    )
    op.create_table(
        "connection",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("declaration", sa.JSON(), nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "grant",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("sealed_tokens", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=True),
        sa.Column("refreshing_until", _INSTANT, nullable=True),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("revoked_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "grant_in_force",
        "grant",
        ["holder", "connection"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "oauth_client",
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("client_id"),
    )
    op.create_table(
        "oauth_code",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("code_hash", sa.String(), nullable=True),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("used_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("code_hash"),
    )
    op.create_table(
        "person",
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("username"),
        sa.UniqueConstraint("subject"),
    )
    op.create_table(
        "principal",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("principal_issuer_subject", "principal", ["issuer", "subject"], unique=True)
    op.create_table(
        "refresh_token",
        sa.Column("token_hash", sa.String(), nullable=False),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("resource", sa.String(), nullable=True),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("used_at", _INSTANT, nullable=True),
        sa.Column("revoked_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index("refresh_token_family", "refresh_token", ["family"], unique=False)
    op.create_table(
        "signing_key",
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("retired_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("kid"),
    )
    op.create_table(
        "authorization_request",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("answered_at", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"],
            ["principal.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "authorization_request_open",
        "authorization_request",
        ["principal_id", "connection", "scopes"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("first_run_id", sa.String(), nullable=True),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("call", sa.String(), nullable=False),
        sa.Column("trigger", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("started_at", _INSTANT, nullable=False),
        sa.Column("parked_at", _INSTANT, nullable=True),
        sa.Column("answered_at", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(
            ["principal_id"],
            ["principal.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_run_principal_id", "run", ["principal_id"], unique=False)
    op.create_index(
        "run_unanswered",
        "run",
        ["principal_id", "call"],
        unique=False,
        sqlite_where=sa.text("parked_at IS NOT NULL AND answered_at IS NULL"),
        postgresql_where=sa.text("parked_at IS NOT NULL AND answered_at IS NULL"),
    )
    op.create_table(
        "waiter",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("workflow_id", sa.String(), nullable=False),
        sa.Column("workflow_run_id", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["authorization_request.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "waiter_due",
        "waiter",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index("waiter_request", "waiter", ["request_id"], unique=False)
    op.create_index("waiter_run", "waiter", ["run_id", "outcome"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index("waiter_run", "waiter")
    op.drop_index("waiter_request", "waiter")
    op.drop_index(
        "waiter_due",
        "waiter",
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.drop_table("waiter")
    op.drop_index(
        "run_unanswered",
        "run",
        sqlite_where=sa.text("parked_at IS NOT NULL AND answered_at IS NULL"),
        postgresql_where=sa.text("parked_at IS NOT NULL AND answered_at IS NULL"),
    )
    op.drop_index("ix_run_principal_id", "run")
    op.drop_table("run")
    op.drop_index(
        "authorization_request_open",
        "authorization_request",
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.drop_table("authorization_request")
    op.drop_table("signing_key")
    op.drop_index("refresh_token_family", "refresh_token")
    op.drop_table("refresh_token")
    op.drop_index("principal_issuer_subject", "principal")
    op.drop_table("principal")
    op.drop_table("person")
    op.drop_table("oauth_code")
    op.drop_table("oauth_client")
    op.drop_index(
        "grant_in_force",
        "grant",
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.drop_table("grant")
    op.drop_table("connection")
    op.drop_table("browser_session")
    op.drop_table("authorization_attempt")
    op.drop_table("audit_head")
    op.drop_index("audit_event_time", "audit_event")
    op.drop_index("audit_event_run", "audit_event")
    op.drop_index("audit_event_record", "audit_event")
    op.drop_index("audit_event_principal", "audit_event")
    op.drop_table("audit_event")
