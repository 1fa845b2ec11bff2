"""Holds what changed of late to be seen by every process, and to be forgotten in time."""

from datetime import timedelta

from sqlalchemy import update

from engine.db.database import utc_now
from engine.db.tables import ResourceChangeRow
from engine.services import Services


async def test_a_change_is_seen_by_every_process_and_the_last_one_counts(
    services: Services, other: Services
) -> None:
    before = utc_now()
    await services.resource_changes.note_change("crm://accounts/1")
    first = await other.resource_changes.list_changes_since(before)
    await other.resource_changes.note_change("crm://accounts/1")
    await other.resource_changes.note_change("crm://accounts/2")
    seen_changes = await services.resource_changes.list_changes_since(before)

    assert set(first) == {"crm://accounts/1"}
    assert set(seen_changes) == {"crm://accounts/1", "crm://accounts/2"}
    assert seen_changes["crm://accounts/1"] > first["crm://accounts/1"] >= before
    assert await services.resource_changes.list_changes_since(utc_now()) == {}


async def test_what_changed_long_ago_is_forgotten(services: Services) -> None:
    long_ago = utc_now() - timedelta(hours=2)
    await services.resource_changes.note_change("crm://accounts/1")
    async with services.database.open_write_session() as session:
        await session.exec(update(ResourceChangeRow).values(changed_at=long_ago))
    await services.resource_changes.note_change("crm://accounts/2")

    assert set(await services.resource_changes.list_changes_since(long_ago)) == {"crm://accounts/2"}
