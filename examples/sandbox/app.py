"""Builds the web application of one system."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from examples.sandbox import faults
from examples.sandbox.authorize import InvalidAuthorizationRequest, authorize_routes
from examples.sandbox.oauth import oauth_routes
from examples.sandbox.system import RequestRefused, Sandbox


def create_app(sandbox: Sandbox) -> FastAPI:
    """Build the application of a running system: its API, its OAuth server, and its routes for faults."""
    system = sandbox.system
    troubles = faults.FaultInjector(system, sandbox.database)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        sandbox.database.close()

    app = FastAPI(title=system.title, openapi_url=None, lifespan=lifespan)
    app.state.sandbox = sandbox
    app.state.troubles = troubles
    app.middleware("http")(troubles.around)
    app.include_router(system.router)
    app.include_router(authorize_routes(system.oauth))
    app.include_router(oauth_routes(system.oauth))
    app.include_router(faults.router)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"system": system.name, "status": "ok"}

    @app.exception_handler(RequestRefused)
    async def answer_refusal(_request: Request, refusal: RequestRefused) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(InvalidAuthorizationRequest)
    async def answer_wrong_authorization(_request: Request, problem: InvalidAuthorizationRequest) -> Response:
        return problem.response

    @app.exception_handler(HTTPException)
    async def answer_unknown_route(request: Request, problem: HTTPException) -> Response:
        if not request.url.path.startswith(system.api):
            return await http_exception_handler(request, problem)
        return JSONResponse(system.error(problem.status_code, problem.detail), problem.status_code)

    @app.exception_handler(RequestValidationError)
    async def answer_malformed(request: Request, problem: RequestValidationError) -> Response:
        if not request.url.path.startswith(system.api):
            return await request_validation_exception_handler(request, problem)
        unreadable = any(error["type"] == "json_invalid" for error in problem.errors())
        status = 400 if unreadable else system.invalid_status
        return JSONResponse(system.error(status, "The request is not what this call takes"), status)

    return app
