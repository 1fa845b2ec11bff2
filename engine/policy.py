"""Decides who may call an offer and which scope a call needs. Permissions at an upstream are decided there."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import NotAllowed, SettingsInvalid
from engine.identity.model import Principal
from engine.identity.roles import Roles

log = structlog.get_logger()


class ToolPolicy(BaseModel):
    """The rule for one tool: who has one of these roles may call it; without `roles`, everybody may.

    A chat client's token needs the `scope` as well (RFC 6749 section 3.3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    roles: frozenset[str] | None = None
    scope: str | None = Field(default=None, pattern=r"^[!#-\[\]-~]+$")

    @model_validator(mode="after")
    def _says_something(self) -> "ToolPolicy":
        if self.roles is None and self.scope is None:
            raise ValueError("say which roles may call the tool, or which scope it takes")
        return self


class PolicyFile(BaseModel):
    """The contents of the policy file. Everybody may call a tool that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: Mapping[str, ToolPolicy] = {}

    def allows(self, name: str, roles: Collection[str]) -> bool:
        """Return whether a principal with these roles may call the offer of this name."""
        wanted = self.tools[name].roles if name in self.tools else None
        return wanted is None or not wanted.isdisjoint(roles)


class WatchedPolicyFile:
    """A policy file that is read again when it changes. The next decision in every process uses the change."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._rules = read_policy(path)

    def rules(self) -> PolicyFile:
        """Return the rules in force. If a changed file cannot be used, the rules before the change stay in force."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._rules = read_policy(self._path)
            except SettingsInvalid as problem:
                log.warning("policy_not_changed", reason=str(problem))
        return self._rules


class Policy:
    """Decides by the rules in force at that moment, at every call and at every firing of a schedule."""

    def __init__(self, rules: Callable[[], PolicyFile], roles: Roles) -> None:
        self._in_force = rules
        self._roles = roles

    @property
    def rules(self) -> PolicyFile:
        """The rules in force."""
        return self._in_force()

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes that some offer requires."""
        return frozenset(rule.scope for rule in self.rules.tools.values() if rule.scope is not None)

    def scope_of(self, tool: str) -> str | None:
        """Return the scope that a chat client's token needs for the tool, or None."""
        rule = self.rules.tools.get(tool)
        return None if rule is None else rule.scope

    def tools_with(self, scope: str) -> list[str]:
        """Return the names of the tools for which a chat client's token needs this scope, sorted."""
        return sorted(tool for tool, rule in self.rules.tools.items() if rule.scope == scope)

    async def allowed(self, principal: Principal, tools: Iterable[str]) -> list[str]:
        """Return those of the tools that the principal may call, in the same order."""
        named, rules = list(tools), self.rules
        if not any(tool in rules.tools for tool in named):
            return named
        has = await self._roles.of(principal.id)
        return [tool for tool in named if rules.allows(tool, has)]

    async def require(self, principal: Principal, tool: str) -> None:
        """Raise NotAllowed unless the principal may call the tool."""
        if tool not in await self.allowed(principal, [tool]):
            roles = " or ".join(sorted(self.rules.tools[tool].roles or ())) or "none that exists"
            raise NotAllowed(f"{principal.name} may not call {tool}: the policy asks for the role {roles}.")


def read_policy(path: Path | None) -> PolicyFile:
    """Read the rules from a file. Without a file, everybody may call everything. Raises SettingsInvalid."""
    if path is None:
        return PolicyFile()
    try:
        return PolicyFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise SettingsInvalid(f"BYLINE_POLICY_FILE {path} cannot be used: {error}") from error


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Return inode, modification time and size of the file, which differ between versions; None if there is no file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)
