"""Lists the pages. Each names what it uses, and is built here once."""

from fastapi import APIRouter

from engine.schedules.schedules import Schedules
from engine.services import Services
from engine.tools.registry import Registry
from gateway.pages.answerable_requests import AnswerableRequests
from gateway.pages.api_tokens import TokenPages
from gateway.pages.applications import ApplicationPages
from gateway.pages.authorization_requests import build_connect_pages
from gateway.pages.connections import ConnectionPages
from gateway.pages.console import FrontPage
from gateway.pages.device_sign_in import DevicePage
from gateway.pages.notifications import NotificationPages
from gateway.pages.oauth_callback import OAuthCallback
from gateway.pages.questions import QuestionPage
from gateway.pages.schedules import SchedulePages
from gateway.pages.tool_connections import ToolConnectionPages
from gateway.protected_resource import build_resource_identifier
from gateway.schedule_views import ScheduleViews
from gateway.services import GatewayServices
from gateway.sign_in.issuer_client import IssuerClient
from gateway.sign_in.pages import BuiltInSignIn, ExternalSignIn, SignInArrival, SignOutPage


def build_pages(
    services: Services, gateway_services: GatewayServices, registry: Registry, schedules: Schedules
) -> tuple[APIRouter, ...]:
    """Build the routers of all pages but the consent page, which belongs to the authorization server."""
    issuer_settings = services.settings.gateway.issuer
    answerable_requests = AnswerableRequests(
        services.authorization_requests, services.delegation, services.trail
    )
    return (
        _build_sign_in(services, gateway_services),
        SignOutPage(gateway_services.browser_sessions).build_router(),
        build_connect_pages(services, answerable_requests),
        OAuthCallback(services.sign_ins).build_router(),
        DevicePage(answerable_requests, services.catalogue, services.sign_ins).build_router(),
        QuestionPage(services.questions, services.run_records, services.principals).build_router(),
        FrontPage(
            mcp_address=build_resource_identifier(services.settings),
            catalogue=services.catalogue,
            authorization_requests=services.authorization_requests,
            questions=services.questions,
            service_principals=services.service_principals,
            roles=services.roles,
        ).build_router(),
        SchedulePages(
            schedules=schedules,
            schedule_views=ScheduleViews(services.principals, schedules),
            policy=services.policy,
            tool_registry=registry,
        ).build_router(),
        TokenPages(
            services.api_tokens,
            services.policy,
            registry,
            longest_life=services.settings.gateway.longest_api_token_life,
        ).build_router(),
        ApplicationPages(
            gateway_services.oauth_tables.client_consents,
            services.trail,
            None if issuer_settings is None else issuer_settings.issuer,
        ).build_router(),
        ConnectionPages(
            catalogue=services.catalogue,
            grants=services.grants,
            accounts=services.accounts,
            authorization_requests=services.authorization_requests,
            answer_recorder=services.answer_recorder,
            policy=services.policy,
            audit_trail=services.trail,
            tool_registry=registry,
            grant_removal=services.grant_removal,
        ).build_router(),
        ToolConnectionPages(
            readiness_checker=services.readiness_checker,
            authorization_requests=services.authorization_requests,
            answer_recorder=services.answer_recorder,
            sign_ins=services.sign_ins,
            policy=services.policy,
            tool_registry=registry,
        ).build_router(),
        NotificationPages(services.notification_channels, services.notifier).build_router(),
    )


def _build_sign_in(services: Services, gateway_services: GatewayServices) -> APIRouter:
    """Return the pages to sign in, for the way to sign in that the settings choose."""
    settings, issuer_settings = services.settings, services.settings.gateway.issuer
    sign_in_arrival = SignInArrival(
        services.principals,
        gateway_services.browser_sessions,
        gateway_services.browser_visits,
        services.attempts,
    )
    if issuer_settings is None:
        return BuiltInSignIn(
            sign_in_arrival,
            gateway_services.built_in_people,
            gateway_services.browser_visits,
            issuer_url=settings.public_url,
        ).build_router()
    return ExternalSignIn(
        sign_in_arrival,
        IssuerClient(issuer_settings, services.outgoing),
        gateway_services.browser_visits,
        services.principals,
        services.idp_sessions,
        public_url=settings.public_url,
    ).build_router()
