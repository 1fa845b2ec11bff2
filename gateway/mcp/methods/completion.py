"""Handle completion/complete: values for a partly typed argument of a prompt or of a resource's URI template."""

from typing import Final

from mcp_types import CompleteRequestParams, CompleteResult, Completion, PromptReference

from engine.errors import BylineError, ResourceUnknown
from engine.runs.runs import Runs
from engine.tools.registry import OfferedWorkflow, Registry
from gateway.mcp.mcp_request import McpRequest
from gateway.mcp.methods.offer_fetching import to_mcp_error

# The protocol's limit.
_MAX_COMPLETIONS: Final = 100


class CompletionHandler:
    """The handler of completion/complete at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs) -> None:
        self._registry = registry
        self._runs = runs

    async def complete_argument(self, request: McpRequest[CompleteRequestParams]) -> CompleteResult:
        """List the values that an argument can have; empty where it is free text."""
        argument = request.params.argument
        try:
            offer = self._find_referenced_offer(request.params)
            await self._runs.require_allowed(offer.name, request.caller)
            possible_values = offer.list_completions(argument.name, argument.value)
        except BylineError as error:
            raise to_mcp_error(error) from error
        completion = Completion(
            values=possible_values[:_MAX_COMPLETIONS],
            total=len(possible_values),
            has_more=len(possible_values) > _MAX_COMPLETIONS,
        )
        return CompleteResult(completion=completion)

    def _find_referenced_offer(self, request_params: CompleteRequestParams) -> OfferedWorkflow:
        if isinstance(request_params.ref, PromptReference):
            return self._registry.find_prompt(request_params.ref.name)
        for resource in self._registry.resources.values():
            if resource.declaration.uri == request_params.ref.uri:
                return resource
        raise ResourceUnknown("There is no such template. List the templates to see which there are.")
