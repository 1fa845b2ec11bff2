import time
from datetime import timedelta

from engine.authorization.devices import _bound_to
from engine.connections.discovery import Endpoints
from engine.connections.registration import _Registered
from engine.connections.sign_in.device_code import DeviceCode
from engine.db.database import now
from engine.db.tables import DeviceSignInRow
from engine.identity.model import Principal
from engine.services import Services
from engine.vault.resealing import reseal
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from tests.data.commands import Commands
from tests.data.samples import connection, identity_of, tokens

ISSUER = "https://issuer.example"
AT_ISSUER = Endpoints(
    authorization=f"{ISSUER}/authorize",
    token=f"{ISSUER}/token",
    pushed_authorization_request=None,
    revocation=None,
    userinfo=None,
    device_authorization=None,
    issuer=ISSUER,
    iss_required=True,
)
CODE = DeviceCode(
    "WDJB-MJHT", f"{ISSUER}/device", None, "planted-device-code", 5, time.time() + 600, ("read_only",)
)


async def asked(services: Services, principal: Principal) -> str:
    """A question of this person's."""
    identity = identity_of(principal)
    await services.keys.sign(identity.claims(), IDENTITY_TYPE)
    await services.catalogue.declare([connection()])
    required = await services.authorization.require(
        identity, connection(), ("read_only",), ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert required is not None
    return required.request


async def test_what_sign_ins_keep_is_sealed_and_survives_a_new_master_key(
    services: Services, alice: Principal, commands: Commands
) -> None:
    request_id = await asked(services, alice)
    registrations = services.registrations
    registered = _Registered(client_id="byline", client_secret="planted", token_endpoint_auth_method="none")
    device = DeviceSignInRow(
        request_id=request_id,
        sealed_code=await services.vault.seal(CODE.text().encode(), _bound_to(request_id)),
        interval_seconds=5,
        poll_after=now() + timedelta(minutes=5),
        expires_at=now() + timedelta(minutes=10),
    )
    registration = await registrations._row(ISSUER, registered)
    async with services.database.writing() as session:
        session.add(registration)
        session.add(device)
    await services.company_sign_ins.keep(alice.id, "planted-id-token", "planted-refresh", time.time() + 600)

    await commands.answer("vault", "rotate")
    await commands.answer("vault", "reseal")

    request = await services.authorization.get(request_id)
    assert request is not None
    kept = await services.company_sign_ins.of(alice.id)
    wait = await services.devices.look(request, alice)
    assert kept is not None
    assert wait is not None
    assert (kept.id_token, wait.code.user_code) == ("planted-id-token", "WDJB-MJHT")
    assert (await registrations.of("billing", AT_ISSUER)).client_id == "byline"
    owners = (services.devices, registrations, services.company_sign_ins)
    again = [await reseal(services.database, services.vault, each.sealed, lambda *_: None) for each in owners]
    assert again == [0, 0, 0]


async def test_a_company_sign_in_is_renewed_by_one_process_at_a_time(
    services: Services, other: Services, alice: Principal
) -> None:
    await services.company_sign_ins.keep(alice.id, "id-token", "refresh-token", time.time() - 1)
    kept = await services.company_sign_ins.of(alice.id)
    assert kept is not None

    turns = [
        await process.company_sign_ins.take_turn(alice.id, kept.version) for process in (services, other)
    ]
    await services.company_sign_ins.end_turn(alice.id)
    again = await other.company_sign_ins.take_turn(alice.id, kept.version)
    await other.company_sign_ins.keep(alice.id, "newer", "refresh-token", time.time() + 600)
    late = await services.company_sign_ins.take_turn(alice.id, kept.version)

    assert (turns, again, late) == ([True, False], True, False)
    await services.company_sign_ins.forget(alice.id)
    assert await other.company_sign_ins.of(alice.id) is None


async def test_a_grant_that_was_taken_back_here_is_told_from_one_that_ended_otherwise(
    services: Services, alice: Principal
) -> None:
    billing = connection()
    billing = billing.model_copy(
        update={"provider": billing.provider.model_copy(update={"revocation_endpoint": None})}
    )

    async def store() -> None:
        async with services.database.writing() as session:
            await services.grants.store(session, billing, alice.id, tokens(), "alice")

    await store()
    await store()
    replaced = await services.grants.given_up(billing, alice.id)
    await services.grants.remove(billing, alice.id)
    removed = await services.grants.given_up(billing, alice.id)
    await store()

    assert (replaced, removed) == (set(), {"alice"})
    assert not await services.grants.given_up(billing, alice.id)
