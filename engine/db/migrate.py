"""Brings a database to the current schema with Alembic. It never takes migrations down by itself."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from engine.db.database import Database, translate_connection_errors
from engine.errors import SettingsInvalid

_PACKAGED_MIGRATIONS = Path(__file__).parent.parent / "migrations"
_CHECKOUT_MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"


def make_alembic_config(database_url: str) -> Config:
    """Return Alembic's configuration for this database; the scripts come with the wheel, or from the checkout."""
    migrations_folder = _PACKAGED_MIGRATIONS if _PACKAGED_MIGRATIONS.exists() else _CHECKOUT_MIGRATIONS
    alembic_config = Config()
    # Alembic reads its options through configparser, which takes a percent sign for an interpolation.
    alembic_config.set_main_option("script_location", str(migrations_folder).replace("%", "%%"))
    alembic_config.attributes["url"] = database_url
    return alembic_config


async def require_current_schema(database: Database) -> None:
    """Raise SettingsInvalid where the database does not have this release's schema."""
    required_revision = ScriptDirectory.from_config(make_alembic_config("")).get_current_head()
    async with database.open_read_session() as db_session:
        with translate_connection_errors(database.url):
            connection = await db_session.connection()
        try:
            query_result = await connection.execute(text("SELECT version_num FROM alembic_version"))
            database_revision = query_result.scalar_one_or_none()
        except DBAPIError:
            database_revision = None
    if database_revision != required_revision:
        raise SettingsInvalid(
            f"The database has schema {database_revision or 'none'} and this release needs "
            f"{required_revision}: run `byline migrate`."
        )


def upgrade_schema(database_url: str, revision: str = "head") -> None:
    """Apply every migration up to `revision`; does nothing to a database that has them already."""
    command.upgrade(make_alembic_config(database_url), revision)


def downgrade_schema(database_url: str, revision: str) -> None:
    """Take migrations back down to `revision`, for tests of the migrations themselves."""
    command.downgrade(make_alembic_config(database_url), revision)
