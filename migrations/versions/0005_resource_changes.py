"""Which resources have changed of late."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "resource_change",
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("uri"),
    )
    op.create_index("resource_change_time", "resource_change", ["changed_at"])


def downgrade() -> None:
    """Take back."""
    op.drop_table("resource_change")
