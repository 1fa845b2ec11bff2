"""Read the toolsets file, which declares the MCP endpoints beside `/mcp` and what each of them offers."""

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from engine.errors import SettingsInvalid
from engine.settings import Settings

MCP_PATH: Final = "/mcp"
SEARCH_PATH: Final = f"{MCP_PATH}/search"
"""The endpoint at which tools are searched for instead of listed."""

_TOOLSET_NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Toolset(BaseModel):
    """A part of all tools, prompts and resources, given by names or by patterns with `*`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    instructions: str | None = Field(default=None, description="What models are told of the endpoint.")
    offers: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(min_length=1)

    def select_names(self, offer_names: Collection[str]) -> frozenset[str]:
        """Return the names that are in this toolset; raises SettingsInvalid for a pattern that matches none."""
        for pattern in self.offers:
            if not any(fnmatchcase(offer_name, pattern) for offer_name in offer_names):
                raise SettingsInvalid(f"Toolset '{self.title}' offers '{pattern}', and nothing is named so.")
        return frozenset(
            offer_name
            for offer_name in offer_names
            if any(fnmatchcase(offer_name, pattern) for pattern in self.offers)
        )


class ToolsetsFile(BaseModel):
    """The whole file: each toolset under its name, which is the last part of its endpoint's path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    toolsets: Mapping[str, Toolset] = {}


def read_toolsets(file_path: Path | None) -> Mapping[str, Toolset]:
    """Read the toolsets from a file, by the path of their endpoint; empty without a file. Raises SettingsInvalid."""
    if file_path is None:
        return {}
    try:
        toolsets = ToolsetsFile.model_validate(yaml.safe_load(file_path.read_text()) or {}).toolsets
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise SettingsInvalid(f"BYLINE_TOOLSETS_FILE {file_path} cannot be used: {error}") from error
    for toolset_name in toolsets:
        if not _TOOLSET_NAME_PATTERN.fullmatch(toolset_name) or f"{MCP_PATH}/{toolset_name}" == SEARCH_PATH:
            raise SettingsInvalid(
                f"{file_path}: name the toolset '{toolset_name}' otherwise, in small letters, "
                "digits and dashes, and not 'search'."
            )
    return {f"{MCP_PATH}/{toolset_name}": toolset for toolset_name, toolset in toolsets.items()}


def list_mcp_paths(settings: Settings) -> tuple[str, ...]:
    """List the paths of all MCP endpoints, each a protected resource; the first is the default resource."""
    return (MCP_PATH, SEARCH_PATH, *read_toolsets(settings.toolsets_file))
