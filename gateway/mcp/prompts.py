"""prompts/list and prompts/get: what policy and token let a principal ask for; each prompt is a run of its own."""

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
    """The handlers of both at every endpoint."""

    def __init__(self, registry: Registry, runs: Runs, fetching: Fetching) -> None:
        self._registry = registry
        self._runs = runs
        self._fetching = fetching

    async def listed(
        self, context: Context, params: PaginatedRequestParams | None, at: Endpoint
    ) -> ListPromptsResult:
        """Every prompt that the caller may ask for here, by name."""
        del context
        refuse_pages(params)
        prompts = await self._runs.offered(at.caller(), self._registry.prompts)
        return ListPromptsResult(prompts=[_listed(prompt) for prompt in prompts])

    async def get(
        self, context: Context, params: GetPromptRequestParams, at: Endpoint
    ) -> GetPromptResult | InputRequiredResult:
        """The messages of a prompt, or what its run asks of the client."""
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
