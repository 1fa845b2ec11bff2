"""What is over is put away: accounts of runs that Temporal forgot, waits and notes of long ago."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_DUE = sa.text("due_at IS NOT NULL")
_OWED_NOTHING = sa.text("due_at IS NULL")


def upgrade() -> None:
    """Apply."""
    op.add_column("account_choice", sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("account_choice", sa.Column("namespace", sa.String(), nullable=True))
    op.execute("UPDATE account_choice SET due_at = chosen_at WHERE run_id <> ''")
    _index("account_choice_due", "account_choice", "due_at", _DUE)
    _index("waiter_over", "waiter", "expires_at", _OWED_NOTHING)
    op.create_index("notification_owed", "notification", ["created_at"])


def downgrade() -> None:
    """Take back."""
    op.drop_index("notification_owed", "notification")
    op.drop_index("waiter_over", "waiter")
    op.drop_index("account_choice_due", "account_choice")
    op.drop_column("account_choice", "namespace")
    op.drop_column("account_choice", "due_at")


def _index(name: str, table: str, column: str, where: sa.TextClause) -> None:
    op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)
