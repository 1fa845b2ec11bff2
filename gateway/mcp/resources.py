"""Handle resources/list, resources/templates/list and resources/read within policy and token. Each read is a run."""

from typing import Any

from mcp_types import (
    InputRequiredResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    ResourceTemplate,
)
from mcp_types import Resource as ListedResource

from engine.errors import BylineError
from engine.registry import Registry, Resource
from gateway.mcp.clients import Context
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.fetching import Fetching, refused
from gateway.mcp.listing import refuse_pages
from gateway.runs.runs import Runs


class Resources:
    """The handlers of resources/list, resources/templates/list and resources/read at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs, fetching: Fetching) -> None:
        self._registry = registry
        self._runs = runs
        self._fetching = fetching

    async def listed(
        self, context: Context, params: PaginatedRequestParams | None, at: Endpoint
    ) -> ListResourcesResult:
        """List the resources with a fixed URI that the caller may read at this endpoint, sorted by name."""
        del context
        refuse_pages(params)
        return ListResourcesResult(
            resources=[
                ListedResource(uri=resource.declaration.uri, **_described(resource))
                for resource in await self._offered(at)
                if not resource.template.variables
            ]
        )

    async def templates(
        self, context: Context, params: PaginatedRequestParams | None, at: Endpoint
    ) -> ListResourceTemplatesResult:
        """List the resource templates that the caller may read at this endpoint, sorted by name."""
        del context
        refuse_pages(params)
        return ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(uri_template=resource.declaration.uri, **_described(resource))
                for resource in await self._offered(at)
                if resource.template.variables
            ]
        )

    async def read(
        self, context: Context, params: ReadResourceRequestParams, at: Endpoint
    ) -> ReadResourceResult | InputRequiredResult:
        """Return the document at a URI, or the input requests of its run; raises MCPError."""
        try:
            resource, variables = self._registry.resource_at(params.uri)
            value: Any = await self._fetching.value(context, params, at.caller(), resource, variables)
        except BylineError as error:
            raise refused(error, uri=params.uri) from error
        if isinstance(value, InputRequiredResult):
            return value
        document = {"uri": params.uri, "mimeType": resource.declaration.mime_type, **value}
        return ReadResourceResult.model_validate({"contents": [document]})

    async def _offered(self, at: Endpoint) -> list[Resource]:
        return await self._runs.offered(at.caller(), self._registry.resources)


def _described(resource: Resource) -> dict[str, Any]:
    return {
        "name": resource.name,
        "title": resource.declaration.title,
        "description": resource.description,
        "mime_type": resource.declaration.mime_type,
    }
