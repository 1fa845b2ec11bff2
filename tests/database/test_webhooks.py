"""Holds the table of webhooks to its promises on every database."""

from datetime import timedelta

import pytest
from sqlmodel import select

from engine.audit.verify import verify_trail
from engine.db.tables import WebhookRow
from engine.errors import VaultSealBroken, WebhookInvalid, WebhookUnknown
from engine.identity.model import Principal
from engine.services import Services
from engine.webhooks.mapping import DeliveryMapping
from engine.webhooks.webhooks import MAX_WEBHOOKS_PER_PRINCIPAL, WebhookUpdate, WebhookWithSecret
from tests.support.commands import Commands
from tests.support.webhook_senders import GITHUB

MAPPING = DeliveryMapping.model_validate(
    {
        "arguments": {
            "a": {"pointer": "/a"},
            "b": {"pointer": "/b", "default": None},
            "c": {"constant": [1]},
        },
        "conditions": [{"pointer": "/type", "equals": ["made"]}],
    }
)


async def create_webhook(
    services: Services, by: Principal, name: str = "Hook", secret: str | None = None
) -> WebhookWithSecret:
    return await services.webhooks.create_webhook(
        by,
        by,
        webhook_name=name,
        tool_name="tool",
        scheme="github",
        delivery_mapping=MAPPING,
        sender_secret=secret,
    )


async def test_a_webhook_reads_back_as_it_was_made_in_every_process(
    services: Services, other: Services, alice: Principal
) -> None:
    new = await create_webhook(services, alice)

    webhook, in_force = await other.webhooks.get_webhook_with_secrets(new.webhook.id)

    assert webhook == new.webhook
    assert webhook.mapping == MAPPING
    assert in_force == [new.webhook_secret]


async def test_a_list_goes_on_where_it_stopped(services: Services, alice: Principal, bob: Principal) -> None:
    names = [f"Hook {number}" for number in range(5)]
    for name in names:
        await create_webhook(services, alice, name)
    await create_webhook(services, bob)

    first = await services.webhooks.list_webhooks(alice, limit=3)
    place = (first[-1].created_at, first[-1].id)
    rest = await services.webhooks.list_webhooks(alice, limit=3, after_place=place)

    assert [one.name for one in (*first, *rest)] == names[::-1]


async def test_of_two_changes_to_one_version_the_second_finds_it_gone(
    services: Services, other: Services, alice: Principal
) -> None:
    webhook = (await create_webhook(services, alice)).webhook

    first = await services.webhooks.change_webhook(alice, webhook, WebhookUpdate(name="First"))

    assert first is not None
    assert (first.name, first.version, first.mapping) == ("First", 2, MAPPING)
    assert await other.webhooks.change_webhook(alice, webhook, WebhookUpdate(is_active=False)) is None
    assert await other.webhooks.rotate_secret(alice, webhook, timedelta()) is None
    assert not await other.webhooks.delete_webhook(alice, webhook)
    assert await other.webhooks.delete_webhook(alice, first)
    with pytest.raises(WebhookUnknown):
        await services.webhooks.get_webhook_with_secrets(webhook.id)
    assert (await verify_trail(services.database, services.signing_keys)).is_intact


async def test_two_secrets_are_in_force_for_a_while_and_never_three(
    services: Services, alice: Principal
) -> None:
    webhook = (await create_webhook(services, alice, secret=GITHUB)).webhook

    once = await services.webhooks.rotate_secret(alice, webhook, timedelta(hours=1))
    assert once is not None
    assert (await services.webhooks.get_webhook_with_secrets(webhook.id))[1] == [once.webhook_secret, GITHUB]
    twice = await services.webhooks.rotate_secret(alice, once.webhook, timedelta(hours=1))
    assert twice is not None
    assert (await services.webhooks.get_webhook_with_secrets(webhook.id))[1] == [
        twice.webhook_secret,
        once.webhook_secret,
    ]
    last = await services.webhooks.rotate_secret(alice, twice.webhook, timedelta())
    assert last is not None
    assert (await services.webhooks.get_webhook_with_secrets(webhook.id))[1] == [last.webhook_secret]


async def test_a_secret_is_sealed_anew_when_the_vault_is(
    services: Services, alice: Principal, commands: Commands
) -> None:
    webhook = (await create_webhook(services, alice, secret=GITHUB)).webhook
    await commands.read_output("vault", "rotate")

    async with services.database.open_read_session() as session:
        sealed_secret = (await session.exec(select(WebhookRow))).one().sealed_secret
    assert GITHUB.encode() not in sealed_secret
    assert (await services.webhooks.get_webhook_with_secrets(webhook.id))[1] == [GITHUB]
    assert await services.vault.has_current_key(sealed_secret)


@pytest.mark.parametrize("changed_field", ["principal_id", "tool", "scheme"])
async def test_a_secret_opens_for_no_other_principal_tool_or_scheme(
    services: Services, alice: Principal, bob: Principal, changed_field: str
) -> None:
    webhook = (await create_webhook(services, alice)).webhook
    async with services.database.open_write_session() as session:
        row = await session.get_one(WebhookRow, webhook.id)
        setattr(row, changed_field, bob.id if changed_field == "principal_id" else "stripe")
        session.add(row)

    with pytest.raises(VaultSealBroken):
        await services.webhooks.get_webhook_with_secrets(webhook.id)


async def test_a_principal_has_so_many_webhooks_and_no_more(
    services: Services, alice: Principal, bob: Principal
) -> None:
    for number in range(MAX_WEBHOOKS_PER_PRINCIPAL):
        await create_webhook(services, alice, str(number))

    with pytest.raises(WebhookInvalid, match="Delete"):
        await create_webhook(services, alice)
    await create_webhook(services, bob)
