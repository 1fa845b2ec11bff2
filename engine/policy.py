"""Who may call an offer, and with which scope; what they may do upstream is the upstream's to say."""

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
    """Who may call one tool: everybody who has one of these roles, or without any said, everybody.

    Its `scope` is one that a chat client's token has to carry besides (RFC 6749 section 3.3).
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
    """The policy file: what it does not name may be called by everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: Mapping[str, ToolPolicy] = {}

    def allows(self, name: str, roles: Collection[str]) -> bool:
        """Whether somebody with these roles may call what is named so."""
        wanted = self.tools[name].roles if name in self.tools else None
        return wanted is None or not wanted.isdisjoint(roles)


class WatchedPolicyFile:
    """A policy file as it stands: what is changed in it holds from the next decision on, in every process."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._rules = read_policy(path)

    def rules(self) -> PolicyFile:
        """The rules in force; a file that was changed into one that cannot be used leaves those before it in force."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._rules = read_policy(self._path)
            except SettingsInvalid as problem:
                log.warning("policy_not_changed", reason=str(problem))
        return self._rules


class Policy:
    """Decides at every call, and again at every firing of a schedule, by the rules in force then."""

    def __init__(self, rules: Callable[[], PolicyFile], roles: Roles) -> None:
        self._in_force = rules
        self._roles = roles

    @property
    def rules(self) -> PolicyFile:
        """The rules in force."""
        return self._in_force()

    @property
    def scopes(self) -> frozenset[str]:
        """Every scope that some offer asks for."""
        return frozenset(rule.scope for rule in self.rules.tools.values() if rule.scope is not None)

    def scope_of(self, tool: str) -> str | None:
        """The scope that a chat client's token needs for the tool."""
        rule = self.rules.tools.get(tool)
        return None if rule is None else rule.scope

    def tools_with(self, scope: str) -> list[str]:
        """The tools that a chat client's token needs this scope for, by name."""
        return sorted(tool for tool, rule in self.rules.tools.items() if rule.scope == scope)

    async def allowed(self, principal: Principal, tools: Iterable[str]) -> list[str]:
        """Those of the tools that the principal may call, in the order given."""
        named, rules = list(tools), self.rules
        if not any(tool in rules.tools for tool in named):
            return named
        has = await self._roles.of(principal.id)
        return [tool for tool in named if rules.allows(tool, has)]

    async def require(self, principal: Principal, tool: str) -> None:
        """Return where the principal may call the tool; raises NotAllowed."""
        if tool not in await self.allowed(principal, [tool]):
            roles = " or ".join(sorted(self.rules.tools[tool].roles or ())) or "none that exists"
            raise NotAllowed(f"{principal.name} may not call {tool}: the policy asks for the role {roles}.")


def read_policy(path: Path | None) -> PolicyFile:
    """The rules in a file; without one, everybody may call everything. Raises SettingsInvalid."""
    if path is None:
        return PolicyFile()
    try:
        return PolicyFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise SettingsInvalid(f"BYLINE_POLICY_FILE {path} cannot be used: {error}") from error


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What another version of the file would differ in; None where there is none."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)
