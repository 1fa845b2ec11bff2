"""Several accounts of one person on one connection, and which of them is used."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)
_KEPT = sa.text("revoked_at IS NULL")
_KEPT_SHARED = sa.text("holder = 'shared' AND revoked_at IS NULL")
_OPEN = sa.text("state = 'open'")
_REQUEST = ["principal_id", "connection", "scopes"]

# What stood alone before: of several accounts the newest that did not lapse, and any one of questions now alike.
_REVOKE_OTHERS = """
UPDATE "grant" SET revoked_at = created_at, sealed_tokens = :none
WHERE revoked_at IS NULL AND (lapsed_at IS NOT NULL OR EXISTS (
    SELECT 1 FROM "grant" other WHERE other.holder = "grant".holder AND other.connection = "grant".connection
    AND other.revoked_at IS NULL AND other.lapsed_at IS NULL
    AND (other.created_at > "grant".created_at OR (other.created_at = "grant".created_at AND other.id > "grant".id))))
"""
_EXPIRE_OTHERS = """
UPDATE authorization_request SET state = 'expired' WHERE state = 'open' AND EXISTS (
    SELECT 1 FROM authorization_request other WHERE other.principal_id = authorization_request.principal_id
    AND other.connection = authorization_request.connection AND other.scopes = authorization_request.scopes
    AND other.state = 'open' AND other.id < authorization_request.id)
"""


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "account_choice",
        sa.Column("principal_id", sa.String(), sa.ForeignKey("principal.id"), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("chosen_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("principal_id", "run_id", "connection", "tool"),
    )
    op.add_column("grant", sa.Column("lapsed_at", _INSTANT, nullable=True))
    op.drop_index("grant_in_force", "grant")
    _unique("grant_of_account", "grant", ["holder", "connection", "account"], _KEPT)
    _unique("grant_shared", "grant", ["connection"], _KEPT_SHARED)
    op.add_column(
        "authorization_request",
        sa.Column("asks", sa.String(), server_default="any_account", nullable=False),
    )
    op.add_column("authorization_request", sa.Column("about", sa.String(), server_default="", nullable=False))
    op.add_column("authorization_attempt", sa.Column("tool", sa.String(), server_default="", nullable=False))
    op.add_column("device_sign_in", sa.Column("tool", sa.String(), server_default="", nullable=False))
    op.drop_index("authorization_request_open", "authorization_request")
    _unique("authorization_request_open", "authorization_request", [*_REQUEST, "asks", "about"], _OPEN)


def downgrade() -> None:
    """Take back: each keeps one account on a connection, and is asked again for the others."""
    op.execute(_EXPIRE_OTHERS)
    op.drop_index("authorization_request_open", "authorization_request")
    op.drop_column("device_sign_in", "tool")
    op.drop_column("authorization_attempt", "tool")
    op.drop_column("authorization_request", "about")
    op.drop_column("authorization_request", "asks")
    _unique("authorization_request_open", "authorization_request", _REQUEST, _OPEN)
    op.execute(sa.text(_REVOKE_OTHERS).bindparams(sa.bindparam("none", b"", sa.LargeBinary())))
    op.drop_index("grant_shared", "grant")
    op.drop_index("grant_of_account", "grant")
    op.drop_column("grant", "lapsed_at")
    _unique("grant_in_force", "grant", ["holder", "connection"], _KEPT)
    op.drop_table("account_choice")


def _unique(name: str, table: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, table, columns, unique=True, sqlite_where=where, postgresql_where=where)
