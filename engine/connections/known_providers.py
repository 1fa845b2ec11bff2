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

_FOLDER: Final = Path(__file__).parent / "providers"
_PLACE: Final = re.compile(r"\{(\w+)\}")


class _Entry(BaseModel):
    """A part of a provider's file. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Variable(_Entry):
    """A variable to which a connection gives a value.

    No value that matches the pattern leads to a host outside the provider's own domain.
    """

    meaning: str
    pattern: str
    example: str


class KnownProvider(_Entry):
    """One system. `provider` has the keys of a connection's `provider`, with `{variables}` in their values."""

    title: str
    base_url: str | None = None
    variables: dict[str, Variable] = Field(default_factory=dict)
    provider: dict[str, Any]
    sources: tuple[HttpUrl, ...] = Field(min_length=1)
    notes: str = ""

    def filled(self, values: Mapping[str, object]) -> tuple[str | None, dict[str, Any]]:
        """Return the base URL and the keys of `provider` with their variables replaced.

        Raises ValueError if a variable is missing or unknown, or if a value does not match its pattern.
        """
        told = ", ".join(f"{name}: {variable.meaning}" for name, variable in self.variables.items())
        if values.keys() != self.variables.keys():
            raise ValueError(f"{self.title} takes the variables {{{told}}}")
        texts = {name: str(value) for name, value in values.items()}
        for name, variable in self.variables.items():
            if not re.fullmatch(variable.pattern, texts[name], re.ASCII):
                raise ValueError(f"{name} does not fit: {variable.meaning}, like {variable.example}")
        return _filled(self.base_url, texts), _filled(self.provider, texts)


def known_names() -> list[str]:
    """Return the name of every known provider, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yml"))


@cache
def known_provider(name: str) -> KnownProvider:
    """Return the provider with this name. Raises ValueError, whose message suggests similar names."""
    names = known_names()
    if name not in names:
        near = difflib.get_close_matches(name, names)
        meant = f"perhaps {' or '.join(near)} is meant" if near else "declare its endpoints one by one"
        raise ValueError(f"no provider is known as '{name}': {meant}")
    return KnownProvider.model_validate(yaml.safe_load((_FOLDER / f"{name}.yml").read_text()))


def told_whole(connection: object) -> object:
    """Replace `provider: {known: …}` in a connection's declaration with the keys of that provider.

    Any other declaration is returned unchanged. Raises ValueError for an unknown provider or unsuitable variables.
    """
    if not (isinstance(connection, Mapping) and isinstance(connection.get("provider"), Mapping)):
        return connection
    own = dict(connection["provider"])
    if "known" not in own:
        return connection
    variables = own.pop("variables", {})
    if not isinstance(variables, Mapping):
        raise ValueError("the variables of a known provider are a mapping of name to value")  # noqa: TRY004
    base_url, known = known_provider(str(own.pop("known"))).filled(variables)
    whole = {**connection, "provider": {**known, **own}}
    return {"base_url": base_url, **whole} if base_url else whole


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    match value:
        case str():
            return _PLACE.sub(lambda place: values[place[1]], value)
        case dict():
            return {key: _filled(item, values) for key, item in value.items()}
        case list():
            return [_filled(item, values) for item in value]
        case _:
            return value
