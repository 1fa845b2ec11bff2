"""Checks a connection, for administrators. It runs where Byline runs, not over its API."""

import uvloop

from engine.connections.connection import Connection
from engine.errors import ConnectionUnknown
from engine.services import Services
from engine.sign_in import connection_check
from engine.sign_in.declarations import read_connections
from engine.sign_in.method import CheckResult
from gateway.terminal.columns import print_columns
from gateway.terminal.services_context import open_command_services


def check_connection(connection_name: str) -> bool:
    """Print the result of every check, and return whether none is wrong."""

    async def run_checks() -> list[CheckResult]:
        async with open_command_services() as services:
            connection = await find_declared_connection(services, connection_name)
            await services.catalogue.open_vault_secrets([connection])
            return await connection_check.check_connection(
                connection, services.sign_in_methods, services.outgoing
            )

    check_results = uvloop.run(run_checks())
    print_columns(
        [
            (check_result.checked_part, check_result.state, check_result.explanation)
            for check_result in check_results
        ],
        empty_message="",
    )
    return all(check_result.state != "wrong" for check_result in check_results)


async def find_declared_connection(services: Services, connection_name: str) -> Connection:
    """Return a connection as the connections file declares it now. Raises ConnectionUnknown.

    The file is read anew, so that a mistake is found before a gateway starts with it.
    """
    connections_path = services.settings.connections_file
    if connections_path is None:
        return await services.catalogue.get_connection(connection_name)
    for connection in read_connections(connections_path, services.environment):
        if connection.name == connection_name:
            return connection
    raise ConnectionUnknown(f"There is no connection '{connection_name}' in {connections_path}.")
