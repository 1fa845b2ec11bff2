"""Checks a connection, for administrators. It runs where Byline runs, not over its API."""

import uvloop

from engine.connections.catalogue import read_connections
from engine.connections.checks import Finding, Trial
from engine.connections.connection import Connection
from engine.errors import ConnectionUnknown
from engine.services import Services
from gateway.commands.columns import print_columns
from gateway.commands.opened import services_here


def try_connection(name: str) -> bool:
    """Print the result of every check, and return whether none is wrong."""

    async def findings() -> list[Finding]:
        async with services_here() as services:
            connection = await declared(services, name)
            redirect_uri = f"{services.settings.public_url}/oauth/callback"
            await services.catalogue.give_secrets([connection])
            trial = Trial(
                connection, services.environment, services.outgoing, redirect_uri, services.registrations
            )
            return await trial.findings()

    found = uvloop.run(findings())
    print_columns([(each.part, each.state, each.told) for each in found], otherwise="")
    return all(each.state != "wrong" for each in found)


async def declared(services: Services, name: str) -> Connection:
    """Return a connection as the connections file declares it now. Raises ConnectionUnknown.

    The file is read anew, so that a mistake is found before a gateway starts with it.
    """
    path = services.settings.connections_file
    if path is None:
        return await services.catalogue.get(name)
    for connection in read_connections(path, services.environment):
        if connection.name == name:
            return connection
    raise ConnectionUnknown(f"There is no connection '{name}' in {path}.")
