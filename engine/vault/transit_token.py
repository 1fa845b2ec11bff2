"""The token for calls to HashiCorp Vault: one that others renew, or one from a login of Byline's own."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest, Unauthorized

from engine.errors import KeyServiceUnavailable
from engine.settings import AppRoleSettings, KubernetesSettings, TransitSettings

_LEASE_FRACTION: Final = 0.8
_LOGIN_RETRY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _VaultLogin:
    vault_token: str
    expires_at_seconds: float
    """In monotonic seconds, some time before the lease ends."""


class TransitToken:
    """Provides the token of one set of settings to any thread; raises KeyServiceUnavailable where there is none."""

    def __init__(self, settings: TransitSettings) -> None:
        self._settings = settings
        self._login_lock = Lock()
        self._vault_login: _VaultLogin | None = None
        self._replaced_at_seconds = float("-inf")

    def get_token(self, vault_client: Any) -> str:
        """Return the token to call with; `vault_client` logs in first where that is due."""
        login_settings = self._settings.vault_login
        if login_settings is None:
            return self._read_configured_token()
        with self._login_lock:
            if self._vault_login is None or time.monotonic() >= self._vault_login.expires_at_seconds:
                self._vault_login = self._log_in(vault_client, login_settings)
            return self._vault_login.vault_token

    def replace_token(self, refused_token: str, vault_client: Any) -> str | None:
        """Return another token than the one that Vault refused, or None where another login would not help.

        It would not help where others renew the token, nor within 30 seconds of a login that replaced a refused token:
        Vault keeps a lease of each login, and a policy that lacks the key refuses them all.
        """
        login_settings = self._settings.vault_login
        if login_settings is None:
            return None
        with self._login_lock:
            if self._vault_login is None or self._vault_login.vault_token == refused_token:
                now_seconds = time.monotonic()
                if now_seconds < self._replaced_at_seconds + _LOGIN_RETRY_SECONDS:
                    return None
                self._vault_login, self._replaced_at_seconds = (
                    self._log_in(vault_client, login_settings),
                    now_seconds,
                )
            return self._vault_login.vault_token

    def _read_configured_token(self) -> str:
        configured_token, token_file = self._settings.token, self._settings.token_file
        if token_file is not None:
            return _read_file(token_file)
        return "" if configured_token is None else configured_token.get_secret_value()

    def _log_in(self, vault_client: Any, login_settings: AppRoleSettings | KubernetesSettings) -> _VaultLogin:
        begun_at_seconds = time.monotonic()
        if isinstance(login_settings, AppRoleSettings):
            method_name, remedy = "AppRole", "see that the role id and the secret id are in force"
            call_login = vault_client.auth.approle.login
            credentials = {
                "role_id": login_settings.role_id,
                "secret_id": login_settings.secret_id.get_secret_value(),
            }
        else:
            method_name, remedy = (
                "Kubernetes",
                f"see that the role '{login_settings.role}' takes this service account",
            )
            call_login = vault_client.auth.kubernetes.login
            credentials = {"role": login_settings.role, "jwt": _read_file(login_settings.jwt_file)}
        try:
            auth_response = call_login(**credentials, use_token=False, mount_point=login_settings.mount)[
                "auth"
            ]
        except (Forbidden, InvalidPath, InvalidRequest, Unauthorized) as error:
            refusal_text = (
                f"Vault at {self._settings.address} refuses the {method_name} login at "
                f"auth/{login_settings.mount}"
            )
            raise KeyServiceUnavailable(f"{refusal_text} ({type(error).__name__}): {remedy}.") from None
        # A lease of length 0 does not end.
        lease_seconds = float(auth_response["lease_duration"]) or float("inf")
        return _VaultLogin(
            str(auth_response["client_token"]), begun_at_seconds + lease_seconds * _LEASE_FRACTION
        )


def _read_file(file_path: Path) -> str:
    try:
        return file_path.read_text().strip()
    except OSError as error:
        raise KeyServiceUnavailable(
            f"{file_path} cannot be read ({type(error).__name__}), and Vault asks for what it holds."
        ) from None
