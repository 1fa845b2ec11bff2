"""Data keys, the secrets of connections' clients, and revocations that upstreams are still to be told of."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "data_key",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("wrapped_by", sa.String(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "client_secret",
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("connection"),
    )
    op.create_table(
        "revocation",
        sa.Column("grant_id", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("connection", sa.String(), nullable=False),
        sa.Column("sealed_tokens", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("due_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("grant_id"),
    )
    op.create_index("revocation_due", "revocation", ["due_at"])
    op.add_column("grant", sa.Column("renewed_at", _INSTANT, nullable=True))
    op.execute('UPDATE "grant" SET renewed_at = created_at')
    with op.batch_alter_table("grant") as grant:
        grant.alter_column("renewed_at", nullable=False)
    # What ended is of no use any more, and tokens lie nowhere longer than they are needed.
    op.execute(
        sa.text('UPDATE "grant" SET sealed_tokens = :none WHERE revoked_at IS NOT NULL').bindparams(
            sa.bindparam("none", b"", sa.LargeBinary())
        )
    )


def downgrade() -> None:
    """Undo; what was sealed with a data key cannot be opened afterwards."""
    with op.batch_alter_table("grant") as grant:
        grant.drop_column("renewed_at")
    op.drop_table("revocation")
    op.drop_table("client_secret")
    op.drop_table("data_key")
