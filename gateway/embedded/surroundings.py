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

COMPOSE_FILE = Path(__file__).parent.parent.parent / "temporal-dev.yml"
DATA = Path(".byline")
LOOPBACK = "127.0.0.1"
_BELOW_EPHEMERAL = range(20_000, 32_000)


class DataDirectory:
    """The one directory that a stack writes to. One stack at a time claims it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._claim: IO[str] | None = None

    def claim(self) -> None:
        """Create the directory and lock it until it is released or this process ends.

        Raises SettingsInvalid if another stack runs on it.
        """
        for directory in (self.path, self.path / "logs"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim = (self.path / "lock").open("a")
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise SettingsInvalid(
                f"another stack runs on {self.path}: stop it, or name another directory with --data"
            ) from None

    def release(self) -> None:
        """Unlock the directory, so that another stack can use it."""
        if self._claim:
            self._claim.close()

    def log(self, name: str) -> Path:
        """Return the file that a service's output goes to."""
        return self.path / "logs" / f"{name}.log"

    def secret(self, name: str) -> str:
        """Return the secret of this name. It is generated on first use."""
        path = self.path / "secrets.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            known[name] = secrets.token_urlsafe(32)
            fresh = path.with_suffix(".new")
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(known, file, indent=2)
            fresh.replace(path)
        return known[name]


def chosen(defaults: Mapping[str, str], given: Mapping[str, str], data: DataDirectory) -> dict[str, str]:
    """Return a value for every variable of the Compose file that this machine decides, and all of `environment`.

    The environment may set ports and secrets. It cannot set addresses, since nothing here serves other machines.
    """
    values = dict(given)
    for name, default in defaults.items():
        if name.endswith("_HOST"):
            values[name] = LOOPBACK
        elif name.endswith("_PORT") and not given.get(name):
            values[name] = str(_port(int(default), taken=values))
        elif name.endswith("_SECRET") and not given.get(name):
            values[name] = data.secret(name)
    values["DATA_DIR"] = str(data.path)
    return values


def _port(preferred: int, *, taken: Mapping[str, str]) -> int:
    # Below the ephemeral range, so that no outgoing connection takes the port while its service restarts.
    candidates = [preferred, *random.sample(_BELOW_EPHEMERAL, 100)]
    for port in candidates:
        if str(port) not in taken.values() and _is_free(port):
            return port
    raise SettingsInvalid(f"no free port found on {LOOPBACK}: set one in the environment")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
