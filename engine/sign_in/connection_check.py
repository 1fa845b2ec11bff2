"""Checks a connection's sign-in against its provider and reports what is wrong.

No token is stored, and no person has to act.
"""

from engine.connections.connection import Connection
from engine.errors import BylineError, ConnectionMisconfigured
from engine.outgoing.client import OutgoingClient
from engine.sign_in.method import CheckResult
from engine.sign_in.methods import SignInMethods


async def check_connection(
    connection: Connection, sign_in_methods: SignInMethods, outgoing: OutgoingClient
) -> list[CheckResult]:
    """Check every possible part of a connection from the outside, and return the results."""
    try:
        sign_in_results = await sign_in_methods.create_method(connection).run_checks()
    except ConnectionMisconfigured as error:
        sign_in_results = [CheckResult("secret", "wrong", str(error))]
    return [*sign_in_results, await _check_upstream(connection, outgoing)]


async def _check_upstream(connection: Connection, outgoing: OutgoingClient) -> CheckResult:
    checked_part, base_url = "upstream", str(connection.base_url)
    try:
        await outgoing.require_callable_url(base_url)
    except BylineError as error:
        return CheckResult(checked_part, "wrong", f"{error} Check base_url.")
    return CheckResult(checked_part, "ok", f"actions may call {base_url}")
