"""Reads the declarations of connections, each checked by the way to sign in that it names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError

from engine.connections.connection import Connection
from engine.errors import SettingsInvalid
from engine.interpolation import InterpolationFailed, interpolate_variables
from engine.sign_in.methods import SIGN_IN_METHODS
from engine.validation_errors import describe_validation_error


def validate_sign_in(connection: Connection) -> Connection:
    """Return the connection. Raises ValueError unless its way to sign in exists in its mode and has what it needs."""
    method_names = sorted(
        method_name
        for method_name, method_class in SIGN_IN_METHODS.items()
        if connection.mode in method_class.modes
    )
    if connection.sign_in not in method_names:
        raise ValueError(
            f"a {connection.mode} connection has no sign_in {connection.sign_in}: write "
            f"{', '.join(method_names[:-1])} or {method_names[-1]}"
        )
    SIGN_IN_METHODS[connection.sign_in].validate_declaration(connection)
    return connection


CONNECTIONS_ADAPTER: Final = TypeAdapter(dict[str, Annotated[Connection, AfterValidator(validate_sign_in)]])


def read_connections(file_path: Path, environment: Mapping[str, str]) -> list[Connection]:
    """Return the connections that a YAML file declares, with its variables replaced.

    Raises SettingsInvalid, whose message says what is wrong and where.
    """
    try:
        document = interpolate_variables(yaml.safe_load(file_path.read_text()), environment)
        declarations = {
            connection_name: {"name": connection_name, **declaration}
            for connection_name, declaration in document["connections"].items()
        }
        return list(CONNECTIONS_ADAPTER.validate_python(declarations).values())
    except OSError as error:
        raise SettingsInvalid(
            f"Cannot read the connections file {file_path}: set BYLINE_CONNECTIONS_FILE to one that exists."
        ) from error
    except InterpolationFailed as error:
        raise SettingsInvalid(f"The connections file {file_path} cannot be filled in: {error}.") from error
    except ValidationError as error:
        problems = describe_validation_error(error).replace(": Value error, ", ": ")
        raise SettingsInvalid(
            f"The connections file {file_path} does not hold together: {problems}."
        ) from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SettingsInvalid(
            f"The connections file {file_path} is not YAML with a mapping `connections:` of name to connection."
        ) from error
