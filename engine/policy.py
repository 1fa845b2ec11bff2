"""Who may call a tool, and with which scope; what they may do upstream is the upstream's to say."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import NotAllowed, SettingsInvalid
from engine.identity.model import Principal
from engine.identity.roles import Roles


class ToolPolicy(BaseModel):
    """Who may call one tool: everybody who has one of these roles, or without any said, everybody.

    Its `scope` is one that a chat client's token has to carry besides (RFC 6749 section 3.3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    roles: frozenset[str] | None = None
    scope: str | None = Field(default=None, pattern=r"^[!#-\[\]-~]+$")

    @model_validator(mode="after")
    def _says_something(self) -> "ToolPolicy":
        if self.roles is None and self.scope is None:
            msg = "say which roles may call the tool, or which scope it takes"
            raise ValueError(msg)
        return self


class PolicyFile(BaseModel):
    """The policy file: a tool that it does not name may be called by everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: Mapping[str, ToolPolicy] = {}


class Policy:
    """Decides at every call, and again at every firing of a schedule."""

    def __init__(self, rules: PolicyFile, roles: Roles) -> None:
        self._rules = rules
        self._roles = roles
        self.scopes = frozenset(rule.scope for rule in rules.tools.values() if rule.scope is not None)

    def scope_of(self, tool: str) -> str | None:
        """The scope that a chat client's token needs for the tool."""
        rule = self._rules.tools.get(tool)
        return None if rule is None else rule.scope

    def tools_with(self, scope: str) -> list[str]:
        """The tools that a chat client's token needs this scope for, by name."""
        return sorted(tool for tool, rule in self._rules.tools.items() if rule.scope == scope)

    async def allowed(self, principal: Principal, tools: Iterable[str]) -> list[str]:
        """Those of the tools that the principal may call, in the order given."""
        named = {tool: self._roles_for(tool) for tool in tools}
        if all(roles is None for roles in named.values()):
            return list(named)
        has = await self._roles.of(principal.id)
        return [tool for tool, roles in named.items() if roles is None or roles & has]

    async def require(self, principal: Principal, tool: str) -> None:
        """Return where the principal may call the tool; raises NotAllowed."""
        if tool not in await self.allowed(principal, [tool]):
            roles = " or ".join(sorted(self._roles_for(tool) or ())) or "none that exists"
            msg = f"{principal.name} may not call {tool}: the policy asks for the role {roles}."
            raise NotAllowed(msg)

    def _roles_for(self, tool: str) -> frozenset[str] | None:
        rule = self._rules.tools.get(tool)
        return None if rule is None else rule.roles


def read_policy(path: Path | None) -> PolicyFile:
    """The rules in a file; without one, everybody may call everything. Raises SettingsInvalid."""
    if path is None:
        return PolicyFile()
    try:
        return PolicyFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        msg = f"BYLINE_POLICY_FILE {path} cannot be used: {error}"
        raise SettingsInvalid(msg) from error
