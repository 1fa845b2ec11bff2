"""Which tools a principal may call, as the policy file says; what they may do upstream is the upstream's to say."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import NotAllowed, SettingsInvalid
from engine.identity.model import Principal
from engine.identity.roles import Roles


class ToolPolicy(BaseModel):
    """Who may call one tool: everybody who has one of these roles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    roles: frozenset[str]


class PolicyFile(BaseModel):
    """The policy file: a tool that it does not name may be called by everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: Mapping[str, ToolPolicy] = {}


class Policy:
    """Decides at every call, and again at every firing of a schedule."""

    def __init__(self, rules: PolicyFile, roles: Roles) -> None:
        self._rules = rules
        self._roles = roles

    async def allowed(self, principal: Principal, tools: Iterable[str]) -> list[str]:
        """Those of the tools that the principal may call, in the order given."""
        named = list(tools)
        if not any(tool in self._rules.tools for tool in named):
            return named
        has = await self._roles.of(principal.id)
        return [
            tool for tool in named if tool not in self._rules.tools or self._rules.tools[tool].roles & has
        ]

    async def require(self, principal: Principal, tool: str) -> None:
        """Return where the principal may call the tool; raises NotAllowed."""
        if tool not in await self.allowed(principal, [tool]):
            roles = " or ".join(sorted(self._rules.tools[tool].roles)) or "none that exists"
            msg = f"{principal.name} may not call {tool}: the policy asks for the role {roles}."
            raise NotAllowed(msg)


def read_policy(path: Path | None) -> PolicyFile:
    """The rules in a file; without one, everybody may call everything. Raises SettingsInvalid."""
    if path is None:
        return PolicyFile()
    try:
        return PolicyFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        msg = f"BYLINE_POLICY_FILE {path} cannot be used: {error}"
        raise SettingsInvalid(msg) from error
