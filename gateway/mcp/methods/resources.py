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
from engine.runs.runs import Caller, Runs
from engine.tools.registry import OfferedResource, Registry
from gateway.mcp.mcp_request import McpRequest
from gateway.mcp.methods.offer_fetching import OfferFetcher, to_mcp_error
from gateway.mcp.methods.tool_list import refuse_cursor


class ResourceHandler:
    """The handlers of resources/list, resources/templates/list and resources/read at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs, offer_fetcher: OfferFetcher) -> None:
        self._registry = registry
        self._runs = runs
        self._offer_fetcher = offer_fetcher

    async def list_resources(self, request: McpRequest[PaginatedRequestParams | None]) -> ListResourcesResult:
        """List the resources with a fixed URI that the caller may read at this endpoint, sorted by name."""
        refuse_cursor(request.params)
        return ListResourcesResult(
            resources=[
                ListedResource(uri=resource.declaration.uri, **_describe_resource(resource))
                for resource in await self._list_offered_resources(request.caller)
                if not resource.template.variables
            ]
        )

    async def list_templates(
        self, request: McpRequest[PaginatedRequestParams | None]
    ) -> ListResourceTemplatesResult:
        """List the resource templates that the caller may read at this endpoint, sorted by name."""
        refuse_cursor(request.params)
        return ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(uri_template=resource.declaration.uri, **_describe_resource(resource))
                for resource in await self._list_offered_resources(request.caller)
                if resource.template.variables
            ]
        )

    async def read_resource(
        self, request: McpRequest[ReadResourceRequestParams]
    ) -> ReadResourceResult | InputRequiredResult:
        """Return the document at a URI, or the input requests of its run; raises MCPError."""
        try:
            resource, variables = self._registry.find_resource(request.params.uri)
            resource_value: Any = await self._offer_fetcher.fetch_value(request, resource, variables)
        except BylineError as error:
            raise to_mcp_error(error, uri=request.params.uri) from error
        if isinstance(resource_value, InputRequiredResult):
            return resource_value
        document = {"uri": request.params.uri, "mimeType": resource.declaration.mime_type, **resource_value}
        return ReadResourceResult.model_validate({"contents": [document]})

    async def _list_offered_resources(self, caller: Caller) -> list[OfferedResource]:
        return await self._runs.list_allowed_offers(caller, self._registry.resources)


def _describe_resource(resource: OfferedResource) -> dict[str, Any]:
    return {
        "name": resource.name,
        "title": resource.declaration.title,
        "description": resource.description,
        "mime_type": resource.declaration.mime_type,
    }
