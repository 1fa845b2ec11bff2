import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path

import boto3
import hvac
import pytest
from pydantic import SecretStr, ValidationError
from sqlmodel import col, select

from engine.db.tables import DataKeyRow, SigningKeyRow
from engine.errors import KeyServiceUnavailable, SettingsInvalid, VaultSealBroken
from engine.runs.outcome import Finished
from engine.services import Services, open_services
from engine.settings import (
    AppRoleSettings,
    AwsKmsSettings,
    DatabaseSettings,
    KubernetesSettings,
    Settings,
    TransitSettings,
    VaultSettings,
)
from engine.vault.key_providers import open_key_providers
from engine.wire import IDENTITY_TYPE
from tests.support.administration import rotate_data_key
from tests.support.commands import Commands
from tests.support.databases import sqlite_database
from tests.support.foreign.kms import CREDENTIALS, REGION, kms_server
from tests.support.foreign.process import free_port
from tests.support.platform import NORTHWIND, open_platform, wait_until
from tests.support.sandbox_systems import SandboxProcess
from tests.support.vault_transit import ROLE_ID, SECRET_ID, TOKEN, TransitServer

SECRET = b"a refresh token"
OpenServices = Callable[[VaultSettings], AbstractAsyncContextManager[Services]]


@pytest.fixture
def transit() -> Iterator[TransitServer]:
    server = TransitServer(free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with kms_server(tmp_path_factory.mktemp("kms") / "moto.log") as address:
        yield address


def settings_for_transit(
    server: TransitServer,
    folder: Path,
    life: float = 300.0,
    *,
    approle: AppRoleSettings | None = None,
    kubernetes: KubernetesSettings | None = None,
) -> VaultSettings:
    return VaultSettings(
        provider="transit",
        keyring_file=folder / "keyring.json",
        transit=TransitSettings(
            address=server.address,
            key="byline",
            token=None if approle or kubernetes else SecretStr(TOKEN),
            approle=approle,
            kubernetes=kubernetes,
        ),
        data_key_life=timedelta(seconds=life),
    )


def settings_for_approle(server: TransitServer, folder: Path, secret_id: str = SECRET_ID) -> VaultSettings:
    approle = AppRoleSettings(role_id=ROLE_ID, secret_id=SecretStr(secret_id))
    return settings_for_transit(server, folder, approle=approle)


def settings_for_kubernetes(server: TransitServer, folder: Path) -> VaultSettings:
    """Settings for a login at another mount, whose service account the server knows."""
    file = folder / "jwt"
    file.write_text("first.jwt.of-the-pod\n")
    server.jwts = {"first.jwt.of-the-pod"}
    return settings_for_transit(
        server, folder, kubernetes=KubernetesSettings(role="byline", jwt_file=file, mount="cluster")
    )


@pytest.fixture(params=["transit", "aws_kms"])
def vault_settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> VaultSettings:
    """Settings by which the master key lies at a service."""
    if request.param == "transit":
        return settings_for_transit(request.getfixturevalue("transit"), tmp_path)
    address: str = request.getfixturevalue("kms")
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    key_response = boto3.client("kms", region_name=REGION, endpoint_url=address).create_key()
    kms_settings = AwsKmsSettings(
        key_id=key_response["KeyMetadata"]["KeyId"], region=REGION, endpoint=address
    )
    return VaultSettings(provider="aws_kms", keyring_file=tmp_path / "keyring.json", aws_kms=kms_settings)


@pytest.fixture
async def address(tmp_path: Path) -> str:
    return await sqlite_database(tmp_path)


@pytest.fixture
def open_services_with(address: str) -> OpenServices:
    def open_with(vault: VaultSettings) -> AbstractAsyncContextManager[Services]:
        return open_services(Settings(database=DatabaseSettings(url=address), vault=vault), {})

    return open_with


async def list_data_keys(services: Services) -> Sequence[DataKeyRow]:
    async with services.database.open_read_session() as session:
        return (await session.exec(select(DataKeyRow).order_by(col(DataKeyRow.number)))).all()


async def test_a_master_key_that_never_leaves_its_service_seals_for_every_process_alike(
    vault_settings: VaultSettings, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async with open_services_with(vault_settings) as one, open_services_with(vault_settings) as other:
        sealed_secret = await one.vault.seal_secret(SECRET, "row")
        (row,) = await list_data_keys(one)
        _, key = await one.data_keys.get_current_key()

        assert await other.vault.open_secret(sealed_secret, "row") == SECRET
        assert one.vault.derive_keys("cursors") == other.vault.derive_keys("cursors")
        assert row.wrapped_by == vault_settings.provider
        assert key not in row.wrapped
        with pytest.raises(VaultSealBroken):
            await other.vault.open_secret(sealed_secret, "another row")
    assert not (tmp_path / "keyring.json").exists()


async def test_a_wrapped_key_that_was_moved_to_another_row_does_not_open(
    vault_settings: VaultSettings, open_services_with: OpenServices
) -> None:
    async with open_services_with(vault_settings) as services:
        await rotate_data_key(services)
        async with services.database.open_write_session() as session:
            one, two = (await session.exec(select(DataKeyRow).order_by(col(DataKeyRow.number)))).all()
            one.wrapped, two.wrapped = two.wrapped, one.wrapped
            session.add_all([one, two])

    with pytest.raises(VaultSealBroken, match="data_key:1 was altered, or is not one that"):
        async with open_services_with(vault_settings):
            pass


async def test_keys_move_to_another_provider_without_a_secret_being_touched(
    vault_settings: VaultSettings, open_services_with: OpenServices, address: str, tmp_path: Path
) -> None:
    here = VaultSettings(keyring_file=tmp_path / "keyring.json")
    async with open_services_with(here) as services:
        sealed_secret = await services.vault.seal_secret(SECRET, "row")
        signed_token = await services.signing_keys.sign_claims({}, IDENTITY_TYPE)
        async with services.database.open_read_session() as session:
            before = (await session.exec(select(SigningKeyRow.sealed_private_key))).one()
        derived_keys = services.vault.derive_keys("cursors")

    with pytest.raises(SettingsInvalid, match="Data key 1 is wrapped by keyring, which is not set"):
        async with open_services_with(vault_settings.model_copy(update={"keyring_file": None})):
            pass
    output = await Commands(variables(vault_settings, address), tmp_path).read_output("vault", "rewrap")
    (tmp_path / "keyring.json").unlink()

    assert output == f"Data key 1 is wrapped by {vault_settings.provider}.\n"
    async with open_services_with(vault_settings) as services:
        assert await services.vault.open_secret(sealed_secret, "row") == SECRET
        assert await services.signing_keys.verify_token(signed_token, IDENTITY_TYPE)
        assert services.vault.derive_keys("cursors") == derived_keys
        async with services.database.open_read_session() as session:
            assert (await session.exec(select(SigningKeyRow.sealed_private_key))).one() == before


def variables(vault: VaultSettings, address: str) -> dict[str, str]:
    """The settings as a process of its own reads them."""
    group = vault.transit or vault.aws_kms
    assert group is not None
    group_values = {name: value for name, value in group.model_dump(mode="json").items() if value is not None}
    if vault.transit is not None:
        group_values["token"] = TOKEN
    prefix = f"BYLINE_VAULT__{vault.provider.upper()}__"
    return {
        **CREDENTIALS,
        "BYLINE_DATABASE__URL": address,
        "BYLINE_VAULT__PROVIDER": vault.provider,
        "BYLINE_VAULT__KEYRING_FILE": str(vault.keyring_file),
        **{prefix + name.upper(): value for name, value in group_values.items()},
    }


async def is_missed(services: Services, sealed_secret: bytes) -> bool:
    """Whether the service is away and no key that it unwrapped is left in memory."""
    try:
        await services.vault.open_secret(sealed_secret, "row")
    except KeyServiceUnavailable:
        return True
    return False


async def test_what_is_used_often_asks_the_service_nothing(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async with open_services_with(settings_for_transit(transit, tmp_path)) as services:
        before = list(transit.request_paths)
        sealed_secrets = [await services.vault.seal_secret(SECRET, f"row {number}") for number in range(200)]
        opened_secrets = [
            await services.vault.open_secret(sealed_secret, f"row {number}")
            for number, sealed_secret in enumerate(sealed_secrets)
        ]

    assert set(opened_secrets) == {SECRET}
    assert transit.request_paths == before


async def test_a_master_key_is_rotated_where_it_lies_and_the_versions_before_end(
    transit: TransitServer, open_services_with: OpenServices, address: str, tmp_path: Path
) -> None:
    settings = settings_for_transit(transit, tmp_path)
    async with open_services_with(settings) as services:
        sealed_secret = await services.vault.seal_secret(SECRET, "row")
    vault = hvac.Client(url=transit.address, token=TOKEN).secrets.transit
    await asyncio.to_thread(vault.rotate_key, "byline")

    await Commands(variables(settings, address), tmp_path).read_output("vault", "rewrap")
    await asyncio.to_thread(vault.update_key_configuration, "byline", min_decryption_version=2)

    async with open_services_with(settings) as services:
        assert await services.vault.open_secret(sealed_secret, "row") == SECRET
        assert [row.wrapped[:9] for row in await list_data_keys(services)] == [b"vault:v2:"]


async def test_a_service_that_is_away_is_missed_only_once_the_keys_in_memory_are_over(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async with open_services_with(settings_for_transit(transit, tmp_path, life=1.0)) as services:
        sealed_secret = await services.vault.seal_secret(SECRET, "row")
        transit.stop()
        assert await services.vault.open_secret(sealed_secret, "row") == SECRET
        await wait_until(lambda: is_missed(services, sealed_secret))
        with pytest.raises(KeyServiceUnavailable, match="see that it is up") as error_info:
            await services.vault.seal_secret(SECRET, "row")
        assert transit.address in str(error_info.value)
        assert TOKEN not in str(error_info.value)
        transit.start()
        assert await services.vault.open_secret(sealed_secret, "row") == SECRET


async def test_a_run_tries_again_until_the_service_is_back_and_nothing_is_lost(
    transit: TransitServer, tmp_path: Path, temporal_address: str, upstreams: Mapping[str, SandboxProcess]
) -> None:
    vault = settings_for_transit(transit, tmp_path, life=1.0)
    async with open_platform(tmp_path, temporal_address, upstreams, vault=vault) as platform:
        await platform.give_grant("crm", platform.alice)
        sealed_secret = await platform.services.vault.seal_secret(SECRET, "row")
        run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
        transit.stop()
        await wait_until(lambda: is_missed(platform.services, sealed_secret))

        async def has_failed() -> bool:
            description = await platform.temporal.get_workflow_handle(run).describe()
            return any(
                activity.last_failure.application_failure_info.type == "key_service_unavailable"
                for activity in description.raw_description.pending_activities
            )

        async with platform.run_worker():
            await wait_until(has_failed)
            assert platform.list_requests("crm") == []
            transit.start()
            assert isinstance(await platform.wait_for_outcome(run), Finished)
        assert len(platform.list_requests("crm")) == 1


@pytest.mark.parametrize("wrong", ["token", "address"])
async def test_a_start_without_the_service_is_refused_with_what_to_do(
    transit: TransitServer, address: str, tmp_path: Path, wrong: str
) -> None:
    settings = variables(settings_for_transit(transit, tmp_path), address)
    changes = {
        "token": {"BYLINE_VAULT__TRANSIT__TOKEN": "hvs.of-nobody"},
        "address": {"BYLINE_VAULT__TRANSIT__ADDRESS": f"http://127.0.0.1:{free_port()}"},
    }[wrong]
    output = await Commands({**settings, **changes}, tmp_path).read_refusal("keys", "list")

    assert output.startswith("Vault's key 'byline' at http://127.0.0.1:")
    assert "see that it is up, unsealed and permitted" in output
    assert "hvs" not in output


async def test_a_token_that_an_agent_renews_is_read_from_its_file(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("hvs.of-yesterday")
    settings = settings_for_transit(transit, tmp_path).model_copy(
        update={"transit": TransitSettings(address=transit.address, key="byline", token_file=file)}
    )
    with pytest.raises(KeyServiceUnavailable, match="Forbidden"):
        async with open_services_with(settings):
            pass
    file.write_text(f"{TOKEN}\n")
    async with open_services_with(settings) as services:
        assert (
            await services.vault.open_secret(await services.vault.seal_secret(SECRET, "row"), "row") == SECRET
        )


@pytest.mark.parametrize("by", [settings_for_approle, settings_for_kubernetes])
async def test_one_login_does_for_every_question_until_vault_forgets_it(
    transit: TransitServer,
    open_services_with: OpenServices,
    tmp_path: Path,
    by: Callable[[TransitServer, Path], VaultSettings],
) -> None:
    async with open_services_with(by(transit, tmp_path)) as services:
        sealed_secret = await services.vault.seal_secret(SECRET, "row")
        await rotate_data_key(services)
        first = transit.request_paths.count("login")
        transit.forget_tokens()
        await rotate_data_key(services)

        assert await services.vault.open_secret(sealed_secret, "row") == SECRET
    assert (first, transit.request_paths.count("login"), transit.refusal_count) == (1, 2, 1)


async def test_a_login_is_made_again_before_its_lease_ends(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    transit.lease = 2.0
    async with open_services_with(settings_for_approle(transit, tmp_path)) as services:

        async def has_logged_in_again() -> bool:
            await rotate_data_key(services)
            return transit.request_paths.count("login") == 3

        await wait_until(has_logged_in_again)
    assert transit.refusal_count == 0


async def test_what_kubernetes_renewed_is_shown_at_the_next_login(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async with open_services_with(settings_for_kubernetes(transit, tmp_path)) as services:
        (tmp_path / "jwt").write_text("second.jwt.of-the-pod\n")
        transit.jwts = {"second.jwt.of-the-pod"}
        transit.forget_tokens()
        await rotate_data_key(services)

    assert transit.request_paths.count("login") == 2


async def test_a_login_that_is_not_permitted_the_key_is_not_made_again_and_again(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async with open_services_with(settings_for_approle(transit, tmp_path)) as services:
        transit.permits = False
        for _ in range(5):
            with pytest.raises(KeyServiceUnavailable, match="Forbidden"):
                await rotate_data_key(services)
        transit.permits = True
        await rotate_data_key(services)

    assert transit.request_paths.count("login") == 2


async def test_a_login_that_vault_refuses_is_reported_with_what_to_do(
    transit: TransitServer, open_services_with: OpenServices, tmp_path: Path
) -> None:
    async def refusal(settings: VaultSettings) -> str:
        with pytest.raises(KeyServiceUnavailable) as error_info:
            async with open_services_with(settings):
                pass
        return str(error_info.value)

    wrong = await refusal(settings_for_approle(transit, tmp_path, "a-guess"))
    unknown, transit.jwts = settings_for_kubernetes(transit, tmp_path), set()
    foreign = await refusal(unknown)
    (tmp_path / "jwt").unlink()
    missing = await refusal(unknown)

    prefix = f"Vault at {transit.address} refuses the"
    assert wrong == (
        f"{prefix} AppRole login at auth/approle (InvalidRequest): see that the role id and the secret id are in force."
    )
    assert foreign == (
        f"{prefix} Kubernetes login at auth/cluster (Forbidden): see that the role 'byline' takes this service account."
    )
    assert missing.startswith(f"{tmp_path / 'jwt'} cannot be read (FileNotFoundError)")


@pytest.mark.parametrize(
    ("ways", "expected_message"),
    [
        ([], "sign in to Vault by one of BYLINE_VAULT__TRANSIT__TOKEN, BYLINE_VAULT__TRANSIT__TOKEN_FILE, "),
        (["token", "approle"], "only one of BYLINE_VAULT__TRANSIT__TOKEN, BYLINE_VAULT__TRANSIT__APPROLE"),
    ],
)
def test_there_is_exactly_one_way_to_sign_in_to_vault(ways: list[str], expected_message: str) -> None:
    sign_in_ways = {"token": TOKEN, "approle": {"role_id": ROLE_ID, "secret_id": SECRET_ID}}
    with pytest.raises(ValidationError, match=expected_message):
        TransitSettings.model_validate(
            {"address": "http://127.0.0.1:1", "key": "byline", **{way: sign_in_ways[way] for way in ways}}
        )


@pytest.mark.parametrize(
    ("library", "module", "extra"),
    [("hvac", "engine.vault.transit", "vault"), ("boto3", "engine.vault.aws_kms", "aws")],
)
def test_a_provider_whose_library_is_not_installed_says_what_to_install(
    library: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    settings = VaultSettings(
        keyring_file=tmp_path / "keyring.json",
        transit=TransitSettings(address="http://127.0.0.1:1", key="byline", token=SecretStr("t")),
        aws_kms=AwsKmsSettings(key_id="k", region=REGION),
    )

    with pytest.raises(SettingsInvalid, match=rf"install byline\[{extra}\]"):
        open_key_providers(settings)
