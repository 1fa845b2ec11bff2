"""The token for calls to HashiCorp Vault: one that others renew, or one from a login of Byline's own."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized

from engine.errors import KeyServiceUnavailable
from engine.settings import AppRoleSettings, KubernetesSettings, TransitSettings

_OF_ITS_LEASE: Final = 0.8
_LOG_IN_AGAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Login:
    token: str
    over_at: float
    """In monotonic seconds, some time before the lease ends."""


class TransitToken:
    """Provides the token of one set of settings to any thread; raises KeyServiceUnavailable where there is none."""

    def __init__(self, settings: TransitSettings) -> None:
        self._settings = settings
        self._turn = Lock()
        self._login: _Login | None = None
        self._replaced_at = float("-inf")

    def current(self, client: Any) -> str:
        """Return the token to call with; `vault_client` logs in first where that is due."""
        way = self._settings.login
        if way is None:
            return self._given()
        with self._turn:
            if self._login is None or time.monotonic() >= self._login.over_at:
                self._login = self._logged_in(client, way)
            return self._login.token

    def instead_of(self, refused: str, client: Any) -> str | None:
        """Return another token than the one that Vault refused, or None where another login would not help.

        It would not help where others renew the token, nor within 30 seconds of a login that replaced a refused token:
        Vault keeps a lease of each login, and a policy that lacks the key refuses them all.
        """
        way = self._settings.login
        if way is None:
            return None
        with self._turn:
            if self._login is None or self._login.token == refused:
                at = time.monotonic()
                if at < self._replaced_at + _LOG_IN_AGAIN_SECONDS:
                    return None
                self._login, self._replaced_at = self._logged_in(client, way), at
            return self._login.token

    def _given(self) -> str:
        token, file = self._settings.token, self._settings.token_file
        if file is not None:
            return _read(file)
        return "" if token is None else token.get_secret_value()

    def _logged_in(self, client: Any, way: AppRoleSettings | KubernetesSettings) -> _Login:
        begun = time.monotonic()
        if isinstance(way, AppRoleSettings):
            name, see_to = "AppRole", "see that the role id and the secret id are in force"
            login = client.auth.approle.login
            shown = {"role_id": way.role_id, "secret_id": way.secret_id.get_secret_value()}
        else:
            name, see_to = "Kubernetes", f"see that the role '{way.role}' takes this service account"
            login = client.auth.kubernetes.login
            shown = {"role": way.role, "jwt": _read(way.jwt_file)}
        try:
            answer = login(**shown, use_token=False, mount_point=way.mount)["auth"]
        except (Forbidden, InvalidPath, InvalidRequest, Unauthorized) as error:
            refused = f"Vault at {self._settings.address} refuses the {name} login at auth/{way.mount}"
            raise KeyServiceUnavailable(f"{refused} ({type(error).__name__}): {see_to}.") from None
        # A lease of length 0 does not end.
        lease = float(answer["lease_duration"]) or float("inf")
        return _Login(str(answer["client_token"]), begun + lease * _OF_ITS_LEASE)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise KeyServiceUnavailable(
            f"{file} cannot be read ({type(error).__name__}), and Vault asks for what it holds."
        ) from None
