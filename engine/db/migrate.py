"""Brings a database to the current schema with Alembic. It never takes migrations down by itself."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from engine.db.database import Database, connecting
from engine.errors import SettingsInvalid

_PACKAGED = Path(__file__).parent.parent / "migrations"
_CHECKOUT = Path(__file__).parent.parent.parent / "migrations"


def config(url: str) -> Config:
    """Return Alembic's configuration for this database; the scripts come with the wheel, or from the checkout."""
    scripts = _PACKAGED if _PACKAGED.exists() else _CHECKOUT
    alembic = Config()
    # Alembic reads its options through configparser, which takes a percent sign for an interpolation.
    alembic.set_main_option("script_location", str(scripts).replace("%", "%%"))
    alembic.attributes["url"] = url
    return alembic


async def require_current(database: Database) -> None:
    """Raise SettingsInvalid where the database does not have this release's schema."""
    needed = ScriptDirectory.from_config(config("")).get_current_head()
    async with database.reading() as session:
        with connecting(database.url):
            connection = await session.connection()
        try:
            result = await connection.execute(text("SELECT version_num FROM alembic_version"))
            found = result.scalar_one_or_none()
        except DBAPIError:
            found = None
    if found != needed:
        raise SettingsInvalid(
            f"The database has schema {found or 'none'} and this release needs {needed}: run `byline migrate`."
        )


def upgrade(url: str, revision: str = "head") -> None:
    """Apply every migration up to `revision`; does nothing to a database that has them already."""
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take migrations back down to `revision`, for tests of the migrations themselves."""
    command.downgrade(config(url), revision)
