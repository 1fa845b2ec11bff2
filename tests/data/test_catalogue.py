import pytest

from engine.errors import ConnectionUnknown, SettingsInvalid
from engine.services import Services
from tests.data.samples import connection


async def test_a_declared_connection_is_known_to_every_process(services: Services, other: Services) -> None:
    await services.catalogue.declare([connection("billing"), connection("crm")])

    assert list(await other.catalogue.all()) == ["billing", "crm"]
    assert await other.catalogue.get("crm") == connection("crm")


async def test_a_later_declaration_takes_the_place_of_an_earlier_one(services: Services) -> None:
    await services.catalogue.declare([connection(scopes=("read_only",))])
    await services.catalogue.declare([connection(scopes=("read_only", "refunds"))])

    assert (await services.catalogue.get("billing")).scopes == ("read_only", "refunds")


async def test_the_mode_of_a_connection_is_set_once(services: Services) -> None:
    await services.catalogue.declare([connection(mode="user")])
    with pytest.raises(SettingsInvalid, match="declare the shared one under another name"):
        await services.catalogue.declare([connection(mode="shared", scopes=("everything",))])

    assert await services.catalogue.get("billing") == connection(mode="user")


async def test_a_connection_that_nobody_declared_is_told_with_where_to_declare_it(services: Services) -> None:
    with pytest.raises(ConnectionUnknown, match="BYLINE_CONNECTIONS_FILE"):
        await services.catalogue.get("billing")
