"""Builds the authorization server from its parts, for the kind of sign-in that the settings choose."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.services import Services
from gateway.authorization_server.consent_page import ConsentPage
from gateway.authorization_server.endpoints import AuthorizationServerEndpoints, build_exchange_endpoint
from gateway.authorization_server.identity_assertions import IdentityAssertions
from gateway.authorization_server.metadata_documents import MetadataDocuments
from gateway.authorization_server.provider import AuthorizationServerProvider
from gateway.authorization_server.tables import AuthorizationServerTables
from gateway.authorization_server.token_exchange import (
    ExternalSubjectTokens,
    OwnSubjectTokens,
    TokenExchangeEndpoint,
)
from gateway.http.cross_origin import create_cross_origin_route
from gateway.protected_resource import list_all_scopes, list_required_scopes, list_resource_identifiers
from gateway.sign_in.issuer_keys import IssuerKeys


def build_authorization_server(services: Services, oauth_tables: AuthorizationServerTables) -> APIRouter:
    """Return the routes of the key set and token exchange, and of all endpoints without an external issuer."""
    oauth_router = APIRouter(include_in_schema=False)

    async def show_key_set(request: Request) -> Response:
        del request
        return JSONResponse(await services.signing_keys.build_jwks())

    oauth_router.routes.append(create_cross_origin_route("/.well-known/jwks.json", "GET", show_key_set))
    token_exchange = _build_token_exchange(services, oauth_tables)
    if services.settings.gateway.issuer is None:
        _build_endpoints(services, oauth_tables, token_exchange).add_routes(oauth_router)
    else:
        oauth_router.routes.append(
            create_cross_origin_route("/token", "POST", build_exchange_endpoint(token_exchange))
        )
    return oauth_router


def _build_token_exchange(
    services: Services, oauth_tables: AuthorizationServerTables
) -> TokenExchangeEndpoint:
    settings, issuer_settings = services.settings, services.settings.gateway.issuer
    resource_identifiers = list_resource_identifiers(settings)
    return TokenExchangeEndpoint(
        services.signing_keys,
        services.trail,
        oauth_tables.oauth_clients,
        OwnSubjectTokens(
            services.signing_keys,
            oauth_tables.token_issuer,
            issuer_url=settings.public_url,
            resource_identifiers=resource_identifiers,
        )
        if issuer_settings is None
        else ExternalSubjectTokens(services.principals, IssuerKeys(issuer_settings, services.outgoing)),
        issuer_url=settings.public_url,
        resource_identifiers=resource_identifiers,
        scope_names=list_all_scopes(settings, services.policy),
    )


def _build_endpoints(
    services: Services, oauth_tables: AuthorizationServerTables, token_exchange: TokenExchangeEndpoint
) -> AuthorizationServerEndpoints:
    settings, scope_names = services.settings, list_all_scopes(services.settings, services.policy)
    provider = AuthorizationServerProvider(
        oauth_tables=oauth_tables,
        metadata_documents=MetadataDocuments(services.outgoing, scope_names),
        identity_assertions=_build_identity_assertions(services, oauth_tables),
        principals=services.principals,
        audit_trail=services.trail,
        resource_identifiers=list_resource_identifiers(settings),
        first_scopes=list_required_scopes(settings),
    )
    consent_page = ConsentPage(
        provider.get_client,
        oauth_tables.authorization_codes,
        oauth_tables.client_consents,
        services.trail,
        services.policy,
        issuer_url=settings.public_url,
    )
    return AuthorizationServerEndpoints(
        provider,
        consent_page,
        token_exchange,
        services.attempts,
        issuer_url=settings.public_url,
        scope_names=scope_names,
        is_registration_open=settings.gateway.open_registration,
        has_assertion_issuers=bool(settings.gateway.assertion_issuers),
    )


def _build_identity_assertions(
    services: Services, oauth_tables: AuthorizationServerTables
) -> IdentityAssertions:
    return IdentityAssertions(
        services.settings,
        services.database,
        services.principals,
        services.policy,
        services.trail,
        oauth_tables.client_consents,
        oauth_tables.token_issuer,
        [
            IssuerKeys(issuer_settings, services.outgoing)
            for issuer_settings in services.settings.gateway.assertion_issuers
        ],
    )
