"""Holds what changed of late to be seen by every process, and to be forgotten in time."""

from datetime import timedelta

from sqlalchemy import update

from engine.db.database import now
from engine.db.tables import ResourceChangeRow
from engine.services import Services


async def test_a_change_is_seen_by_every_process_and_the_last_one_counts(
    services: Services, other: Services
) -> None:
    before = now()
    await services.changes.note("crm://accounts/1")
    first = await other.changes.since(before)
    await other.changes.note("crm://accounts/1")
    await other.changes.note("crm://accounts/2")
    seen = await services.changes.since(before)

    assert set(first) == {"crm://accounts/1"}
    assert set(seen) == {"crm://accounts/1", "crm://accounts/2"}
    assert seen["crm://accounts/1"] > first["crm://accounts/1"] >= before
    assert await services.changes.since(now()) == {}


async def test_what_changed_long_ago_is_forgotten(services: Services) -> None:
    long_ago = now() - timedelta(hours=2)
    await services.changes.note("crm://accounts/1")
    async with services.database.writing() as session:
        await session.exec(update(ResourceChangeRow).values(changed_at=long_ago))
    await services.changes.note("crm://accounts/2")

    assert set(await services.changes.since(long_ago)) == {"crm://accounts/2"}
