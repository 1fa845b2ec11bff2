"""REST route that says whether a call of a tool would wait for sign-ins. It starts no run and calls no upstream."""

from typing import Annotated

from fastapi import APIRouter, Path

from engine.runs.readiness import ToolReadiness, report_readiness
from engine.runs.runs import Runs
from engine.tools.readiness import ReadinessChecker
from engine.tools.registry import Registry
from engine.waiting.page_paths import PageLinks
from gateway.api.authentication import ApiCaller
from gateway.api.problems import describe_problems


def build_routes(
    readiness_checker: ReadinessChecker, page_links: PageLinks, registry: Registry, runs: Runs
) -> APIRouter:
    """Build the router of `/tools/{tool}/readiness`."""
    router = APIRouter(tags=["tools"])

    @router.get(
        "/tools/{tool}/readiness",
        summary="Check whether a call of a tool would wait for you to sign in",
        responses=describe_problems(403, 404, 422),
    )
    async def get_readiness(caller: ApiCaller, tool: Annotated[str, Path(max_length=200)]) -> ToolReadiness:
        return await report_readiness(readiness_checker, page_links, registry, runs.permissions, caller, tool)

    return router
