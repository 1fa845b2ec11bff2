"""Reads the services of the stack from a Compose file. It refuses commands that only a shell could run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from engine.errors import SettingsInvalid
from engine.interpolation import InterpolationFailed, collect_defaults, interpolate_variables

Argv = tuple[str, ...]
StringValue = Annotated[str, BeforeValidator(str)]


class _ComposeModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ServiceDependency(_ComposeModel):
    """The condition on another service after which this one may start."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class HealthCheck(_ComposeModel):
    """The command that succeeds once the service is ready."""

    test: Argv

    @property
    def argv(self) -> Argv:
        """The command without Compose's leading `CMD`."""
        return self.test[1:]


class ComposeService(_ComposeModel):
    """One process of the stack."""

    entrypoint: Argv = ()
    command: Argv
    environment: Mapping[str, StringValue] = Field(default_factory=dict)
    labels: Mapping[str, StringValue] = Field(default_factory=dict)
    healthcheck: HealthCheck | None = None
    depends_on: Mapping[str, ServiceDependency] = Field(default_factory=dict)
    restart: Literal["no", "unless-stopped"] = "no"

    @property
    def argv(self) -> Argv:
        """The whole command line."""
        return self.entrypoint + self.command


class ComposeFile:
    """A Compose file that is read and whose variables are not filled in yet."""

    def __init__(self, file_path: Path) -> None:
        self.file_path = file_path
        try:
            self._document: Any = yaml.safe_load(file_path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsInvalid(
                f"{file_path} cannot be read ({error.strerror}): name the Compose file of the stack with --file"
            ) from error
        except yaml.YAMLError as error:
            raise SettingsInvalid(f"{file_path} is not valid YAML: {error}") from error

    @property
    def variable_defaults(self) -> dict[str, str]:
        """The variables that the file names, with their defaults."""
        return collect_defaults(self._document)

    def build_services(self, variables: Mapping[str, str]) -> dict[str, ComposeService]:
        """Return the services by name, with their variables filled in. Raises SettingsInvalid."""
        try:
            return _ComposeDocument.model_validate(interpolate_variables(self._document, variables)).services
        except (InterpolationFailed, ValidationError) as error:
            raise SettingsInvalid(f"{self.file_path} cannot be run here: {error}") from error


class _ComposeDocument(_ComposeModel):
    services: dict[str, ComposeService]
