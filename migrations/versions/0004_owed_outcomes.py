"""A chat client's call is owed its outcome whether or not its run ever waited."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OWED = sa.text("answered_at IS NULL")
_OWED_AFTER_A_WAIT = sa.text("parked_at IS NOT NULL AND answered_at IS NULL")


def upgrade() -> None:
    """Apply."""
    # Calls that ended before this were told as they ended, unless they had waited.
    op.execute("UPDATE run SET answered_at = started_at WHERE parked_at IS NULL AND answered_at IS NULL")
    _index_anew(_OWED)


def downgrade() -> None:
    """Take back."""
    _index_anew(_OWED_AFTER_A_WAIT)


def _index_anew(where: sa.TextClause) -> None:
    op.drop_index("run_unanswered", "run")
    op.create_index(
        "run_unanswered", "run", ["principal_id", "call"], sqlite_where=where, postgresql_where=where
    )
