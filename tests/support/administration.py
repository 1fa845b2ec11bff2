"""What an administrator does, for tests that need it done: by ids, and by somebody with a shell."""

from engine.administration import roles, signing_keys, vault_keys
from engine.administration import services as service_administration
from engine.audit.attribution import Administrator
from engine.identity.model import Principal, ShellUser
from engine.services import Services
from gateway.authorization_server.client_records import ClientRecords
from gateway.authorization_server.registered_clients import RegisteredClients

SHELL = ShellUser("root", "byline.example")


async def principal_of(services: Services, principal_id: str) -> Principal:
    principal = await services.principals.find_principal(principal_id)
    assert principal is not None
    return principal


async def give_role(services: Services, principal_id: str, role: str) -> bool:
    return await roles.give_role(services, SHELL, await principal_of(services, principal_id), role)


async def take_role(services: Services, principal_id: str, role: str) -> bool:
    return await roles.take_role(services, SHELL, await principal_of(services, principal_id), role)


async def set_active(services: Services, principal_id: str, *, is_active: bool) -> None:
    """Activate somebody, or deactivate them as far as a deactivation comes that is cut short at once."""
    async with services.trail.open_transaction() as transaction:
        await services.principals.set_active(transaction.db_session, principal_id, is_active=is_active)


async def add_service(services: Services, name: str, administrator: Administrator = SHELL) -> Principal:
    return await service_administration.add_service(services, administrator, name)


async def rotate_data_key(services: Services) -> str:
    return await vault_keys.rotate_data_key(services, SHELL)


async def rotate_signing_key(services: Services) -> str:
    return await signing_keys.rotate_signing_key(services, SHELL)


async def retire_signing_key(services: Services, kid: str) -> bool:
    return await signing_keys.retire_signing_key(services, SHELL, kid)


def registered_clients_of(services: Services) -> RegisteredClients:
    return RegisteredClients(ClientRecords(services.database, services.vault), services.trail)
