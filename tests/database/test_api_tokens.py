import re
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from engine.callers.api_tokens import ApiToken
from engine.db.database import utc_now
from engine.db.tables import ApiTokenRow
from engine.errors import ApiTokenInvalid, ApiTokenUnknown, NameTaken, ServiceUnknown
from engine.identity.model import Principal
from engine.services import Services
from tests.support.administration import add_service, set_active
from tests.support.commands import Commands

DAY = timedelta(days=1)


async def list_rows(services: Services) -> list[ApiTokenRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(ApiTokenRow))).all())


async def change_token(services: Services, token: ApiToken, **values: object) -> None:
    async with services.database.open_write_session() as session:
        await session.exec(update(ApiTokenRow).where(col(ApiTokenRow.id) == token.id).values(**values))


async def list_events(services: Services, kind: str) -> list[dict[str, object]]:
    return [line.event for line in await services.trail.find_lines() if line.kind == kind]


async def test_a_token_is_known_by_its_secret_in_every_process_and_acts_as_its_owner(
    services: Services, other: Services, alice: Principal
) -> None:
    api_token = await services.api_tokens.create_token(alice, "reports", tool_names=["b", "a", "b"])

    verified_token = await other.api_tokens.verify_token(api_token.token_text)

    assert re.fullmatch(r"byline_[0-9a-f]{16}_[0-9a-f]{64}", api_token.token_text)
    assert verified_token is not None
    token, owner = verified_token
    assert (token.id, token.name, token.tool_names, owner) == (
        api_token.api_token.id,
        "reports",
        frozenset({"a", "b"}),
        alice,
    )
    assert api_token.api_token.expires_at - api_token.api_token.created_at <= timedelta(days=90, seconds=1)


async def test_neither_the_database_nor_the_trail_holds_what_a_bearer_sends(
    services: Services, alice: Principal
) -> None:
    api_token = await services.api_tokens.create_token(alice, "reports")
    secret = api_token.token_text.rpartition("_")[2]
    await services.api_tokens.revoke_token(api_token.api_token.id, alice)

    (row,) = await list_rows(services)
    lines = await services.trail.find_lines()

    assert secret not in repr(row)
    assert secret not in repr(lines)
    assert secret not in repr(await services.api_tokens.list_tokens(alice))


async def test_a_token_is_refused_that_is_altered_expired_revoked_or_whose_owner_was_stopped(
    services: Services, alice: Principal, bob: Principal
) -> None:
    mine = await services.api_tokens.create_token(alice, "mine")
    his = await services.api_tokens.create_token(bob, "his")
    expired_token = await services.api_tokens.create_token(alice, "expired")
    await change_token(services, expired_token.api_token, expires_at=utc_now())
    revoked_token = await services.api_tokens.create_token(alice, "revoked")
    await services.api_tokens.revoke_token(revoked_token.api_token.id, alice)
    prefix, _, his_secret = his.token_text.rpartition("_")
    mixed_token = f"{mine.token_text.rpartition('_')[0]}_{his_secret}"

    for wrong in (
        mixed_token,
        f"{prefix}_{'0' * 64}",
        his.token_text.upper(),
        f" {mine.token_text}",
        f"{mine.token_text}\n",
        mine.token_text[:-1],
        f"byline_{'0' * 16}_{his_secret}",
        "byline__",
        "",
        expired_token.token_text,
        revoked_token.token_text,
    ):
        assert await services.api_tokens.verify_token(wrong) is None, wrong
    await set_active(services, bob.id, is_active=False)
    assert await services.api_tokens.verify_token(his.token_text) is None
    assert await services.api_tokens.verify_token(mine.token_text) is not None


async def test_a_token_is_listed_and_revoked_by_its_owner_alone(
    services: Services, alice: Principal, bob: Principal
) -> None:
    first = await services.api_tokens.create_token(alice, "first")
    second = await services.api_tokens.create_token(alice, "second")

    assert await services.api_tokens.list_tokens(bob) == []
    with pytest.raises(ApiTokenUnknown):
        await services.api_tokens.get_token(first.api_token.id, bob)
    with pytest.raises(ApiTokenUnknown):
        await services.api_tokens.revoke_token(first.api_token.id, bob)
    assert await services.api_tokens.verify_token(first.token_text) is not None

    await services.api_tokens.revoke_token(first.api_token.id, alice)
    again = await services.api_tokens.revoke_token(first.api_token.id, alice)

    assert again.token_state == "revoked"
    assert [(token.name, token.token_state) for token in await services.api_tokens.list_tokens(alice)] == [
        ("second", "active"),
        ("first", "revoked"),
    ]
    (revoked_event,) = await list_events(services, "token.revoked")
    assert revoked_event["object_id"] == first.api_token.id
    assert [event["object_id"] for event in await list_events(services, "token.created")] == [
        first.api_token.id,
        second.api_token.id,
    ]


