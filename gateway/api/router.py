"""Builds the API application: the routes of every resource, the error handlers, and the OpenAPI document."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from mcp.server.auth.provider import TokenVerifier

from engine.administration.services import add_service
from engine.runs.runs import Runs
from engine.schedules.schedules import Schedules
from engine.services import Services
from engine.tools.registry import Registry
from gateway.api import (
    connections,
    events,
    me,
    notifications,
    questions,
    readiness,
    sign_ins,
    tokens,
    tools,
    webhooks,
)
from gateway.api import runs as run_routes
from gateway.api import schedules as schedule_routes
from gateway.api import services as service_routes
from gateway.api.authentication import attach_token_verifier, build_challenge
from gateway.api.problems import describe_problems, register_error_handlers
from gateway.api.request_bodies import METHODS_WITH_BODY, JsonBodyMiddleware
from gateway.http.problems import Problem
from gateway.protected_resource import API_PATH
from gateway.schedule_views import ScheduleViews

_API_VERSION = "1.0.0"


def build_api(
    services: Services,
    token_verifier: TokenVerifier,
    registry: Registry,
    runs: Runs,
    schedules: Schedules,
) -> FastAPI:
    """Build the application that is mounted at `/api/v1`. Each resource is given what it uses."""
    vault, bearer_challenge = services.vault, build_challenge(services.settings)
    api_app = FastAPI(
        title="Byline",
        version=_API_VERSION,
        description="Start composite tools in your own name, and follow and control their runs.",
        servers=[{"url": f"{services.settings.public_url}{API_PATH}"}],
        root_path_in_servers=False,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=describe_problems(401, 500, 503),
    )
    api_app.add_middleware(JsonBodyMiddleware)
    register_error_handlers(api_app, bearer_challenge)
    attach_token_verifier(api_app, token_verifier, bearer_challenge)
    resource_routers: tuple[APIRouter, ...] = (
        tools.build_routes(registry, runs),
        run_routes.build_routes(services.run_records, vault, runs),
        events.build_routes(services.trail, runs),
        me.build_routes(services.roles),
        questions.build_routes(
            services.questions, services.run_records, services.principals, services.page_links, vault
        ),
        connections.build_routes(
            catalogue=services.catalogue,
            grants=services.grants,
            accounts=services.accounts,
            answer_recorder=services.answer_recorder,
            grant_removal=services.grant_removal,
            registry=registry,
            vault=vault,
        ),
        sign_ins.build_routes(
            services.catalogue, services.authorization_requests, services.page_links, registry
        ),
        readiness.build_routes(services.readiness_checker, services.page_links, registry, runs),
        tokens.build_routes(services.api_tokens, registry, vault),
        service_routes.build_routes(
            services.service_principals,
            partial(add_service, services),
            services.api_tokens,
            services.roles,
            registry,
            vault,
        ),
        notifications.build_routes(services.notification_channels, services.notifier, vault),
        webhooks.build_routes(
            services.webhooks, services.policy, registry, vault, services.settings.public_url
        ),
        schedule_routes.build_routes(
            schedules, ScheduleViews(services.principals, schedules), registry, vault
        ),
    )
    for resource_router in resource_routers:
        api_app.include_router(resource_router)
    complete_openapi(api_app, tools.build_tool_schemas(registry))
    return api_app


def complete_openapi(api_app: FastAPI, tool_schemas: Mapping[str, Any]) -> None:
    """Add to the OpenAPI document what no route declares: how bodies are refused, and the schema of a problem."""
    describe_routes = api_app.openapi

    def build_document() -> dict[str, Any]:
        if api_app.openapi_schema is not None:
            return api_app.openapi_schema
        openapi_document = describe_routes()
        component_schemas = openapi_document.setdefault("components", {}).setdefault("schemas", {})
        reference_template = "#/components/schemas/{model}"
        problem_schema = Problem.model_json_schema(ref_template=reference_template)
        component_schemas |= problem_schema.pop("$defs", {})
        component_schemas |= {"Problem": problem_schema, **tool_schemas}
        refusal_responses = {
            str(status_code): refusal_response
            for status_code, refusal_response in describe_problems(400, 408, 413, 415, 503).items()
        }
        for path_item in openapi_document["paths"].values():
            for http_method, operation in path_item.items():
                if http_method.upper() in METHODS_WITH_BODY:
                    operation["responses"] = {**refusal_responses, **operation["responses"]}
        return openapi_document

    api_app.openapi = build_document  # type: ignore[method-assign]
