"""Brings a database to the current schema with Alembic; it never goes down by itself."""

from pathlib import Path

from alembic import command
from alembic.config import Config

_PACKAGED = Path(__file__).parent.parent / "migrations"
_CHECKOUT = Path(__file__).parent.parent.parent / "migrations"


def config(url: str) -> Config:
    """Alembic's configuration for this database; scripts come with the wheel, or from the checkout."""
    scripts = _PACKAGED if _PACKAGED.exists() else _CHECKOUT
    alembic = Config()
    alembic.set_main_option("script_location", str(scripts))
    alembic.attributes["url"] = url
    return alembic


def upgrade(url: str, revision: str = "head") -> None:
    """Apply every migration up to `revision`; does nothing to a database that is there already."""
    command.upgrade(config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take migrations back down to `revision`, for tests of the migrations themselves."""
    command.downgrade(config(url), revision)
