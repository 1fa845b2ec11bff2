"""Runs by every trigger: roles, API tokens, schedules, webhooks, questions and notifications."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_OPEN = sa.text("state = 'open'")
_DUE = sa.text("due_at IS NOT NULL")


def upgrade() -> None:
    """Apply."""
    op.add_column("principal", sa.Column("kind", sa.String(), nullable=False, server_default="person"))
    op.create_table(
        "principal_role",
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("principal_id", "role"),
    )
    op.create_index("principal_role_role", "principal_role", ["role"])
    op.add_column("run", sa.Column("idempotency_key", sa.String(), nullable=True))
    op.add_column("run", sa.Column("retry_of", sa.String(), nullable=True))
    op.drop_index("ix_run_principal_id", "run")
    op.create_index("run_newest", "run", ["principal_id", "started_at", "id"])
    op.create_index("run_idempotency", "run", ["principal_id", "idempotency_key"], unique=True)
    op.create_table(
        "question",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=True),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("answer_schema", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=True),
        sa.Column("answered_by", sa.String(), nullable=True),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("answered_at", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("question_run", "question", ["run_id"])
    op.create_index(
        "question_open", "question", ["principal_id", "role"], sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    _make_waiter_anew("awaits", "request_id", refers=False)
    op.create_index("waiter_awaits", "waiter", ["awaits", "outcome"])
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("tools", sa.JSON(), nullable=True),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("last_used_at", _INSTANT, nullable=True),
        sa.Column("revoked_at", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("secret_hash"),
    )
    op.create_index("api_token_owner", "api_token", ["principal_id", "created_at"])
    op.create_table(
        "schedule",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("timing", sa.JSON(), nullable=False),
        sa.Column("paused_because", sa.String(), nullable=True),
        sa.Column("offered_to", sa.String(), nullable=True),
        sa.Column("triggered_at", _INSTANT, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("schedule_owner", "schedule", ["principal_id", "created_at"])
    op.create_index("schedule_offered", "schedule", ["offered_to", "created_at"])
    op.create_table(
        "webhook",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("scheme", sa.String(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("mapping", sa.JSON(), nullable=False),
        sa.Column("tolerance_seconds", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhook_principal", "webhook", ["principal_id", "created_at"])
    op.create_table(
        "notification_channel",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("sealed_address", sa.LargeBinary(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("notification_channel_principal", "notification_channel", ["principal_id"])
    op.create_table(
        "notification",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owed_by", sa.String(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """Take back; who waits for an answer to a question waits no more."""
    op.drop_table("notification")
    for table, index in (
        ("notification_channel", "notification_channel_principal"),
        ("webhook", "webhook_principal"),
        ("schedule", "schedule_owner"),
        ("api_token", "api_token_owner"),
    ):
        op.drop_index(index, table)
        op.drop_table(table)
    op.drop_index("waiter_awaits", "waiter")
    op.execute("DELETE FROM waiter WHERE awaits IN (SELECT id FROM question)")
    _make_waiter_anew("request_id", "awaits", refers=True)
    op.create_index("waiter_request", "waiter", ["request_id"])
    op.drop_index("question_open", "question", sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.drop_index("question_run", "question")
    op.drop_table("question")
    op.drop_index("run_idempotency", "run")
    op.drop_index("run_newest", "run")
    op.create_index("ix_run_principal_id", "run", ["principal_id"])
    op.drop_column("run", "retry_of")
    op.drop_column("run", "idempotency_key")
    op.drop_index("principal_role_role", "principal_role")
    op.drop_table("principal_role")
    op.drop_column("principal", "kind")


def _make_waiter_anew(column: str, was: str, *, refers: bool) -> None:
    """Rename the column that says what is awaited; only a new table loses or gains a reference on every database."""
    op.drop_index("waiter_run", "waiter")
    op.drop_index("waiter_due", "waiter", sqlite_where=_DUE, postgresql_where=_DUE)
    if refers:
        references = [sa.ForeignKeyConstraint([column], ["authorization_request.id"])]
    else:
        references = []
        op.drop_index("waiter_request", "waiter")
    op.create_table(
        "waiter_anew",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column(column, sa.String(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in _WAITER_TEXTS),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=True),
        *references,
        sa.PrimaryKeyConstraint("id"),
    )
    rest = ", ".join(("id", *_WAITER_TEXTS, "created_at", "expires_at", "due_at"))
    op.execute(f"INSERT INTO waiter_anew ({column}, {rest}) SELECT {was}, {rest} FROM waiter")  # noqa: S608
    op.drop_table("waiter")
    op.rename_table("waiter_anew", "waiter")
    op.create_index("waiter_run", "waiter", ["run_id", "outcome"])
    op.create_index("waiter_due", "waiter", ["due_at"], sqlite_where=_DUE, postgresql_where=_DUE)


_WAITER_TEXTS = ("principal_id", "run_id", "workflow_id", "workflow_run_id", "outcome")
