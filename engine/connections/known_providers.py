"""The catalogue of known providers, one YAML file each.

What a connection declares itself takes precedence over the catalogue.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl

_PROVIDERS_FOLDER: Final = Path(__file__).parent / "providers"
_VARIABLE_PATTERN: Final = re.compile(r"\{(\w+)\}")


class _ProviderFilePart(BaseModel):
    """A part of a provider's file. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProviderVariable(_ProviderFilePart):
    """A variable to which a connection gives a value.

    No value that matches the pattern leads to a host outside the provider's own domain.
    """

    meaning: str
    pattern: str
    example: str


class KnownProvider(_ProviderFilePart):
    """One system. `provider` has the keys of a connection's `provider`, with `{variables}` in their values."""

    title: str
    base_url: str | None = None
    variables: dict[str, ProviderVariable] = Field(default_factory=dict)
    provider: dict[str, Any]
    sources: tuple[HttpUrl, ...] = Field(min_length=1)
    notes: str = ""

    def fill_variables(self, variable_values: Mapping[str, object]) -> tuple[str | None, dict[str, Any]]:
        """Return the base URL and the keys of `provider` with their variables replaced.

        Raises ValueError if a variable is missing or unknown, or if a value does not match its pattern.
        """
        variable_hints = ", ".join(
            f"{variable_name}: {variable.meaning}" for variable_name, variable in self.variables.items()
        )
        if variable_values.keys() != self.variables.keys():
            raise ValueError(f"{self.title} takes the variables {{{variable_hints}}}")
        variable_texts = {
            variable_name: str(variable_value) for variable_name, variable_value in variable_values.items()
        }
        for variable_name, variable in self.variables.items():
            if not re.fullmatch(variable.pattern, variable_texts[variable_name], re.ASCII):
                raise ValueError(f"{variable_name} does not fit: {variable.meaning}, like {variable.example}")
        return _fill_template(self.base_url, variable_texts), _fill_template(self.provider, variable_texts)


def list_known_providers() -> list[str]:
    """Return the name of every known provider, sorted."""
    return sorted(file_path.stem for file_path in _PROVIDERS_FOLDER.glob("*.yml"))


@cache
def load_known_provider(provider_name: str) -> KnownProvider:
    """Return the provider with this name. Raises ValueError, whose message suggests similar names."""
    provider_names = list_known_providers()
    if provider_name not in provider_names:
        close_names = difflib.get_close_matches(provider_name, provider_names)
        suggestion = (
            f"perhaps {' or '.join(close_names)} is meant"
            if close_names
            else "declare its endpoints one by one"
        )
        raise ValueError(f"no provider is known as '{provider_name}': {suggestion}")
    return KnownProvider.model_validate(
        yaml.safe_load((_PROVIDERS_FOLDER / f"{provider_name}.yml").read_text())
    )


def expand_known_provider(declaration: object) -> object:
    """Replace `provider: {known: …}` in a connection's declaration with the keys of that provider.

    Any other declaration is returned unchanged. Raises ValueError for an unknown provider or unsuitable variables.
    """
    if not (isinstance(declaration, Mapping) and isinstance(declaration.get("provider"), Mapping)):
        return declaration
    declared_keys = dict(declaration["provider"])
    if "known" not in declared_keys:
        return declaration
    variables = declared_keys.pop("variables", {})
    if not isinstance(variables, Mapping):
        raise ValueError("the variables of a known provider are a mapping of name to value")  # noqa: TRY004
    base_url, known_keys = load_known_provider(str(declared_keys.pop("known"))).fill_variables(variables)
    expanded_declaration = {**declaration, "provider": {**known_keys, **declared_keys}}
    return {"base_url": base_url, **expanded_declaration} if base_url else expanded_declaration


def _fill_template(template: Any, variable_texts: Mapping[str, str]) -> Any:
    match template:
        case str():
            return _VARIABLE_PATTERN.sub(lambda variable_match: variable_texts[variable_match[1]], template)
        case dict():
            return {key: _fill_template(item, variable_texts) for key, item in template.items()}
        case list():
            return [_fill_template(item, variable_texts) for item in template]
        case _:
            return template
