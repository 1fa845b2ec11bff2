"""Creates the gateway's own long-lived objects once: the owners of its tables, and what is built on them."""

from dataclasses import dataclass

from engine.services import Services
from gateway.authorization_server.tables import AuthorizationServerTables, build_authorization_server_tables
from gateway.bearer.verifiers import TokenVerifiers, build_token_verifiers
from gateway.browser.sessions import BrowserSessions
from gateway.browser.visits import BrowserVisits
from gateway.sign_in.built_in_people import BuiltInPeople


@dataclass(frozen=True, slots=True)
class GatewayServices:
    """The services that the gateway's entry points share beyond those of every process."""

    browser_sessions: BrowserSessions
    browser_visits: BrowserVisits
    built_in_people: BuiltInPeople
    oauth_tables: AuthorizationServerTables
    token_verifiers: TokenVerifiers


def build_gateway_services(services: Services) -> GatewayServices:
    """Build the gateway's own services on those of the process."""
    settings = services.settings
    is_secure = settings.public_url.startswith("https://")
    oauth_tables = build_authorization_server_tables(services)
    return GatewayServices(
        browser_sessions=BrowserSessions(
            services.database,
            services.principals,
            session_lifetime=settings.gateway.session_life,
            is_secure=is_secure,
        ),
        browser_visits=BrowserVisits(services.vault, is_secure=is_secure),
        built_in_people=BuiltInPeople(services.database),
        oauth_tables=oauth_tables,
        token_verifiers=build_token_verifiers(services, oauth_tables),
    )
