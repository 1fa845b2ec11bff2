"""More ways to sign in: codes typed on another device, clients that issuers registered, sign-ins that vouch."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "device_sign_in",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("sealed_code", sa.LargeBinary(), nullable=False),
        sa.Column("interval_seconds", sa.Integer(), nullable=False),
        sa.Column("poll_after", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["authorization_request.id"]),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_table(
        "upstream_client",
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("redirect_uri", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("sealed_registration", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("issuer"),
    )
    op.create_table(
        "company_sign_in",
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("sealed_tokens", sa.LargeBinary(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.Column("refreshing_until", _INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("principal_id"),
    )
    op.add_column(
        "grant", sa.Column("given_up", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )


def downgrade() -> None:
    """Take back."""
    op.drop_column("grant", "given_up")
    for table in ("company_sign_in", "upstream_client", "device_sign_in"):
        op.drop_table(table)
