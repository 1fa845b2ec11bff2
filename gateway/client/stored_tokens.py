"""Stores the sign-in at one gateway in a file that only its owner can read and one process at a time changes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.client.failures import Refused, WrongUse
from gateway.client.settings import origin


class Registration(BaseModel):
    """The program's registration at an authorization server (RFC 7591), stored so that it registers once."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    client_id: str


class SignIn(BaseModel):
    """A person's tokens and where to renew them. `expires_at` is in epoch seconds. `repr` hides the tokens."""

    model_config = ConfigDict(frozen=True)

    client_id: str
    token_endpoint: str
    revocation_endpoint: str | None
    resource: str
    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(repr=False)
    expires_at: float | None


class Kept(BaseModel):
    """All that is stored for one gateway."""

    model_config = ConfigDict(frozen=True)

    registration: Registration | None = None
    sign_in: SignIn | None = None


class StoredTokens:
    """The file of one gateway in the person's configuration folder."""

    def __init__(self, gateway: str) -> None:
        self._folder = _folder()
        self._path = self._folder / f"{quote(gateway, safe='')}.json"

    def read(self) -> Kept:
        """Return what is stored now, which is empty without a file. Raises AccessRefused if it cannot be read."""
        try:
            return Kept.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return Kept()
        except (OSError, ValidationError) as error:
            raise Refused(
                f"{self._path} cannot be read: remove it, and sign in again with `byline login`."
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from changing the file until the block ends.

        A refresh token works once, so only one process may use it.
        """
        self._make_folder()
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def write(self, kept: Kept) -> None:
        """Replace what is stored. The file is complete at every moment."""
        self._make_folder()
        _replace(self._path, kept.model_dump_json(indent=2))

    def choose(self, gateway: str) -> None:
        """Make this the gateway that later commands call by default."""
        self._make_folder()
        _replace(self._folder / "gateway", gateway)

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise WrongUse(
                f"The folder {self._folder} cannot be made ({error.strerror}): sign in where there is a home folder,"
                " or set BYLINE_TOKEN."
            ) from error


def chosen_gateway() -> str | None:
    """Return the gateway that somebody signed in to last, or None."""
    try:
        return origin((_folder() / "gateway").read_text())
    except (OSError, ValueError):
        return None


def _folder() -> Path:
    return user_config_path("byline")


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
