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
from engine.registry import Prompt, Registry
from gateway.mcp.clients import Context
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.fetching import Fetching, refused
from gateway.mcp.listing import refuse_pages
from gateway.runs.runs import Runs


class Prompts:
    """The handlers of prompts/list and prompts/get at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs, fetching: Fetching) -> None:
        self._registry = registry
        self._runs = runs
        self._fetching = fetching

    async def listed(
        self, context: Context, params: PaginatedRequestParams | None, at: Endpoint
    ) -> ListPromptsResult:
        """List the prompts that the caller may get at this endpoint, sorted by name."""
        del context
        refuse_pages(params)
        prompts = await self._runs.offered(at.caller(), self._registry.prompts)
        return ListPromptsResult(prompts=[_listed(prompt) for prompt in prompts])

    async def get(
        self, context: Context, params: GetPromptRequestParams, at: Endpoint
    ) -> GetPromptResult | InputRequiredResult:
        """Return the messages of a prompt, or the input requests of its run; raises MCPError."""
        try:
            prompt = self._registry.prompt(params.name)
            value: Any = await self._fetching.value(
                context, params, at.caller(), prompt, params.arguments or {}
            )
        except BylineError as error:
            raise refused(error) from error
        if isinstance(value, InputRequiredResult):
            return value
        return GetPromptResult.model_validate({"description": prompt.description, **value})


def _listed(prompt: Prompt) -> ListedPrompt:
    required = prompt.input_schema.get("required", ())
    return ListedPrompt(
        name=prompt.name,
        title=prompt.declaration.title,
        description=prompt.description,
        arguments=[
            PromptArgument(
                name=name,
                title=described.get("title"),
                description=described.get("description"),
                required=name in required,
            )
            for name, described in prompt.input_schema["properties"].items()
        ],
    )
