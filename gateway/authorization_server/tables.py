"""The owners of the authorization server's tables. Each table has one, which alone writes it."""

from dataclasses import dataclass

from engine.services import Services
from gateway.authorization_server.authorization_codes import AuthorizationCodes
from gateway.authorization_server.clients import OAuthClients
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.registered_clients import RegisteredClients
from gateway.authorization_server.tokens import TokenIssuer
from gateway.protected_resource import list_all_scopes


@dataclass(frozen=True, slots=True)
class AuthorizationServerTables:
    """What the authorization server stores."""

    registered_clients: RegisteredClients
    oauth_clients: OAuthClients
    authorization_codes: AuthorizationCodes
    client_consents: ClientConsents
    token_issuer: TokenIssuer


def build_authorization_server_tables(services: Services) -> AuthorizationServerTables:
    """Build the owners of the authorization server's tables, each once for a process."""
    settings = services.settings
    client_consents = ClientConsents(services.database)
    registered_clients = RegisteredClients(services.database, services.vault)
    return AuthorizationServerTables(
        registered_clients=registered_clients,
        oauth_clients=OAuthClients(
            services.database,
            registered_clients,
            scope_names=list_all_scopes(settings, services.policy),
            max_registrations_per_hour=settings.gateway.registrations_per_hour,
        ),
        authorization_codes=AuthorizationCodes(services.database, services.vault),
        client_consents=client_consents,
        token_issuer=TokenIssuer(
            services.database,
            client_consents,
            services.signing_keys,
            services.principals,
            issuer_url=settings.public_url,
            access_token_life_seconds=int(settings.gateway.access_token_life.total_seconds()),
        ),
    )
