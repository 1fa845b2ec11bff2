"""Holds where people are told to being sealed in its row, theirs alone, and owed once whoever asks first."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from engine.db.tables import NotificationChannelRow
from engine.errors import ArgumentsInvalid, ChannelUnknown, VaultSealBroken
from engine.identity.model import Principal
from engine.notifications.channels import NotificationChannel, NotificationEvent
from engine.services import Services
from tests.support.commands import Commands

HOOK = "https://hooks.example/a-path-that-is-a-secret"


async def add_channel(
    services: Services, person: Principal, *events: NotificationEvent, address: str = HOOK
) -> NotificationChannel:
    channel, _ = await services.notification_channels.add_channel(
        person, "webhook", address, "https://hooks.example/…", events
    )
    return channel


async def list_sealed_addresses(services: Services) -> list[bytes]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(NotificationChannelRow.sealed_address))).all())


async def test_a_channel_is_its_persons_alone_and_its_address_comes_out_for_sending_only(
    services: Services, alice: Principal, bob: Principal
) -> None:
    first = await add_channel(services, alice, "ended", "waiting")
    second = await add_channel(services, alice, "chat_ended")

    opened_channel = await services.notification_channels.open_channel(first.id)
    assert opened_channel is not None
    assert (opened_channel[0], opened_channel[1].address) == (first, HOOK)
    assert (opened_channel[1].secret or "").startswith("whsec_")
    assert await services.notification_channels.list_channels(alice.id) == [first, second]
    assert await services.notification_channels.list_channels(bob.id) == []
    assert await services.notification_channels.find_listening_channels([alice.id, bob.id], "waiting") == [
        first.id
    ]
    assert await services.notification_channels.find_listening_channels([bob.id], "waiting") == []
    assert not [row for row in await list_sealed_addresses(services) if b"secret" in row or b"whsec" in row]
    with pytest.raises(ChannelUnknown):
        await services.notification_channels.get_owned_channel(first.id, bob)
    with pytest.raises(ChannelUnknown):
        await services.notification_channels.remove_channel(first.id, bob)
    await services.notification_channels.remove_channel(first.id, alice)
    assert await services.notification_channels.open_channel(first.id) is None
    assert await services.notification_channels.list_channels(alice.id) == [second]


async def test_an_event_that_there_is_not_is_refused(services: Services, alice: Principal) -> None:
    for events in ((), ("payday",)):
        with pytest.raises(ArgumentsInvalid):
            await add_channel(services, alice, *events)


async def test_an_address_opens_in_the_row_it_was_sealed_for_alone(
    services: Services, alice: Principal, bob: Principal
) -> None:
    hers, his = await add_channel(services, alice, "ended"), await add_channel(services, bob, "ended")
    async with services.database.open_write_session() as session:
        stolen_address = (await session.get_one(NotificationChannelRow, hers.id)).sealed_address
        await session.exec(
            update(NotificationChannelRow)
            .where(col(NotificationChannelRow.id) == his.id)
            .values(sealed_address=stolen_address)
        )

    with pytest.raises(VaultSealBroken):
        await services.notification_channels.open_channel(his.id)


async def test_a_rotated_vault_seals_addresses_anew(
    services: Services, alice: Principal, commands: Commands, keyring_file: Path
) -> None:
    channel = await add_channel(services, alice, "ended")
    before = keyring_file.read_text()
    await commands.read_output("vault", "rotate")

    assert keyring_file.read_text() != before
    opened_channel = await services.notification_channels.open_channel(channel.id)
    assert opened_channel is not None
    assert opened_channel[1].address == HOOK
    assert all([await services.vault.has_current_key(row) for row in await list_sealed_addresses(services)])


async def test_a_note_is_due_once_however_many_claim_it_at_once(services: Services, other: Services) -> None:
    notes = [f"request:{number}" for number in range(5)]
    claims = await asyncio.gather(
        *(
            process_services.notification_channels.claim_notes(notes, name)
            for process_services in (services, other)
            for name in ("first", "second")
        )
    )

    winners = {
        note: [place for place, owed_notes in enumerate(claims) if note in owed_notes] for note in notes
    }
    # Whoever owes a note is told so each time it asks, in whichever process.
    assert all({place % 2 for place in places} in ({0}, {1}) for places in winners.values())
    assert all(places for places in winners.values())
