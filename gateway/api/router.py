"""Builds the API application: the routes of every resource, the error handlers, and the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from temporalio.client import Client

from engine.runs.control import RunControl
from engine.runs.runs import Runs
from engine.runs.state import RunStates
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
    schedules,
    sign_ins,
    tokens,
    tools,
    webhooks,
)
from gateway.api import runs as run_routes
from gateway.api import services as service_routes
from gateway.api.authentication import attach_token_verifier, build_challenge
from gateway.api.problems import Problem, describe_problems, register_error_handlers
from gateway.api.request_bodies import METHODS_WITH_BODY, JsonBodyMiddleware
from gateway.protected_resource import API_PATH

_API_VERSION = "1.0.0"


def build_api(services: Services, registry: Registry, runs: Runs, temporal_client: Client) -> FastAPI:
    """Build the application that is mounted at `/api/v1`."""
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
    register_error_handlers(api_app, build_challenge(services))
    attach_token_verifier(api_app, services)
    run_states = RunStates(services, runs)
    run_control = RunControl(services, temporal_client, runs)
    resource_routers: tuple[APIRouter, ...] = (
        tools.build_routes(registry, runs, run_states),
        run_routes.build_routes(services, runs, run_states, run_control),
        events.build_routes(services, runs, run_states),
        me.build_routes(services),
        questions.build_routes(services),
        connections.build_routes(services, registry),
        sign_ins.build_routes(services, registry),
        readiness.build_routes(services, registry, runs),
        tokens.build_routes(services, registry),
        service_routes.build_routes(services, registry),
        notifications.build_routes(services),
        webhooks.build_routes(services, registry),
        schedules.build_routes(services, registry, Schedules(services, temporal_client)),
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
