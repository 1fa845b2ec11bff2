"""Provides the embedded stack with a data directory, free loopback ports and secrets of this machine."""

import fcntl
import json
import os
import random
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from engine.errors import SettingsInvalid

_COMPOSE_NAME = "temporal-dev.yml"
_PACKAGED_COMPOSE_PATH = Path(__file__).parent / "demo" / "stack" / _COMPOSE_NAME
_CHECKOUT_COMPOSE_PATH = Path(__file__).parent.parent.parent / _COMPOSE_NAME
COMPOSE_PATH = _PACKAGED_COMPOSE_PATH if _PACKAGED_COMPOSE_PATH.exists() else _CHECKOUT_COMPOSE_PATH
DEFAULT_DATA_PATH = Path(".byline")
LOOPBACK_HOST = "127.0.0.1"
_NON_EPHEMERAL_PORTS = range(20_000, 32_000)


class DataDirectory:
    """The one directory that a stack writes to. One stack at a time claims it."""

    def __init__(self, directory_path: Path) -> None:
        self.directory_path = directory_path.absolute()
        self._lock_file: IO[str] | None = None

    def claim_directory(self) -> None:
        """Create the directory and lock it until it is released or this process ends.

        Raises SettingsInvalid if another stack runs on it.
        """
        for directory in (self.directory_path, self.directory_path / "logs"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = (self.directory_path / "lock").open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release_directory()
            raise SettingsInvalid(
                f"another stack runs on {self.directory_path}: stop it, or name another directory with --data"
            ) from None

    def release_directory(self) -> None:
        """Unlock the directory, so that another stack can use it."""
        if self._lock_file:
            self._lock_file.close()

    def locate_log(self, service_name: str) -> Path:
        """Return the file that a service's output goes to."""
        return self.directory_path / "logs" / f"{service_name}.log"

    def load_secret(self, secret_name: str) -> str:
        """Return the secret of this name. It is generated on first use."""
        secrets_path = self.directory_path / "secrets.json"
        stored_secrets: dict[str, str] = json.loads(secrets_path.read_text()) if secrets_path.exists() else {}
        if secret_name not in stored_secrets:
            stored_secrets[secret_name] = secrets.token_urlsafe(32)
            temporary_path = secrets_path.with_suffix(".new")
            with os.fdopen(
                os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
            ) as temporary_file:
                json.dump(stored_secrets, temporary_file, indent=2)
            temporary_path.replace(secrets_path)
        return stored_secrets[secret_name]


def choose_variables(
    variable_defaults: Mapping[str, str], environment: Mapping[str, str], data_directory: DataDirectory
) -> dict[str, str]:
    """Return a value for every variable of the Compose file that this machine decides, and all of `environment`.

    The environment may set ports and secrets. It cannot set addresses, since nothing here serves other machines.
    """
    variables = dict(environment)
    for variable_name, default_value in variable_defaults.items():
        if variable_name.endswith("_HOST"):
            variables[variable_name] = LOOPBACK_HOST
        elif variable_name.endswith("_PORT") and not environment.get(variable_name):
            variables[variable_name] = str(_choose_port(int(default_value), chosen_variables=variables))
        elif variable_name.endswith("_SECRET") and not environment.get(variable_name):
            variables[variable_name] = data_directory.load_secret(variable_name)
    variables["DATA_DIR"] = str(data_directory.directory_path)
    return variables


def _choose_port(preferred_port: int, *, chosen_variables: Mapping[str, str]) -> int:
    # Below the ephemeral range, so that no outgoing connection takes the port while its service restarts.
    candidate_ports = [preferred_port, *random.sample(_NON_EPHEMERAL_PORTS, 100)]
    for candidate_port in candidate_ports:
        if str(candidate_port) not in chosen_variables.values() and _is_free_port(candidate_port):
            return candidate_port
    raise SettingsInvalid(f"no free port found on {LOOPBACK_HOST}: set one in the environment")


def _is_free_port(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((LOOPBACK_HOST, port))
        except OSError:
            return False
        return True
