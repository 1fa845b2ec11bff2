"""Questions that the client of a run answers, and the names under which clients are asked."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("question", sa.Column("kind", sa.String(), nullable=False, server_default="form"))
    op.add_column("question", sa.Column("parameters", sa.JSON(), nullable=True))
    op.add_column("question", sa.Column("name", sa.String(), nullable=True))


def downgrade() -> None:
    """Take back."""
    for name in ("name", "parameters", "kind"):
        op.drop_column("question", name)
