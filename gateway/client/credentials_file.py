"""Stores the sign-in at one gateway in a file that only its owner can read and one process at a time changes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.client.command_errors import AccessRefused, UsageInvalid
from gateway.client.settings import parse_origin


class ClientRegistration(BaseModel):
    """The program's registration at an authorization server (RFC 7591), stored so that it registers once."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    client_id: str


class StoredSignIn(BaseModel):
    """A person's tokens and where to renew them. `expires_at` is in epoch seconds. `repr` hides the tokens."""

    model_config = ConfigDict(frozen=True)

    client_id: str
    token_endpoint: str
    revocation_endpoint: str | None
    resource: str
    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(repr=False)
    expires_at: float | None


class StoredCredentials(BaseModel):
    """All that is stored for one gateway."""

    model_config = ConfigDict(frozen=True)

    registration: ClientRegistration | None = None
    sign_in: StoredSignIn | None = None


class CredentialsFile:
    """The file of one gateway in the person's configuration folder."""

    def __init__(self, gateway_url: str) -> None:
        self._config_folder = _find_config_folder()
        self._file_path = self._config_folder / f"{quote(gateway_url, safe='')}.json"

    def read_credentials(self) -> StoredCredentials:
        """Return what is stored now, which is empty without a file. Raises AccessRefused if it cannot be read."""
        try:
            return StoredCredentials.model_validate_json(self._file_path.read_bytes())
        except FileNotFoundError:
            return StoredCredentials()
        except (OSError, ValidationError) as error:
            raise AccessRefused(
                f"{self._file_path} cannot be read: remove it, and sign in again with `byline login`."
            ) from error

    @contextmanager
    def lock_file(self) -> Iterator[None]:
        """Keep other processes from changing the file until the block ends.

        A refresh token works once, so only one process may use it.
        """
        self._create_folder()
        with self._file_path.with_suffix(".lock").open("a") as lock_stream:
            fcntl.flock(lock_stream, fcntl.LOCK_EX)
            yield

    def write_credentials(self, credentials: StoredCredentials) -> None:
        """Replace what is stored. The file is complete at every moment."""
        self._create_folder()
        _replace_file(self._file_path, credentials.model_dump_json(indent=2))

    def select_gateway(self, gateway_url: str) -> None:
        """Make this the gateway that later commands call by default."""
        self._create_folder()
        _replace_file(self._config_folder / "gateway", gateway_url)

    def _create_folder(self) -> None:
        try:
            self._config_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageInvalid(
                f"The folder {self._config_folder} cannot be made ({error.strerror}): sign in "
                "where there is a home folder,"
                " or set BYLINE_TOKEN."
            ) from error


def read_selected_gateway() -> str | None:
    """Return the gateway that somebody signed in to last, or None."""
    try:
        return parse_origin((_find_config_folder() / "gateway").read_text())
    except (OSError, ValueError):
        return None


def _find_config_folder() -> Path:
    return user_config_path("byline")


def _replace_file(file_path: Path, file_text: str) -> None:
    temporary_path = file_path.with_suffix(f".{os.getpid()}")
    with os.fdopen(
        os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
    ) as temporary_file:
        temporary_file.write(file_text)
    temporary_path.replace(file_path)
