"""How tests sign people in at providers' pages, and create the ways to sign in of connections of their own."""

from collections.abc import Mapping

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.connections.secret_reader import SecretReader
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.services import Services
from engine.sign_in.connection_check import check_connection
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.method import CheckResult, SignInResources
from engine.sign_in.methods import SignInMethods
from engine.sign_in.steps import RedirectStep

REDIRECT_URI = "https://byline.example.com/oauth/callback"


async def consent_page(services: Services, request: AuthorizationRequest, browser_session: str) -> str:
    """The address of the provider's page at which this browser answers the request."""
    step = await services.sign_ins.begin_sign_in(request, "redirect", browser_session=browser_session)
    assert isinstance(step, RedirectStep)
    return step.url


def resources(
    outgoing: OutgoingClient,
    environment: Mapping[str, str],
    identity_provider: IdentityProvider | None = None,
    registrations: ClientRegistrations | None = None,
    discovery: Discovery | None = None,
) -> SignInResources:
    """What the ways to sign in of a process share that finds its secrets in this environment."""
    return SignInResources(
        SecretReader(environment),
        discovery or Discovery(outgoing),
        outgoing,
        REDIRECT_URI,
        registrations,
        identity_provider,
    )


async def checked(
    connection: Connection,
    environment: Mapping[str, str],
    outgoing: OutgoingClient,
    registrations: ClientRegistrations | None = None,
) -> list[CheckResult]:
    """What a check says of a connection."""
    shared = resources(outgoing, environment, registrations=registrations)
    return await check_connection(connection, SignInMethods(shared), outgoing)
