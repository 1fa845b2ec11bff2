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
    def _check_not_empty(self) -> "ToolPolicy":
        if self.roles is None and self.scope is None:
            raise ValueError("say which roles may call the tool, or which scope it takes")
        return self


class PolicyFile(BaseModel):
    """The contents of the policy file. Everybody may call a tool that it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: Mapping[str, ToolPolicy] = {}

    def may_call(self, offer_name: str, role_names: Collection[str]) -> bool:
        """Return whether a principal with these roles may call the offer of this name."""
        required_roles = self.tools[offer_name].roles if offer_name in self.tools else None
        return required_roles is None or not required_roles.isdisjoint(role_names)

    def select_allowed(self, offer_names: Iterable[str], role_names: Collection[str]) -> list[str]:
        """Return those of the offers that a principal with these roles may call, in the same order."""
        return [offer_name for offer_name in offer_names if self.may_call(offer_name, role_names)]


class WatchedPolicyFile:
    """A policy file that is read again when it changes. The next decision in every process uses the change."""

    def __init__(self, file_path: Path | None) -> None:
        self._file_path = file_path
        self._file_stamp = _read_file_stamp(file_path)
        self._policy_rules = read_policy_file(file_path)

    def read_current_rules(self) -> PolicyFile:
        """Return the rules in force. If a changed file cannot be used, the rules before the change stay in force."""
        file_stamp = _read_file_stamp(self._file_path)
        if file_stamp != self._file_stamp:
            self._file_stamp = file_stamp
            try:
                self._policy_rules = read_policy_file(self._file_path)
            except SettingsInvalid as problem:
                log.warning("policy_not_changed", reason=str(problem))
        return self._policy_rules


class Policy:
    """Decides by the rules in force at that moment, at every call and at every firing of a schedule."""

    def __init__(self, read_rules: Callable[[], PolicyFile], roles: Roles) -> None:
        self._read_rules = read_rules
        self._roles = roles

    @property
    def rules_in_force(self) -> PolicyFile:
        """The rules in force."""
        return self._read_rules()

    @property
    def required_scopes(self) -> frozenset[str]:
        """All scopes that some offer requires."""
        return frozenset(
            tool_rule.scope for tool_rule in self.rules_in_force.tools.values() if tool_rule.scope is not None
        )

    def find_required_scope(self, tool_name: str) -> str | None:
        """Return the scope that a chat client's token needs for the tool, or None."""
        tool_rule = self.rules_in_force.tools.get(tool_name)
        return None if tool_rule is None else tool_rule.scope

    def list_tools_with_scope(self, scope: str) -> list[str]:
        """Return the names of the tools for which a chat client's token needs this scope, sorted."""
        return sorted(
            tool_name
            for tool_name, tool_rule in self.rules_in_force.tools.items()
            if tool_rule.scope == scope
        )

    async def filter_allowed_tools(self, principal: Principal, tool_names: Iterable[str]) -> list[str]:
        """Return those of the tools that the principal may call, in the same order."""
        requested_names, current_rules = list(tool_names), self.rules_in_force
        if not any(tool_name in current_rules.tools for tool_name in requested_names):
            return requested_names
        role_names = await self._roles.list_roles(principal.id)
        return current_rules.select_allowed(requested_names, role_names)

    async def require_permission(self, principal: Principal, tool_name: str) -> None:
        """Raise NotAllowed unless the principal may call the tool."""
        if tool_name not in await self.filter_allowed_tools(principal, [tool_name]):
            role_text = (
                " or ".join(sorted(self.rules_in_force.tools[tool_name].roles or ())) or "none that exists"
            )
            raise NotAllowed(
                f"{principal.name} may not call {tool_name}: the policy asks for the role {role_text}."
            )


def read_policy_file(file_path: Path | None) -> PolicyFile:
    """Read the rules from a file. Without a file, everybody may call everything. Raises SettingsInvalid."""
    if file_path is None:
        return PolicyFile()
    try:
        return PolicyFile.model_validate(yaml.safe_load(file_path.read_text()) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise SettingsInvalid(f"BYLINE_POLICY_FILE {file_path} cannot be used: {error}") from error


def _read_file_stamp(file_path: Path | None) -> tuple[int, int, int] | None:
    """Return inode, modification time and size of the file, which differ between versions; None if there is no file."""
    try:
        file_status = None if file_path is None else file_path.stat()
    except OSError:
        return None
    return None if file_status is None else (file_status.st_ino, file_status.st_mtime_ns, file_status.st_size)
