import time
from datetime import timedelta

from engine.db.database import utc_now
from engine.db.tables import DeviceSignInRow
from engine.identity.model import Principal
from engine.oauth.discovery import ProviderEndpoints
from engine.oauth.registration import _ClientInformationResponse
from engine.services import Services
from engine.sign_in.pending_device_codes import DeviceCode, _build_associated_data
from engine.vault.resealing import reseal_columns
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from tests.support.commands import Commands
from tests.support.samples import build_connection, build_identity, build_tokens

ISSUER = "https://issuer.example"
AT_ISSUER = ProviderEndpoints(
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    pushed_authorization_request_endpoint=None,
    revocation_endpoint=None,
    userinfo_endpoint=None,
    device_authorization_endpoint=None,
    issuer=ISSUER,
    is_iss_required=True,
)
CODE = DeviceCode(
    "WDJB-MJHT", f"{ISSUER}/device", None, "planted-device-code", 5, time.time() + 600, ("read_only",)
)


async def ask(services: Services, principal: Principal) -> str:
    """A question of this person's."""
    identity = build_identity(principal)
    await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
    await services.catalogue.store_connections([build_connection()])
    requirement = await services.authorization_requests.require_authorization(
        identity, build_connection(), ("read_only",), ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert requirement is not None
    return requirement.request_id


async def test_what_sign_ins_keep_is_sealed_and_survives_a_new_master_key(
    services: Services, alice: Principal, commands: Commands
) -> None:
    request_id = await ask(services, alice)
    registrations = services.registrations
    client_information = _ClientInformationResponse(
        client_id="byline", client_secret="planted", token_endpoint_auth_method="none"
    )
    device = DeviceSignInRow(
        request_id=request_id,
        sealed_code=await services.vault.seal_secret(
            CODE.to_json().encode(), _build_associated_data(request_id)
        ),
        interval_seconds=5,
        poll_after=utc_now() + timedelta(minutes=5),
        expires_at=utc_now() + timedelta(minutes=10),
    )
    registration = await registrations._build_client_row(ISSUER, client_information)
    async with services.database.open_write_session() as session:
        session.add(registration)
        session.add(device)
    await services.idp_sessions.store_session(
        alice.id, "planted-id-token", "planted-refresh", time.time() + 600
    )

    await commands.read_output("vault", "rotate")
    await commands.read_output("vault", "reseal")

    request = await services.authorization_requests.find_request(request_id)
    assert request is not None
    idp_session = await services.idp_sessions.find_session(alice.id)
    wait = await services.sign_ins.poll_code(request, alice)
    assert idp_session is not None
    assert wait is not None
    assert (idp_session.id_token, wait.user_code) == ("planted-id-token", "WDJB-MJHT")
    assert (await registrations.find_identity("billing", AT_ISSUER)).client_id == "byline"
    assert await reseal_columns(services.database, services.vault, lambda *_: None) == 0


async def test_a_grant_that_its_owner_revoked_differs_from_one_that_ended_otherwise(
    services: Services, alice: Principal
) -> None:
    billing = build_connection()
    billing = billing.model_copy(
        update={"provider": billing.provider.model_copy(update={"revocation_endpoint": None})}
    )

    async def store() -> None:
        async with services.database.open_write_session() as session:
            await services.grants.store_grant(session, billing, alice.id, build_tokens(), "alice")

    await store()
    await store()
    replaced_accounts = await services.grants.list_accounts_revoked_by_owner(billing, alice.id)
    await services.grant_removal.remove_own_grant(billing, alice)
    removed_accounts = await services.grants.list_accounts_revoked_by_owner(billing, alice.id)
    await store()

    assert (replaced_accounts, removed_accounts) == (set(), {"alice"})
    assert not await services.grants.list_accounts_revoked_by_owner(billing, alice.id)
