"""Handle prompts/list and prompts/get: the prompts that policy and token allow. Each prompts/get is a run."""

from typing import Any

from mcp_types import (
    GetPromptRequestParams,
    GetPromptResult,
    InputRequiredResult,
    ListPromptsResult,
    PaginatedRequestParams,
    PromptArgument,
)
from mcp_types import Prompt as ListedPrompt

from engine.errors import BylineError
from engine.runs.runs import Runs
from engine.tools.registry import OfferedPrompt, Registry
from gateway.mcp.mcp_request import McpRequest
from gateway.mcp.methods.offer_fetching import OfferFetcher, to_mcp_error
from gateway.mcp.methods.tool_list import refuse_cursor


class PromptHandler:
    """The handlers of prompts/list and prompts/get at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs, offer_fetcher: OfferFetcher) -> None:
        self._registry = registry
        self._runs = runs
        self._offer_fetcher = offer_fetcher

    async def list_prompts(self, request: McpRequest[PaginatedRequestParams | None]) -> ListPromptsResult:
        """List the prompts that the caller may get at this endpoint, sorted by name."""
        refuse_cursor(request.params)
        prompts = await self._runs.list_allowed_offers(request.caller, self._registry.prompts)
        return ListPromptsResult(prompts=[_to_listed_prompt(prompt) for prompt in prompts])

    async def get_prompt(
        self, request: McpRequest[GetPromptRequestParams]
    ) -> GetPromptResult | InputRequiredResult:
        """Return the messages of a prompt, or the input requests of its run; raises MCPError."""
        try:
            prompt = self._registry.find_prompt(request.params.name)
            prompt_value: Any = await self._offer_fetcher.fetch_value(
                request, prompt, request.params.arguments or {}
            )
        except BylineError as error:
            raise to_mcp_error(error) from error
        if isinstance(prompt_value, InputRequiredResult):
            return prompt_value
        return GetPromptResult.model_validate({"description": prompt.description, **prompt_value})


def _to_listed_prompt(prompt: OfferedPrompt) -> ListedPrompt:
    required_names = prompt.input_schema.get("required", ())
    return ListedPrompt(
        name=prompt.name,
        title=prompt.declaration.title,
        description=prompt.description,
        arguments=[
            PromptArgument(
                name=argument_name,
                title=argument_schema.get("title"),
                description=argument_schema.get("description"),
                required=argument_name in required_names,
            )
            for argument_name, argument_schema in prompt.input_schema["properties"].items()
        ],
    )
