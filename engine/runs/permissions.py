"""Decides what a caller may call and which runs they may see: policy and the limits of their token together."""

from collections.abc import Mapping
from typing import TypeVar

from engine.errors import RunUnknown
from engine.policy.policy import Policy
from engine.runs.caller import Caller
from engine.runs.records import Run, RunRecords
from engine.tools.registry import CompositeTool, OfferedWorkflow, Registry

OfferType = TypeVar("OfferType", bound=OfferedWorkflow)


class CallPermissions:
    """Asks the policy and the caller's token, anew at each call."""

    def __init__(self, policy: Policy, registry: Registry, run_records: RunRecords) -> None:
        self._policy = policy
        self._registry = registry
        self._run_records = run_records

    async def require_allowed(self, tool_name: str, caller: Caller) -> None:
        """Raise NotAllowed unless policy and token let the caller call the tool."""
        caller.require_tool(tool_name)
        await self._policy.require_permission(caller.principal, tool_name)

    async def list_allowed_tools(self, caller: Caller) -> list[CompositeTool]:
        """Return every tool that policy and token let the caller call, ordered by name."""
        return await self.list_allowed_offers(caller, self._registry.tools)

    async def list_allowed_offers(self, caller: Caller, offers: Mapping[str, OfferType]) -> list[OfferType]:
        """Return those of the offers that policy and token let the caller call, ordered by name."""
        allowed_names = await self._policy.filter_allowed_tools(
            caller.principal, caller.select_covered(offers)
        )
        return [offers[offer_name] for offer_name in allowed_names]

    async def require_own_run(self, run_id: str, caller: Caller) -> Run:
        """Return a run. Raises RunUnknown where it is not the caller's own or their token does not cover its tool."""
        run = await self._run_records.find_run(run_id)
        if run is None or run.principal_id != caller.principal.id or not caller.covers_tool(run.tool_name):
            raise RunUnknown(f"You have no run '{run_id}'.")
        return run
