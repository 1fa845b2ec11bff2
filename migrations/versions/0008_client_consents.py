"""Who let which client act for them; who registered a client; statements that were used."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply; whoever is signed in with a refresh token stays signed in."""
    op.add_column(
        "oauth_client", sa.Column("registered_by", sa.String(), nullable=False, server_default="itself")
    )
    op.add_column("oauth_client", sa.Column("used_at", _INSTANT, nullable=True))
    clients = sa.table(
        "oauth_client",
        sa.column("metadata", sa.JSON),
        sa.column("registered_by", sa.String),
        sa.column("used_at", _INSTANT),
    )
    op.execute(clients.update().values(used_at=datetime.now(UTC)))
    # Only an administrator registers a back end, and only a back end has no redirect URI.
    redirects = clients.c.metadata["redirect_uris"].as_string()
    op.execute(clients.update().where(redirects.is_(None)).values(registered_by="administrator"))
    op.create_index("oauth_client_registered", "oauth_client", ["registered_by", "created_at"])
    consents = op.create_table(
        "client_consent",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("principal_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("client_name", sa.String(), nullable=False),
        sa.Column("goes_to", sa.String(), nullable=True),
        sa.Column("asserted_by", sa.String(), nullable=True),
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("created_at", _INSTANT, nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.ForeignKeyConstraint(["principal_id"], ["principal.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("client_consent_person", "client_consent", ["principal_id", "client_id"])
    op.create_index("ix_client_consent_client_id", "client_consent", ["client_id"])
    _keep_families(consents)
    op.drop_column("refresh_token", "revoked_at")
    op.create_table(
        "used_assertion",
        sa.Column("id_hash", sa.String(), nullable=False),
        sa.Column("expires_at", _INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id_hash"),
    )


def downgrade() -> None:
    """Take back; a family that was revoked has lost its refresh tokens, so that none of them comes back."""
    op.drop_table("used_assertion")
    op.execute("DELETE FROM refresh_token WHERE family NOT IN (SELECT id FROM client_consent)")
    op.add_column("refresh_token", sa.Column("revoked_at", _INSTANT, nullable=True))
    op.drop_index("ix_client_consent_client_id", "client_consent")
    op.drop_index("client_consent_person", "client_consent")
    op.drop_table("client_consent")
    op.drop_index("oauth_client_registered", "oauth_client")
    op.drop_column("oauth_client", "used_at")
    op.drop_column("oauth_client", "registered_by")


def _keep_families(consents: sa.Table) -> None:
    refresh = sa.table(
        "refresh_token",
        *(sa.column(name) for name in ("family", "principal_id", "client_id", "resource", "scopes")),
        sa.column("expires_at"),
        sa.column("revoked_at"),
    )
    families = (
        sa.select(
            refresh.c.family,
            sa.func.min(refresh.c.principal_id),
            sa.func.min(refresh.c.client_id),
            sa.func.min(refresh.c.client_id),
            sa.func.coalesce(sa.func.min(refresh.c.resource), ""),
            sa.func.min(refresh.c.scopes),
            sa.literal(datetime.now(UTC), _INSTANT),
            sa.func.max(refresh.c.expires_at),
        )
        .group_by(refresh.c.family)
        .having(sa.func.count(refresh.c.revoked_at) == 0)
    )
    columns = ("id", "principal_id", "client_id", "client_name", "resource", "scopes")
    op.execute(consents.insert().from_select([*columns, "created_at", "expires_at"], families))
