"""Holds every sealed column to an owner that registered it, without which its secrets are lost with the older keys."""

from sqlmodel import SQLModel

from engine.db import tables
from engine.services import Services
from gateway.authorization_server.client_records import ClientRecords


async def test_every_sealed_column_has_an_owner_that_registered_it_with_the_vault(services: Services) -> None:
    assert tables.GrantRow.metadata is SQLModel.metadata
    declared = {
        (table.name, column.name)
        for table in SQLModel.metadata.tables.values()
        for column in table.columns
        if column.name.startswith("sealed_")
    }
    registered = {
        (sealed_column.row_class.__tablename__, sealed_column.column_name)
        for sealed_column in services.vault.sealed_columns
    }

    assert declared
    assert registered == declared


async def test_the_gateways_clients_are_registered_once_however_many_there_are(services: Services) -> None:
    before = len(services.vault.sealed_columns)
    for _ in range(2):
        ClientRecords(services.database, services.vault)

    assert len(services.vault.sealed_columns) == before + 1


async def test_tokens_that_move_to_the_revocations_while_all_is_resealed_are_met_there(
    services: Services,
) -> None:
    order = [sealed_column.row_class for sealed_column in services.vault.sealed_columns]

    assert order.index(tables.GrantRow) < order.index(tables.RevocationRow)
