"""A browser session is of somebody who signed in; on the way there a browser keeps its own cookie alone."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: whoever is about to sign in begins anew."""
    op.execute("DELETE FROM browser_session WHERE principal_id IS NULL")
    with op.batch_alter_table("browser_session") as table:
        table.alter_column("principal_id", existing_type=sa.String(), nullable=False)
        table.drop_column("data")
        table.add_column(sa.Column("visit", sa.String(), server_default="", nullable=False))
    op.create_index("browser_session_visit", "browser_session", ["visit"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("browser_session_visit", "browser_session")
    with op.batch_alter_table("browser_session") as table:
        table.drop_column("visit")
        table.add_column(sa.Column("data", sa.JSON(), server_default="{}", nullable=False))
        table.alter_column("principal_id", existing_type=sa.String(), nullable=True)
