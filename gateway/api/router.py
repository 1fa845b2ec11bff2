"""Builds the API application: the routes of every resource, the error handlers, and the OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from temporalio.client import Client

from engine.registry import Registry
from engine.schedules.schedules import Schedules
from engine.services import Services
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
from gateway.api.bodies import WRITING, JsonBodies
from gateway.api.callers import challenge, know_callers
from gateway.api.problems import Problem, problems, tell_problems
from gateway.protected_resource import API_PATH
from gateway.runs.control import RunControl
from gateway.runs.runs import Runs
from gateway.runs.states import RunStates

_VERSION = "1.0.0"


def api(services: Services, registry: Registry, runs: Runs, temporal: Client) -> FastAPI:
    """Build the application that is mounted at `/api/v1`."""
    app = FastAPI(
        title="Byline",
        version=_VERSION,
        description="Composite tools, run in your own name: start, follow and steer them.",
        servers=[{"url": f"{services.settings.public_url}{API_PATH}"}],
        root_path_in_servers=False,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems(401, 500, 503),
    )
    app.add_middleware(JsonBodies)
    tell_problems(app, challenge(services))
    know_callers(app, services)
    states = RunStates(services, runs)
    control = RunControl(services, temporal, runs)
    routers: tuple[APIRouter, ...] = (
        tools.routes(registry, runs, states),
        run_routes.routes(services, runs, states, control),
        events.routes(services, runs, states),
        me.routes(services),
        questions.routes(services),
        connections.routes(services, registry),
        sign_ins.routes(services, registry),
        readiness.routes(services, registry, runs),
        tokens.routes(services, registry),
        service_routes.routes(services, registry),
        notifications.routes(services),
        webhooks.routes(services, registry),
        schedules.routes(services, registry, Schedules(services, temporal)),
    )
    for router in routers:
        app.include_router(router)
    document(app, tools.schemas(registry))
    return app


def document(app: FastAPI, components: Mapping[str, Any]) -> None:
    """Add to the OpenAPI document what no route declares: how bodies are refused, and the schema of a problem."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = describe()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        reference = "#/components/schemas/{model}"
        described = Problem.model_json_schema(ref_template=reference)
        schemas |= described.pop("$defs", {})
        schemas |= {"Problem": described, **components}
        refusals = {str(status): answer for status, answer in problems(400, 408, 413, 415, 503).items()}
        for path in document["paths"].values():
            for method, operation in path.items():
                if method.upper() in WRITING:
                    operation["responses"] = {**refusals, **operation["responses"]}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
