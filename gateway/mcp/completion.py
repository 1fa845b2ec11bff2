"""Handle completion/complete: values for a partly typed argument of a prompt or of a resource's URI template."""

from typing import Final

from mcp_types import CompleteRequestParams, CompleteResult, Completion, PromptReference

from engine.errors import BylineError, ResourceUnknown
from engine.registry import Offer, Registry
from gateway.mcp.clients import Context
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.fetching import refused
from gateway.runs.runs import Runs

# The protocol's limit.
_MOST: Final = 100


class Completions:
    """The handler of completion/complete at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs) -> None:
        self._registry = registry
        self._runs = runs

    async def complete(self, context: Context, params: CompleteRequestParams, at: Endpoint) -> CompleteResult:
        """List the values that an argument can have; empty where it is free text."""
        del context
        try:
            offer = self._referred(params)
            await self._runs.allow(offer.name, at.caller())
            values = offer.completions(params.argument.name, params.argument.value)
        except BylineError as error:
            raise refused(error) from error
        completion = Completion(values=values[:_MOST], total=len(values), has_more=len(values) > _MOST)
        return CompleteResult(completion=completion)

    def _referred(self, params: CompleteRequestParams) -> Offer:
        if isinstance(params.ref, PromptReference):
            return self._registry.prompt(params.ref.name)
        for resource in self._registry.resources.values():
            if resource.declaration.uri == params.ref.uri:
                return resource
        raise ResourceUnknown("There is no such template. List the templates to see which there are.")