async def test_the_last_use_is_noted_and_not_at_every_use(services: Services, alice: Principal) -> None:
    api_token = await services.api_tokens.create_token(alice, "reports")

    await services.api_tokens.verify_token(api_token.token_text)
    first = (await services.api_tokens.get_token(api_token.api_token.id, alice)).last_used_at
    await services.api_tokens.verify_token(api_token.token_text)
    second = (await services.api_tokens.get_token(api_token.api_token.id, alice)).last_used_at
    earlier = utc_now() - timedelta(minutes=2)
    await change_token(services, api_token.api_token, last_used_at=earlier)
    await services.api_tokens.verify_token(api_token.token_text)
    third = (await services.api_tokens.get_token(api_token.api_token.id, alice)).last_used_at

    assert first is not None
    assert second == first
    assert third is not None
    assert third > earlier


@pytest.mark.parametrize(
    ("name", "life", "tools"),
    [
        ("", DAY, None),
        ("  ", DAY, None),
        ("a\x1b[2J", DAY, None),
        ("a" * 101, DAY, None),
        ("reports", timedelta(), None),
        ("reports", -DAY, None),
        ("reports", 366 * DAY, None),
        ("reports", DAY, []),
    ],
)
async def test_a_token_that_would_be_no_use_or_live_too_long_is_not_made(
    services: Services, alice: Principal, name: str, life: timedelta, tools: list[str] | None
) -> None:
    with pytest.raises(ApiTokenInvalid):
        await services.api_tokens.create_token(alice, name, lifetime=life, tool_names=tools)

    assert await list_rows(services) == []


async def test_a_service_is_registered_once_and_named_as_a_service_in_the_trail(
    services: Services, alice: Principal
) -> None:
    service = await add_service(services, "nightly", administrator=alice)

    with pytest.raises(NameTaken):
        await add_service(services, "nightly")
    with pytest.raises(NameTaken, match="lower-case letters"):
        await add_service(services, "Nightly job")
    assert service.kind == "service"
    assert await services.service_principals.list_services() == [service]
    assert await services.service_principals.get_service("nightly") == service
    assert await services.service_principals.get_service(service.id) == service
    (created_event,) = await list_events(services, "service.created")
    assert created_event["principal"] == {
        "id": service.id,
        "iss": service.issuer,
        "sub": "service:nightly",
        "name": "nightly",
        "kind": "service",
    }
    assert created_event["by"]["id"] == alice.id  # type: ignore[index]


async def test_a_person_is_no_service_whatever_they_are_called(services: Services, alice: Principal) -> None:
    named_principal = await services.principals.resolve_principal(
        "https://people.example", "service:nightly", "nightly"
    )

    for name in ("nightly", named_principal.id, alice.id):
        with pytest.raises(ServiceUnknown):
            await services.service_principals.get_service(name)


async def test_an_administrator_makes_a_service_its_tokens_and_roles_from_a_shell(
    services: Services, commands: Commands, alice: Principal
) -> None:
    await commands.read_output("services", "add", "nightly")
    secret = (await commands.read_output("services", "add-token", "nightly", "cron", "--tool", "a")).strip()
    verified_token = await services.api_tokens.verify_token(secret)
    assert verified_token is not None
    token, service = verified_token

    assert (service.name, service.kind, token.tool_names) == ("nightly", "service", frozenset({"a"}))
    assert token.id in await commands.read_output("services", "tokens", "nightly")
    assert service.id in await commands.read_output("services", "list")
    assert "only a person" in await commands.read_refusal("people", "give-role", "nightly", "administrator")
    await commands.read_output("services", "revoke-token", "nightly", token.id)
    assert await services.api_tokens.verify_token(secret) is None

    await commands.read_output("people", "give-role", "Alice Adams", "administrator")
    assert "already" in await commands.read_output("people", "give-role", "Alice Adams", "administrator")
    assert await services.roles.list_roles(alice.id) == {"administrator"}
    listing = await commands.read_output("people", "list")
    assert re.search(rf"{alice.id}  Alice Adams +person +active +administrator", listing)
    await commands.read_output("people", "take-role", "Alice Adams", "administrator")
    assert "does not have" in await commands.read_refusal(
        "people", "take-role", "Alice Adams", "administrator"
    )
    assert "one word" in await commands.read_refusal("people", "give-role", "Alice Adams", "Two Words")

    (given_event,) = await list_events(services, "role.given")
    (taken_event,) = await list_events(services, "role.taken")
    assert given_event["role"] == taken_event["role"] == "administrator"
    assert given_event["principal"] == taken_event["principal"]


async def test_a_back_end_is_registered_and_forgotten_from_a_shell(commands: Commands) -> None:
    output = await commands.read_output("clients", "add-backend", "Billing portal")
    client_id = output.split()[1]
    secret = output.split()[3]

    listing = await commands.read_output("clients", "list")
    assert f"{client_id}  Billing portal" in listing
    assert secret not in listing
    assert "external issuer" in await commands.read_refusal(
        "clients", "add-backend", "Other", "--audience", "x"
    )
    await commands.read_output("clients", "remove", client_id)
    assert client_id in await commands.read_refusal("clients", "remove", client_id)
